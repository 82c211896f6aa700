"""Memory that is short: layers in groups, batches that are searched, batches that are halved."""

import numpy as np
import pytest
import torch

import nets
from driftlens import Forgetting, budget, measure, metric
from driftlens.budget import LEAST, Trial, metered, searched
from driftlens.diagnostics import drift
from driftlens.diagnostics.drift import Drift, grouped, sums_bytes
from driftlens.models import Wants, every, memory
from driftlens.models.hooks import HookedModel
from driftlens.results import same

PACK = nets.pack([f"{text} {number}" for number in range(3) for text in nets.TEXTS])
SITES = every(range(5), *drift.PARTS)
NEEDED = len(SITES) + 6
"""Sums of all sites of five blocks, those of the stream twice: with the first token too."""


# Sites in groups


@pytest.mark.parametrize("room", [1, 2, 3, 4, 7, 10, NEEDED - 1, NEEDED, 100])
def test_groups_hold_every_site_exactly_once_and_none_more_than_there_is_room_for(room):
    groups = grouped(SITES, room, None)
    held = [site for group in groups for site in group.compared]
    assert sorted(held) == sorted(SITES)
    streams = {site for site in SITES if site.part in ("in", "out")}
    assert {site for group in groups for site in group.with_first} == streams
    assert all(group.with_first <= group.compared for group in groups)
    # A stream and the same with its first token are never parted: there is room for two at least.
    sizes = [len(group.compared) + len(group.with_first) for group in groups]
    assert max(sizes) <= max(2, room)
    assert len(groups) <= -(-NEEDED // max(2, room - room % 2))


def test_no_more_showings_than_are_allowed_are_asked_for():
    for most in (1, 2, 3):
        for room in range(1, NEEDED):
            groups = grouped(SITES, room, most)
            assert len(groups) <= most
            held = [site for group in groups for site in group.compared]
            assert len(held) == len(set(held)) >= 1


def test_one_showing_of_little_room_is_as_it_always_was():
    for room in range(1, NEEDED + 2):
        (group,) = grouped(SITES, room, 1)
        assert (group.compared, group.with_first) == drift._roomy(SITES, room)


@pytest.mark.parametrize("room", [2, 5])
def test_layers_swept_in_groups_give_the_numbers_of_one_pass_exactly(room):
    pair = nets.pair("llama")
    whole = measure(pair, PACK, [Drift()])[0]
    shown = []
    parts = Drift(every_site=True, room=room * sums_bytes(pair.width))
    swept = measure(pair, PACK, [parts], progress=lambda *done: shown.append(done))[0]
    assert len(parts.groups) == -(-(len(parts.sites) + 4) // (room - room % 2)) > 1
    assert sum(done == total for done, total in shown) == len(parts.groups)
    said = f"The texts were shown {len(parts.groups)} times, for not all sums fitted at once."
    assert said in swept.notes
    assert np.isfinite(swept.cka).all()
    for name, column in whole.columns().items():
        np.testing.assert_array_equal(getattr(swept, name), column, err_msg=name)
    assert swept.sampled == whole.sampled


def test_only_what_a_group_needs_is_asked_of_the_models_again():
    pair = nets.pair("llama")
    parts = Drift(every_site=True, room=2 * sums_bytes(pair.width))
    measure(pair, PACK, [parts])
    assert len(parts.wants.parts) <= 2
    assert len(parts.wants.layers) <= 2


def test_a_sweep_that_was_kept_half_way_goes_on_where_it_was():
    pair = nets.pair("llama")

    def fresh():
        one = Drift(every_site=True, room=4 * sums_bytes(pair.width))
        one.begin(pair, encoder)
        return one

    encoder = pair.encoder(PACK)
    first, frame = fresh(), pair.frame(encoder, encoder.plan, Drift().wants)
    first.update(frame)
    assert first.again()
    first.update(frame)
    other = fresh().restore(first.state())
    assert other.showing == first.showing == 1
    assert same(other.compute(), first.compute())


def test_two_processes_that_share_every_showing_find_what_one_finds():
    pair = nets.pair("llama")
    encoder = pair.encoder(PACK)
    whole = measure(pair, PACK, [Drift()], rows=4)[0]
    one = Drift(every_site=True, room=4 * sums_bytes(pair.width))
    one.begin(pair, encoder)
    while True:
        shares = [one.empty(), one.empty()]
        for number, windows in enumerate(encoder.batches(0, 4)):
            shares[number % 2].update(pair.frame(encoder, windows, one.wants))
        for share in shares:
            one.merge(one.empty().restore(share.state()))
        if not one.again():
            break
    found = one.compute()
    for name in ("relative_l2", "cka", "procrustes", "cka_with_first", "delta_cosine_base"):
        # Products in float32 are formed of other rows together.
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-5, atol=1e-6)


def test_a_long_run_does_not_show_its_texts_again_unless_asked(monkeypatch):
    pair = nets.pair("llama")
    monkeypatch.setattr(drift, "FREE", 0.0)
    one = Drift(room=4 * sums_bytes(pair.width))
    result = measure(pair, PACK, [one])[0]
    assert len(one.groups) == 1
    assert "--every-site to show the texts 4 times" in " ".join(result.notes)


# A search


@pytest.mark.parametrize("room", [2**20, 2**24, 2**26, 2**40])
@pytest.mark.parametrize("guess", [256, 1000, 8192])
def test_a_search_fills_the_room_to_an_eighth_and_never_overruns_it(room, guess):
    each, held, tried = 3000, 10**6, []

    def trial(tokens):
        tried.append(tokens)
        return Trial(True, held + each * tokens)

    found = searched(trial, guess, 65_536, room)
    truth = (room - held) // each
    if truth < LEAST:
        assert found == LEAST
    else:
        assert found <= truth
        assert found >= min(truth * 7 // 8 - LEAST, 65_536)
    assert len(tried) < 15


def test_a_search_is_monotone_in_memory():
    found = [
        searched(lambda tokens: Trial(True, 1000 * tokens), 512, 65_536, room)
        for room in (10**5, 10**6, 10**7, 10**8)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_what_ran_out_of_memory_in_a_search_is_not_given():
    def trial(tokens):
        def show():
            if tokens > 3000:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        return metered([torch.device("cpu")], show)

    assert 3000 * 7 // 8 - LEAST <= searched(trial, 512, 65_536) <= 3000


def test_another_error_in_a_search_is_raised():
    def show():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        metered([torch.device("cpu")], show)


def short(monkeypatch, tokens):
    """Models that have memory for so many tokens at a time, padding among them."""
    trace = HookedModel.trace
    seen = []

    def tight(self, batch, *arguments):
        seen.append(batch.ids.numel())
        if batch.ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return trace(self, batch, *arguments)

    monkeypatch.setattr(HookedModel, "trace", tight)
    return seen


def test_a_search_changes_batches_and_no_result_and_is_done_once(monkeypatch):
    pair = nets.pair("llama")
    plain = measure(pair, PACK, [Forgetting(), Drift()], tokens=100_000)
    monkeypatch.setattr(budget, "LEAST", 32)
    monkeypatch.setattr(metric, "WORTH", 1)
    monkeypatch.setattr(metric, "FOUND", {})
    monkeypatch.setattr(metric, "affordable", lambda *_: 64)
    seen = short(monkeypatch, 200)
    found = measure(pair, PACK, [Forgetting(), Drift()], search=True)
    # Trials ran into the wall, the run itself did not.
    assert max(seen) > 200
    (tokens,) = metric.FOUND.values()
    assert tokens > 64
    seen.clear()
    again = measure(pair, PACK, [Forgetting(), Drift()], search=True)
    assert max(seen) <= 200
    for a, b, c in zip(plain, found, again, strict=True):
        assert same(b, c)
        for name, column in a.columns().items():
            if column.dtype.kind == "f":
                # Sums in float64 of products in float32.
                np.testing.assert_allclose(getattr(b, name), column, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("batch", range(4))
def test_memory_that_runs_out_at_any_batch_changes_no_result(batch, monkeypatch):
    pair = nets.pair("llama")
    plain = measure(pair, PACK, [Forgetting(), Drift()], rows=8)
    trace, calls = HookedModel.trace, []

    def once(self, given, *arguments):
        calls.append(len(given.ids))
        # Two models read each batch: the second fails, with the first one's trace in hand.
        if len(calls) == 2 * batch + 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return trace(self, given, *arguments)

    monkeypatch.setattr(HookedModel, "trace", once)
    found = measure(pair, PACK, [Forgetting(), Drift()], rows=8)
    assert len(calls) > 8
    for a, b in zip(plain, found, strict=True):
        for name, column in a.columns().items():
            if column.dtype.kind == "f":
                # Half a batch is padded to another length, and products in float32 round anew.
                np.testing.assert_allclose(getattr(b, name), column, rtol=2e-4, atol=2e-6)
    assert found[0].loss_rise.value == pytest.approx(plain[0].loss_rise.value, abs=1e-6)


# The formula


def test_the_budget_grows_with_memory_and_shrinks_with_what_is_wanted():
    few, many = Wants(frozenset({"out"}), frozenset({0})), Wants(frozenset({"out", "mlp"}), None)
    graph = Wants(graph=True)
    each = [budget.per_token(12, 64, wants) for wants in (few, many, graph)]
    assert each == sorted(each)
    rooms = [budget.fitting(room, each[1]) for room in (10**4, 10**7, 10**8, 10**12)]
    assert rooms == sorted(rooms)
    assert (rooms[0], rooms[-1]) == (budget.LEAST, budget.MOST)


def test_a_cpu_with_little_memory_left_is_given_less(monkeypatch):
    pair = nets.pair("llama")
    wants = Wants(frozenset({"out"}), None)
    before = budget.affordable(pair, wants)
    monkeypatch.setattr(budget, "available", lambda _: 8 * 300 * budget.per_token(3, 32, wants))
    assert budget.affordable(pair, wants) == 300 < before


def test_what_this_machine_has_left_is_less_than_what_it_has():
    cpu = torch.device("cpu")
    assert 0 < memory.available(cpu) <= memory.capacity(cpu)


# Logits, a few rows at a time


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_no_more_logits_are_held_than_there_is_room_for_and_nothing_else_changes(rows, monkeypatch):
    pair = nets.pair("llama")
    encoder = pair.encoder(PACK)
    batch = encoder.encode(encoder.plan[:6])[0]
    wants = Wants(frozenset({"out"}), None, gradients=True)
    plain = pair.base.trace(batch, wants)
    assert len(plain.predictors) > 40
    monkeypatch.setattr("driftlens.models.model.LOGIT_BYTES", rows * 4 * nets.WORDS)
    readout, seen = HookedModel.readout, []

    def listening(self, stream, room=None):
        seen.append(len(stream))
        return readout(self, stream, room)

    monkeypatch.setattr(HookedModel, "readout", listening)
    found = pair.base.trace(batch, wants)
    assert max(seen) == min(rows, len(plain.predictors))
    for site, gradient in plain.gradients.items():
        # Products of other shapes round otherwise in float32.
        torch.testing.assert_close(found.gradients[site], gradient, rtol=1e-4, atol=1e-5)
    seen.clear()
    measure(pair, PACK, [Forgetting()], rows=6)
    assert max(seen) <= max(1, rows)
