"""What a preference loss would do to pairs: naive gradients, real steps and planted truths."""

import re
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import peft
import pytest
import torch
from scipy import stats

import nets
from driftlens.diagnostics import (
    CapabilityConflict,
    Entanglement,
    EntanglementByLayer,
    EntanglementByPosition,
    PreferenceFacts,
    PreferenceLosses,
)
from driftlens.diagnostics import entanglement as module
from driftlens.errors import DriftlensError
from driftlens.formulas.intervals import wilson
from driftlens.formulas.preferences import DPO, IPO, LOSSES, NPO, Answers, SimPO
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack
from driftlens.results import load, same, save

SETS = (
    ("The clock of Tolmar", " strikes nine.", " sells cheese and bread."),
    ("Mira", " sells cheese.", " sells stones, 12 of them."),
    ("Seven boats left", " Kestby.", " Kestby, and nobody asked why."),
    ("naïve", " 日本", " is not here."),
    ("one two three four", " five six seven", " five six eight"),
    ("A bell,", " a bell!", " I do."),
)
NUMBERS = (0, 1, 2, 5, 7, 8)
"""Of the pairs in their file, from which some were left out."""

EXACT = 1e-9
"""Sums of float64 in another order."""

READ = 2e-6
"""Log-probabilities are read in float32, and pulls are functions of them."""


def preferences(sets=SETS, numbers=NUMBERS, name="pairs"):
    examples = [
        Example(prompt + answer, (len(prompt), len(prompt + answer)), number, role)
        for number, (prompt, *answers) in zip(numbers, sets, strict=False)
        for role, answer in zip(("chosen", "rejected"), answers, strict=True)
    ]
    return Pack(name, "preference", examples)


def hooked(net, name="net"):
    return HookedModel(net, nets.tokenizer(), name)


@cache
def exact():
    """A reference and a model to be trained, in float64."""
    net = nets.net("llama").double()
    return ModelPair(hooked(nets.net("llama", 1).double(), "reference"), hooked(net, "model"))


# The naive way


def scored(text, start):
    """Ids of a text and the places of its answer's tokens."""
    row = nets.tokenizer()(text, return_offsets_mapping=True)
    ends = np.array([end for _, end in row["offset_mapping"]])
    return torch.tensor([row["input_ids"]]), np.flatnonzero(ends > start)


def likelihood(net, text, start=0):
    """Log-likelihood of what follows the first `start` characters, and its tokens."""
    ids, places = scored(text, start)
    rows = net(ids).logits[0, places - 1].log_softmax(-1)
    return rows[torch.arange(len(places)), ids[0, places]].sum(), len(places)


def read(net, text, start=0):
    """`likelihood` as a number."""
    with torch.no_grad():
        return float(likelihood(net, text, start)[0])


def gradient(net, text, start=0, only=""):
    """By name of parameter, of `likelihood`."""
    named = {name: p for name, p in net.named_parameters() if only in name}
    for parameter in named.values():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        found = torch.autograd.grad(
            likelihood(net, text, start)[0], list(named.values()), allow_unused=True
        )
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def dot(a, b, holds=lambda name: True):
    return sum(float((a[name] * b[name]).sum()) for name in a if holds(name))


def flat(found):
    return torch.cat([g.reshape(-1) for g in found.values()]).numpy()


def of_pairs(net, only="", sets=SETS):
    """[pair] gradients of chosen and rejected, by parameter."""
    return [
        tuple(gradient(net, prompt + answer, len(prompt), only) for answer in answers)
        for prompt, *answers in sets
    ]


def answers_of(pair, sets=SETS):
    """The pairs as losses see them, by the models themselves."""
    rows = []
    with torch.no_grad():
        for prompt, *ends in sets:
            for model in (pair.aligned, pair.base):
                rows += [likelihood(model.net, prompt + end, len(prompt)) for end in ends]
    column = [torch.tensor([float(x[0]) for x in rows[i::4]]).double() for i in range(4)]
    lengths = [torch.tensor([float(x[1]) for x in rows[i::4]]).double() for i in range(2)]
    return Answers(column[0], column[1], *lengths, column[2], column[3])


@cache
def naive():
    """ww, wl and ll of every pair, from whole gradients."""
    both = of_pairs(exact().aligned.net)
    return np.array([[dot(w, w), dot(w, l_), dot(l_, l_)] for w, l_ in both]).T


def found_by(metric, pair=None, pack=None, **how):
    return measure(pair or exact(), pack or preferences(), [metric], **how)[0]


# Pairs


def own(answers):
    """A loss of one's own, of sums and lengths."""
    return (answers.rejected - 2 * answers.chosen) / answers.chosen_length


def pulls_of(loss, a):
    """d_w and d_l in closed form."""
    if isinstance(loss, DPO):
        margin = a.chosen - a.rejected - (a.reference_chosen - a.reference_rejected)
        pull = loss.beta * torch.sigmoid(-loss.beta * margin)
        return pull, pull
    if isinstance(loss, IPO):
        margin = a.chosen - a.rejected - (a.reference_chosen - a.reference_rejected)
        pull = 2 * (1 / (2 * loss.tau) - margin)
        return pull, pull
    if isinstance(loss, SimPO):
        means = a.chosen / a.chosen_length - a.rejected / a.rejected_length
        pull = loss.beta * torch.sigmoid(loss.gamma - loss.beta * means)
        return pull / a.chosen_length, pull / a.rejected_length
    return 2 / a.chosen_length, 1 / a.chosen_length


@pytest.mark.parametrize("loss", [DPO(), DPO(beta=0.5), IPO(), SimPO(), own])
def test_every_number_of_a_pair_is_that_of_whole_gradients(loss):
    found = found_by(Entanglement(loss), rows=4)
    ww, wl, ll = naive()
    answers = answers_of(exact())
    d_w, d_l = (d.numpy() for d in pulls_of(loss, answers))
    columns = found.columns()
    expected = {
        "pair": NUMBERS,
        "inner": wl,
        "cosine": wl / np.sqrt(ww * ll),
        "chosen_norm": np.sqrt(ww),
        "rejected_norm": np.sqrt(ll),
        "d_chosen": d_w,
        "d_rejected": d_l,
        "predicted_chosen": d_w * ww - d_l * wl,
        "predicted_rejected": d_w * wl - d_l * ll,
        "chosen_logp": answers.chosen,
        "rejected_logp": answers.rejected,
        "chosen_length": answers.chosen_length,
        "rejected_length": answers.rejected_length,
    }
    size = {"predicted_chosen": d_w * ww, "predicted_rejected": d_l * ll}
    for name, rows in expected.items():
        # What cancels in a rate is right to what its larger term is right to.
        room = READ * np.abs(size.get(name, np.asarray(rows)))
        if name in ("pair", "inner", "cosine", "chosen_norm", "rejected_norm"):
            room = EXACT * np.abs(np.asarray(rows))
        assert (np.abs(columns[name] - np.asarray(rows)) <= room).all(), name
    up, down = expected["predicted_chosen"] > 0, expected["predicted_rejected"] < 0
    named = np.where(up & down, "ideal", np.where(down, "both_down", "both_up"))
    assert columns["case"].tolist() == np.where(~up & ~down, "reversed", named).tolist()
    assert found.cosine.value == pytest.approx(expected["cosine"].mean(), rel=EXACT)
    for case in ("ideal", "both_down", "both_up", "reversed"):
        share = getattr(found, f"case_{case}")
        count = int((columns["case"] == case).sum())
        assert share.value == pytest.approx(count / len(SETS))
        assert tuple(share) == pytest.approx(tuple(map(float, wilson(count, len(SETS)))), abs=1e-15)
        assert 0 <= share.low <= share.high <= 1


def test_several_cases_are_among_the_pairs():
    # Else the test above would prove little.
    assert len({*found_by(Entanglement(NPO())).case} | {*found_by(Entanglement(own)).case}) > 1


def test_the_band_is_left_on_the_side_on_which_an_answer_goes_wrong():
    found = found_by(Entanglement(own))
    np.testing.assert_array_equal(found.band < 0, found.predicted_chosen_of_pair < 0)
    np.testing.assert_array_equal(found.band > 0, found.predicted_rejected_of_pair > 0)


def stepped(net, loss, reference, prompt, ends, eta):
    """The net after one step of plain SGD on the loss of one pair, by its own backward pass."""
    net = deepcopy(net)
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        (chosen, n), (rejected, m) = (likelihood(net, prompt + e, len(prompt)) for e in ends)
        sides = chosen[None], rejected[None], torch.tensor([n * 1.0]), torch.tensor([m * 1.0])
        loss(Answers(*sides, *reference)).sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter -= eta * parameter.grad
    return net


@cache
def fine():
    """A pair that keeps float64 throughout; a Llama's norms compute in float32."""
    return ModelPair(*(hooked(nets.net("gpt2", seed).double()) for seed in (1, 0)))


@pytest.mark.parametrize("loss", [DPO(), SimPO(), IPO(), own])
@pytest.mark.parametrize("number", [0, 4])
def test_one_real_step_of_sgd_does_what_was_predicted(loss, number):
    found = found_by(Entanglement(loss), fine(), rows=4)
    rates = [
        column[number]
        for column in (found.predicted_chosen_of_pair, found.predicted_rejected_of_pair)
    ]
    prompt, *ends = SETS[number]
    net = fine().aligned.net
    answers = answers_of(fine())
    reference = answers.reference_chosen[[number]], answers.reference_rejected[[number]]
    before = [read(net, prompt + end, len(prompt)) for end in ends]
    errors = []
    for size in (1e-2, 1e-3):
        eta = size / max(map(abs, rates))
        after = stepped(net, loss, reference, prompt, ends, eta)
        moved = [
            (read(after, prompt + end, len(prompt)) - was) / eta
            for end, was in zip(ends, before, strict=True)
        ]
        off = np.abs(np.subtract(moved, rates)) / max(map(abs, rates))
        errors.append(off)
    # What is left is of the order of the step.
    assert np.max(errors[0]) < 0.02
    np.testing.assert_allclose(np.divide(*errors), 10, rtol=0.2)


def test_the_trained_weights_alone_count():
    def name(pattern):
        return found_by(Entanglement(trained=pattern), rows=2).inner

    for pattern, only in ((("model.layers.2.*",), "layers.2."), (("*q_proj*", "*norm*"), None)):
        both = of_pairs(exact().aligned.net)
        holds = (lambda n, o=only: o in n) if only else (lambda n: "q_proj" in n or "norm" in n)
        np.testing.assert_allclose(
            name(pattern), [dot(w, l_, holds) for w, l_ in both], rtol=1e-8, atol=1e-10
        )


# peft asks transformers for an attribute by a name that is about to go.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_entangled_by_its_own_weights():
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    live = peft.get_peft_model(nets.net("llama"), config)
    live = nets.moved(live, 0.1, 3, "lora_").eval().double()
    model = hooked(live)
    found = found_by(Entanglement(trained=("*lora_*",)), ModelPair(model, model))
    both = of_pairs(live, "lora_")
    three = np.array([[dot(w, w), dot(w, l_), dot(l_, l_)] for w, l_ in both]).T
    np.testing.assert_allclose(found.chosen_norm**2, three[0], rtol=1e-8)
    np.testing.assert_allclose(found.inner, three[1], rtol=1e-8)
    np.testing.assert_allclose(found.rejected_norm**2, three[2], rtol=1e-8)
    assert found.trained == "*lora_*"


def test_two_answers_that_say_nearly_the_same_have_nearly_one_gradient():
    talk = "The river Alder runs through Belmark and the river Drift runs around it, they say"
    # The last token of many is another.
    pack = preferences([(".", f" {talk} so.", f" {talk} so!")])
    assert found_by(Entanglement(), pack=pack).cosine.value > 0.9
    # One text as both answers, which no set of pairs lets through.
    twice = replace(pack, examples=[pack.examples[0], replace(pack.examples[0], role="rejected")])
    found = found_by(Entanglement(), pack=twice)
    assert found.cosine.value == pytest.approx(1, abs=1e-12)
    assert abs(found.predicted_chosen.value) < 1e-9 * found.chosen_norm[0] ** 2


def test_a_model_that_is_its_own_reference_is_pulled_by_half_of_beta():
    model = exact().aligned
    found = found_by(Entanglement(DPO(beta=0.3)), ModelPair(model, model))
    np.testing.assert_array_equal(found.d_chosen, 0.15)
    np.testing.assert_array_equal(found.d_rejected, 0.15)


def test_a_gradient_that_is_nothing_is_told_of_with_its_pair():
    model = hooked(nets.net("llama"))
    with torch.no_grad():
        # No weight below has a say then.
        model.net.lm_head.weight.fill_(0.0)
    with pytest.raises(DriftlensError, match="gradients that are finite and not 0") as caught:
        found_by(Entanglement(trained=("model.layers.*",)), ModelPair(model, model), rows=2)
    found = re.search(r"squared norm 0 for the chosen answer of pair (\d)", caught.value.found)
    assert found
    assert int(found[1]) in NUMBERS


# By layer


def test_the_parts_of_layers_are_those_of_their_parameters_and_add_up():
    found = found_by(EntanglementByLayer(SimPO()), rows=4)
    whole = found_by(Entanglement(SimPO()), rows=4)
    assert found.chosen.sum() == pytest.approx(whole.predicted_chosen.value, rel=EXACT)
    assert found.rejected.sum() == pytest.approx(whole.predicted_rejected.value, rel=EXACT)
    assert found.inner.sum() == pytest.approx(whole.inner.mean(), rel=EXACT)
    for part, of in zip(found.predicted_chosen, whole.predicted_chosen, strict=True):
        assert part == pytest.approx(of, rel=EXACT)
    both = of_pairs(exact().aligned.net)
    seen = set()
    for row, (layer, component) in enumerate(zip(found.layer, found.component, strict=True)):
        names = [n for n in both[0][0] if place(n) == (layer, component)]
        assert names, (layer, component)
        seen |= {*names}
        ww, wl, ll = (
            np.array([dot(p[i], p[j], names.__contains__) for p in both])
            for i, j in ((0, 0), (0, 1), (1, 1))
        )
        cosine = wl / np.sqrt(ww * ll)
        assert found.cosine[row] == pytest.approx(cosine.mean(), rel=1e-8)
        assert found.inner[row] == pytest.approx(wl.mean(), rel=1e-8)
        rates = whole.d_chosen * ww - whole.d_rejected * wl
        assert found.chosen[row] == pytest.approx(rates.mean(), rel=1e-8)
    assert seen == {*both[0][0]}


def place(name):
    """Layer and component of a Llama's parameter, by its name."""
    parts = name.split(".")
    if parts[1] == "layers":
        # A norm counts with what reads it.
        return parts[2], "mlp" if parts[3] in ("mlp", "post_attention_layernorm") else "attn"
    if "embed" in name:
        return "embed", "embed"
    return "head", "norm" if "norm" in name else "unembed"


# By token


def test_the_map_of_a_pair_adds_up_to_its_product_and_names_its_tokens():
    found = found_by(EntanglementByPosition(), rows=4)
    ww, wl, ll = naive()
    words = nets.tokenizer()
    size = inside = 0.0
    for number, (prompt, *ends), inner in zip(NUMBERS, SETS, wl, strict=True):
        mine = found.pair == number
        # The map is summed in float32.
        scale = np.abs(found.product[mine]).sum()
        assert found.product[mine].sum() == pytest.approx(inner, abs=1e-5 * scale)
        size += scale
        rows = [words(prompt + end, return_offsets_mapping=True) for end in ends]
        places = found.chosen_position[mine], found.rejected_position[mine]
        assert mine.sum() == len(rows[0]["input_ids"]) * len(rows[1]["input_ids"])
        starts = [scored(prompt + end, len(prompt))[1][0] for end in ends]
        both = (places[0] < starts[0]) & (places[1] < starts[1])
        inside += np.abs(found.product[mine][both]).sum()
        tokens = found.chosen_token[mine], found.rejected_token[mine]
        for row, end, here, named in zip(rows, ends, places, tokens, strict=True):
            text = prompt + end
            for position, token in zip(here, named, strict=True):
                start, stop = row["offset_mapping"][position]
                assert token == (text[start:stop] if stop else "<s>")
    assert tuple(found.placed) == (1, 1, 1)
    assert found.in_prompt.value == pytest.approx(inside / size, rel=1e-9)
    assert 0 < found.in_answers.value < 1 - found.in_prompt.value
    order = list(dict.fromkeys(found.pair.tolist()))
    alike = dict(zip(NUMBERS, np.abs(wl / np.sqrt(ww * ll)), strict=True))
    assert order == sorted(NUMBERS, key=lambda number: -alike[number])


def test_of_a_long_pair_the_largest_products_are_kept_and_a_pair_is_kept_whole(monkeypatch):
    every = found_by(EntanglementByPosition())
    monkeypatch.setattr(module, "OF_ONE", 20)
    monkeypatch.setattr(module, "CELLS", 50)
    few = found_by(EntanglementByPosition())
    assert [(few.pair == p).sum() for p in dict.fromkeys(few.pair)] == [20, 20]
    for number in dict.fromkeys(few.pair):
        sizes = np.sort(np.abs(every.product[every.pair == number]))[-20:]
        np.testing.assert_allclose(np.sort(np.abs(few.product[few.pair == number])), sizes)
    assert few.notes == ("Of 6 long pairs the table holds the 20 largest products at most.",)
    assert few.in_prompt == every.in_prompt
    assert few.figure() is not None


def test_a_picture_has_room_for_no_more_than_32_tokens():
    long = " ".join(["bell"] * 50)
    found = found_by(EntanglementByPosition(), pack=preferences([("A", f" {long}.", f" {long}!")]))
    panel = found.figure().axes[0]
    assert panel.images[0].get_array().shape == (32, 32)


# Losses


def test_the_loss_asked_for_comes_first_and_is_measured_as_alone():
    found, alone = found_by(PreferenceLosses(SimPO(beta=5))), found_by(Entanglement(SimPO(beta=5)))
    assert found.loss[0] == "simpo (beta 5, gamma 0.5)"
    assert len(found.loss) == len(LOSSES)
    assert sum("simpo" in loss for loss in found.loss) == 1
    for case in ("ideal", "both_down", "both_up"):
        assert getattr(found, case)[0] == getattr(alone, f"case_{case}").value
    assert (found.ideal_low[0], found.ideal_high[0]) == tuple(alone.case_ideal)[1:]


def test_another_loss_is_as_if_measured_with_it():
    found = found_by(PreferenceLosses())
    for name, kind in LOSSES.items():
        row = [loss.split(" (")[0] for loss in found.loss].index(name)
        alone = found_by(Entanglement(kind()))
        assert found.ideal[row] == alone.case_ideal.value, name
        assert found.both_down[row] == alone.case_both_down.value, name
        total = found.ideal + found.both_down + found.both_up + found.other
        assert total[row] == pytest.approx(1)
        # The length of a step is that of d_w g_w − d_l g_l.
        d_w, d_l = alone.d_chosen, alone.d_rejected
        ww, wl, ll = naive()
        step = np.sqrt(d_w**2 * ww - 2 * d_w * d_l * wl + d_l**2 * ll)
        expected = (alone.predicted_chosen_of_pair / step).mean()
        assert found.chosen[row] == pytest.approx(expected, rel=1e-9), name
    assert found.best.value == found.ideal.max()


def test_a_loss_of_ones_own_is_called_by_its_name():
    assert found_by(PreferenceLosses(own)).loss[0] == "own"
    assert found_by(Entanglement(own)).loss == "own"


# Facts


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_facts_are_those_of_the_answers_and_the_states(family):
    nets_ = [nets.net(family, seed).double() for seed in (1, 0)]
    pair = ModelPair(*(hooked(net) for net in nets_))
    found = found_by(PreferenceFacts(loss=DPO(beta=2.0)), pair, rows=4)
    a = answers_of(pair)
    assert found.ranked_right.value == pytest.approx((a.chosen > a.rejected).double().mean())
    mean_w, mean_l = a.chosen / a.chosen_length, a.rejected / a.rejected_length
    assert found.ranked_right_by_mean.value == pytest.approx((mean_w > mean_l).double().mean())
    reach = np.log(0.999 / 0.001) / 2.0
    best = (a.reference_chosen - a.reference_rejected + reach > 0).double().mean()
    assert found.ranked_at_best.value == pytest.approx(float(best))
    longer = a.chosen_length > a.rejected_length
    assert found.longer.value == pytest.approx(longer.double().mean())
    bias = stats.spearmanr(a.chosen_length - a.rejected_length, a.chosen - a.rejected).statistic
    assert found.length_bias.value == pytest.approx(bias)
    sums = []
    for prompt, *ends in SETS:
        means = []
        for end in ends:
            ids, places = scored(prompt + end, len(prompt))
            with torch.no_grad():
                states = nets_[1](ids, output_hidden_states=True).hidden_states[-1][0]
            means.append(states[places - 1].mean(0))
        sums.append(float(means[0] @ means[1] - means[0] @ means[0]))
    assert found.displacement.value == pytest.approx(np.mean(sums), rel=1e-9)
    assert (found.beta, found.read) == (2.0, len(SETS))


def test_faults_are_told_with_how_many_were_left_out():
    faults = {"identical": (2, 2, "The same. Pair 3: as given"), "no_end": (6, 0, "Open. Pair 0")}
    found = found_by(PreferenceFacts(faults))
    assert found.fault.tolist() == ["identical", "no_end"]
    assert (found.pairs.tolist(), found.left_out.tolist()) == ([2, 6], [2, 0])
    assert "faults left 2 out" in found.summary()


# What it would cost


TEXTS = nets.pack(nets.TEXTS[:4])


def conflict(loss=DPO(), texts=TEXTS, pair=None, pack=None, **how):  # noqa: B008
    return found_by(CapabilityConflict(texts, loss, **how), pair, pack, rows=4)


@pytest.mark.parametrize("loss", [DPO(), SimPO()])
def test_what_it_would_cost_is_that_of_whole_gradients(loss):
    found = conflict(loss)
    net = exact().aligned.net
    d_w, d_l = (d.numpy() for d in pulls_of(loss, answers_of(exact())))
    both = of_pairs(net)
    texts = [gradient(net, text) for text in nets.TEXTS[:4]]
    tokens = sum(likelihood(net, text)[1] for text in nets.TEXTS[:4])
    steps = np.stack([d_w[i] * flat(w) - d_l[i] * flat(l_) for i, (w, l_) in enumerate(both)])
    apart = np.stack([flat(w) - flat(l_) for w, l_ in both])
    span = np.stack([flat(text) for text in texts])
    margins = (steps * apart).sum(1)
    rise = -(steps @ span.sum(0)) / tokens
    assert found.rise.value == pytest.approx(rise.sum() / margins.sum(), rel=READ)
    basis = np.linalg.qr(span.T)[0]
    share = ((steps @ basis) ** 2).sum(1) / (steps**2).sum(1)
    assert found.share.value == pytest.approx(share.mean(), rel=1e-6)
    assert found.chance.value == pytest.approx(4 / span.shape[1])
    assert found.harmful.value == pytest.approx((rise > 0).mean())
    assert found.rise_by.sum() == pytest.approx(found.rise.value, rel=1e-9)
    names = list(both[0][0])
    sizes = {name: both[0][0][name].numel() for name in names}
    owners = np.concatenate([[place(name)] * sizes[name] for name in names])
    for row, key in enumerate(zip(found.layer, found.component, strict=True)):
        mine = (owners == np.array(key)).all(1)
        part = -(steps[:, mine] @ span[:, mine].sum(0)) / tokens
        expected = part.sum() / margins.sum()
        assert found.rise_by[row] == pytest.approx(expected, rel=READ, abs=READ * abs(rise).max())
        assert found.chance_by[row] == pytest.approx(min(1, 4 / mine.sum()))
        own_basis = np.linalg.qr(span[:, mine].T)[0]
        inside = ((steps[:, mine] @ own_basis) ** 2).sum(1) / (steps[:, mine] ** 2).sum(1)
        assert found.share_by[row] == pytest.approx(inside.mean(), rel=1e-5)
    assert (found.texts, found.pairs, found.capability) == (4, len(SETS), "texts")


def test_a_text_that_is_the_rejected_answer_gets_worse_and_the_chosen_one_better():
    prompt, chosen, rejected = SETS[0]
    pack = preferences(SETS[:1])
    model = exact().aligned
    pair = ModelPair(model, model)
    for end, sign in ((rejected, 1), (chosen, -1)):
        whole = prompt + end
        text = Example(whole, (len(prompt), len(whole)))
        found = conflict(texts=Pack("mine", "text", [text]), pack=pack, pair=pair)
        alone = found_by(Entanglement(), pair, pack)
        case, column = {
            1: ("rejected", alone.predicted_rejected_of_pair),
            -1: ("chosen", alone.predicted_chosen_of_pair),
        }[sign]
        assert column[0] * sign < 0, f"the step moves the {case} answer as planted"
        tokens = getattr(alone, f"{case}_length")[0]
        margin = alone.predicted_chosen_of_pair[0] - alone.predicted_rejected_of_pair[0]
        assert found.rise.value == pytest.approx(-column[0] / tokens / margin, rel=1e-9)
        assert found.rise.value * sign > 0


def test_texts_and_pairs_are_taken_evenly_and_no_more_than_asked():
    few = conflict(count=2, limit=3)
    assert (few.texts, few.pairs) == (2, 3)
    assert few.chance.value == pytest.approx(conflict(count=4).chance.value / 2)


def test_what_it_would_cost_is_asked_of_the_trained_weights_alone():
    found = conflict(trained=("model.layers.1.mlp.*",))
    assert {*zip(found.layer, found.component, strict=True)} == {("1", "mlp")}
    assert found.rise.value == pytest.approx(found.rise_by[0])


# Laws


def everything():
    return [
        Entanglement(),
        EntanglementByLayer(),
        EntanglementByPosition(),
        PreferenceFacts(),
        PreferenceLosses(),
        CapabilityConflict(TEXTS),
    ]


@cache
def single():
    return nets.pair("llama")


def close(ours, theirs, atol=2e-4):
    for a, b in zip(ours, theirs, strict=True):
        left, right = a.columns(), b.columns()
        assert left.keys() == right.keys()
        for name, rows in left.items():
            if rows.dtype.kind in "if":
                scale = max(1.0, np.nanmax(np.abs(rows), initial=0))
                np.testing.assert_allclose(rows / scale, right[name] / scale, atol=atol)
        for name, value in a.estimates().items():
            np.testing.assert_allclose(value, b.estimates()[name], rtol=20 * atol, atol=atol)


def test_the_size_of_a_batch_does_not_matter():
    two, eight = (measure(single(), preferences(), everything(), rows=rows) for rows in (2, 8))
    close(two, eight)


def test_where_a_pair_stands_in_its_pack_does_not_matter():
    pack = preferences()
    order = np.random.default_rng(0).permutation(len(pack.examples))
    mixed = replace(pack, examples=[pack.examples[i] for i in order])
    kinds = (Entanglement, EntanglementByLayer, PreferenceFacts, PreferenceLosses)
    ours, theirs = (measure(exact(), p, [kind() for kind in kinds], rows=4) for p in (pack, mixed))
    assert sorted(ours[0].inner.round(9)) == sorted(theirs[0].inner.round(9))
    assert {*zip(ours[0].pair, ours[0].inner.round(9), strict=True)} == {
        *zip(theirs[0].pair, theirs[0].inner.round(9), strict=True)
    }
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        for name, value in a.estimates().items():
            # The bootstrap draws by place.
            assert value.value == pytest.approx(b.estimates()[name].value, rel=1e-9), name
    maps = [found_by(EntanglementByPosition(), pack=p) for p in (pack, mixed)]
    for name in ("pair", "chosen_token", "rejected_token"):
        assert getattr(maps[0], name).tolist() == getattr(maps[1], name).tolist()
    one, other = (conflict(pack=p, limit=99) for p in (pack, mixed))
    assert one.rise.value == pytest.approx(other.rise.value, rel=1e-9)


def test_a_run_short_of_memory_never_parts_a_pair(monkeypatch):
    whole = measure(single(), preferences(), everything(), rows=12)
    trace, seen = HookedModel.trace, []

    def tight(self, batch, *arguments):
        seen.append(len(batch.ids))
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return trace(self, batch, *arguments)

    monkeypatch.setattr(HookedModel, "trace", tight)
    close(measure(single(), preferences(), everything(), rows=12), whole)
    assert {*seen} == {12, 6, 2, 4}


def test_two_answers_that_do_not_fit_are_an_error_that_says_so(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(HookedModel, "trace", full)
    with pytest.raises(DriftlensError, match="memory for the two answers of a pair of"):
        measure(single(), preferences(), [Entanglement()], rows=12)


def test_what_was_found_survives_the_store_and_says_what_it_is(tmp_path):
    for found in measure(single(), preferences(), everything()):
        assert same(load(save(found, tmp_path / found.kind)), found)
        assert found.summary().endswith(".")
        if found.kind != "preference_facts":
            assert found.figure() is not None
        assert found.alt()


@pytest.mark.parametrize("metric", everything(), ids=lambda metric: type(metric).__name__)
def test_only_a_pack_of_pairs_is_asked(metric):
    assert metric.fits(single().encoder(preferences()))
    assert not metric.fits(single().encoder(nets.pack(nets.TEXTS)))
