"""Variety that was taken is found, and doubt that tells what is wrong is told from none."""

from copy import deepcopy
from functools import cache
from itertools import product
from math import comb

import numpy as np
import pytest
import torch
import transformers as hf

import nets
from driftlens.diagnostics.homogenisation import MEASURES, Homogenisation
from driftlens.diagnostics.uncertainty import Uncertainty
from driftlens.errors import DriftlensError
from driftlens.formulas.clusters import BIGRAMS, Method, chance_of_one_cluster
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.generation import Sampling
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack
from driftlens.sampled import COLUMNS

PROMPTS = 150
DRAWN = Sampling(samples=10, tokens=1)


# Two answers of one token, of known probability


def of_two(chance):
    """A model that says `A` with a chance, or `M`, whatever it is asked."""
    net = hf.PhiForCausalLM(hf.PhiConfig(**nets.SHAPE)).eval()
    words = nets.tokenizer()
    ids = [words.encode(sign, add_special_tokens=False)[0] for sign in "AM"]
    with torch.no_grad():
        net.lm_head.weight.zero_()
        net.lm_head.bias.fill_(-1e4)
        net.lm_head.bias[ids] = torch.tensor([chance, 1 - chance]).log()
    return HookedModel(net, words, f"p={chance}")


def open_prompts():
    return Pack("open", "prompt", [Example(f"Number {n}:") for n in range(PROMPTS)])


@pytest.fixture(scope="module")
def collapsed():
    metric = Homogenisation(DRAWN)
    return measure(ModelPair(of_two(0.7), of_two(0.95)), open_prompts(), [metric])


def by_count(of):
    """Mean over 10 draws of the likelier answer, of something of its count."""
    return lambda p: sum(
        comb(10, k) * p**k * (1 - p) ** (10 - k) * of(np.array([k, 10 - k])) for k in range(11)
    )


def entropy(counts):
    shares = counts[counts > 0] / 10
    return -(shares * np.log(shares)).sum()


@pytest.mark.parametrize(("side", "p"), [("base", 0.7), ("aligned", 0.95)])
def test_of_two_answers_all_ten_are_equal_as_often_as_the_closed_form_says(collapsed, side, p):
    found, _ = collapsed
    chance = float(chance_of_one_cluster(p, 10))
    # Four standard errors of 150 prompts.
    assert getattr(found, f"{side}_single").value == pytest.approx(
        chance, abs=4 * np.sqrt(chance * (1 - chance) / PROMPTS)
    )
    mean = by_count(entropy)(p)
    spread = np.sqrt(by_count(lambda counts: (entropy(counts) - mean) ** 2)(p) / PROMPTS)
    assert getattr(found, f"{side}_semantic_entropy").value == pytest.approx(mean, abs=4 * spread)
    # What a token is drawn from is the same everywhere, and so is the entropy of its answer.
    exact = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    for name in ("token_entropy", "first_entropy", "greedy_entropy"):
        assert getattr(found, f"{side}_{name}").value == pytest.approx(exact, abs=1e-6)


def test_a_mode_that_grew_is_found_by_every_measure(collapsed):
    found, methods = collapsed
    up = ("single", "mode_share")
    down = ("semantic_entropy", "clusters", "vendi", "distinct_1", "token_entropy")
    for names, sign in ((up, 1), (down, -1)):
        for name in names:
            change = getattr(found, f"{name}_change")
            assert sign * change.value > 0, name
            assert min(sign * change.low, sign * change.high) > 0, name
    assert found.aligned_mode_mass.value == pytest.approx(0.95, abs=0.02)
    assert found.base_mode_mass.value == pytest.approx(0.7, abs=0.08)
    assert methods.least_single_change.value > 0.4
    assert "more alike" in found.headline()


def test_methods_agree_where_answers_are_equal_or_have_nothing_in_common(collapsed):
    _, methods = collapsed
    assert methods.agreement.value == 1
    assert (methods.pair_agreement == 1).all()
    assert (methods.singles_shared == 1).all()
    np.testing.assert_array_equal(methods.single[:2], methods.single[2:])


def test_common_random_numbers_leave_alone_what_only_one_model_says(collapsed):
    found, _ = collapsed
    table = found.table()
    # Every draw that says A of a chance of 0.7 says A of one of 0.95.
    of_one = (table["base_clusters"] == 1) & (table["base_usual_answer"] == "A")
    assert (table["aligned_clusters"][of_one] == 1).all()


def test_a_lower_temperature_is_a_sharper_mode():
    # At a temperature of ½ odds are squared: of 0.7 they are those of 0.49 / 0.58.
    models = ModelPair(of_two(0.7), of_two(0.7))
    cool = Homogenisation(Sampling(samples=10, tokens=1, temperature=0.5))
    squared = 0.49 / 0.58
    found, _ = measure(models, open_prompts(), [cool])
    chance = float(chance_of_one_cluster(squared, 10))
    assert found.base_single.value == pytest.approx(
        chance, abs=4 * np.sqrt(chance * (1 - chance) / PROMPTS)
    )
    # Its entropy is told at temperature 1.
    exact = -(0.7 * np.log(0.7) + 0.3 * np.log(0.3))
    assert found.base_token_entropy.value == pytest.approx(exact, abs=1e-6)


def test_a_model_and_its_copy_say_the_same_to_the_last_bit():
    net = nets.net("llama")
    models = [HookedModel(z, nets.tokenizer(), "twin") for z in (net, deepcopy(net))]
    pack = Pack("open", "prompt", [Example(text, choices=("a",)) for text in nets.TEXTS[:4]])
    sampling = Sampling(samples=4, tokens=6)
    metrics = [Homogenisation(sampling), Uncertainty(sampling)]
    found, methods, doubt, right, _ = measure(ModelPair(*models), pack, metrics)
    for name in MEASURES:
        change = np.array(getattr(found, f"{name}_change"))
        assert (change[~np.isnan(change)] == 0).all(), name
    assert (found.lost == 0).all()
    assert methods.least_single_change.value == methods.largest_single_change.value == 0
    assert right.accuracy_lost.value == right.forgotten.value == right.gained.value == 0
    changes = doubt.change[~np.isnan(doubt.change)]
    assert (changes == 0).all()


# Answers as they might be


@cache
def pair():
    return nets.pair("llama")


def heard(metric, pack, said, **of):
    """The metric with answers as they are given: [side][prompt] texts, the greedy one first.

    What else is kept of each answer is 1, ended, or what is given of its [side][prompt][answer].
    """
    metric.begin(pair(), pair().encoder(pack))
    rows = {name: [] for name in COLUMNS}
    first = -int(metric.sampling.greedy)
    for side, prompt in product(range(2), range(len(pack.examples))):
        for n, text in enumerate(said[side][prompt]):
            row = {"side": side, "prompt": prompt, "sample": first + n, "text": text}
            for name, column in rows.items():
                given = of[name][side][prompt][n] if name in of else 1
                column.append(row.get(name, given))
    metric.kept.update(**rows)
    return metric


def two(pack_size=2, **of):
    return Pack("two", "prompt", [Example(f"{n}?", topic=f"t{n}", **of) for n in range(pack_size)])


FIVE_THREE_TWO = ["a red boat"] * 5 + ["the old bell"] * 3 + ["no cheese here"] * 2
ALL_THE_SAME = ["a red boat"] * 10


def test_five_three_and_two_of_ten_have_the_published_entropy_on_the_page():
    metric = Homogenisation(Sampling(greedy=False))
    found = heard(metric, two(1), [[FIVE_THREE_TWO], [ALL_THE_SAME]]).compute()
    assert found.base_semantic_entropy.value == pytest.approx(1.02965, abs=5e-6)
    assert found.lost == pytest.approx([1.02965], abs=5e-6)
    assert (found.base_clusters.value, found.aligned_clusters.value) == (3, 1)
    assert (found.base_mode_share.value, found.single_change.value) == (0.5, 1)
    assert found.usual_of_base.tolist() == ["a red boat"]
    assert found.aligned_vendi.value == pytest.approx(1)
    assert found.aligned_self_bleu.value == 1
    assert np.isnan(found.base_greedy_entropy.value)
    assert "No greedy answers were asked for." in found.notes


def test_a_prompt_with_fewer_than_two_answers_is_left_out_and_that_is_said():
    blank = ["", " ", "", "", "", "", "", "", "", "one"]
    metric = Homogenisation(Sampling(greedy=False))
    said = [[FIVE_THREE_TWO, blank], [ALL_THE_SAME, ALL_THE_SAME]]
    metric = heard(metric, two(), said)
    found = metric.compute()
    assert found.base_single.value == 0
    assert found.aligned_single.value == 1
    assert np.isnan(found.clusters_of_base[1])
    assert found.usual_of_base[1] == "one"
    assert found.base_empty.value == pytest.approx(9 / 20)
    assert any("To 1 prompts base gave fewer than two" in note for note in found.notes)
    (methods,) = metric.beside()
    assert methods.single.tolist() == [0, 1, 0, 1]


def test_a_method_that_is_asked_for_is_told_beside_the_first_two():
    everything = Method("everything", lambda prompt, texts: np.zeros(len(texts), int))
    metric = Homogenisation(Sampling(greedy=False), others=[BIGRAMS, everything])
    said = [[FIVE_THREE_TWO, ALL_THE_SAME], [ALL_THE_SAME, ALL_THE_SAME]]
    (methods,) = heard(metric, two(), said).beside()
    assert methods.method[::2].tolist() == ["words", "spelling", "word bigrams", "everything"]
    assert methods.single.tolist() == [0.5, 1, 0.5, 1, 0.5, 1, 1, 1]
    base = 6
    # Of 45 couples 10 + 3 + 1 are together; the other prompt agrees altogether.
    assert methods.pair_agreement[base] == pytest.approx((14 / 45 + 1) / 2)
    assert methods.adjusted_rand[base] == pytest.approx((0 + 1) / 2)
    assert methods.singles_shared[base] == 0.5
    assert methods.firsts_shared[base] == 1
    assert methods.least_single_change.value == 0
    assert methods.largest_single_change.value == 0.5


def test_one_answer_to_each_prompt_has_no_variety_to_lose():
    encoder = pair().encoder(two())
    assert not Homogenisation(Sampling(samples=1)).fits(encoder)
    assert Homogenisation(Sampling(samples=2)).fits(encoder)
    assert not Homogenisation().fits(pair().encoder(nets.pack(["text"])))


def test_nothing_seen_is_told_as_nothing():
    for make in (Homogenisation, Uncertainty):
        metric = make()
        metric.begin(pair(), pair().encoder(two(choices=("x",))))
        for result in (metric.compute(), *metric.beside()):
            assert result.summary().endswith(".")
            assert result.figure() is None


# Doubt

ASKED = Sampling(samples=0)


def doubting(entropy, right, tokens=None, card=None):
    """[side][prompt] entropies of greedy answers, and whether they are right."""
    count = len(right[0])
    examples = [Example(f"{n}?", choices=("seven",)) for n in range(count)]
    pack = Pack("quiz", "prompt", examples, card or {})
    said = [[["It is seven." if z else "It is nine."] for z in side] for side in right]
    of = {"entropy": [[[z] for z in side] for side in entropy]}
    if tokens:
        of["tokens"] = [[[z] for z in side] for side in tokens]
    metric = heard(Uncertainty(ASKED), pack, said, **of)
    return metric.compute(), *metric.beside()


RIGHT = [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1]]
KNOWING = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9]
TURNED = [0.7, 0.8, 0.2, 0.3, 0.1, 0.9]


def test_doubt_that_knows_and_doubt_that_is_turned_round_are_told_apart():
    found, right, risks = doubting([KNOWING, TURNED], RIGHT)
    assert found.base_auroc.value == 1
    assert found.aligned_auroc.value == 0
    assert found.auroc_change.value == -1
    assert (found.base_selective_accuracy.value, found.aligned_selective_accuracy.value) == (1, 0)
    assert found.base_aurc.value == pytest.approx((1 / 4 + 2 / 5 + 3 / 6) / 6)
    assert found.aligned_aurc.value == pytest.approx((1 + 1 + 1 + 3 / 4 + 3 / 5 + 3 / 6) / 6)
    np.testing.assert_allclose(risks.base, [0, 0, 0, 1 / 4, 2 / 5, 1 / 2])
    assert (risks.aligned_half.value, risks.aligned_all.value) == (1, 0.5)
    assert right.base_accuracy.value == right.aligned_accuracy.value == 0.5
    assert right.accuracy_lost.value == 0
    assert right.forgotten.value == right.gained.value == pytest.approx(1 / 6)


def test_length_alone_is_told_beside_doubt():
    length = [[2, 3, 3, 9, 8, 9], [5] * 6]
    found, *_ = doubting([KNOWING, KNOWING], RIGHT, tokens=length)
    assert found.base_length_auroc.value == 1
    assert np.isnan(found.aligned_length_auroc.value)
    said = "AUROC of length in aligned: undefined (constant): it is the same everywhere."
    assert said in found.notes


def test_where_all_are_wrong_no_doubt_can_tell_and_that_is_said():
    found, right, _ = doubting([KNOWING, TURNED], [RIGHT[0], [0] * 6])
    assert np.isnan(found.aligned_auroc.value)
    assert np.isnan(found.auroc_change.value)
    said = "AUROC of aligned: undefined (constant): all its answers are wrong."
    assert said in found.notes
    assert right.accuracy_lost.value == right.forgotten.value == 0.5
    assert "less often" in right.headline() or right.accuracy_lost.low <= 0


def test_without_drawn_answers_there_is_no_semantic_entropy():
    found, right, _ = doubting([KNOWING, TURNED], RIGHT)
    assert np.isnan(found.base_semantic_auroc.value)
    assert np.isnan(right.base_semantic_entropy).all()
    # Half are sure enough for the cheap check, and no other lets any pass.
    assert found.base_cascade_answered.value == 0.5
    assert found.base_cascade_accuracy.value == 1


def test_intervals_of_doubt_that_says_nothing_hold_a_half_as_often_as_they_claim():
    random, held = np.random.default_rng(0), []
    for _ in range(25):
        entropy, right = random.random((2, 60)), random.random((2, 60)) < 0.5
        found, *_ = doubting(entropy.tolist(), right.tolist())
        held += [z.low <= 0.5 <= z.high for z in (found.base_auroc, found.aligned_auroc)]
        held.append(found.auroc_change.low <= 0 <= found.auroc_change.high)
    # Of 75 intervals of 95 %, fewer than 64 would hold it once in ten thousand times.
    assert sum(held) >= 64


def test_the_order_of_the_prompts_does_not_matter():
    found, *_ = doubting([KNOWING, TURNED], RIGHT)
    backwards, *_ = doubting([KNOWING[::-1], TURNED[::-1]], [z[::-1] for z in RIGHT])
    for name in ("base_auroc", "aligned_auroc", "base_aurc", "aligned_aurc"):
        assert getattr(found, name).value == pytest.approx(getattr(backwards, name).value)


def test_semantic_entropy_of_the_drawn_answers_is_a_doubt_too():
    examples = [Example(f"{n}?", choices=("boat",)) for n in range(4)]
    pack = Pack("quiz", "prompt", examples)
    wrong, sure, unsure = ["a bell"], ["a red boat"] * 4, ["boat", "bell", "cheese", "night"]
    said = [
        [[*right, *drawn] for right, drawn in z]
        for z in (
            [(["boat"], sure), (["boat"], sure), (wrong, unsure), (wrong, unsure)],
            [(["boat"], unsure), (wrong, unsure), (wrong, unsure), (wrong, unsure)],
        )
    ]
    metric = heard(Uncertainty(Sampling(samples=4)), pack, said)
    found = metric.compute()
    assert found.base_semantic_auroc.value == 1
    assert np.isnan(found.aligned_semantic_auroc.value)
    assert any("semantic entropy in aligned: undefined (constant)" in z for z in found.notes)
    # Every greedy answer is as sure as the median, so that the cheap check lets all pass.
    assert found.base_cascade_cost.value == 1


def test_a_prompt_without_a_right_answer_is_left_out_and_that_is_said():
    examples = [Example("1?", choices=("seven",)), Example("2?")]
    metric = heard(Uncertainty(ASKED), Pack("quiz", "prompt", examples), [[["seven"], ["x"]]] * 2)
    right, _ = metric.beside()
    assert len(right.prompt) == 1
    assert "1 prompts are left out, as no right answer to them is known." in right.notes


def test_answers_are_held_against_right_ones_as_the_card_says():
    numbers = Pack("sums", "prompt", [Example("3+4?", choices=("7",))], {"match": "number"})
    metric = heard(Uncertainty(ASKED), numbers, [[["3 + 4, so\nit is 7.0"]], [["7, or 8"]]])
    right, _ = metric.beside()
    assert (right.base_accuracy.value, right.aligned_accuracy.value) == (1, 0)
    assert right.match == "number"
    wrong = Pack("sums", "prompt", numbers.examples, {"match": "roughly"})
    with pytest.raises(DriftlensError, match="roughly"):
        heard(Uncertainty(ASKED), wrong, [[["7"]]] * 2)


def test_doubt_is_only_asked_for_where_right_answers_are_known():
    encoder = pair().encoder
    known = encoder(two(choices=("x",)))
    assert Uncertainty().fits(known)
    assert not Uncertainty().fits(encoder(two()))
    assert not Uncertainty(Sampling(greedy=False)).fits(known)
