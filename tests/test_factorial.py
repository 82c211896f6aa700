"""Lower and upper stack against the nets that they are made of, and damage that was planted."""

from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch

import nets
from driftlens.diagnostics.factorial import Factorial, FactorialResult
from driftlens.diagnostics.forgetting import Forgetting
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel

ROUNDED = 1e-6
"""Nats a token that float32 leaves where two orders of the same arithmetic meet."""

EXACT = 1e-12
"""Sums of float64 numbers."""

BOUNDARIES = ["below 0", "above 0", "above 1", "above 2"]


def of(base, aligned, family="llama"):
    words = nets.tokenizer_for(family)
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


@cache
def damaged(*names, size=0.1):
    """A tiny model, and the same with only some weights moved."""
    base = nets.net("llama")
    aligned = deepcopy(base)
    for seed, name in enumerate(names):
        nets.moved(aligned, size, seed + 1, only=name)
    return of(base, aligned)


def found(pair, *metrics, times=1):
    results = measure(pair, nets.pack(nets.TEXTS * times), metrics or [Factorial()])
    return results if metrics else results[0]


def test_main_effects_and_interaction_add_up_to_the_rise_at_every_boundary():
    effects, forgetting = found(damaged(""), Factorial(), Forgetting())
    assert effects.boundary.tolist() == BOUNDARIES
    assert effects.total.value == forgetting.loss_rise.value
    sums = effects.upstream + effects.late + effects.interaction
    np.testing.assert_allclose(sums, effects.total.value, atol=EXACT)


@pytest.mark.parametrize("block", range(3))
def test_damage_to_one_block_is_late_below_it_and_upstream_above_it_and_no_interaction(block):
    effects = found(damaged(f"layers.{block}."))
    below = np.arange(4) <= block
    total = effects.total.value
    assert abs(total) > 1e-3
    assert (effects.upstream[below] == 0).all()
    assert (effects.late[below] == total).all()
    assert (effects.interaction[below] == 0).all()
    np.testing.assert_allclose(effects.upstream[~below], total, atol=ROUNDED)
    np.testing.assert_allclose(effects.late[~below], 0, atol=ROUNDED)
    np.testing.assert_allclose(effects.interaction, 0, atol=2 * ROUNDED)
    for name in ("upstream", "late", "interaction"):
        low, high = (getattr(effects, f"{end}_{name}") for end in ("low", "high"))
        assert (low <= getattr(effects, name) + ROUNDED).all()
        assert (high >= getattr(effects, name) - ROUNDED).all()


def test_the_effects_are_those_of_four_nets_whose_weights_were_swapped():
    pair = damaged("")
    effects = found(pair)
    pieces = pair.hybrid.pieces("layer")
    (frame,) = pair.frames(nets.pack(nets.TEXTS), rows=len(nets.TEXTS))

    def loss(*some):
        return -float(frame.grafted([pieces[number] for number in some]).mean())

    for row in range(4):
        lower, upper = range(row + 1), range(row + 1, 5)
        ours, up, late, both = loss(), loss(*lower), loss(*upper), loss(*lower, *upper)
        expected = {"upstream": up - ours, "late": late - ours}
        expected["interaction"] = both - up - late + ours
        for name, number in expected.items():
            assert getattr(effects, name)[row] == pytest.approx(number, abs=4 * ROUNDED), name


def test_exchanging_the_models_leaves_the_interaction_and_turns_the_effects_about():
    pair = damaged("")
    ours, theirs = found(pair), found(ModelPair(pair.aligned, pair.base))
    np.testing.assert_allclose(theirs.interaction, ours.interaction, atol=EXACT)
    np.testing.assert_allclose(theirs.late, -(ours.late + ours.interaction), atol=EXACT)
    np.testing.assert_allclose(theirs.upstream, -(ours.upstream + ours.interaction), atol=EXACT)


def test_of_two_blocks_that_do_the_same_damage_the_interaction_lies_between_them():
    base = nets.net("gpt2")
    aligned = deepcopy(base)
    with torch.no_grad():
        for block in (0, 2):
            # Either floods the stream, so that all that is read of it is one token's direction.
            aligned.transformer.h[block].mlp.c_proj.bias += 1e4 * base.transformer.wte.weight[5]
    effects = found(of(base, aligned, "gpt2"), times=6)
    between = np.isin(effects.boundary, ["above 0", "above 1"])
    assert effects.total.low > 0
    close = {"atol": 0.02 * effects.total.value}
    np.testing.assert_allclose(effects.interaction[between], -effects.total.value, **close)
    np.testing.assert_allclose(effects.upstream[between], effects.total.value, **close)
    np.testing.assert_allclose(effects.late[between], effects.total.value, **close)
    np.testing.assert_allclose(effects.interaction[~between], 0, **close)
    assert "depends on what stands below: those above " in effects.summary()


def test_a_model_and_itself_have_no_effects():
    pair = damaged("")
    effects = found(ModelPair(pair.base, pair.base))
    for name in effects.near_zero:
        assert (np.ravel(getattr(effects, name)) == 0).all()
    assert "may be none" in effects.summary()
    assert effects.figure() is not None


def test_what_an_upper_stack_spares_is_written_with_a_true_minus():
    names = ("upstream", "late", "interaction")
    ends = {f"{end}_{name}": [0.0] for end in ("low", "high") for name in names}
    effects = FactorialResult.of(
        total=0.2,
        strongest=(-0.25, -0.3, -0.2),
        boundary=["above 0"],
        upstream=[0.55],
        late=[-0.1],
        interaction=[-0.25],
        **ends,
    )
    said = effects.summary()
    assert "cost −0.1 nats a token over base's lower blocks and −0.35 over aligned's" in said
    assert "-" not in said
