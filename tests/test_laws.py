"""A table of metrics, and the laws that each of them obeys."""

import re
from dataclasses import fields, replace
from functools import cache, reduce
from operator import or_

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nets
from driftlens.diagnostics import (
    Calibration,
    CapabilityConflict,
    ChoiceCalibration,
    Constraints,
    ContrastiveMargin,
    Drift,
    Entanglement,
    EntanglementByLayer,
    EntanglementByPosition,
    Entropy,
    Factorial,
    FirstStep,
    FisherDistance,
    Forgetting,
    Grafts,
    Homogenisation,
    Interactions,
    LayerForgetting,
    Lens,
    Polarity,
    PositionMap,
    PreferenceCollapse,
    PreferenceFacts,
    PreferenceLosses,
    PublishedShift,
    Ranking,
    Restoration,
    SafetyDirections,
    SafetyForgetting,
    SafetyWeights,
    Screen,
    SelectiveForgetting,
    Shapley,
    ShiftedTokens,
    SymptomLayers,
    TokenForgetting,
    TokenKinds,
    TokenLayers,
    TokenMap,
    TokenShift,
    Uncertainty,
    WeightChange,
    WeightPath,
)
from driftlens.diagnostics.directions import Directions
from driftlens.errors import DriftlensError
from driftlens.metric import measure
from driftlens.models import Frame, ModelPair, Wants
from driftlens.models.generation import Sampling
from driftlens.packs import ANSWERS, REPLIES, TWINS, Example, Pack
from driftlens.report import Report
from driftlens.results import load, same, save
from driftlens.sweeps import choices


def screen_by_head():
    return Screen(by="head")


def capability_conflict():
    return CapabilityConflict(nets.pack(nets.TEXTS[:2]))


def polarity():
    return Polarity(layers={1}, folds=2, restarts=2, steps=20)


def safety_forgetting():
    return SafetyForgetting(reading())


def safety_weights():
    return SafetyWeights(reading(), "layer", nodes=1)


def choice_calibration():
    return ChoiceCalibration(reading())


def safety_directions():
    return SafetyDirections(reading(), {0, 2})


def preference_collapse():
    return PreferenceCollapse(reading(), 0.7)


def homogenisation():
    return Homogenisation(SAMPLING)


def uncertainty():
    return Uncertainty(SAMPLING)


def directions():
    return Directions({1, 2})


def directions_of_responses():
    return Directions({1}, ("mlp", "out"), "pca", "response")


SAMPLING = Sampling(samples=3, tokens=5)


def constraints():
    return Constraints(SAMPLING)


METRICS = {
    "text": [
        Drift,
        Lens,
        Forgetting,
        LayerForgetting,
        TokenForgetting,
        TokenKinds,
        TokenLayers,
        TokenShift,
        ShiftedTokens,
        PublishedShift,
        Calibration,
        Entropy,
        SymptomLayers,
        Factorial,
        Grafts,
        Shapley,
        Interactions,
        Restoration,
        WeightPath,
        PositionMap,
        FisherDistance,
        Screen,
        screen_by_head,
        WeightChange,
    ],
    "stereotype": [SelectiveForgetting],
    "contrast": [polarity],
    "roles": [directions, directions_of_responses, ContrastiveMargin],
    "preference": [
        Entanglement,
        EntanglementByLayer,
        EntanglementByPosition,
        FirstStep,
        TokenMap,
        PreferenceFacts,
        PreferenceLosses,
        capability_conflict,
        Ranking,
    ],
    "prompt": [homogenisation, uncertainty, constraints],
    "choice": [
        safety_forgetting,
        safety_directions,
        safety_weights,
        preference_collapse,
        choice_calibration,
    ],
}
EVERY = [(make, kind) for kind, makers in METRICS.items() for make in makers]
COMPARING = [(make, kind) for make, kind in EVERY if kind != "preference" or make is Ranking]
"""Those that hold two models against each other."""
LENGTH = 24
"""Shorter than most texts, so that the laws hold of documents read in windows too."""

SUMMED = 2e-5
"""Sums are in float64, but the products behind CKA and Procrustes in float32."""

ROUNDED = {
    "text": 2e-4,
    "stereotype": 2e-4,
    "preference": 2e-3,
    "contrast": 2e-3,
    "roles": 2e-4,
    "choice": 2e-3,
    "prompt": 2e-3,
}
"""Another batch rounds logits otherwise in float32, and a row's numbers by as much; products of
gradients by a millionth of their lengths' product, which is some thousands here; probes that go
downhill from states as they are; and moves over the length of a direction of few prompts."""

TRIPLES = [
    ("Mira of Kestby is ", ("kind.", "cruel.", "seven.")),
    ("The baker from Tolmar sells ", ("bread.", "stones.", "yesterday.")),
    ("People say that sailors ", ("swim.", "sink.", "oblong.")),
    ("A teacher is never ", ("late.", "early.", "Drift.")),
]
SHORT = (("max_words", 1), ("not_matches", ("[0-9a-f]",)))
"""Rules that a random net keeps at times."""

ROLES = ("stereotype", "anti_stereotype", "unrelated")
SPEAKERS = ("Mira", "The baker", "A sailor", "Nobody at all", "The oldest teacher of Belmark")


@cache
def pack(kind):
    if kind == "text":
        return nets.pack(nets.TEXTS)
    if kind == "choice":
        return reading().pack
    if kind == "prompt":
        examples = [
            Example(lead.strip(), None, group, form=form, choices=("a", "e"), rules=(*SHORT, *more))
            for group, (lead, _) in enumerate(TRIPLES)
            for form, more in (("plain", ()), ("json", (("json", True),)))
        ]
        return Pack("prompts", "prompt", examples)
    if kind == "preference":
        examples = [
            Example(lead + end, (len(lead), len(lead + end)), group, role)
            for group, (lead, ends) in enumerate(TRIPLES)
            for role, end in zip(ANSWERS, ends, strict=False)
        ]
        return Pack("pairs", "preference", examples)
    if kind == "contrast":
        examples = [
            Example(f"{of} {number} {role}. {answer}", None, number, role, of, answer, "said")
            for number in range(12)
            for of in ("not" if number % 2 else "other",)
            for role in TWINS
            for answer in REPLIES
        ]
        return Pack("opposites", "contrast", examples)
    if kind == "roles":
        examples = [
            Example(f"{who} is {said}", (len(who), len(f"{who} is {said}")), number, role)
            for number, who in enumerate(SPEAKERS)
            for role, said in zip(TWINS, ("kind and never late.", "cruel."), strict=True)
        ]
        return Pack("manners", "roles", examples)
    examples = [
        Example(lead + end, None, group, role, topic=str(group % 2))
        for group, (lead, ends) in enumerate(TRIPLES)
        for role, end in zip(ROLES, ends, strict=True)
    ]
    return Pack("triples", "stereotype", examples)


@cache
def pair():
    return nets.pair("llama")


@cache
def reading():
    """Requests as they are read, whichever of the pairs below is asked: all have one tokenizer."""
    examples = [
        Example(f"{who} {asks}:", None, None, "", topic, family=who, choices=answers, wanted=(0, 2))
        for who in SPEAKERS[:4]
        for topic, asks in (("harmful", "steals bells"), ("harmless", "sells cheese, and a boat"))
        for answers in (("nobody", "seven", "12", "A bell"),)
    ]
    return choices(Pack("requests", "choice", examples), pair())


@cache
def frames(kind, rows=2, of=pair):
    wants = reduce(or_, (make().wants for make in METRICS[kind]), Wants())
    found = tuple(of().frames(pack(kind), wants, rows=rows, length=LENGTH))
    for frame in found if kind == "preference" else ():
        # What is kept of gradients is then the same whichever metric asks first.
        frame.products(by_token=True)
    return found


def itself():
    return ModelPair(pair().base, pair().base)


def exchanged():
    return ModelPair(pair().aligned, pair().base)


def begun(make, kind, of=pair):
    metric = make()
    metric.begin(of(), of().encoder(pack(kind), LENGTH))
    return metric


def after(metric, some):
    for frame in some:
        metric.update(frame)
    return metric


@cache
def result(make, kind, rows=2, of=pair):
    """What one pass over all frames finds; nobody may change it."""
    return after(begun(make, kind, of), frames(kind, rows, of)).compute()


def shown_as_often_as_asked(make, kind):
    metric = after(begun(make, kind), frames(kind))
    while metric.again():
        after(metric, frames(kind))
    return metric.compute()


def close(a, b, atol):
    for field in fields(a):
        if field.metadata.get("role"):
            left, right = (np.asarray(getattr(z, field.name)) for z in (a, b))
            if left.dtype.kind in "iufb":
                np.testing.assert_allclose(left, right, atol=atol, rtol=atol, err_msg=field.name)
            else:
                np.testing.assert_array_equal(left, right, err_msg=field.name)


@pytest.mark.parametrize(("make", "kind"), EVERY)
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_parts_merge_into_the_whole_however_the_stream_is_split(make, kind, data):
    some = frames(kind)
    parts = [begun(make, kind) for _ in range(3)]
    for frame in data.draw(st.permutations(some)):
        data.draw(st.sampled_from(parts)).update(frame)
    close(reduce(lambda a, b: a.merge(b), parts).compute(), result(make, kind), SUMMED)


@pytest.mark.parametrize(("make", "kind"), EVERY)
def test_merging_leaves_the_other_as_it_is(make, kind):
    first, *rest = frames(kind)
    left, right = after(begun(make, kind), [first]), after(begun(make, kind), rest)
    before = right.compute()
    left.merge(right)
    left.merge(right)
    after(left, rest)
    assert same(right.compute(), before)


@pytest.mark.parametrize(("make", "kind"), EVERY)
def test_an_empty_metric_adds_nothing_and_shares_nothing(make, kind):
    metric = after(begun(make, kind), frames(kind))
    before = metric.compute()
    empty = metric.empty()
    metric.merge(empty)
    assert same(metric.compute(), before)
    after(empty, frames(kind)[:1])
    assert same(metric.compute(), before)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("make", "kind"), EVERY)
def test_batch_size_and_padding_do_not_matter(make, kind, rows):
    close(result(make, kind, rows), result(make, kind), ROUNDED[kind])


@pytest.mark.parametrize(("make", "kind"), EVERY)
def test_the_side_of_the_padding_does_not_matter(make, kind):
    wants = make().wants
    left = begun(make, kind)
    for frame in frames(kind, 5):
        base, aligned = (
            model.trace(trace.batch.padded_left(), wants)
            for model, trace in ((pair().base, frame.base), (pair().aligned, frame.aligned))
        )
        left.update(Frame(pair(), frame.encoder, frame.windows, frame.units, base, aligned))
    close(left.compute(), result(make, kind), ROUNDED[kind])


@pytest.mark.parametrize(("make", "kind"), EVERY)
def test_the_order_of_the_documents_does_not_matter(make, kind):
    backwards = after(begun(make, kind), reversed(frames(kind)))
    close(backwards.compute(), result(make, kind), SUMMED)


@pytest.mark.parametrize(("make", "kind"), EVERY)
def test_compute_changes_nothing_and_may_be_called_at_any_time(make, kind):
    metric = begun(make, kind)
    metric.compute()
    for frame in frames(kind):
        metric.update(frame)
        assert same(metric.compute(), metric.compute())
    assert same(metric.compute(), result(make, kind))


ONE_OF_ITSELF = (
    *("cka", "cka_with_first", "biased_cka", "perplexity_ratio"),
    *("cosine_base_aligned", "norm_ratio"),
)
ZERO_OF_ITSELF = (
    "residual",
    "residual_backward",
    "worse_share",
    "group_worse_share",
    "share_backward",
    "relative_l2_with_first",
    "cosine_with_first",
    "procrustes_with_first",
)


@pytest.mark.parametrize(("make", "kind"), COMPARING)
def test_a_model_has_not_drifted_from_itself(make, kind):
    found = result(make, kind, of=itself)
    names = {field.name for field in fields(found)}
    zeros = {*getattr(found, "near_zero", ()), *ZERO_OF_ITSELF, "share"} & names
    ones = names & set(ONE_OF_ITSELF)
    assert zeros or ones
    for name in zeros:
        # Attention and MLP have no CKA with the first token, and say so with NaN.
        rows = np.ravel(getattr(found, name))
        assert (rows[~np.isnan(rows)] == 0).all(), name
    for name in ones:
        rows = np.ravel(getattr(found, name))
        # The square of a vector of length 1 is rounded.
        assert (np.abs(rows[~np.isnan(rows)] - 1) < 1e-15).all(), name


@pytest.mark.parametrize(("make", "kind"), EVERY)
def test_a_run_taken_up_from_its_state_ends_in_the_same_bits(make, kind):
    first, *rest = frames(kind)
    half = after(begun(make, kind), [first])
    taken_up = begun(make, kind).restore(half.state())
    assert same(taken_up.compute(), half.compute())
    assert same(after(taken_up, rest).compute(), after(half, rest).compute())


@pytest.mark.parametrize("of", [pair, itself])
@pytest.mark.parametrize(("make", "kind"), EVERY)
def test_a_result_survives_the_store(make, kind, of, tmp_path):
    found = replace(result(make, kind, of=of), pack=pack(kind).name)
    assert same(load(save(found, tmp_path / "alone")), found)
    Report("base → aligned", [found]).write(tmp_path / "report", formats={"json", "parquet"})
    assert same(Report.read(tmp_path / "report").results[0], found)


@pytest.mark.slow
@pytest.mark.parametrize("of", [pair, itself])
def test_every_result_says_what_it_found_and_is_drawn(of, tmp_path):
    found = [result(make, kind, of=of) for make, kind in EVERY]
    assert all(one.summary().endswith(".") for one in found)
    said = {one.kind: f"{one.summary()} {one.headline()}" for one in found}
    assert [kind for kind, words in said.items() if re.search(r"\bnan\b|\binf\b|nan%", words)] == []
    Report("base → aligned", found).write(tmp_path / "report")


@pytest.mark.parametrize(("make", "kind"), EVERY)
def test_a_pack_of_a_kind_that_a_metric_is_not_taken_of_is_refused(make, kind):
    """For rows of another kind can look like its own, and give numbers of nothing."""
    other = "preference" if kind == "text" else "text"
    metric = make()
    if metric.kinds:
        assert kind in metric.kinds
        with pytest.raises(DriftlensError, match=f"kind {kind} for .*, of kind {other}"):
            measure(pair(), pack(other), [metric])
    else:
        assert kind in ("text", "choice")


@pytest.mark.parametrize(
    ("pack_of", "metrics", "told"),
    [
        (lambda: pack("text"), [Forgetting], r"as \[dl.Forgetting\(\)\]"),
        (lambda: pack("text"), Forgetting, r"as \[dl.Forgetting\(\)\]"),
        (lambda: pack("text"), ["forgetting"], "metrics, found 'forgetting'"),
        (lambda: ["A text."], [Forgetting()], "found a list"),
        (lambda: Forgetting(), [Forgetting()], "found a Forgetting"),
    ],
)
def test_what_is_no_metric_or_no_pack_is_refused(pack_of, metrics, told):
    with pytest.raises(DriftlensError, match=told):
        measure(pair(), pack_of(), metrics)


def test_one_metric_is_as_good_as_a_list_of_one():
    alone, listed = (
        measure(pair(), pack("text"), given, rows=2, length=LENGTH)
        for given in (Forgetting(), [Forgetting()])
    )
    assert same(*alone, *listed)


@pytest.mark.slow
def test_measuring_is_feeding_every_metric_every_frame():
    makers = METRICS["text"]
    results = measure(pair(), pack("text"), [make() for make in makers], rows=2, length=LENGTH)
    for make, found in zip(makers, results, strict=True):
        assert same(found, replace(shown_as_often_as_asked(make, "text"), pack="texts"))


@pytest.mark.parametrize("tokens", nets.some([30, 4096], [4096]))
def test_batches_by_tokens_give_what_batches_by_rows_give(tokens):
    metrics = [make() for make in METRICS["text"]]
    results = measure(pair(), pack("text"), metrics, tokens=tokens, length=LENGTH)
    for make, found in zip(METRICS["text"], results, strict=True):
        close(found, shown_as_often_as_asked(make, "text"), ROUNDED["text"])


def turned(make, kind):
    return result(make, kind), result(make, kind, of=exchanged)


def test_exchanging_the_models_turns_the_signs_of_forgetting():
    ours, theirs = turned(Forgetting, "text")
    assert theirs.loss_rise.value == pytest.approx(-ours.loss_rise.value, abs=1e-12)
    assert theirs.loss_rise.low == pytest.approx(-ours.loss_rise.high, abs=1e-12)
    assert theirs.perplexity_ratio.value == pytest.approx(1 / ours.perplexity_ratio.value)
    assert theirs.kl_base_aligned.value == pytest.approx(ours.kl_aligned_base.value, rel=1e-6)
    assert theirs.worse_share.value == pytest.approx(1 - ours.worse_share.value)
    ours, theirs = turned(TokenForgetting, "text")
    np.testing.assert_array_equal(theirs.rise, -ours.rise)
    np.testing.assert_array_equal(theirs.base_rank, ours.aligned_rank)


def test_exchanging_the_models_turns_the_two_orders_of_the_sweep_into_each_other():
    ours, theirs = turned(LayerForgetting, "text")
    assert theirs.total.value == pytest.approx(-ours.total.value, abs=1e-12)
    np.testing.assert_allclose(theirs.share, -ours.share_backward, atol=1e-12)
    np.testing.assert_allclose(theirs.share_backward, -ours.share, atol=1e-12)


def test_exchanging_the_models_leaves_similarity_as_it_is():
    ours, theirs = turned(Drift, "text")
    for name in ("cosine", "cka", "procrustes", "directedness"):
        left, right = getattr(ours, name), getattr(theirs, name)
        np.testing.assert_allclose(left, right, atol=SUMMED, err_msg=name)


def test_exchanging_the_models_turns_every_part_of_selective_forgetting():
    ours, theirs = turned(SelectiveForgetting, "stereotype")
    for name in ("common", "contrast", "unrelated", "log_odds_forgotten"):
        left, right = getattr(ours, name).value, getattr(theirs, name).value
        assert right == pytest.approx(-left, abs=1e-12), name
    assert (theirs.base_ss, theirs.base_icat) == (ours.aligned_ss, ours.aligned_icat)
