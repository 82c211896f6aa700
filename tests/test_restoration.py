"""Curves of restored loss against closed forms, copied weights and planted damage."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import permutations

import numpy as np
import pytest

import nets
from driftlens.diagnostics.forgetting import Forgetting
from driftlens.diagnostics.layers import LayerForgetting
from driftlens.diagnostics.restoration import Restoration
from driftlens.errors import DriftlensError
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.results import load, same, save

ROUNDED = 1e-6
"""Nats a token that float32 leaves where two orders of the same arithmetic meet."""

EXACT = 1e-12
"""Sums of float64 numbers."""

TIMES = 6
"""How often the texts are shown, so that the interval of a planted rise does not reach 0."""


def of(base, aligned):
    words = nets.tokenizer()
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


@cache
def damaged(name="", size=0.1):
    """A tiny model, and the same with only some weights moved."""
    base = nets.net("llama")
    return of(base, nets.moved(deepcopy(base), size, 1, only=name))


@cache
def worse(name):
    """The same, that first which loses from first to second."""
    pair = damaged(name, 0.3)
    (rise,) = measure(pair, pack(), [Forgetting()])
    return pair if rise.loss_rise.value > 0 else ModelPair(pair.aligned, pair.base)


@cache
def frames(pair):
    return tuple(pair.frames(pack(), LayerForgetting.wants, rows=18))


def pack():
    return nets.pack(nets.TEXTS[:6] * TIMES)


def found(pair, *arguments, **options):
    metric = Restoration(*arguments, **options)
    metric.begin(pair, pair.encoder(pack()))
    for frame in frames(pair):
        metric.update(frame)
    return metric.compute()


def rows(result, order):
    mine = result.order == order
    return {name: column[mine] for name, column in result.columns().items()}


def test_a_curve_begins_with_the_rise_and_ends_with_nothing_of_it():
    result = found(damaged())
    for name in ("from the bottom", "from the top", "random"):
        mine = rows(result, name)
        assert mine["pieces"].tolist() == list(range(6))
        assert mine["rise"][0] == pytest.approx(result.total.value, abs=EXACT)
        assert mine["rise"][-1] == 0
        np.testing.assert_allclose(mine["restored"][[0, -1]], [0, 1], atol=EXACT)
    assert rows(result, "from the top")["layer"].tolist() == ["", "head", "2", "1", "0", "embed"]


def test_what_is_left_from_the_bottom_is_what_the_sweep_has_not_yet_given_back():
    pair = damaged()
    (sweep,) = measure(pair, pack(), [LayerForgetting()], rows=18)
    left = sweep.total.value - np.append(0, np.cumsum(sweep.share))
    mine = rows(found(pair), "from the bottom")
    np.testing.assert_allclose(mine["rise"], left, atol=ROUNDED)
    backward = sweep.total.value - np.append(0, np.cumsum(sweep.share_backward[::-1]))
    mine = rows(found(pair), "from the top")
    np.testing.assert_allclose(mine["rise"], backward, atol=ROUNDED)


def test_one_damaged_block_is_a_step_in_every_curve_and_its_area_is_where_the_step_lies():
    pair = worse("layers.1.")
    pieces = pair.hybrid.pieces("layer")
    here = [str(piece) for piece in pieces].index("1")
    rest = [piece for piece in pieces if str(piece) != "1"]
    orders = {f"after {n}": (*rest[:n], pieces[here], *rest[n:]) for n in range(5)}
    result = found(pair, orders, random=64)
    assert result.total.low > 0
    for n, name in enumerate(orders):
        mine = rows(result, name)
        np.testing.assert_allclose(mine["restored"], np.arange(6) > n, atol=EXACT)
        np.testing.assert_allclose(mine["order_area"], 1 - (n + 0.5) / 5, atol=EXACT)
    assert result.area.value == pytest.approx(0.9, abs=EXACT)
    assert result.area.low == pytest.approx(0.9, abs=1e-9)
    assert result.half.value == result.ninety.value == 1
    assert result.half_pieces == result.ninety_pieces == ("1",)
    # The step of a random order is anywhere: areas .1 … .9, whose mean of 64 is within .1 of .5.
    assert result.area_random.value == pytest.approx(0.5, abs=0.1)
    assert result.area_random.low == pytest.approx(0.1)
    assert result.area_random.high == pytest.approx(0.9)
    assert "Base's weights of 1 put back (1 of 5 pieces) return half" in result.summary()


def test_the_fewest_pieces_are_measured_and_not_added_up():
    pair = damaged()
    orders = {str(n): order for n, order in enumerate(permutations(pair.hybrid.pieces("layer")))}
    result = found(pair, dict(list(orders.items())[:3]), random=0)
    for name, count in (("half", 0.5), ("ninety", 0.9)):
        curve = rows(result, "0")["restored"]
        fewest = int(getattr(result, name).value)
        assert curve[fewest] >= count
        assert (curve[:fewest] < count).all()
        assert len(getattr(result, f"{name}_pieces")) == fewest
    assert result.random_orders == 0
    assert np.isnan(result.area_random.value)
    assert "random" not in result.summary()


def test_random_orders_are_those_of_the_seed():
    pair = damaged()
    assert same(found(pair, seed=1), found(pair, seed=1))
    one, other = (found(pair, seed=seed) for seed in (1, 2))
    assert one.area_random != other.area_random
    assert one.area.value == other.area.value
    levels = rows(one, "random")
    assert (levels["low"] <= levels["rise"] + EXACT).all()
    assert (levels["rise"] <= levels["high"] + EXACT).all()


def test_parts_of_a_stream_merge_into_the_whole_in_any_order():
    pair = damaged()
    metric = Restoration()
    metric.begin(pair, pair.encoder(pack()))
    parts = [metric.empty() for _ in range(2)]
    for number, frame in enumerate(reversed(frames(pair))):
        parts[number % 2].update(frame)
    merged, whole = parts[0].merge(parts[1]).compute(), found(pair)
    for name in ("rise", "low", "high", "restored"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), atol=1e-9)


def test_by_component_the_orders_are_of_components():
    result = found(damaged(), by="component", random=1)
    assert rows(result, "random")["pieces"].tolist() == list(range(10))
    assert {"attn", "mlp"} < set(result.component)


def test_where_nothing_was_lost_there_is_nothing_to_restore(tmp_path):
    pair = damaged()
    result = found(ModelPair(pair.base, pair.base))
    assert (result.rise == 0).all()
    assert np.isnan(result.restored).all()
    for name in ("area", "area_random", "half", "ninety"):
        assert np.isnan(getattr(result, name).value)
    assert result.half_pieces == ()
    assert "nothing to restore" in result.summary()
    assert result.figure() is None
    assert same(load(save(result, tmp_path / "none")), result)


def test_below_the_noise_floor_no_part_is_restored(tmp_path):
    result = found(damaged())
    assert result.figure() is not None
    assert same(load(save(result, tmp_path / "some")), result)
    hidden = replace(result, floor={"total": 2 * abs(result.total.value)})
    assert np.isnan(hidden.restored).all()
    assert hidden.half_pieces == ()
    assert "nothing to restore" in hidden.summary()


BAD = {
    "a piece twice": lambda pieces: {"ours": (*pieces[1:], pieces[1])},
    "a piece missing": lambda pieces: {"ours": pieces[1:]},
    "no order": lambda pieces: {},
    "an order called random": lambda pieces: {"ours": pieces, "random": pieces},
}


@pytest.mark.parametrize("what", BAD)
def test_orders_that_are_none_are_refused(what):
    pair = damaged()
    with pytest.raises(DriftlensError, match="order"):
        found(pair, BAD[what](pair.hybrid.pieces("layer")))
