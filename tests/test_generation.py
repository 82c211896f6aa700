"""What models answer: the model's own distribution, whatever the batch."""

import logging
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import nets
from driftlens import suite
from driftlens.errors import DriftlensError
from driftlens.models import Ablate, ModelPair, Steer, steered
from driftlens.models import generation as made
from driftlens.models.alone import Alone
from driftlens.models.generation import GREEDY, Sampling, answers, fits, mute, uniforms
from driftlens.models.tokens import opening
from driftlens.packs import Example, Pack

PROMPTS = nets.TEXTS
"""Of different lengths, so that they are padded."""

FAMILIES = nets.some([*nets.CAUSAL, *nets.MORE], ("llama", "gpt2"))
ROUNDED = 1e-5
"""A cache and padding round logits otherwise in float32; an answer adds up a dozen of them."""


def read_alone(model, answer):
    """[token, vocab] log-probabilities of an answer's tokens, all read at once, without a cache."""
    prompt = opening(model.tokenizer, PROMPTS[answer.prompt])
    logits = model.logits(torch.tensor([[*prompt, *answer.ids]]))[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 :].detach()[: len(answer.entropy)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_noted_of_an_answer_is_what_a_pass_over_all_of_it_says(family):
    model = nets.model(family)
    found = answers(model, PROMPTS, Sampling(2, tokens=7))
    for answer in found:
        logs = read_alone(model, answer)
        entropy = -(logs.exp() * logs).sum(-1)
        np.testing.assert_allclose(answer.entropy, entropy, atol=ROUNDED)
        likely = logs[torch.arange(len(answer.ids)), list(answer.ids)].sum()
        if answer.ended:
            likely += torch.log(logs[-1][list(made._ends(model))].exp().sum())
        assert answer.logprob == pytest.approx(float(likely), abs=ROUNDED)
        if answer.sample == GREEDY:
            assert answer.ids == tuple(logs.argmax(-1)[: len(answer.ids)].tolist())
    assert len(found) == 3 * len(PROMPTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_same_in_any_batch_and_order(family):
    model, asked = nets.model(family), Sampling(2, tokens=5)
    whole = answers(model, PROMPTS, asked)
    numbers = range(len(PROMPTS))[::-1]
    for batch in (1, 7):
        turned = answers(model, PROMPTS[::-1], asked, numbers=numbers, batch=batch)
        assert [one[:4] for one in sorted(turned)] == [one[:4] for one in whole]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_greedy_answer_is_what_transformers_gives(family):
    model = nets.model(family)
    for answer in answers(model, PROMPTS, Sampling(0, tokens=10)):
        ids = torch.tensor([opening(model.tokenizer, PROMPTS[answer.prompt])])
        given = model.net.generate(
            ids,
            # Told, for a mask that is not would be guessed of the padding id, which begins a text.
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=10,
            pad_token_id=0,
            # MPT's own settings name no end; its tokenizer does.
            eos_token_id=model.tokenizer.eos_token_id,
        )
        own = given[0, ids.shape[1] :].tolist()
        assert list(answer.ids) == own[: len(answer.ids)]
        assert len(answer.ids) + answer.ended == len(own)


def test_the_draws_of_an_answer_are_its_own_and_do_not_change_with_its_length():
    np.testing.assert_array_equal(uniforms(3, 5, 7, 100)[:9], uniforms(3, 5, 7, 9))
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    drawn = np.concatenate([uniforms(*key, 5000) for key in keys])
    assert len(np.unique(drawn)) == len(drawn)
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(drawn.reshape(4, -1)) - np.eye(4)).max() < 0.06


# What is drawn


def chances(model, prompt, then=()):
    """[vocab] the model's own distribution of the next token."""
    ids = torch.tensor([[*opening(model.tokenizer, prompt), *then]])
    return model.logits(ids)[0, -1].double().softmax(-1).detach().numpy()


def fitting(counts, expected):
    """How well counts fit what is expected of them, rare ones taken together."""
    common = expected >= 5
    seen = np.append(counts[common], counts[~common].sum())
    hoped = np.append(expected[common], expected[~common].sum())
    return stats.chisquare(seen, hoped * seen.sum() / hoped.sum()).pvalue


@pytest.fixture(scope="module")
def many():
    """A model, and many answers of two tokens to one prompt."""
    model = nets.model("llama", 3)
    return model, answers(model, PROMPTS[:1], Sampling(2000, tokens=2, greedy=False))


def test_first_tokens_are_drawn_as_often_as_the_model_says(many):
    model, found = many
    ends = made._ends(model)
    first = [one.ids[0] if one.ids else ends[0] for one in found]
    counts = np.bincount(first, minlength=nets.WORDS)
    assert fitting(counts, len(found) * chances(model, PROMPTS[0])) > 0.001


@pytest.mark.parametrize("odd", [0, 1])
def test_second_tokens_are_drawn_as_often_as_the_model_says_after_the_first(many, odd):
    model, found = many
    after = [one for one in found if one.ids and one.ids[0] % 2 == odd]
    second = [one.ids[1] if len(one.ids) > 1 else made._ends(model)[0] for one in after]
    expected = sum(
        count * chances(model, PROMPTS[0], [first])
        for first, count in Counter(one.ids[0] for one in after).items()
    )
    assert fitting(np.bincount(second, minlength=nets.WORDS), expected) > 0.001


def test_a_temperature_divides_the_logits_of_what_is_drawn_and_of_nothing_that_is_noted():
    model = nets.model("llama", 3)
    ids = torch.tensor([opening(model.tokenizer, PROMPTS[0])])
    logits = model.logits(ids)[0, -1].detach().double()
    found = answers(model, PROMPTS[:1], Sampling(1500, 0.5, 1, greedy=False))
    counts = np.bincount(
        [one.ids[0] if one.ids else made._ends(model)[0] for one in found], minlength=nets.WORDS
    )
    warm = (logits / 0.5).softmax(-1).numpy()
    assert fitting(counts, len(found) * warm) > 0.001
    assert fitting(counts, len(found) * logits.softmax(-1).numpy()) < 1e-6
    own = logits.log_softmax(-1)
    assert {round(one.entropy[0], 4) for one in found} == {
        round(float(-(own.exp() * own).sum()), 4)
    }
    for one in found[:50]:
        if one.ids:
            assert one.logprob == pytest.approx(float(own[one.ids[0]]), abs=ROUNDED)


def test_next_to_no_temperature_is_greedy():
    model = nets.model("gpt2")
    found = answers(model, PROMPTS, Sampling(2, 1e-4, 8))
    for greedy, *drawn in zip(*[iter(found)] * 3, strict=True):
        assert {one.ids for one in drawn} == {greedy.ids}


def test_a_draw_takes_the_token_in_whose_share_its_number_falls():
    shares = torch.tensor([[0.0, 0.2, 0.0, 0.3, 0.5, 0.0]])
    numbers = [0.0, 0.1999, 0.2001, 0.4999, 0.5001, np.nextafter(1, 0)]
    draw = made._Draw(torch.tensor([numbers], dtype=torch.float64), torch.tensor([False]), 1.0)
    for _ in numbers:
        left = draw(torch.zeros(1, 1), shares.log())
        assert int(left.isfinite().sum()) == 1
    chosen, logprobs, entropies = draw.noted()
    assert chosen.tolist() == [[1, 1, 3, 3, 4, 4]]
    np.testing.assert_allclose(logprobs[0], np.log(shares.numpy()[0, chosen[0]]), atol=1e-6)
    np.testing.assert_allclose(entropies, stats.entropy([0.2, 0.3, 0.5]), atol=1e-6)


def test_two_models_that_agree_say_the_same():
    model, twin = nets.model("llama"), nets.model("llama")
    asked = Sampling(4, tokens=8)
    ours, theirs = (answers(one, PROMPTS, asked) for one in (model, twin))
    assert ours == theirs
    others = answers(model, PROMPTS, Sampling(4, tokens=8, seed=1))
    drawn = [(a, b) for a, b in zip(ours, others, strict=True) if a.sample != GREEDY]
    assert not any(a.ids == b.ids for a, b in drawn)
    assert all(a == b for a, b in zip(ours, others, strict=True) if a.sample == GREEDY)


def test_a_longer_answer_begins_with_the_shorter_one():
    model = nets.model("llama")
    short, long = (answers(model, PROMPTS, Sampling(3, tokens=n)) for n in (4, 9))
    for one, other in zip(short, long, strict=True):
        assert other.ids[: len(one.ids)] == one.ids


# How a model is left, and what of it is heeded


def settled(net):
    """A net with settings of its own, each of which would change what is said."""
    config = net.generation_config
    config.update(
        do_sample=True, top_k=2, top_p=0.5, temperature=3.0, repetition_penalty=2.0, min_length=90
    )
    config.update(no_repeat_ngram_size=1, num_beams=3, suppress_tokens=[5], max_length=3)
    return net


def test_settings_of_the_model_change_nothing_but_where_it_ends():
    asked = Sampling(3, tokens=8)
    plainly = answers(nets.model("llama"), PROMPTS, asked)
    model = nets.model("llama")
    settled(model.net)
    assert answers(model, PROMPTS, asked) == plainly
    stop = plainly[0].ids[2]
    model.net.generation_config.eos_token_id = [1, stop]
    found = answers(model, PROMPTS, asked)
    assert found[0].ended
    assert found[0].ids == plainly[0].ids[: plainly[0].ids.index(stop)]
    assert len(found[0].entropy) == len(found[0].ids) + 1


def test_a_model_without_an_end_and_without_padding_answers_in_full():
    words = deepcopy(nets.tokenizer())
    words.eos_token = words.pad_token = None
    net = nets.net("llama", eos_token_id=None, pad_token_id=None)
    net.generation_config.eos_token_id = None
    model = nets.HookedModel(net, words)
    found = answers(model, PROMPTS, Sampling(3, tokens=30))
    assert not any(one.ended for one in found)
    assert {len(one.ids) for one in found} == {30}


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_left_as_it_was_found(fails):
    model = nets.model("llama")
    net = settled(model.net).train()
    net.model.layers[1].eval()
    before = net.generation_config.to_dict(), net.config.to_dict()
    own, modes = net.generation_config, [module.training for module in net.modules()]
    weights = {name: (w.clone(), w.requires_grad) for name, w in net.named_parameters()}
    if fails:
        handle = net.model.layers[2].register_forward_pre_hook(stop)
        with pytest.raises(Broken):
            answers(model, PROMPTS, Sampling(1, tokens=3))
        handle.remove()
    else:
        answers(model, PROMPTS, Sampling(1, tokens=3))
    assert net.generation_config is own
    assert (own.to_dict(), net.config.to_dict()) == before
    assert [module.training for module in net.modules()] == modes
    for name, weight in net.named_parameters():
        assert torch.equal(weight, weights[name][0])
        assert weight.requires_grad == weights[name][1]
        assert weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def stop(*_, **__):
    raise Broken


def test_nothing_is_logged_of_what_we_ask(caplog):
    with caplog.at_level(logging.WARNING, "transformers"):
        answers(nets.model("gemma2"), PROMPTS, Sampling(1, tokens=3))
    assert not caplog.records


def test_a_steered_model_answers_as_it_is_steered():
    model, asked = nets.model("llama"), Sampling(2, tokens=6)
    vector = torch.randn(model.width, generator=torch.Generator().manual_seed(0))
    plainly = answers(model, PROMPTS, asked)
    with steered(model, Steer(Ablate(vector))):
        assert answers(model, PROMPTS, asked) != plainly
    assert answers(model, PROMPTS, asked) == plainly


# peft asks transformers for an attribute by a name that is about to go.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_and_its_base_answer_each_as_itself():
    peft = pytest.importorskip("peft")
    live = peft.get_peft_model(nets.net("llama"), peft.LoraConfig(target_modules=["v_proj"]))
    nets.moved(live, 0.3, 1, "lora_B")
    pair = ModelPair.load(None, live, tokenizer=nets.tokenizer())
    merged = deepcopy(live).merge_and_unload()
    alone = nets.HookedModel(merged, nets.tokenizer())
    asked = Sampling(2, tokens=6)
    base, aligned = (answers(model, PROMPTS, asked) for model in (pair.base, pair.aligned))
    for found, plain in ((base, nets.model("llama")), (aligned, alone)):
        assert [one[:4] for one in found] == [one[:4] for one in answers(plain, PROMPTS, asked)]
    assert [one.ids for one in base] != [one.ids for one in aligned]


# What cannot be


def test_a_model_that_cannot_answer_says_why():
    bert = nets.model("bert")
    assert "masked" in mute(bert)
    with pytest.raises(DriftlensError, match="fills in masked tokens"):
        answers(bert, PROMPTS)
    pieces = nets.model("llama")
    pieces.pieces = True
    assert "pieces" in mute(pieces)
    stranger = SimpleNamespace(name="it", causal=True)
    assert mute(stranger) == "it is SimpleNamespace"
    silent = nets.model("llama")
    silent.net.can_generate = lambda: False
    assert mute(silent) == "LlamaForCausalLM cannot generate"
    assert mute(nets.model("llama")) == mute(Alone(nets.model("llama"))) == ""
    pair = ModelPair(nets.model("llama"), silent)
    assert "cannot generate" in pair.mute


def test_a_prompt_that_leaves_no_room_is_refused():
    model = nets.model("llama")
    assert fits(model, "a", Sampling(tokens=94))
    assert not fits(model, "a", Sampling(tokens=95))
    with pytest.raises(DriftlensError, match="leaves room for 95 more"):
        answers(model, ["a"], Sampling(1, tokens=95))
    (found,) = answers(model, ["a"], Sampling(0, tokens=94))
    assert len(found.ids) == 94 or found.ended


@pytest.mark.parametrize(
    "wrong",
    [{"samples": -1}, {"samples": 0, "greedy": False}, {"tokens": 0}, {"seed": -1}]
    + [{"temperature": t} for t in (0.0, -1.0, np.inf, np.nan)],
)
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(DriftlensError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_a_model_whose_numbers_are_not_finite_is_refused():
    model = nets.model("llama")
    with torch.no_grad():
        model.net.lm_head.weight[7] = torch.nan
    with pytest.raises(DriftlensError, match="after prompt 4"):
        answers(model, PROMPTS[:1], Sampling(1, tokens=3), numbers=[4])


def test_answers_that_do_not_fit_into_memory_are_given_in_smaller_batches(monkeypatch):
    model, asked, sizes = nets.model("llama"), Sampling(2, tokens=4), []
    plainly = answers(model, PROMPTS, asked)
    generate = model.net.generate

    def small(input_ids, **how):
        sizes.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("out of memory")
        return generate(input_ids=input_ids, **how)

    monkeypatch.setattr(model.net, "generate", small)
    most = 5
    found = answers(model, PROMPTS, asked)
    assert [one[:4] for one in found] == [one[:4] for one in plainly]
    assert sizes[0] == 27
    assert max(n for n in sizes if n <= most) >= 3
    most = 0
    with pytest.raises(DriftlensError, match="memory for one answer"):
        answers(model, PROMPTS[:1], asked)
    monkeypatch.setattr(model.net, "generate", stop)
    with pytest.raises(Broken):
        answers(model, PROMPTS[:1], asked)


def test_a_model_beside_itself_alone_answers_in_other_batches_and_says_the_same():
    model, asked = nets.model("llama"), Sampling(2, tokens=6)
    alone = answers(Alone(model), PROMPTS, asked)
    assert [one[:4] for one in alone] == [one[:4] for one in answers(model, PROMPTS, asked)]


@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
@pytest.mark.slow
def test_other_back_ends_answer_as_hooks_do(backend):
    pytest.importorskip(backend)
    asked = Sampling(2, tokens=6)
    net = nets.net("llama")
    plainly = answers(nets.model("llama"), PROMPTS, asked)
    with pytest.warns(UserWarning, match="shares the weights"):
        pair = ModelPair.load(net, net, tokenizer=nets.tokenizer(), backend=backend)
    assert [one[:4] for one in answers(pair.base, PROMPTS, asked)] == [p[:4] for p in plainly]


def test_a_report_tells_of_answers_batch_by_batch_and_batches_change_nothing():
    pair = nets.pair("llama")
    pack = Pack("asked", "prompt", [Example(f"{n} boats") for n in range(30)])
    told = []
    options = suite.Options(samples=15, new_tokens=2)
    found = list(suite.examine(pair, [pack], options, progress=lambda *z: told.append(z)))
    assert [done for name, done, _ in told if name == "asked"] == [16, 30]
    few = list(suite.examine(pair, [pack], replace(options, rows=7)))
    assert [r.kind for r in found] == [r.kind for r in few]
    for one, other in zip(found, few, strict=True):
        # What was said is the same; its entropies, in float32, were summed in other batches.
        for name, ours in one.columns().items():
            theirs = other.columns()[name]
            if ours.dtype.kind == "f":
                np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5, err_msg=name)
            else:
                np.testing.assert_array_equal(ours, theirs, err_msg=name)
