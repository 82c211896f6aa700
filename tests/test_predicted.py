"""What is predicted of a step comes true: for a pair alone, and for all pairs at once."""

import sys
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import predicted as bench
from predicted import Case

import nets
from driftlens.diagnostics import Entanglement
from driftlens.formulas.preferences import DPO, IPO, SimPO
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel

ROWS = (
    ("The river", " Alder runs.", " Drift is here."),
    ("Mira sells", " cheese.", " boats, and a bell."),
    ("A bell,", " a bell!", " nine."),
    ("Seven boats", " left Kestby.", " left."),
    ("The clock", " of Tolmar strikes.", " of Belmark strikes nine."),
)
EVERY = range(len(ROWS))
LOSSES = [DPO(), SimPO(), IPO()]
SET = bench.written("rows", ROWS)


@cache
def case() -> Case:
    """A tiny net in double precision, so that a step of any size is seen.

    GPT-2, for the norms of a Llama compute in float32 whatever its weights are.
    """
    model = HookedModel(nets.net("gpt2").double(), nets.tokenizer(), "double")
    return Case.of(ModelPair(model, model), SET)


def after(loss, rates, nats, batch=EVERY):
    """[pair, 2] predicted and observed changes by one step of plain SGD on some pairs."""
    step = nats / np.abs(rates).max()
    (net,) = bench.trained(case().net, case().shown, loss, bench.sgd(step), [list(batch)])
    return step * rates, case().changed(net)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("batch", [range(5), (0, 3), (2,)], ids=str)
def test_one_step_on_any_batch_does_to_every_pair_what_was_predicted(loss, batch):
    # The error is of first order in the step: a thousandth of a nat leaves a thousandth of it.
    predicted, observed = after(loss, case().together(loss, batch), 1e-3, batch)
    assert observed == pytest.approx(predicted, abs=1e-2 * np.abs(predicted).max())


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_error_of_a_prediction_shrinks_with_the_step(loss):
    rates = case().together(loss)
    off = [np.abs(np.subtract(*after(loss, rates, nats))).max() for nats in (1e-2, 1e-3, 1e-4)]
    # Of second order in the step: a tenth of the step leaves a hundredth of the error.
    assert np.log10(off[0] / off[1]) == pytest.approx(2, abs=0.1)
    assert np.log10(off[1] / off[2]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_of_a_single_pair_both_predictions_are_one(loss):
    for pair in range(case().pairs):
        alone, together = case().alone(loss)[pair], case().together(loss, [pair])[pair]
        assert together == pytest.approx(alone, rel=1e-9)
        predicted, observed = case().stepped(loss, pair, 1e-4)
        assert observed == pytest.approx(predicted, rel=1e-2)


def test_the_steps_of_a_batch_are_the_mean_of_the_steps_of_its_pairs():
    loss, whole = DPO(), range(case().pairs)
    each = np.mean([case().together(loss, [pair]) for pair in whole], 0)
    assert case().together(loss) == pytest.approx(each, rel=1e-12)


def test_what_is_predicted_alone_is_what_the_metric_says():
    model = HookedModel(nets.net("llama"), nets.tokenizer(), "net")
    pair = ModelPair(model, model)
    pack, _ = SET.pack(nets.tokenizer(), append_eos=True)
    (result,) = measure(pair, pack, [Entanglement(SimPO())])
    said = np.stack([result.predicted_chosen_of_pair, result.predicted_rejected_of_pair], 1)
    # The longest pairs come first in a batch; the metric sorts by number.
    found = Case.of(pair, SET).alone(SimPO())
    order, wanted = (np.lexsort(z.T) for z in (found, said))
    assert found[order] == pytest.approx(said[wanted], rel=1e-4)


def test_the_plain_reading_is_the_librarys():
    model = HookedModel(nets.net("llama"), nets.tokenizer(), "net")
    pair = ModelPair(model, model)
    pack, _ = SET.pack(nets.tokenizer(), append_eos=True)
    (result,) = measure(pair, pack, [Entanglement()])
    found = Case.of(pair, SET).before
    said = np.stack([result.chosen_logp, result.rejected_logp], 1)
    assert np.sort(found, 0) == pytest.approx(np.sort(said, 0), rel=1e-6)


def test_a_step_on_nothing_new_changes_nothing():
    assert (case().changed(deepcopy(case().net)) == 0).all()


def test_signs_and_cases_are_counted():
    predicted = np.array([[1.0, -1], [1, -2], [-1, -3], [2, 1]])
    observed = np.array([[2.0, -1], [-1, -2], [-2, -0.5], [1, 2]])
    found = bench.compared(predicted, observed)
    assert (found["sign_chosen"], found["sign_rejected"]) == (0.75, 1.0)
    assert found["rank_rejected"] == pytest.approx(0.4)
    cases = bench.calibrated(predicted, observed)
    assert cases.keys() == {"ideal", "both_down", "both_up"}
    assert cases["ideal"] == {
        "pairs": 2,
        "chosen_rose": 0.5,
        "rejected_fell": 1.0,
        "as_predicted": 0.5,
    }
    assert cases["both_up"]["as_predicted"] == 1


def test_batches_show_every_pair_once_an_epoch():
    batches = bench._batches(20, 6, seed=0)
    assert [len(batch) for batch in batches] == [8, 8, 4] * 2
    for epoch in (batches[:3], batches[3:]):
        assert sorted(pair for batch in epoch for pair in batch) == list(range(20))
    assert batches[:3] != batches[3:]


def test_a_run_that_loses_all_bounds_ends_before():
    batches = bench._batches(case().pairs, 9, seed=0)
    steps = [number for number, _, _ in bench._looks(case(), DPO(), bench.sgd(1e30), batches)]
    assert steps == [1, 1]


def test_reviews_say_what_their_label_says():
    from random import Random

    rng = Random(3)
    for _ in range(50):
        asked, right, wrong = bench.review(rng)
        assert {right, wrong} == set(bench.LABELS)
        good = set(asked.split()) & set(bench.GOOD)
        assert len(good) == (2 if right == "positive" else 0)
    assert len(bench.SUFFIX) == len(bench.OTHERWISE) == max(bench.SUFFIXES)


# On the demo, which takes longer


@pytest.fixture(scope="module")
def demo() -> Case:
    return Case.of(ModelPair.alone("demo:sft"), bench.drawn(24))


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_all_pairs_of_the_demo_go_where_one_step_on_all_sends_them(demo, loss):
    rates = demo.together(loss)
    off, signs = [], []
    for nats in (1e-1, 1e-2):
        step = nats / np.abs(rates).max()
        (net,) = bench.trained(demo.net, demo.shown, loss, bench.sgd(step), [range(demo.pairs)])
        observed = demo.changed(net)
        off.append(np.linalg.norm(observed - step * rates) / np.linalg.norm(step * rates))
        signs.append((np.sign(observed) == np.sign(rates)).mean())
    # Only an answer that hardly moves may go the other way, by what is of second order. Float32
    # leaves about 1e-5 of a log-probability near 30, a thousandth of the smaller step.
    assert min(signs) > 0.95
    assert off[1] < off[0] / 5
    assert off[1] < 0.01


@pytest.mark.slow
def test_what_other_pairs_do_is_no_small_matter(demo):
    # Why both predictions are shown: each pair alone is to move as meant, and all together
    # push some chosen answers down, as they then do.
    alone, together = demo.alone(DPO()), demo.together(DPO())
    assert (alone[:, 0] > 0).all()
    falls = together[:, 0] < 0
    assert falls.sum() >= 2
    step = bench.MOVE / np.abs(together).mean()
    (net,) = bench.trained(demo.net, demo.shown, DPO(), bench.sgd(step), [range(demo.pairs)])
    assert (demo.changed(net)[falls, 0] < 0).mean() > 0.8


@pytest.mark.slow
def test_a_shared_suffix_turns_the_cosine_and_what_is_to_come_of_it_comes():
    """How many chosen answers it turns hangs on the net: of six trainings, from none to all."""
    pair = bench.reviewer()
    short, long = (bench._of_suffix(pair, length, 3) for length in (0, 14))
    assert short["cosine"] < -0.9
    assert short["chosen_to_rise"] == short["chosen_rose"] == 1
    assert long["cosine"] > 0.2
    # A pair whose answer hardly moves may come out on either side of 0.
    assert long["chosen_to_rise"] == pytest.approx(long["chosen_rose"], abs=0.2)
