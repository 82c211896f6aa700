"""The ranking of preference pairs by both models: its formulas, an oracle, and what was planted."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from scipy.stats import binomtest, linregress, spearmanr

import nets
from driftlens.diagnostics import Ranking
from driftlens.errors import DriftlensError
from driftlens.formulas import entanglement, tilt
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.preferences import Preferences
from driftlens.results import load, same, save

# Formulas


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_a_tilted_model_has_the_slope_it_was_tilted_by_whatever_its_constants():
    rewards, prompts = random(40), np.repeat(np.arange(20), 2)
    ratios = rewards / 0.25 - 3 * random(20, seed=1)[prompts]
    found = tilt.tilt(ratios, rewards, prompts)
    assert found.slope == pytest.approx(4.0)
    assert found.r_squared == pytest.approx(1.0)
    assert found.error < 1e-12
    assert found.answers == 40
    # One constant for all of them hides it.
    assert tilt.tilt(ratios, rewards).r_squared < 0.9


def test_a_tilt_of_one_constant_is_the_line_of_least_squares():
    x, y = random(2, 30)
    oracle, found = linregress(x, y), tilt.tilt(y, x)
    assert found.slope == pytest.approx(oracle.slope)
    assert found.error == pytest.approx(oracle.stderr)
    assert found.r_squared == pytest.approx(oracle.rvalue**2)


def test_a_tilt_with_a_constant_for_each_prompt_is_the_fit_with_a_column_for_each():
    x, y = random(2, 30)
    prompts = np.arange(30) % 7
    columns = np.column_stack([x, prompts[:, None] == np.arange(7)])
    solution, rest, *_ = np.linalg.lstsq(columns, y, rcond=None)
    cross = np.linalg.inv(columns.T @ columns)[0, 0]
    found = tilt.tilt(y, x, prompts)
    assert found.slope == pytest.approx(solution[0])
    assert found.error == pytest.approx(np.sqrt(rest[0] / (30 - 8) * cross))


def test_a_tilt_leaves_out_what_has_no_reward_and_is_nothing_without_any():
    x, y = random(2, 9)
    x[4] = np.nan
    known = np.arange(9) != 4
    assert tilt.tilt(y, x) == tilt.tilt(y[known], x[known])
    for none in (np.full(9, np.nan), np.ones(9)):
        assert np.isnan(tilt.tilt(y, none)[:3]).all()


@given(st.floats(-30, 30), st.floats(-30, 30))
@settings(deadline=None, derandomize=True)
def test_the_divergence_of_picks_is_that_of_two_coins(p, q):
    a, b = (1 / (1 + np.exp(-z)) for z in (p, q))
    oracle = rel_entr(a, b) + rel_entr(1 / (1 + np.exp(p)), 1 / (1 + np.exp(q)))
    assert float(tilt.choice_kl(p, q)) == pytest.approx(oracle, abs=1e-12, rel=1e-9)


def test_picks_that_are_the_same_or_certain_are_no_trouble():
    assert tilt.choice_kl(3.1, 3.1) == 0
    assert tilt.choice_kl(800.0, -800.0) == pytest.approx(800)
    assert tilt.choice_kl(0.0, 0.0) == 0


def test_the_best_of_three_beats_one_three_times_in_four():
    assert tilt.best_of_n_win_rate(3) == 0.75


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_the_win_rate_of_picks_is_that_of_all_four_outcomes(sign):
    p, q = 0.7, 0.2
    # The second answer is as good as the first is bad.
    worth = {True: sign, False: -sign}
    counted = sum(
        (p if mine else 1 - p)
        * (q if theirs else 1 - q)
        * (0.5 if worth[mine] == worth[theirs] else float(worth[mine] > worth[theirs]))
        for mine in (True, False)
        for theirs in (True, False)
    )
    assert tilt.win_rate(p, q, sign) == pytest.approx(counted)


def test_the_best_policy_under_a_small_penalty_collapses_onto_the_majority():
    assert tilt.collapse(0.0, 0.8) == pytest.approx(0.3)
    amplified = 0.7**2 / (0.7**2 + 0.3**2)
    log_odds = entanglement.ideal_reach(0.5, 0.7)
    assert tilt.collapse(log_odds, 0.7) == pytest.approx(amplified - 0.7)
    assert tilt.collapse(entanglement.ideal_reach(1.0, 0.7), 0.7) == pytest.approx(0)
    assert np.isnan(tilt.collapse(0.0, np.nan))


@pytest.mark.parametrize(("beta", "reach"), [(0.1, 69.07), (1, 6.907), (10, 0.691)])
def test_the_optimum_reaches_as_far_as_its_beta_lets_it(beta, reach):
    assert float(entanglement.ideal_reach(beta)) == pytest.approx(reach, rel=1e-3)


# Both models


ROWS = [
    ("Mira of Kestby is", " kind.", " a cruel one.", 2.0, 0.5, 0.9, "people"),
    ("The baker from Tolmar sells", " bread.", " stones.", 1.5, 1.0, 0.6, "trade"),
    ("People say that sailors", " swim well.", " sink.", 0.3, 0.8, 0.7, "people"),
    ("A teacher is never", " late.", " early and quick.", 1.0, -1.0, 1.0, "people"),
    ("The river Drift runs", " around Belmark.", " up.", 0.0, 0.2, 0.5, "trade"),
    ("Seven boats left", " Kestby.", " the moon.", 2.2, 0.1, 0.8, "trade"),
]
FIELDS = (
    *("prompt", "chosen", "rejected", "chosen_reward", "rejected_reward", "preferred_by", "topic"),
)


def preferences(folder, rows=ROWS, fields=FIELDS):
    file = folder / "pairs.jsonl"
    file.write_text(
        "".join(json.dumps(dict(zip(fields, row, strict=False))) + "\n" for row in rows)
    )
    return Preferences.read(file)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return preferences(tmp_path_factory.mktemp("pairs")).pack(nets.tokenizer())[0]


@cache
def pair():
    return nets.pair("llama")


def likelihood(net, prompt, answer):
    """Log-probability of an answer after its prompt, and its length, by hand."""
    words = nets.tokenizer()(prompt + answer, return_offsets_mapping=True)
    ids = torch.tensor([words["input_ids"]])
    mine = [end > len(prompt) for _, end in words["offset_mapping"]]
    with torch.no_grad():
        p = net(ids).logits[0].double().log_softmax(-1)
    each = [float(p[t - 1, ids[0, t]]) for t in range(1, ids.shape[1]) if mine[t]]
    return sum(each), len(each)


@cache
def by_hand(models):
    """[model, pair, answer] log-probabilities, and [pair, answer] lengths."""
    found = np.array(
        [
            [[likelihood(m.net, row[0], answer) for answer in row[1:3]] for row in ROWS]
            for m in (models.base, models.aligned)
        ]
    )
    return found[..., 0], found[0, ..., 1]


def test_every_number_is_that_of_log_probabilities_taken_by_hand(pack):
    result, pairs, ceilings, tilted = measure(pair(), pack, [Ranking(beta=0.5)])
    (base, aligned), lengths = by_hand(pair())
    right = [side[:, 0] > side[:, 1] for side in (base, aligned)]
    by_mean = [np.greater(*(side / lengths).T) for side in (base, aligned)]
    assert result.base_accuracy.value == pytest.approx(right[0].mean())
    assert result.aligned_accuracy.value == pytest.approx(right[1].mean())
    assert result.accuracy_change.value == pytest.approx(right[1].mean() - right[0].mean())
    assert result.base_accuracy_by_mean.value == pytest.approx(by_mean[0].mean())
    assert result.aligned_accuracy_by_mean.value == pytest.approx(by_mean[1].mean())
    rises = aligned - base
    margin = 0.5 * (rises[:, 0] - rises[:, 1])
    np.testing.assert_allclose(pairs.chosen_rise, rises[:, 0], atol=1e-4)
    np.testing.assert_allclose(pairs.rejected_rise, rises[:, 1], atol=1e-4)
    np.testing.assert_allclose(pairs.margin, margin, atol=1e-4)
    assert result.reward_margin.value == pytest.approx(margin.mean(), abs=1e-4)
    assert result.reward_accuracy.value == pytest.approx((margin > 0).mean())
    assert result.chosen_fell.value == pytest.approx((rises[:, 0] < 0).mean())
    assert result.both_fell.value == pytest.approx((rises < 0).all(1).mean())
    lost, won = (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()
    assert result.flipped == (lost, won)
    wrong = max(1, (~right[0]).sum())
    assert result.mended.value == pytest.approx(won / len(ROWS))
    assert result.broken.value == pytest.approx(lost / len(ROWS))
    assert result.mended_of_wrong.value == pytest.approx(won / wrong)
    if lost + won:
        oracle = binomtest(int(lost), int(lost + won)).pvalue
        assert result.flip_p.value == pytest.approx(oracle)
    longer = lengths[:, 0] - lengths[:, 1]
    assert result.by_length.value == pytest.approx(((1 + np.sign(longer)) / 2).mean())
    assert result.length_bias.value == pytest.approx(spearmanr(longer, margin).statistic)
    raters = np.array([row[5] for row in ROWS])
    leads = [side[:, 0] - side[:, 1] for side in (base, aligned)]
    for found, lead in zip((result.base_collapse, result.aligned_collapse), leads, strict=True):
        oracle = np.abs(np.exp(-np.logaddexp(0, -lead)) - raters).mean()
        assert found.value == pytest.approx(oracle, abs=1e-4)
    alpha = np.minimum(raters, 0.999)
    for beta, ceiling in zip(ceilings.beta, ceilings.ceiling, strict=True):
        oracle = (leads[0] + np.log(alpha / (1 - alpha)) / beta > 0).mean()
        assert ceiling == pytest.approx(oracle)
    rewards = np.array([row[3:5] for row in ROWS])
    by_reward, apart = np.subtract(*rewards.T), np.subtract(*rises.T)
    assert tilted.rated == len(ROWS)
    assert tilted.slope.value == pytest.approx(
        by_reward @ apart / (by_reward @ by_reward), abs=1e-4
    )
    p, q = (1 / (1 + np.exp(-lead)) for lead in leads)
    kl = rel_entr(q, p) + rel_entr(1 - q, 1 - p)
    assert tilted.choice_kl.value == pytest.approx(kl.mean(), abs=1e-4)
    wins = 0.5 + 0.5 * (q - p) * np.sign(by_reward)
    assert tilted.win_rate.value == pytest.approx(wins.mean(), abs=1e-4)
    assert tilted.pairs.sum() == len(ROWS)
    assert (np.diff(tilted.root_kl) >= 0).all()


def test_rows_are_topics_and_weigh_up_to_all(pack):
    result = measure(pair(), pack, [Ranking()])[0]
    assert list(result.topic) == ["all", "people", "trade"]
    assert list(result.pairs) == [6, 3, 3]
    for name in ("base", "aligned", "change", "base_by_mean", "margin"):
        rows = getattr(result, name)
        assert rows[0] == pytest.approx((rows[1:] @ result.pairs[1:]) / 6), name
    assert result.change[0] == result.accuracy_change.value
    assert result.margin[0] == pytest.approx(result.reward_margin.value)


def boosted(text, by):
    """A net, and the same with the logits of what a text is made of raised."""
    words, base = nets.tokenizer(), nets.net("phi")
    aligned = deepcopy(base)
    ids = words(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        aligned.get_output_embeddings().bias[ids] += by
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def test_raising_what_the_chosen_answers_say_ranks_every_pair_right(tmp_path):
    rows = [(lead, "zz", "Q") for lead, *_ in ROWS]
    shown, _ = preferences(tmp_path, rows).pack(nets.tokenizer())
    result, pairs, _ = measure(boosted("zz", 40.0), shown, [Ranking()])
    base = np.array([likelihood(boosted("zz", 0.0).base.net, *row[:2])[0] for row in rows])
    other = np.array([likelihood(boosted("zz", 0.0).base.net, row[0], "Q")[0] for row in rows])
    assert result.base_accuracy.value == pytest.approx((base > other).mean()) != 1
    assert result.aligned_accuracy.value == result.reward_accuracy.value == 1
    assert result.flipped == (0, (base <= other).sum())
    assert result.mended.value == pytest.approx((base <= other).mean())
    assert result.broken.value == 0
    # All that was raised was taken from the rejected answers.
    assert result.pushed_out.value == 1
    assert pairs.ideal.value == 1
    assert (pairs.case == "ideal").all()


def test_lowering_what_both_answers_say_makes_both_fall(tmp_path):
    rows = [(lead, "zz", "Q") for lead, *_ in ROWS]
    shown, _ = preferences(tmp_path, rows).pack(nets.tokenizer())
    result, pairs, _ = measure(boosted("zzQ", -9.0), shown, [Ranking()])
    assert result.chosen_fell.value == result.both_fell.value == 1
    assert pairs.both_down.value == 1


def test_a_model_and_itself_rank_alike_to_the_last_bit(pack):
    model = pair().base
    result, pairs, ceilings, tilted = measure(ModelPair(model, model), pack, [Ranking()])
    for found in (result, pairs, ceilings, tilted):
        for name in getattr(found, "near_zero", ()):
            rows = np.ravel(getattr(found, name))
            assert (rows[~np.isnan(rows)] == 0).all(), name
    assert result.flip_p.value == 1
    assert result.reward_accuracy.value == result.chosen_fell.value == 0
    assert tilted.win_rate == (0.5, 0.5, 0.5)
    assert tilted.best_of_n.value == 1
    assert (pairs.case == "still").all()


def test_a_pair_without_rewards_raters_or_topics_has_none(tmp_path):
    shown, _ = preferences(tmp_path, [row[:3] for row in ROWS]).pack(nets.tokenizer())
    found = measure(pair(), shown, [Ranking()])
    assert [result.kind for result in found] == ["ranking", "ranked_pairs", "ranking_ceiling"]
    assert np.isnan(found[0].aligned_collapse.value)
    assert list(found[0].topic) == ["all"]


def test_rewards_of_some_pairs_count_alone(pack):
    some = [
        replace(e, reward=None if n in (3, 4) else e.reward) for n, e in enumerate(pack.examples)
    ]
    *_, tilted = measure(pair(), replace(pack, examples=some), [Ranking()])
    assert tilted.rated == len(ROWS) - 2
    assert tilted.pairs.sum() == len(ROWS) - 2


def test_parts_of_a_stream_and_the_store_leave_every_result_as_it_is(pack, tmp_path):
    def taken(frames):
        metric = Ranking()
        metric.begin(pair(), pair().encoder(pack))
        for frame in frames:
            metric.update(frame)
        return metric

    frames = list(pair().frames(pack, rows=2))
    whole, parts = taken(frames), taken(frames[:1]).merge(taken(frames[1:]))
    for number, (one, other) in enumerate(zip(whole.beside(), parts.beside(), strict=True)):
        assert same(one, other)
        assert same(load(save(one, tmp_path / str(number))), one)


def test_nothing_seen_is_said_and_every_figure_is_drawn(pack):
    metric = Ranking()
    metric.begin(pair(), pair().encoder(pack))
    empty = [metric.compute(), *metric.beside()]
    assert {one.summary() for one in empty} == {"There is no pair to look at."}
    assert all(one.figure() is None for one in empty)
    for one in measure(pair(), pack, [Ranking()]):
        assert all(panel.get_ylabel() for panel in one.figure().axes), one.kind
        assert one.summary().endswith(".")


def test_two_tokenizers_have_a_ranking_but_no_divergence(pack):
    coarse = nets.tokenizer(merges=20)
    other = HookedModel(pair().aligned.net, coarse, "aligned")
    result = measure(ModelPair(pair().base, other), pack, [Ranking()])[0]
    assert result.shown == len(ROWS)
    assert np.isnan(result.kl_on_chosen.value)
    assert np.isfinite(result.aligned_accuracy.value)


# What a file tells of its pairs


def test_a_file_tells_rewards_raters_and_topics_of_its_pairs(pack):
    assert [e.reward for e in pack.examples[:2]] == [2.0, 0.5]
    assert [e.preferred_by for e in pack.examples[:2]] == [0.9, 0.9]
    assert {e.topic for e in pack.examples} == {"people", "trade"}


@pytest.mark.parametrize(
    "names",
    [
        ("reward_chosen", "reward_rejected"),
        ("chosen_score", "rejected_score"),
        ("score_chosen", "score_rejected"),
    ],
)
def test_rewards_go_by_several_names(tmp_path, names):
    read = preferences(tmp_path, ROWS, (*FIELDS[:3], *names))
    assert [pair.rewards for pair in read.pairs] == [row[3:5] for row in ROWS]


def test_one_reward_of_a_pair_is_none(tmp_path):
    read = preferences(tmp_path, ROWS, (*FIELDS[:3], "chosen_reward"))
    assert {pair.rewards for pair in read.pairs} == {(None, None)}


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("chosen_reward", "good"), ("chosen_reward", True), ("preferred_by", 1.5)],
)
def test_what_is_no_reward_or_no_share_is_refused(tmp_path, field, wrong):
    fields = (*FIELDS[:3], field)
    with pytest.raises(DriftlensError, match=rf"`{field}` to be a .*number.*line 1"):
        preferences(tmp_path, [(*ROWS[0][:3], wrong)], fields)


def test_rewards_are_a_part_of_what_is_asked(pack):
    bare = replace(pack, examples=[replace(e, reward=None) for e in pack.examples])
    assert bare.sha256 != pack.sha256
