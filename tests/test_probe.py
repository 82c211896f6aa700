"""Probes that are kept: planted truth, other ways to the same numbers, and whose they are."""

import json
import runpy
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

import nets
from driftlens import cli
from driftlens.errors import DriftlensError, LoadError
from driftlens.estimators import (
    CCS,
    LogisticProbe,
    PolarityCCS,
    esa,
    polarity_of,
    published_split,
)
from driftlens.models import ModelPair, Site, Wants
from driftlens.models.fingerprint import fingerprint
from driftlens.models.hooks import HookedModel
from driftlens.packs import MARKER, Pack, names
from driftlens.probe import METHODS, Options, TrainedProbes, train
from driftlens.probe.asked import Asked, Twins, folds_of, refuse_others
from driftlens.probe.training import _held_out

QUICK = {"restarts": 2, "steps": 100}
NOUNS = ("clock", "river", "bell", "boat", "cheese", "night")
TOWNS = ("Tolmar", "Kestby", "Belmark")
PAIRS = [(noun, town) for town in TOWNS for noun in NOUNS]
FORMS = 'forms = [["verdict", "{} Yes.", "{} No."], ["said", "So {} I do.", "Not so {} I do."]]'


def rows():
    """Statements that one word makes of their opposites."""
    found = []
    for number, (noun, town) in enumerate(PAIRS):
        for word, polarity in (("good", "positive"), ("bad", "negative")):
            statement = f"The {noun} of {town} is {word}."
            found.append({"pair_id": number, "polarity": polarity, "statement": statement})
    return found


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text(lines(rows()))
    return Pack.read(file)


@pytest.fixture(scope="module")
def two_forms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "mine"
    folder.mkdir()
    (folder / "card.toml").write_text(f'kind = "contrast"\nlower = true\n{FORMS}\n')
    (folder / "examples.jsonl").write_text(lines(rows()))
    return Pack.load(folder)


class Planted(HookedModel):
    """A model that knows after block 1, and not before, whether what was said is so."""

    def trace(self, batch, wants=Wants(), edits=None):
        both = batch.ids, batch.mask
        texts = [self.tokenizer.decode(ids[mask]) for ids, mask in zip(*both, strict=True)]
        # "Yes." to what is good and "No." to what is bad are so, in both forms.
        so = [("good" in t) == ("Yes" in t or "So" in t) for t in texts]
        size = torch.tensor(so).float() * 2 - 1

        def plant(stream):
            direction = torch.linspace(-1, 1, self.width).sign()
            return stream + 2 * size[:, None, None] * direction

        return super().trace(batch, wants, {Site(1): plant, **(edits or {})})


def planted():
    return Planted(nets.net("llama"), nets.tokenizer(), "planted")


@pytest.fixture(scope="module")
def model():
    return nets.model("llama")


@pytest.fixture(scope="module")
def probes(model, pack):
    """Probes of all layers, from two seeds."""
    return train(model, pack, Options(seeds=(0, 3), **QUICK))


# What is found


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_truth_is_found_where_it_stands(method, pack, two_forms):
    chosen = two_forms if method == "vinc" else pack
    found = train(planted(), chosen, Options(method=method, layers=frozenset({0, 1}), **QUICK))
    before, after = found.card["metrics"]
    assert found.best == 1
    assert before["esa"] < after["esa"] >= 0.95
    assert after["p_value"] < 0.01
    assert after["verdict"] == "strong"
    assert after["lexical_esa"] == 0.5
    said = found.apply(planted(), ["The knot is good.", "The knot is bad."])
    assert said.score[0] > 0.5 > said.score[1]


@pytest.mark.parametrize("method", ["pa-ccs", "difference-of-means"])
def test_what_is_said_to_be_positive_at_random_is_not_found(method, pack):
    drawn = np.random.default_rng(0).random(len(PAIRS)) < 0.5
    turn = {"positive": "negative", "negative": "positive"}
    examples = [replace(e, role=turn[e.role]) if drawn[e.group] else e for e in pack.examples]
    shuffled = replace(pack, examples=examples)
    found = train(planted(), shuffled, Options(method=method, layers=frozenset({1}), **QUICK))
    assert found.card["metrics"][0]["p_value"] > 0.05
    assert found.card["metrics"][0]["verdict"] == "none"


def test_what_is_judged_was_not_learnt_from():
    # Of noise in more dimensions than there are pairs, labels are learnt by heart.
    states = np.random.default_rng(0).normal(size=(1, 40, 2, 2, 200)).astype(np.float32)
    options = Options(method="logistic")
    tested = _held_out(states, np.arange(40), options, None)
    assert 0.3 < tested.polarity[0].esa < 0.7
    assert tested.p_values[0] > 0.05
    flat, labels = states[0].reshape(-1, 2, 200), np.tile([1, 0], 40)
    by_heart = LogisticProbe().fit(flat, labels).predict_proba(flat)[:, 1]
    assert esa(by_heart, labels) == 1


def test_pairs_of_one_family_are_learnt_from_or_judged_together(pack):
    families = [replace(e, family=e.group // 3) for e in pack.examples]
    twins = Twins.of(replace(pack, examples=families))
    assert twins.families.tolist() == [number // 3 for number in range(len(PAIRS))]
    folds = folds_of(twins.families, Options(folds=3)).reshape(-1, 3)
    assert (folds == folds[:, :1]).all()
    assert len(set(folds[:, 0].tolist())) == 3
    with pytest.raises(DriftlensError, match="at least 7 groups"):
        Asked.of(replace(pack, examples=families), Options(folds=7))


@pytest.mark.slow
def test_noise_is_called_polarity_no_more_often_than_said():
    # By a probe that has learnt from labels, which the test takes as given.
    random, options = np.random.default_rng(1), Options(method="difference-of-means")
    found = [
        _held_out(
            random.normal(size=(2, 20, 2, 2, 16)), np.arange(20), options, None
        ).p_values.min()
        for _ in range(200)
    ]
    # 5 % of 200 runs, and three standard errors of it.
    assert np.mean(np.array(found) < 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.slow
def test_the_demo_tells_good_deeds_from_bad_ones():
    pair = ModelPair.alone("demo:aligned", device="cpu")
    found = train(pair, Pack.load("deeds"), Options(restarts=3, steps=600))
    assert found.card["metrics"][found.best]["esa"] >= 0.9
    assert found.best > 0


# The same numbers by other ways


def by_hand(net, tokenizer, text, layer, token=-1):
    """What stands in a net after a block, by transformers' own account."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return net(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0, token]


def read(probes, layer, no, yes):
    """p of two states, from what lies in the folder alone."""
    number, tensors = probes.layers.index(layer), probes.tensors
    seed = probes.card["seeds"].index(probes.card["metrics"][number]["seed"])
    states = np.stack([no.numpy(), yes.numpy()])
    h = (states - tensors["offset"][number]) / tensors["scale"][number]
    return expit(h @ tensors["coef"][seed, number] + tensors["intercept"][seed, number])


@pytest.mark.parametrize("layer", [0, 1])
def test_a_probe_reads_what_stands_at_the_end_of_yes_and_of_no(layer, probes, model):
    texts = ["Ice is warm.", "Mira sells cheese and a bell to the boats of Kestby."]
    found = probes.apply(model, texts, layer=layer)
    for number, text in enumerate(texts):
        asked = (f"{text} {answer}." for answer in ("No", "Yes"))
        no, yes = (by_hand(model.net, model.tokenizer, one, layer) for one in asked)
        p = read(probes, layer, no, yes)
        assert found.p_no[number] == pytest.approx(p[0], abs=1e-5)
        assert found.p_yes[number] == pytest.approx(p[1], abs=1e-5)
        assert found.score[number] == pytest.approx((p[1] + 1 - p[0]) / 2, abs=1e-5)


def test_a_kept_probe_is_an_estimator_of_states(probes, model):
    text = "Ice is warm."
    states = [by_hand(model.net, model.tokenizer, f"{text} {a}.", 1) for a in ("No", "Yes")]
    fitted = probes.probe(1)
    assert isinstance(fitted, CCS)
    score = fitted.predict_proba(torch.stack(states)[None])[0, 1]
    assert score == pytest.approx(probes.apply(model, [text], layer=1).score[0], abs=1e-5)


def test_a_masked_model_is_read_at_its_first_token(pack):
    model = nets.model("bert")
    found = train(model, pack, Options(layers=frozenset({2}), **QUICK))
    assert found.card["token"] == "first token"
    asked = (f"Ice is warm. {answer}." for answer in ("No", "Yes"))
    no, yes = (by_hand(model.net, model.tokenizer, one, 2, token=0) for one in asked)
    p = read(found, 2, no, yes)
    said = found.apply(model, ["Ice is warm."])
    assert [said.p_no[0], said.p_yes[0]] == pytest.approx(p, abs=1e-5)


def test_it_does_not_matter_what_else_is_in_the_batch(probes, model):
    texts = ["I do.", "Seven boats left Kestby, and nobody asked why.", "A bell, a bell!"]
    together, alone = (probes.apply(model, texts, rows=rows) for rows in (6, 1))
    np.testing.assert_allclose(together.p_yes, alone.p_yes, atol=1e-5)
    np.testing.assert_allclose(together.p_no, alone.p_no, atol=1e-5)


def test_the_probe_of_all_pairs_is_the_estimators_own(probes, model, pack):
    twins = Twins.of(pack)
    asked = [
        [[by_hand(model.net, model.tokenizer, f"{one} {a}.", 1) for a in ("No", "Yes")]]
        for two in twins.statements
        for one in two
    ]
    states = torch.stack([torch.stack(one[0]) for one in asked]).reshape(len(PAIRS), 2, 2, -1)
    seed = probes.card["metrics"][1]["seed"]
    fitted = PolarityCCS(n_restarts=2, steps=100, random_state=seed).fit(states)
    number = probes.card["seeds"].index(seed)
    np.testing.assert_allclose(probes.tensors["coef"][number, 1], fitted.coef_, atol=1e-2)
    assert probes.card["metrics"][1]["least_loss"] == pytest.approx(fitted.loss_, abs=1e-4)
    # The rows of a series are what the same probe makes of the same states.
    row = probes.monitor([model], pack, layers=[1])[0]
    judged = polarity_of(probes.probe(1), states)
    assert row["esa"] == judged.esa
    assert row["pc"] == pytest.approx(judged.pc.mean(), abs=1e-5)
    assert row["ci"] == pytest.approx(judged.ci.mean(), abs=1e-5)
    assert row["auroc"] == pytest.approx(judged.auroc, abs=1e-5)


def test_the_published_way_is_their_split_and_their_medians(model, pack):
    found = train(model, pack, Options(mode="published", layers=frozenset({1}), **QUICK))
    learnt, judged = published_split(len(PAIRS))
    card = found.card
    assert (card["learnt_from"], card["normalize"]) == (len(learnt), "median")
    assert card["judged_on"].startswith(f"{len(judged)} pairs by the published split")
    assert card["orientation"].startswith("None")
    assert card["metrics"][0]["esa"] >= 0.5
    # Statements of the second half of the list, all positive, are learnt from where they say so.
    pairs = {pair for pair, _ in card["pack"]["pairs"]}
    assert pairs == {int(place) % len(PAIRS) for place in learnt}
    assert found.apply(model, ["Ice is warm."]).score.shape == (1,)


# In which words


@pytest.mark.parametrize("name", [n for n in names() if Pack.load(n).kind == "contrast"])
def test_statements_are_put_as_the_shipped_packs_put_them(name):
    pack = Pack.load(name)
    twins = Twins.of(pack)
    for form in {example.form for example in pack.examples} - {MARKER}:
        asked = Asked.of(pack, Options("crc", form=(form,)))
        refuse_others(pack, asked, twins)
        text = asked.texts(twins.statements[0][0])[1]
        assert text in {example.text for example in pack.examples if example.form == form}


def test_another_form_is_another_text(model, two_forms):
    found = train(model, two_forms, Options("crc", form=("said",)))
    told = found.asked.texts("The bell rings.")
    assert told == ["Not so the bell rings. I do.", "So the bell rings. I do."]


# What is kept


def test_a_folder_holds_the_probes_bit_for_bit(probes, model, tmp_path):
    again = TrainedProbes.load(probes.save(tmp_path / "a"))
    assert again.card == json.loads(json.dumps(probes.card))
    for name, tensor in probes.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    texts = ["Ice is warm."]
    for one, other in zip(probes.apply(model, texts), again.apply(model, texts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_run_writes_the_same_bytes(probes, model, pack, tmp_path):
    probes.save(tmp_path / "a")
    train(model, pack, Options(seeds=(0, 3), **QUICK)).save(tmp_path / "b")
    for name in ("card.json", "probe.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_folder_is_replaced_only_when_told(probes, tmp_path):
    probes.save(tmp_path / "a")
    with pytest.raises(DriftlensError, match="--overwrite"):
        probes.save(tmp_path / "a")
    probes.save(tmp_path / "a", overwrite=True)
    (tmp_path / "a" / "mine.txt").touch()
    with pytest.raises(DriftlensError, match=r"which holds mine\.txt"):
        probes.save(tmp_path / "a", overwrite=True)


def test_every_search_is_kept_and_how_far_they_are_apart(probes):
    assert probes.tensors["losses"].shape == (2, 3, 2)
    for number, row in enumerate(probes.card["metrics"]):
        losses = probes.tensors["losses"][:, number]
        assert row["least_loss"] == losses.min()
        assert row["losses_apart"] == np.ptp(losses)
        assert row["seed"] == (0, 3)[losses.min(1).argmin()]
        one, other = (probes.probe(number, seed) for seed in (0, 3))
        # Without the side's mean there is one direction, and its scale is one number.
        cosine = one.coef_ @ other.coef_ / np.linalg.norm(one.coef_) / np.linalg.norm(other.coef_)
        assert row["seeds_cosine"] == pytest.approx(abs(cosine), abs=1e-5)
        assert len(row["esa_by_seed"]) == 2


def test_a_probe_of_several_forms_is_kept_whole(two_forms, model, tmp_path):
    found = train(model, two_forms, Options("vinc", layers=frozenset({1, 2})))
    again = TrainedProbes.load(found.save(tmp_path / "a"))
    texts = ["Ice is warm."]
    for one, other in zip(found.apply(model, texts), again.apply(model, texts), strict=True):
        np.testing.assert_array_equal(one, other)
    p = found.apply(model, texts)
    assert p.score == pytest.approx((p.p_yes + 1 - p.p_no) / 2, abs=1e-6)


class Blank(HookedModel):
    """A model whose last block leaves the same wherever one looks."""

    def trace(self, batch, wants=Wants(), edits=None):
        return super().trace(batch, wants, {Site(2): lambda stream: 0 * stream + 1})


def test_a_layer_that_says_nothing_is_flagged_and_comes_last(pack, tmp_path):
    blank = Blank(nets.net("llama"), nets.tokenizer(), "blank")
    found = train(blank, pack, Options(seeds=(0, 1), **QUICK))
    row = found.card["metrics"][2]
    assert row["degenerate"]
    assert found.best != 2
    assert (row["esa"], row["random_esa"], row["verdict"]) == (0.5, 0.5, "none")
    assert row["seeds_cosine"] is None
    again = TrainedProbes.load(found.save(tmp_path / "a"))
    assert again.apply(blank, ["Ice is warm."], layer=2).score == pytest.approx(0.5)
    with pytest.raises(DriftlensError, match="states that differ"):
        train(blank, pack, Options("crc"))


def broken(folder, **changes):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))


BROKEN = {
    "no folder": (
        lambda f: f.rename(f.with_name("b")),
        LoadError,
        "^expected the folder of a probe",
    ),
    "no numbers": (lambda f: (f / "probe.safetensors").unlink(), LoadError, "^expected the folder"),
    "no json": (lambda f: (f / "card.json").write_text("{"), LoadError, "card in JSON"),
    "no card": (lambda f: (f / "card.json").write_text("[]"), DriftlensError, "format None"),
    "no number": (lambda f: broken(f, level=float("nan")), LoadError, "NaN is no number in JSON"),
    "half the numbers": (
        lambda f: (f / "probe.safetensors").write_bytes(b"12345678"),
        LoadError,
        "tensors at",
    ),
    "another format": (lambda f: broken(f, format=2), DriftlensError, "found format 2"),
    "half a card": (lambda f: broken(f, model=None), DriftlensError, "TypeError"),
    "a layer less": (
        lambda f: broken(f, layers=[0, 1]),
        DriftlensError,
        r"`coef` \[2, 2, 32\] .* found shape \[2, 3, 32\]",
    ),
    "searches that are not there": (
        lambda f: broken(f, restarts=9),
        DriftlensError,
        r"`losses` \[2, 3, 9\]",
    ),
    "another's numbers": (lambda f: broken(f, sha256="0"), DriftlensError, "found another"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_told_of(what, probes, tmp_path):
    breaks, kind, said = BROKEN[what]
    breaks(probes.save(tmp_path / "a"))
    with pytest.raises(kind, match=said):
        TrainedProbes.load(tmp_path / "a")


def test_numbers_that_are_missing_are_told_of(probes, tmp_path):
    tensors = {name: some for name, some in probes.tensors.items() if name != "offset"}
    folder = TrainedProbes(probes.card, tensors).save(tmp_path / "a")
    with pytest.raises(DriftlensError, match=r"`offset` .* found none"):
        TrainedProbes.load(folder)


# Whose they are


def test_another_models_states_are_read_only_when_forced(probes, model):
    other = nets.pair("llama").aligned
    mine, theirs = fingerprint(model)[:12], fingerprint(other)[:12]
    with pytest.raises(DriftlensError, match=f"{mine} in .*, found aligned .*{theirs}.*--force"):
        probes.apply(other, ["Ice is warm."])
    forced = probes.apply(other, ["Ice is warm."], force=True)
    assert forced.score != probes.apply(model, ["Ice is warm."]).score


@pytest.mark.parametrize(
    ("other", "layer", "said"),
    [
        (lambda: nets.model("llama", hidden_size=64), 0, "width 32 .* of width 64"),
        (lambda: nets.model("llama", num_hidden_layers=2), 2, "a block 2, found .* 2 blocks"),
        (lambda: nets.model("bert"), 0, "last text token, found bert.* first token"),
        (lambda: nets.model("llama"), 7, "a probe of: 0, 1, 2, found 7"),
    ],
)
def test_another_shape_is_refused_even_if_forced(other, layer, said, probes):
    with pytest.raises(DriftlensError, match=said):
        probes.apply(other(), ["Ice is warm."], layer=layer, force=True)


def test_of_a_series_the_model_that_was_trained_on_is_named(probes, model, pack):
    series = [nets.pair("llama").aligned, model]
    found = probes.monitor(series, ["Ice is warm.", "I do."])
    assert [(row["trained_on"], row["layer"]) for row in found] == [
        (own, layer) for own in (False, True) for layer in (0, 1, 2)
    ]
    for row in found[3:]:
        score = probes.apply(model, ["Ice is warm.", "I do."], layer=row["layer"]).score
        assert row["mean_score"] == pytest.approx(score.mean(), abs=1e-6)
        assert row["low"] <= row["mean_score"] <= row["high"]
    told = probes.monitor([model], pack, layers=[1])[0]
    assert (told["pairs"], told["learnt_from"]) == (len(PAIRS), len(PAIRS))


# By their weights


def test_a_fingerprint_is_that_of_the_weights_and_of_nothing_else(tmp_path):
    net = nets.net("llama")
    mine = fingerprint(net)
    assert mine == fingerprint(deepcopy(net)) == fingerprint(HookedModel(net, nets.tokenizer()))
    folder = nets.saved(net, tmp_path / "net")
    assert fingerprint(ModelPair.alone(folder, device="cpu").base) == mine
    net.register_buffer("seen", torch.ones(3))
    assert fingerprint(net.train()) == mine
    for weight in list(net.parameters())[::7]:
        with torch.no_grad():
            before = weight.view(-1)[-1].item()
            weight.view(-1)[-1] = np.nextafter(np.float32(before), np.float32(np.inf)).item()
            assert fingerprint(net) != mine
            weight.view(-1)[-1] = before
    assert fingerprint(net) == mine


def test_a_dtype_and_a_shape_are_part_of_a_fingerprint():
    class Net(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = nn.Parameter(weight)

    zeros = torch.zeros(2, 3)
    same = [zeros, zeros.T.contiguous(), zeros.half(), zeros.bfloat16(), torch.zeros(())]
    assert len({fingerprint(Net(weight)) for weight in same}) == len(same)
    strided = torch.arange(6.0).reshape(2, 3).T
    assert fingerprint(Net(strided)) == fingerprint(Net(strided.contiguous()))


def test_tied_weights_count_once():
    tied, apart = nets.net("llama tied"), nets.net("llama")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert fingerprint(tied) != fingerprint(apart)
    mine = fingerprint(tied)
    with torch.no_grad():
        tied.lm_head.weight[0, 0] += 1
    assert fingerprint(tied) != mine


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_counts_where_it_is_on():
    peft = pytest.importorskip("peft")
    net = nets.net("llama")
    alone = fingerprint(net)
    lora = peft.get_peft_model(net, peft.LoraConfig(target_modules=["q_proj"], r=2)).eval()
    pair = ModelPair.load(None, lora, tokenizer=nets.tokenizer())
    assert fingerprint(pair.base) == alone
    fresh = fingerprint(pair.aligned)
    assert fresh != alone
    with torch.no_grad():
        next(p for name, p in lora.named_parameters() if "lora_B" in name)[0, 0] = 1
    assert fingerprint(pair.aligned) != fresh
    assert fingerprint(pair.base) == alone
    learns = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert learns
    assert all("lora_" in name for name in learns)


def test_a_model_without_weights_has_no_fingerprint():
    with pytest.raises(DriftlensError, match="to tell it by its weights, found object"):
        fingerprint(object())


# What is refused


def few(pack, pairs):
    return replace(pack, examples=[e for e in pack.examples if e.group < pairs])


REFUSED = {
    "text": (lambda p: nets.pack(["x y"]), {}, "kind contrast, .* found texts of kind text"),
    "nine pairs": (lambda p: few(p, 9), {}, "at least 10 pairs of opposites in pairs, found 9"),
    "ten in folds": (lambda p: few(p, 10), {}, "outside each of 5 folds, found 8 of the 10"),
    "a form": (lambda p: p, {"form": ("said",)}, "a form of pairs: verdict, found 'said'"),
    "the control": (lambda p: p, {"form": (MARKER,)}, "a form of pairs: verdict"),
    "one form": (lambda p: p, {"method": "vinc"}, "two forms at least for vinc, found verdict"),
    "a layer": (lambda p: p, {"layers": frozenset({3})}, "from 0 to 2, found 3"),
    "no layer": (lambda p: p, {"layers": frozenset()}, "from 0 to 2, found none"),
    "half a pair": (lambda p: replace(p, examples=p.examples[1:]), {}, "in each group and form"),
    "other texts": (
        lambda p: replace(p, examples=[replace(e, text=f"{e.text} ") for e in p.examples]),
        {},
        "texts of pairs as its form verdict makes them",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_learnt_from_is_refused(what, pack, model):
    change, asked, said = REFUSED[what]
    with pytest.raises(DriftlensError, match=said):
        train(model, change(pack), Options(**asked))


def test_several_forms_are_for_vinc_alone(two_forms, model):
    with pytest.raises(DriftlensError, match="one form for ccs, found verdict, said"):
        train(model, two_forms, Options("ccs", form=("verdict", "said")))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "svm"}, "a method among ccs"),
        ({"mode": "theirs"}, "a mode among ours, published"),
        ({"mode": "published", "method": "crc"}, "mode published, found crc"),
        ({"mode": "published", "polarity": 1.0}, "found pa-ccs with polarity 1"),
        ({"method": "ccs", "polarity": 1.0}, "does not see pairs"),
        ({"seeds": ()}, "different seeds .* found none"),
        ({"seeds": (1, 1)}, "found 1, 1"),
        ({"seeds": (-1,)}, "found -1"),
        ({"folds": 1}, "folds of at least 2"),
        ({"restarts": 0}, "restarts of at least 1"),
        ({"steps": 0}, "steps of at least 1"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(asked, said):
    with pytest.raises(DriftlensError, match=said):
        Options(**asked)


def test_a_pair_of_two_models_is_not_one(pack, probes):
    pair = nets.pair("llama")
    with pytest.raises(DriftlensError, match="found a pair of base and aligned"):
        train(pair, pack)
    with pytest.raises(DriftlensError, match=r"Pass pair\.base or pair\.aligned"):
        probes.apply(pair, ["Ice is warm."])


@pytest.mark.parametrize("texts", [[], ["Ice is warm.", " "]])
def test_nothing_said_is_nothing_to_read(texts, probes, model):
    with pytest.raises(DriftlensError, match="a statement"):
        probes.apply(model, texts)


# The command line


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, its aligned version, statements and pairs."""
    place = tmp_path_factory.mktemp("place")
    nets.saved(nets.net("llama"), place / "base")
    nets.saved(nets.moved(nets.net("llama"), 0.05, 1), place / "aligned")
    (place / "pairs.jsonl").write_text(lines(rows()))
    (place / "alone.jsonl").write_text(lines(rows()[1:]))
    (place / "said.txt").write_text("Ice is warm.\n\nA bell rings.\n")
    return place


@pytest.fixture
def driftlens(monkeypatch, place, capfd):
    """The command line: exit code, standard output, standard error."""
    monkeypatch.chdir(place)

    def run(*arguments, start=cli.main):
        monkeypatch.setattr(sys, "argv", ["driftlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            start()
        return left.value.code or 0, *capfd.readouterr()

    return run


FAST = ["--pairs", "pairs.jsonl", "--restarts", 2, "--steps", 60, "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(place):
    """A probe of the base in its folder."""
    pair = ModelPair.alone(str(place / "base"), device="cpu")
    return train(pair, Pack.read(place / "pairs.jsonl"), Options(**QUICK)).save(place / "probe")


def test_a_probe_is_trained_and_shown(driftlens):
    args = ["probe", "train", "base", *FAST, "--layers", "0,2", "--seeds", "0,1", "--out", "out"]
    code, out, err = driftlens(*args)
    assert (code, out) == (0, "out\n")
    assert "pa-ccs of base" in err
    card = json.loads(Path("out/card.json").read_text())
    assert (card["layers"], card["seeds"], card["restarts"]) == ([0, 2], [0, 1], 2)
    code, out, _ = driftlens("probe", "show", "out")
    assert code == 0
    assert card["model"]["sha256"][:12] in out
    assert "the best of 2 layers" in out
    code, out, _ = driftlens("probe", "show", "out", "--json")
    assert json.loads(out) == {name: what for name, what in card.items() if name != "sha256"}
    code, _, err = driftlens(*args)
    assert (code, "--overwrite" in err) == (2, True)


@pytest.mark.parametrize(("name", "method"), [("train_ccs", "ccs"), ("train_pa_ccs", "pa-ccs")])
def test_a_script_is_the_command_with_its_method(name, method, driftlens):
    script = Path(__file__).parents[1] / "probes" / f"{name}.py"
    args = ["base", *FAST, "--layers", "1", "--limit", "13", "-q", "--json", "--out", name]
    code, out, _ = driftlens(*args, start=lambda: runpy.run_path(str(script), run_name="__main__"))
    assert code == 0
    assert json.loads(out)["method"] == method
    assert len(json.loads(out)["pack"]["pairs"]) == 13


def test_statements_are_read_from_lines_and_from_rows(driftlens, trained, model, place):
    code, out, _ = driftlens("probe", "apply", "probe", "base", "--text", "said.txt", "--json")
    assert code == 0
    found = json.loads(out)["texts"]
    assert [row["text"] for row in found] == ["Ice is warm.", "A bell rings."]
    score = TrainedProbes.load(trained).apply(model, ["Ice is warm.", "A bell rings."]).score
    assert [row["score"] for row in found] == pytest.approx(score.tolist(), abs=1e-6)
    args = ["--text", "pairs.jsonl", "--limit", 3, "--json"]
    _, out, _ = driftlens("probe", "apply", "probe", "base", *args)
    assert [row["text"] for row in json.loads(out)["texts"]] == [
        record["statement"] for record in rows()[:3]
    ]


def test_a_series_is_one_table(driftlens, trained):
    args = ["probe", "apply", "probe", "base", "aligned", "--pairs", "pairs.jsonl"]
    code, out, err = driftlens(*args, "--layer", 1, "--json")
    assert code == 0
    found = json.loads(out)
    assert [(r["model"], r["trained_on"]) for r in found] == [("base", True), ("aligned", False)]
    assert {"esa", "auroc", "pc", "ci", "mean_score"} <= found[0].keys()
    code, out, err = driftlens(*args)
    assert code == 0
    assert "trained on: base" in err
    assert "18 of 18 pairs were learnt from" in err
    assert out.count("aligned") == 3


FAULTY = {
    "another model": (["apply", "probe", "aligned", "--text", "said.txt"], 2, "--force"),
    "another model's pairs": (
        ["apply", "probe", "aligned", "--pairs", "pairs.jsonl"],
        2,
        "--force",
    ),
    "another layer": (["apply", "probe", "base", "--text", "said.txt", "--layer", 9], 2, "found 9"),
    "nothing to read": (["apply", "probe", "base"], 2, "one of them, found none"),
    "too much": (["apply", "probe", "base", "--text", "said.txt", "--pack", "x"], 2, "found more"),
    "no probe": (["show", "nothing"], 3, "folder of a probe"),
    "no model": (["train", "./none", *FAST, "--out", "new"], 3, "a model folder"),
    "no pairs": (["train", "base", "--out", "new"], 2, "--pack or --pairs"),
    "pairs of one": (["train", "base", "--pairs", "alone.jsonl"], 2, "in pair 0"),
    "no file": (["train", "base", "--pairs", "none.jsonl"], 3, "readable file"),
    "a pack of text": (["train", "base", "--pack", "everyday"], 2, "of kind text"),
    "seeds": (["train", "base", *FAST, "--seeds", "a"], 2, "--seeds as 0,1,2"),
    "layers": (
        ["train", "base", *FAST, "--layers", "2-7", "--out", "new"],
        2,
        "blocks from 0 to 2",
    ),
    "a method": (["train", "base", *FAST, "--method", "svm"], 2, "a method among"),
}


@pytest.mark.parametrize("what", FAULTY)
def test_what_is_wrong_is_told_in_a_line(what, driftlens, trained):
    args, wanted, said = FAULTY[what]
    code, out, err = driftlens("probe", *args)
    assert (code, out) == (wanted, "")
    assert said in err
    assert not Path("new").exists()


def test_another_model_is_read_when_forced(driftlens, trained):
    args = ["probe", "apply", "probe", "aligned", "--text", "said.txt", "--force", "--json"]
    code, out, _ = driftlens(*args)
    assert code == 0
    assert json.loads(out)["model"] == "aligned"


def test_an_empty_file_holds_no_statement(driftlens, trained):
    Path("empty.txt").write_text(" \n")
    code, _, err = driftlens("probe", "apply", "probe", "base", "--text", "empty.txt")
    assert (code, "statements in empty.txt, found none" in err) == (2, True)
