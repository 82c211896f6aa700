"""The engine of sweeps against plain hooks, loops and differences, all written by hand."""

from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import cache, partial, reduce

import numpy as np
import pytest
import torch
from torch import nn

import nets
from driftlens.errors import DriftlensError
from driftlens.metric import measure
from driftlens.models import ModelPair, Wants
from driftlens.models.hooks import HookedModel
from driftlens.models.sites import EMBED, Site
from driftlens.models.sweep import Push, bent, places, pushed, start_of, stream_at
from driftlens.models.tokens import Batch
from driftlens.packs import Example, Pack
from driftlens.sweeps import (
    Arm,
    Bends,
    Choices,
    StateGradients,
    Sweep,
    Texts,
    choices,
    push_of,
)

WIDTH = 32
FAMILIES = nets.some(nets.CAUSAL)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Of logits in float32, by another order of sums."""

ROUNDED = {"rtol": 2e-4, "atol": 2e-5}
"""Of probabilities and their logarithms in float32, read in another batch."""

STRENGTHS = (-2.0, 0.0, 0.7, 5.0)

PARTS = {
    "gpt2": ("attn", "mlp"),
    "gpt-neox": ("attention", "mlp"),
    "gpt-neox in sequence": ("attention", "mlp"),
    # Their norms stand behind attention and MLP.
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma3": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "opt": ("self_attn", "fc2"),
}
"""What writes into the stream, by the nets' own names, where it is not as in Llama."""

TOKENS = ((5, 9, 200, 31, 77), (12, 40, 7), (150, 61, 33, 18, 90, 4, 101))
PROMPTS = (2, 1, 3)
"""How many tokens of each text come before the first that is scored."""


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


V, W = drawn(WIDTH), drawn(WIDTH, seed=1)


@cache
def net(family="llama", dtype=torch.float32):
    """Shared by tests: nobody may change it."""
    made = nets.net(family).to(dtype)
    if dtype == torch.float64 and hasattr(made.config, "num_experts_per_tok"):
        # Products of all experts at once are for less precision.
        made.set_experts_implementation("eager")
    return made


def model(family="llama", dtype=torch.float32):
    return HookedModel(net(family, dtype), nets.tokenizer(), family)


@cache
def pair(family="llama"):
    """Shared by tests: nobody may change it."""
    return nets.pair(family)


def batch():
    """Texts of different lengths, padded on the right."""
    width = max(map(len, TOKENS))
    ids = torch.tensor([[*row, *[2] * (width - len(row))] for row in TOKENS])
    number = torch.arange(width)
    mask = number < torch.tensor([len(row) for row in TOKENS])[:, None]
    target = (mask & (number >= torch.tensor(PROMPTS)[:, None])).nonzero(as_tuple=True)
    none = target[0][:0]
    return Batch(ids, mask, (none, none), target, torch.arange(len(target[0])))


def by_hand(positions):
    """[row, token] which tokens are pushed, counted one by one."""
    some = batch()
    here = torch.zeros_like(some.mask)
    for row, (text, prompt) in enumerate(zip(TOKENS, PROMPTS, strict=True)):
        length = len(text)
        mine = {
            "all": range(length),
            "last": range(prompt - 1, length - 1),
            "prompt": range(prompt),
            "response": range(prompt, length),
        }[positions]
        here[row, list(mine)] = True
    return here


# The oracle: forward hooks on the nets' own modules, and nothing of the library


def module(family, net, site):
    block = next(m for m in net.modules() if isinstance(m, nn.ModuleList))[site.layer]
    attention, mlp = PARTS.get(family, ("self_attn", "mlp"))
    return block.get_submodule({"attn": attention, "mlp": mlp}.get(site.part, ""))


@contextmanager
def plainly(family, net, vectors, strength, here):
    """The net with strength · v / ‖v‖ added at some tokens of each place."""

    def added(stream, vector):
        step = (strength * vector / vector.norm()).to(stream)
        return (stream.reshape(*here.shape, -1) + here[..., None] * step).reshape(stream.shape)

    def after(vector):
        def hook(_, __, output):
            if isinstance(output, tuple):
                return (added(output[0], vector), *output[1:])
            return added(output, vector)

        return hook

    def before(vector):
        def hook(_, inputs, keywords):
            if inputs:
                return (added(inputs[0], vector), *inputs[1:]), keywords
            stream = added(keywords["hidden_states"], vector)
            return inputs, {**keywords, "hidden_states": stream}

        return hook

    with ExitStack() as hooks:
        for site, vector in vectors.items():
            where = module(family, net, site)
            if site.part == "in":
                handle = where.register_forward_pre_hook(before(vector), with_kwargs=True)
            else:
                handle = where.register_forward_hook(after(vector))
            hooks.callback(handle.remove)
        yield


def logits_by_hand(family, net, some, vectors, strength, here):
    """[scored token, vocab] of the steered net; here, [batch, token], says which tokens are."""
    rows, tokens = some.target
    with torch.no_grad(), plainly(family, net, vectors, strength, here):
        found = net(input_ids=some.ids, attention_mask=some.mask.long()).logits
    return found[rows, tokens - 1]


def traced(found, some, push):
    start = push.start
    return found.trace(some, Wants(frozenset({"out"}), frozenset({start} if start >= 0 else ())))


def sweep_of(found, vectors, strengths, positions="all"):
    """[strength] predictors, and what the model saw unpushed."""
    some, push = batch(), Push(vectors)
    trace = traced(found, some, push)
    said = dict(pushed(found, trace, push, strengths, places(positions, trace.batch)))
    return [said[number] for number in range(len(strengths))], trace


PLACES = {
    "what leaves a block": {Site(1): V},
    "what enters a block": {Site(2, "in"): V},
    "the embedding": {EMBED: V},
    "what attention adds": {Site(1, "attn"): V},
    "what an MLP adds": {Site(0, "mlp"): V},
    "the last block": {Site(2): V},
    "every block": {Site(0): V, Site(1): W, Site(2): -V},
    "every part": {EMBED: W, Site(0, "attn"): V, Site(1, "in"): V, Site(1, "mlp"): W, Site(2): V},
    "what leaves and what enters": {Site(0): V, Site(1, "in"): W},
    "what attention adds first": {Site(0, "attn"): V, Site(1): W},
}
"""Places of a push, by what they have in common."""

REPRESENTATIVE = ("what leaves a block", "the last block", "every part")
"""Those of the quick run."""


# Pushed


@pytest.mark.parametrize("where", nets.some(PLACES, REPRESENTATIVE))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pushed_model_says_what_its_net_says_under_plain_hooks(family, where):
    found, some, vectors = model(family), batch(), PLACES[where]
    said, _ = sweep_of(found, vectors, STRENGTHS)
    for strength, predictors in zip(STRENGTHS, said, strict=True):
        wanted = logits_by_hand(family, found.net, some, vectors, strength, some.mask)
        torch.testing.assert_close(found.readout(predictors), wanted, **CLOSE)
    # The first and the last strength are not the same run.
    assert (found.readout(said[0]) - found.readout(said[-1])).abs().max() > 0.01


@pytest.mark.parametrize("positions", ["all", "last", "prompt", "response"])
@pytest.mark.parametrize("family", nets.some(["llama", "gpt2", "gemma2"], ["llama", "gpt2"]))
def test_only_the_tokens_that_are_meant_are_pushed(family, positions):
    found, some = model(family), batch()
    assert torch.equal(places(positions, some), by_hand(positions))
    for vectors in (PLACES["what leaves a block"], PLACES["every part"]):
        said, _ = sweep_of(found, vectors, STRENGTHS, positions)
        for strength, predictors in zip(STRENGTHS, said, strict=True):
            wanted = logits_by_hand(family, found.net, some, vectors, strength, by_hand(positions))
            torch.testing.assert_close(found.readout(predictors), wanted, **CLOSE)


@pytest.mark.parametrize("where", PLACES)
def test_without_strength_a_model_says_what_it_said_to_the_bit(where):
    said, trace = sweep_of(model(), PLACES[where], (1.0, 0.0, -0.0, 2.0))
    assert said[1] is trace.predictors
    assert said[2] is trace.predictors


@pytest.mark.parametrize("family", FAMILIES)
def test_a_strength_is_the_same_alone_and_among_others_in_any_order(family, monkeypatch):
    found, vectors = model(family), PLACES["every block"]
    strengths = (3.0, -1.0, 0.5, 0.0, 8.0)
    together, _ = sweep_of(found, vectors, strengths)
    backwards, _ = sweep_of(found, vectors, strengths[::-1])
    monkeypatch.setattr("driftlens.models.sweep.TOGETHER", 2 * batch().ids.numel())
    in_twos, _ = sweep_of(found, vectors, strengths)
    for number, strength in enumerate(strengths):
        (alone,), _ = sweep_of(found, vectors, (strength,))
        for other in (together[number], backwards[-1 - number], in_twos[number]):
            torch.testing.assert_close(other, alone, **CLOSE)


def test_a_text_longer_than_a_batch_may_be_is_still_pushed(monkeypatch):
    wanted, _ = sweep_of(model(), PLACES["every block"], STRENGTHS)
    monkeypatch.setattr("driftlens.models.sweep.TOGETHER", 1)
    found, _ = sweep_of(model(), PLACES["every block"], STRENGTHS)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_the_length_of_a_vector_does_not_count_and_its_sign_does():
    found = model()
    (plus, minus), _ = sweep_of(found, {Site(1): V}, (2.0, -2.0))
    (longer,), _ = sweep_of(found, {Site(1): 1e9 * V}, (2.0,))
    (turned,), _ = sweep_of(found, {Site(1): -V}, (2.0,))
    torch.testing.assert_close(longer, plus, **CLOSE)
    torch.testing.assert_close(turned, minus, **CLOSE)


def test_a_run_begins_above_all_that_stays_as_it_was():
    starts = {
        "what leaves a block": 1,
        "what enters a block": 1,
        "the embedding": -1,
        "what attention adds": 0,
        "what an MLP adds": -1,
        "every block": 0,
        "what attention adds first": -1,
    }
    for where, start in starts.items():
        assert start_of(PLACES[where]) == Push(PLACES[where]).start == start, where
    assert stream_at(-1) == EMBED
    assert stream_at(3) == Site(3)


def test_blocks_below_the_push_run_once_however_many_strengths_there_are():
    found = HookedModel(nets.net("llama"), nets.tokenizer())
    assert found.vocabulary == nets.WORDS
    runs = [0, 0, 0]

    def count(number):
        def hook(*_):
            runs[number] += 1

        return hook

    for number, block in enumerate(found.net.model.layers):
        block.self_attn.register_forward_hook(count(number))
    sweep_of(found, {Site(0): V}, STRENGTHS)
    assert runs == [1, 2, 2]


def test_a_push_must_lie_somewhere():
    with pytest.raises(DriftlensError, match="one place at least"):
        Push({})


def test_arrays_are_pushed_as_tensors_are():
    arrays = push_of({Site(1): V.numpy().astype(np.float32)})
    wanted, trace = sweep_of(model(), {Site(1): V}, (2.0,))
    here = places("all", trace.batch)
    ((_, found),) = pushed(model(), trace, arrays, (2.0,), here)
    torch.testing.assert_close(found, wanted[0], **CLOSE)


# Bent


@pytest.fixture
def in_double(monkeypatch):
    """Nets that cast to float32 inside, in norms, routers and softmax, cast to float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def of_logits(logits, targets):
    """[score, scored token] of three kinds: a likelihood, a probability, and a bent one."""
    log = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    first = logits.softmax(1)
    return torch.stack([log, log.exp(), (first[:, 7] - first[:, 9]) * logits[:, 3].tanh()])


def summed(values, rows, count):
    return values.new_zeros(len(values), count).index_add(1, rows, values)


SIXTH = {
    1: {1: 3 / 4, 2: -3 / 20, 3: 1 / 60},
    2: {0: -49 / 18, 1: 3 / 2, 2: -3 / 20, 3: 1 / 90},
}
"""Central differences whose error falls as the sixth power of the step."""


def differences(value, step):
    """Value, slope and curvature of a function of a number, at 0."""
    at = {number: value(number * step) for number in range(-3, 4)}
    slope = sum(weight * (at[n] - at[-n]) for n, weight in SIXTH[1].items()) / step
    second = SIXTH[2].items()
    curvature = sum(w * (at[n] + at[-n] if n else at[0]) for n, w in second) / step**2
    return at[0], slope, curvature


STEP = 2e-3
"""Rounding is then some 1e-9 of a curvature, and few routers turn within three."""

SHORT = 4e-4
"""Where OPT's small embedding is pushed, a rectifier turns in longer ones, in every text."""


@contextmanager
def turns(net):
    """Hears, run by run, which experts each row's tokens go to and which rectifiers are open."""
    runs = [[]]

    def hear(_, inputs, output):
        if isinstance(output, tuple):
            (chosen,) = (one for one in output if not one.is_floating_point())
            chosen = chosen.sort(-1).values
        else:
            chosen = inputs[0] > 0
        runs[-1].append(chosen.reshape(len(TOKENS), -1))

    with ExitStack() as hooks:
        for name, one in net.named_modules():
            if name.endswith(".mlp.gate") or isinstance(one, nn.ReLU):
                hooks.callback(one.register_forward_hook(hear).remove)
        yield runs


def smooth(net, value, step):
    """[row] whether nothing turns within three steps, so that there are derivatives to find."""
    with turns(net) as runs:
        for number in range(-3, 4):
            value(number * step)
            runs.append([])
    whole = [torch.cat(run, 1) for run in runs if run]
    return torch.stack([(z == whole[0]).all(1) for z in whole]).all(0) if whole else ALL_ROWS


ALL_ROWS = torch.ones(len(TOKENS), dtype=torch.bool)


def relative(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("where", nets.some(PLACES, REPRESENTATIVE))
@pytest.mark.parametrize("family", FAMILIES)
def test_slope_and_curvature_are_those_of_central_differences(family, where, in_double):
    found, some, push = model(family, torch.float64), batch(), Push(PLACES[where])
    bend = bent(
        found,
        traced(found, some, push),
        push,
        some.mask,
        partial(of_logits, targets=some.targets),
    )

    def value(strength):
        logits = logits_by_hand(family, found.net, some, push.vectors, strength, some.mask)
        return summed(of_logits(logits, some.targets), some.target[0], len(some.ids))

    smooths = ((step, smooth(found.net, value, step)) for step in (STEP, SHORT))
    step, rows = next((step, rows) for step, rows in smooths if rows.any())
    for ours, theirs, limit in zip(
        bend, differences(value, step), (1e-12, 1e-6, 1e-6), strict=True
    ):
        for score in range(3):
            assert relative(ours[score, rows], theirs[score, rows]) < limit, (limit, score)


@pytest.mark.parametrize("positions", ["last", "prompt", "response"])
def test_only_the_tokens_that_are_meant_bend(positions, in_double):
    found, some, push = model("gpt2", torch.float64), batch(), Push(PLACES["every block"])
    trace = traced(found, some, push)
    here = by_hand(positions)
    bend = bent(found, trace, push, here, partial(of_logits, targets=some.targets))

    def value(strength):
        logits = logits_by_hand("gpt2", found.net, some, push.vectors, strength, here)
        return summed(of_logits(logits, some.targets), some.target[0], len(some.ids))

    _, slope, curvature = differences(value, STEP)
    assert relative(bend.slope, slope) < 1e-6
    assert relative(bend.curvature, curvature) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_a_logit_behind_no_norm_is_straight_with_the_heads_slope(family):
    made = nets.net(family).double()
    for name in ("norm", "ln_f", "final_layer_norm"):
        if hasattr(made.base_model, name):
            setattr(made.base_model, name, nn.Identity())
    found, some, push = HookedModel(made, nets.tokenizer()), batch(), Push({Site(2): V})
    bend = bent(found, traced(found, some, push), push, some.mask, lambda logits: logits[:, :4].T)
    count = torch.bincount(some.target[0])
    slope = made.get_output_embeddings().weight[:4].detach() @ (V / V.norm())
    torch.testing.assert_close(bend.slope, slope[:, None] * count, rtol=1e-12, atol=1e-12)
    assert torch.equal(bend.curvature, torch.zeros(4, 3, dtype=torch.float64))


def test_what_does_not_hang_on_the_strength_is_flat():
    found, some, push = model(), batch(), Push({Site(1): V})
    trace = traced(found, some, push)
    # The last text is pushed only at tokens behind the last that anything is predicted from.
    here = torch.zeros_like(some.mask)
    here[2, len(TOKENS[2]) - 1] = True
    bend = bent(found, trace, push, here, partial(of_logits, targets=some.targets))
    assert not bend.slope.any()
    assert not bend.curvature.any()
    assert bend.value.all()


def test_rows_bend_by_themselves():
    found, some, push = model(), batch(), Push({Site(1): V})
    trace = traced(found, some, push)
    whole = bent(found, trace, push, some.mask, partial(of_logits, targets=some.targets))
    for row in range(3):
        one = some.row(row)
        scores = partial(of_logits, targets=one.targets)
        alone = bent(found, traced(found, one, push), push, one.mask, scores)
        for ours, theirs in zip(whole, alone, strict=True):
            torch.testing.assert_close(ours[:, row], theirs[:, 0], **ROUNDED)


# Gradients by the states


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_by_the_states_are_those_that_hooks_retain(family):
    found, some = model(family), batch()
    sites = (EMBED, Site(0), Site(1, "attn"), Site(1, "mlp"), Site(1), Site(2, "in"), Site(2))
    assert all(found.has(site) for site in sites)
    values, by = found.by_state(some, sites, partial(of_logits, targets=some.targets))
    kept = {}

    def keep(site):
        def hook(_, inputs, keywords, output=None):
            stream = output[0] if isinstance(output, tuple) else output
            if output is None:
                stream = inputs[0] if inputs else keywords["hidden_states"]
            kept[site] = stream
            stream.retain_grad()

        return hook

    net = found.net
    with ExitStack() as hooks:
        for site in sites:
            where = module(family, net, site)
            before, after = where.register_forward_pre_hook, where.register_forward_hook
            register = before if site.part == "in" else after
            hooks.callback(register(keep(site), with_kwargs=True).remove)
        logits = net(input_ids=some.ids, attention_mask=some.mask.long()).logits
    rows, tokens = some.target
    scores = of_logits(logits[rows, tokens - 1], some.targets)
    torch.testing.assert_close(values, scores.detach(), **CLOSE)
    for number, score in enumerate(scores):
        for stream in kept.values():
            stream.grad = None
        score.sum().backward(retain_graph=True)
        for site in sites:
            wanted = kept[site].grad.reshape(*some.ids.shape, -1)
            size = float(wanted.abs().max())
            apart = float((by[number][site] - wanted).abs().max())
            assert apart <= 1e-4 * size, (site, number)
    net.zero_grad(set_to_none=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_along_a_direction_the_gradient_is_the_slope(family, in_double):
    found, some = model(family, torch.float64), batch()
    scores = partial(of_logits, targets=some.targets)
    sites = (EMBED, Site(0, "mlp"), Site(1), Site(2, "attn"), Site(2))
    assert all(found.has(site) for site in sites)
    _, by = found.by_state(some, sites, scores)
    for site in sites:
        push = Push({site: V})
        bend = bent(found, traced(found, some, push), push, some.mask, scores)
        slopes = [(one[site] @ (V / V.norm())).sum(1) for one in by]
        torch.testing.assert_close(torch.stack(slopes), bend.slope, rtol=1e-9, atol=1e-12)


# Choices


ITEMS = (
    ("The clock of Tolmar says:", ("yes", "no", "maybe"), (1,)),
    ("Mira sells cheese.", (" nine", " boats"), (0,)),
    ("one two three four five six seven (", ("eight", "nine", "bell", "day"), (0, 2)),
    ("A bell,", (" a", " the", " river"), (2, 1)),
    ("naïve 🚣🏽", ("x", "y"), (1,)),
)
"""Prompts, their answers, and the numbers of those that are wanted."""


def items(some=ITEMS, kind="choice"):
    return Pack("items", kind, [Example(t, choices=c, wanted=w) for t, c, w in some])


def first_token(prompt, answer):
    """The first token of the whole text that reaches into the answer, by its offsets."""
    row = nets.tokenizer()(prompt + answer, return_offsets_mapping=True)
    ends = [end for _, end in row["offset_mapping"]]
    place = next(n for n, end in enumerate(ends) if end > len(prompt))
    return row["input_ids"], place


def column_by_column(logits, tokens, wanted):
    """What is said of one item, each number by its definition."""
    z = logits.double()
    every, own = z.softmax(0), z[tokens].softmax(0)
    others = [n for n in range(len(tokens)) if n not in wanted]
    right, wrong = own[list(wanted)].sum(), own[others].sum()
    full = [every[tokens[n]] for n in range(len(tokens))]
    best, rival = max(z[tokens[n]] for n in wanted), max(z[tokens[n]] for n in others)
    top = {tokens[n] for n in wanted} & set((z == z.max()).nonzero()[:, 0].tolist())
    return {
        "behaviour": right - wrong,
        "behaviour_full": sum(full[n] for n in wanted) - sum(full[n] for n in others),
        "log_odds": right.log() - wrong.log(),
        "mass": sum(full),
        "hits": 1.0 if best > rival else 0.5 if best == rival else 0.0,
        "hits_full": (len(top) > 0) / (1 + ((z == z.max()).sum() > len(top))),
    }


VECTORS = {Site(0): V, Site(1): W}


def item_by_item(family, net, item, strength):
    text, answers, wanted = item
    told = [first_token(text, answer) for answer in answers]
    ids, place = told[0]
    tokens = [row[place] for row, _ in told]
    ids = torch.tensor([ids[:place]])
    with torch.no_grad(), plainly(family, net, VECTORS, strength, torch.ones_like(ids) > 0):
        logits = net(input_ids=ids).logits[0, -1]
    return column_by_column(logits, tokens, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_what_a_loop_over_plain_nets_finds(family):
    two = pair(family)
    reading = choices(items(), two)
    push = Push(VECTORS)
    sweep = Sweep(reading, [Arm(0, push, STRENGTHS), Arm(1, push, STRENGTHS[::-1])])
    measure(two, reading.pack, [sweep], rows=3)
    for arm, (side, strengths) in enumerate(
        [(two.base, STRENGTHS), (two.aligned, STRENGTHS[::-1])]
    ):
        found = sweep.found(arm)
        for row, item in enumerate(ITEMS):
            for place, strength in enumerate(strengths):
                wanted = item_by_item(family, side.net, item, strength)
                for name, value in wanted.items():
                    got = found[name][row, place]
                    assert got == pytest.approx(float(value), rel=2e-4, abs=2e-5), (name, row)


def fixed(tokens, signs):
    """A reading of items whose logits are made by hand."""
    tokens = torch.tensor(tokens)
    return Choices(items(), (tokens, tokens), torch.tensor(signs, dtype=torch.float32))


def said_of(reading, logits):
    documents = np.arange(len(logits))
    values = reading.values(logits, torch.zeros(len(logits), dtype=torch.long), documents, 0)
    return {name: values[:, n].tolist() for n, name in enumerate(reading.columns)}


def test_of_a_tie_half_is_a_hit():
    logits = torch.zeros(4, 6)
    logits[0, [1, 2]] = 3.0  # wanted and not, above all
    logits[1, [1, 4]] = 3.0  # wanted, and none of the answers
    logits[2, [1, 3]] = 3.0  # two that are wanted
    logits[3, [2, 4]] = 3.0  # none that is wanted
    reading = fixed([[1, 2, 3]] * 4, [[1, -1, 1]] * 4)
    found = said_of(reading, logits)
    assert found["hits"] == [0.5, 1.0, 1.0, 0.0]
    assert found["hits_full"] == [0.5, 0.5, 1.0, 0.0]


def test_answers_that_are_not_there_count_nowhere():
    logits = drawn(2, 9, seed=3)
    short = said_of(fixed([[1, 2]] * 2, [[1, -1]] * 2), logits)
    for filler in (2, 5):
        longer = said_of(fixed([[1, 2, filler]] * 2, [[1, -1, 0]] * 2), logits)
        assert longer == short


def test_columns_follow_from_one_another():
    logits = 5 * drawn(20, 9, seed=4)
    reading = fixed([[1, 2, 7]] * 20, [[1, -1, -1]] * 20)
    found = {name: np.array(column) for name, column in said_of(reading, logits).items()}
    np.testing.assert_allclose(found["behaviour"], np.tanh(found["log_odds"] / 2), atol=1e-12)
    product = found["behaviour"] * found["mass"]
    np.testing.assert_allclose(found["behaviour_full"], product, atol=1e-12)
    np.testing.assert_array_equal(found["hits"] <= 0.5, found["log_odds"] <= 0.5 * np.log(1))
    scores = reading.scores(logits, torch.zeros(20), np.arange(20), 0)
    np.testing.assert_allclose(scores[0], found["behaviour"], atol=1e-15)
    right = (found["mass"] + found["behaviour_full"]) / 2
    np.testing.assert_allclose(scores[1], right, atol=1e-12)
    np.testing.assert_allclose(scores[2], np.log(right), atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("token", [1, 4])
def test_where_a_logit_is_not_finite_nothing_is_said_and_elsewhere_all_is(bad, token):
    logits = drawn(3, 6, seed=5).float()
    clean = logits.clone()
    logits[1, token] = bad
    reading = fixed([[1, 2]] * 3, [[1, -1]] * 3)
    for read in (reading, Texts(nets.pack(nets.TEXTS))):
        targets, documents = torch.tensor([1, 1, 2]), np.arange(3)
        found, wanted = (read.values(z, targets, documents, 0) for z in (logits, clean))
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], wanted[[0, 2]])


BAD = {
    "one first token": (
        items([*ITEMS[:1], ("The", (" nine", " river", " nine ten"), (0,))]),
        r"item 1 of items, found ' nine' and ' nine ten', .*'Ġnine'",
    ),
    "a prompt that hangs on its answer": (
        items([("The ri", ("ver", "x"), (0,))]),
        "leave the tokens of the prompt alone in item 0",
    ),
    "another kind": (nets.pack(nets.TEXTS), "of kind choice.*texts of kind text"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_chosen_from_is_refused(name):
    pack, words = BAD[name]
    with pytest.raises(DriftlensError, match=words):
        choices(pack, pair())


# Texts


def loss_by_token(family, net, text, strength):
    """[token] ln P of each token of a text but the first, whether it is the likeliest."""
    ids = torch.tensor([nets.tokenizer()(text)["input_ids"]])
    with torch.no_grad(), plainly(family, net, VECTORS, strength, torch.ones_like(ids) > 0):
        log = net(input_ids=ids).logits[0, :-1].double().log_softmax(1)
    targets = ids[0, 1:]
    return log[range(len(targets)), targets].numpy(), (log.argmax(1) == targets).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_what_a_loop_over_plain_nets_finds(family):
    two, reading = pair(family), Texts(nets.pack(nets.TEXTS))
    arms = [Arm(side, Push(VECTORS), STRENGTHS) for side in (0, 1)]
    sweep = Sweep(reading, arms)
    measure(two, reading.pack, [sweep], rows=4)
    for side, of in enumerate((two.base, two.aligned)):
        found = sweep.found(side)
        for row, text in enumerate(nets.TEXTS):
            for place, strength in enumerate(STRENGTHS):
                log, hits = loss_by_token(family, of.net, text, strength)
                assert found["tokens"][row, place] == len(log)
                assert found["hits"][row, place] == hits.sum()
                for name, wanted in (("log_right", log.sum()), ("right", np.exp(log).sum())):
                    assert found[name][row, place] == pytest.approx(wanted, rel=2e-4, abs=2e-5)


LONG = nets.pack([" ".join(nets.TEXTS[:4]), nets.TEXTS[5] * 2, *nets.TEXTS[6:]])


@pytest.mark.parametrize("rows", [1, 2, 20])
def test_of_a_text_that_is_read_in_windows_every_token_counts_once(rows):
    reading, strengths = Texts(LONG), (0.0, 1.0)
    sweep, bends = (
        make(reading, [Arm(side, Push({Site(1): V}), strengths) for side in (0, 1)])
        for make in (Sweep, Bends)
    )
    measure(pair(), LONG, [sweep, bends], rows=rows, length=24)
    assert max(window.number for window in sweep.encoder.plan) > 1
    lengths = [len(nets.tokenizer()(e.text)["input_ids"]) - 1 for e in LONG.examples]
    for side in (0, 1):
        found = sweep.found(side)
        for place in range(len(strengths)):
            assert found["tokens"][:, place].tolist() == lengths
        for name in ("right", "log_right"):
            bend = bends.found(side)[name]
            np.testing.assert_allclose(bend[:, 0], found[name][:, 0], **ROUNDED)
        # Each window's own start is not what the whole text would have been.
        frames = pair().frames(LONG, rows=rows, length=24)
        plain = np.zeros(len(lengths))
        for frame in frames:
            np.add.at(plain, frame.scored.document, frame.likelihoods[side].numpy())
        np.testing.assert_allclose(found["log_right"][:, 0], plain, **ROUNDED)


@pytest.mark.parametrize("make", [Sweep, Bends])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_prompt_longer_than_a_window_is_read_at_its_end(make, rows):
    prompt = nets.TEXTS[2] + nets.TEXTS[5]
    pack = items([(f"{prompt} {n}", (" yes", " no"), (0,)) for n in range(3)])
    reading = choices(pack, pair())
    metric = make(reading, [Arm(0, Push({Site(1): V}), (0.0, 1.0))])
    measure(pair(), reading.pack, [metric], rows=rows, length=24)
    assert max(window.number for window in metric.encoder.plan) > 1
    found = metric.found(0)["behaviour"]
    for row, (text, answers, _) in enumerate((e.text, e.choices, e.wanted) for e in pack.examples):
        ids, place = first_token(text, answers[0])
        other = first_token(text, answers[1])[0][place]
        window = next(
            metric.encoder.document(row).windows[w.number]
            for w in metric.encoder.plan
            if w.example == row and metric.encoder.document(row).windows[w.number][2] > place
        )
        seen = [ids[0], *ids[max(1, window[0]) : place]]
        with torch.no_grad():
            z = pair().base.net(input_ids=torch.tensor([seen])).logits[0, -1].double()
        wanted = torch.tanh((z[ids[place]] - z[other]) / 2)
        assert found[row, 0] == pytest.approx(float(wanted), rel=2e-4, abs=2e-5)


# Numbers that end


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("read", ["choices", "texts"])
def test_a_strength_beyond_all_numbers_says_nothing_and_spoils_nothing(family, read):
    two = pair(family)
    reading = choices(items(), two) if read == "choices" else Texts(nets.pack(nets.TEXTS[:4]))
    push, sane = Push({Site(1): V}), (-1.0, 0.0, 2.0)
    alone = Sweep(reading, [Arm(0, push, sane)])
    # Beyond float32, where the stream itself is infinite.
    among = Sweep(reading, [Arm(0, push, (-1.0, 1e39, 0.0, -1e300, 2.0))])
    measure(two, reading.pack, [alone], rows=9)
    measure(two, reading.pack, [among], rows=9)
    for name, column in among.found(0).items():
        assert np.isnan(column[:, [1, 3]]).all()
        wanted = alone.found(0)[name]
        np.testing.assert_allclose(column[:, [0, 2, 4]], wanted, rtol=2e-4, atol=2e-5)


def test_a_net_whose_norm_overflows_is_reported_as_having_no_numbers():
    # The square of 1e30 is infinite, and a mean is taken away from it: LayerNorm gives NaN.
    reading = Texts(nets.pack(nets.TEXTS[:4]))
    sweep = Sweep(reading, [Arm(0, Push({Site(1): V}), (1e30, 1.0))])
    measure(pair("gpt2"), reading.pack, [sweep])
    found = sweep.found(0)["log_right"]
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1]).all()


# The laws


def sweep_metric(reading):
    return Sweep(
        reading, [Arm(0, Push(VECTORS), STRENGTHS), Arm(1, Push({Site(2): W}), (0.0, 3.0))]
    )


def bends_metric(reading):
    return Bends(reading, [Arm(0, Push(VECTORS), ()), Arm(1, Push({Site(2): W}), ())])


def gradients_metric(reading):
    return StateGradients(reading, reading.scored[0], [EMBED, Site(1), Site(2, "attn")])


METRICS = [sweep_metric, bends_metric, gradients_metric]
READINGS = {
    "choices": lambda: choices(items(), pair()),
    "texts": lambda: Texts(LONG),
}
EVERY = [(make, read) for make in METRICS for read in READINGS]


def arrays(metric):
    """All that it found, as one array."""
    if isinstance(metric, StateGradients):
        return metric.found
    return np.concatenate(
        [column.ravel() for arm in (0, 1) for column in metric.found(arm).values()]
    )


@cache
def reading(read):
    return READINGS[read]()


def begun(make, read, of=pair):
    metric = make(reading(read))
    metric.begin(of(), of().encoder(reading(read).pack, 24))
    return metric


@cache
def frames(make, read, rows=2):
    return tuple(pair().frames(reading(read).pack, begun(make, read).wants, rows=rows, length=24))


def after(metric, some):
    for frame in some:
        metric.update(frame)
    return metric


def whole(make, read, rows=2):
    return arrays(after(begun(make, read), frames(make, read, rows)))


@pytest.mark.parametrize(("make", "read"), EVERY)
def test_parts_merge_into_the_whole(make, read):
    parts = [begun(make, read) for _ in range(3)]
    for number, frame in enumerate(reversed(frames(make, read))):
        parts[number % 3].update(frame)
    before = arrays(parts[2])
    merged = reduce(lambda a, b: a.merge(b), [*parts, begun(make, read).empty()])
    np.testing.assert_allclose(arrays(merged), whole(make, read), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(arrays(parts[2]), before)


@pytest.mark.parametrize(("make", "read"), EVERY)
def test_the_size_of_a_batch_does_not_matter(make, read):
    wanted = whole(make, read)
    for rows in (1, 3, 50):
        np.testing.assert_allclose(whole(make, read, rows), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("make", "read"), EVERY)
def test_a_run_that_is_taken_up_ends_in_the_same_bits(make, read):
    first, *rest = frames(make, read)
    half = after(begun(make, read), [first])
    again = begun(make, read).restore(half.state())
    np.testing.assert_array_equal(arrays(again), arrays(half))
    np.testing.assert_array_equal(arrays(after(again, rest)), arrays(after(half, rest)))


@pytest.mark.parametrize("read", READINGS)
def test_a_model_beside_itself_is_the_same_on_both_sides(read):
    own = ModelPair(pair().base, pair().base)
    of = choices(items(), own) if read == "choices" else reading(read)
    arms = [Arm(side, Push(VECTORS), STRENGTHS) for side in (0, 1)]
    sweep, bends = Sweep(of, arms), Bends(of, arms)
    gradients = StateGradients(of, of.scored[0], [Site(0), Site(1)])
    measure(own, of.pack, [sweep, bends, gradients], rows=3)
    for metric in (sweep, bends):
        for name, column in metric.found(0).items():
            np.testing.assert_array_equal(column, metric.found(1)[name], err_msg=name)
    np.testing.assert_array_equal(gradients.found[:, 0], gradients.found[:, 1])
    beside = Sweep(of, arms[:1])
    measure(ModelPair(pair().base, pair().aligned), of.pack, [beside], rows=3)
    for name, column in beside.found(0).items():
        np.testing.assert_array_equal(column, sweep.found(0)[name], err_msg=name)


@pytest.mark.parametrize("positions", ["all", "last", "prompt", "response"])
def test_three_ways_to_one_slope(positions):
    # Of the sweep by small steps, of what bends, and of the states' gradients.
    of, step = reading("choices"), 0.05
    push = Push({Site(1): V})
    sweep = Sweep(of, [Arm(1, push, (-step, 0.0, step))], positions)
    bends = Bends(of, [Arm(1, push, ())], positions)
    gradients = StateGradients(of, "behaviour", [Site(1)], positions)
    measure(pair(), of.pack, [sweep, bends, gradients], rows=3)
    found, bend = sweep.found(0)["behaviour"], bends.found(0)["behaviour"]
    np.testing.assert_allclose(bend[:, 0], found[:, 1], **ROUNDED)
    along = gradients.found[:, 1, 0] @ (V / V.norm()).numpy()
    np.testing.assert_allclose(along, bend[:, 1], rtol=1e-4, atol=1e-6)
    # Steps are off by their square, and by what float32 makes of a small difference.
    np.testing.assert_allclose((found[:, 2] - found[:, 0]) / 2 / step, bend[:, 1], atol=1e-4)
    moved = np.abs(bend[:, 1]) > 1e-3
    # An item is scored at one token, behind which nothing is read.
    assert not moved.any() if positions == "response" else moved.any()


# Who is refused


@pytest.mark.parametrize("make", METRICS)
def test_models_that_fill_in_masks_are_refused(make):
    of = Texts(nets.pack(nets.TEXTS))
    with pytest.raises(DriftlensError, match="models that continue text"):
        measure(pair("bert"), of.pack, [make(of)])


@pytest.mark.parametrize("make", METRICS)
def test_models_that_read_other_tokens_are_refused(make):
    other = HookedModel(net(), nets.tokenizer(merges=20), "other")
    of = Texts(nets.pack(nets.TEXTS))
    with pytest.raises(DriftlensError, match="the same tokens"):
        measure(ModelPair(model(), other), of.pack, [make(of)])


@pytest.mark.parametrize("make", [Sweep, Bends])
@pytest.mark.parametrize("side", [0, 1])
def test_a_push_that_does_not_fit_is_refused_before_anything_is_run(make, side):
    of = Texts(nets.pack(nets.TEXTS))
    for vectors, words in (
        ({Site(3): V}, "blocks from 0 to 2.*found 3"),
        ({Site(0): V, Site(1): V[:5]}, "32 numbers.*one of 5"),
        ({Site(1, "heads"): V}, "heads"),
    ):
        metric = make(of, [Arm(side, Push(vectors), (1.0,))])
        with pytest.raises(DriftlensError, match=words):
            metric.begin(pair(), pair().encoder(of.pack))


@pytest.mark.parametrize("missing", [Site(3), Site(-1), Site(5, "attn")])
def test_gradients_by_states_that_are_not_there_are_refused(missing):
    of = Texts(nets.pack(nets.TEXTS))
    metric = StateGradients(of, "right", [Site(1), missing])
    with pytest.raises(DriftlensError, match=f"0 to 2, found {missing}"):
        metric.begin(pair(), pair().encoder(of.pack))


def test_a_model_that_nobody_looked_into_has_its_gradients_taken():
    # Where attention and MLP write is found by running the net, which may not be in a run then.
    of = Texts(nets.pack(nets.TEXTS[:2]))
    found = []
    for two in (nets.pair("gemma2"), pair("gemma2")):
        metric = StateGradients(of, "right", [EMBED, Site(1, "attn"), Site(2, "mlp")])
        measure(two, of.pack, [metric])
        found.append(metric.found)
    np.testing.assert_array_equal(*found)


# As it was found


def state(net):
    """All that hooks, modes and patches leave on a net."""
    tables = [name for name in vars(nn.Module()) if "hook" in name]
    modules = [
        (one.training, "forward" in vars(one), [len(vars(one)[t] or ()) for t in tables])
        for one in net.modules()
    ]
    learning = [(p.requires_grad, p.grad) for p in net.parameters()]
    attention = net.config._attn_implementation
    backends = (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
    )
    return modules, learning, attention, backends, torch.is_grad_enabled()


class Spoilt(Exception):
    """Something that goes wrong in the middle."""


@pytest.mark.parametrize("at", [None, 1, 2, 5])
@pytest.mark.parametrize("make", METRICS)
def test_models_are_left_as_they_were_found(make, at):
    two = nets.pair("llama")
    of = choices(items(), two)
    for side in (two.base, two.aligned):
        side.net.train()
        side.net.model.layers[1].eval()
        side.net.model.layers[0].requires_grad_(False)
        assert side.vocabulary == nets.WORDS
    before = [state(side.net) for side in (two.base, two.aligned)]
    weights = [deepcopy(side.net.state_dict()) for side in (two.base, two.aligned)]
    runs = [0]

    def spoil(*_):
        runs[0] += 1
        if runs[0] == at:
            raise Spoilt

    hook = two.base.net.model.layers[2].mlp.register_forward_hook(spoil)
    with ExitStack() as caught:
        if at:
            caught.enter_context(pytest.raises(Spoilt))
        measure(two, of.pack, [make(of)], rows=2)
    hook.remove()
    assert runs[0] >= (at or 1)
    assert [state(side.net) for side in (two.base, two.aligned)] == before
    for side, was in zip((two.base, two.aligned), weights, strict=True):
        assert all(torch.equal(now, was[name]) for name, now in side.net.state_dict().items())


# Adapters


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_and_its_base_give_what_each_gives_alone():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    live = peft.get_peft_model(nets.net("llama"), config)
    live = nets.moved(live, 0.1, 3, "lora_").eval()
    merged = deepcopy(live).merge_and_unload()
    shared = ModelPair.load(None, live, tokenizer=nets.tokenizer())
    assert shared.base.net is shared.aligned.net
    learning = [p.requires_grad for p in live.parameters()]
    apart = ModelPair(model(), HookedModel(merged, nets.tokenizer(), "merged"))
    found = []
    for two in (shared, apart):
        of = choices(items(), two)
        metrics = [make(of) for make in METRICS]
        measure(two, of.pack, metrics, rows=3)
        found.append([arrays(metric) for metric in metrics])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    sides = found[0][2]
    assert np.abs(sides[:, 0] - sides[:, 1]).max() > 0.01
    assert [p.requires_grad for p in live.parameters()] == learning
