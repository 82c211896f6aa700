"""Answers that say the same are together, by each of several readings of 'the same'."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import adjusted_rand_score, rand_score

from driftlens.formulas import clusters as c

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=12)


def of_sizes(*sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


def similar(*couples, of, size=1.0):
    found = np.eye(of)
    for i, j in couples:
        found[i, j] = found[j, i] = size
    return found


def partition(labels):
    return {frozenset(np.flatnonzero(labels == k).tolist()) for k in set(labels.tolist())}


# How alike


def test_overlap_is_what_two_sets_share_over_all_they_have():
    found = c.overlap([{"a", "b"}, {"b", "c"}, {"d"}, set()])
    np.testing.assert_allclose(found[0], [1, 1 / 3, 0, 0])
    np.testing.assert_allclose(found, found.T)
    assert found[3, 3] == 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.frozensets(st.integers(0, 6), min_size=1), min_size=1, max_size=8))
def test_overlaps_are_a_kernel(sets):
    assert np.linalg.eigvalsh(c.overlap(sets)).min() > -1e-12


def test_capitals_and_marks_are_no_words():
    assert c.word_sets(["The cat, the CAT!"]) == [{"the", "cat"}]
    assert c.word_sets(["It’s 3.5 naïve_ones"]) == [{"it's", "3", "5", "naïve", "ones"}]
    assert c.word_sets(["日本 is"]) == [{"日", "本", "is"}]


def test_bigrams_of_words_and_of_characters_fall_back_on_what_is_alone():
    assert c.word_bigrams(["a b c", "a", "!!"]) == [{("a", "b"), ("b", "c")}, {("a",)}, {("!!",)}]
    assert c.character_bigrams(["Ab", "a"]) == [{("a", "b")}, {("a",)}]


def test_cosines_are_sklearns_of_sublinear_trigrams():
    texts = ["the cat sat on the mat", "a cat sits on mats", "nothing of that kind"]
    own = c.cosines(c.spelling(texts))
    rows = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(3, 3), sublinear_tf=True, use_idf=False
    ).fit_transform(texts)
    np.testing.assert_allclose(own, (rows @ rows.T).toarray(), atol=1e-12)


def test_an_embedding_of_zeros_is_like_itself_alone():
    np.testing.assert_array_equal(c.cosines([[0, 0], [3, 4]]), np.eye(2))
    assert c.cosines([[3, 4], [4, 3]])[0, 1] == pytest.approx(0.96)


# Which are together

CHAIN = similar((0, 1), (1, 2), of=4, size=0.4)


def test_single_linkage_goes_along_a_chain_and_a_leader_does_not():
    assert c.chained(CHAIN, 0.4).tolist() == [0, 0, 0, 1]
    assert c.led(CHAIN, 0.4).tolist() == [0, 0, 1, 2]
    assert c.led(CHAIN[::-1, ::-1], 0.4).tolist() == [0, 1, 1, 2]


def test_what_reaches_the_threshold_is_together_though_it_is_rounded():
    tenths = similar((0, 1), of=2, size=0.1 + 0.2)
    assert c.chained(tenths, 0.3).tolist() == c.averaged(tenths, 0.3).tolist() == [0, 0]
    assert c.chained(similar((0, 1), of=2, size=2 / 5 - 1e-6), 0.4).tolist() == [0, 1]


def test_average_linkage_wants_the_mean_and_single_linkage_one_couple():
    # The third is near the second alone: on average 0.45 from the two.
    three = np.array([[1, 0.9, 0.0], [0.9, 1, 0.9], [0, 0.9, 1]])
    assert c.averaged(three, 0.5).tolist() == [0, 0, 1]
    assert c.averaged(three, 0.45).tolist() == [0, 0, 0]
    assert c.chained(three, 0.5).tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.85])
def test_average_linkage_is_sklearns(seed, threshold):
    rows = np.random.default_rng(seed).normal(size=(12, 3))
    similarity = c.cosines(rows)
    theirs = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - threshold
    ).fit_predict(1 - similarity)
    assert partition(c.averaged(similarity, threshold)) == partition(theirs)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.permutations(range(7)), st.integers(0, 5))
def test_linkage_does_not_hang_on_the_order_of_the_answers(order, seed):
    similarity = c.cosines(np.random.default_rng(seed).normal(size=(7, 3)))
    turned = similarity[np.ix_(order, order)]
    for method in (c.chained, c.averaged):
        there = {frozenset(order[k] for k in z) for z in partition(method(turned, 0.4))}
        assert there == partition(method(similarity, 0.4))


def test_one_answer_is_one_cluster_and_none_is_none():
    for method in (c.chained, c.averaged, c.led):
        assert method(np.eye(1)).tolist() == [0]
        assert method(np.eye(0)).tolist() == []


def test_answers_are_together_that_follow_from_each_other_both_ways():
    # The first follows from the second, and the second not from the first.
    one_way = np.array([[1, 0.2, 0.9], [0.9, 1, 0.1], [0.9, 0.1, 1]])
    assert c.entailing(one_way).tolist() == [0, 1, 0]
    # Exactly ½ is not above ½.
    assert c.entailing(np.full((2, 2), 0.5)).tolist() == [0, 1]


def test_sindex_is_as_it_was_published_and_does_not_add_up_to_one():
    # Two couples of cosine 0.96, and one alone.
    similarity = similar((0, 1), (2, 3), of=5, size=0.96)
    found = c.sindex(similarity)
    assert found.labels.tolist() == [0, 0, 1, 1, 2]
    shares = np.array([0.4 * 0.96, 0.4 * 0.96, 0.2])
    assert found.entropy == pytest.approx(-(shares * np.log(shares)).sum())
    assert c.sindex(similar((0, 1), of=2, size=0.94)).labels.tolist() == [0, 1]
    assert c.sindex(np.ones((4, 4))).entropy == 0
    assert np.isnan(c.sindex(np.eye(0)).entropy)


def test_sindex_goes_by_the_mean_over_a_cluster():
    # To the first of the cluster 0.97, to the second 0.92: on average 0.945, below 0.95.
    three = np.array([[1, 0.99, 0.97], [0.99, 1, 0.92], [0.97, 0.92, 1]])
    assert c.sindex(three).labels.tolist() == [0, 0, 1]
    assert c.led(three, 0.95).tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", c.METHODS.values(), ids=lambda method: method.name)
def test_a_blank_answer_belongs_to_no_cluster_and_the_same_answers_are_together(method):
    texts = ["", "Seven boats left.", " \n", "A quiet evening", "Seven boats left!", "🙂", "🙂"]
    labels = c.clustered("?", texts, method)
    assert labels.tolist() == [-1, 0, -1, 1, 0, 2, 2]
    assert c.sizes(labels).tolist() == [2, 1, 2]
    assert c.clustered("?", ["", ""], method).tolist() == [-1, -1]
    assert c.clustered("?", [], method).tolist() == []


def test_a_method_sees_the_prompt_and_what_is_said_alone():
    seen = []
    method = c.Method("told", lambda prompt, texts: seen.append((prompt, *texts)) or [7, 7])
    assert c.clustered("why?", ["", "so", "thus"], method).tolist() == [-1, 0, 0]
    assert seen == [("why?", "so", "thus")]


# How many things they say


def test_five_three_and_two_of_ten_have_the_published_entropy():
    assert c.semantic_entropy(of_sizes(5, 3, 2)) == pytest.approx(1.02965, abs=5e-6)
    assert c.diversity(of_sizes(5, 3, 2)) == 3
    assert c.variety_lost(of_sizes(5, 3, 2)) == pytest.approx(0.7)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_entropy_is_nothing_of_one_cluster_and_the_logarithm_of_all_alone(n):
    assert c.semantic_entropy(np.zeros(n)) == 0
    assert np.signbit(c.semantic_entropy(np.zeros(n))) == np.False_
    assert c.semantic_entropy(np.arange(n)) == pytest.approx(np.log(n))
    assert c.variety_lost(np.arange(n)) == 0
    assert (c.single(np.zeros(n)), c.single(np.arange(n))) == (1, 0)


@pytest.mark.parametrize("labels", [[], [0], [-1, -1, -1], [-1, 0]])
def test_fewer_than_two_answers_say_nothing_of_variety(labels):
    for measure in (c.semantic_entropy, c.diversity, c.variety_lost, c.single):
        assert np.isnan(measure(labels))
    assert np.isnan(c.weighted_entropy(labels, np.zeros(len(labels))))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(LABELS, st.permutations(range(5)))
def test_the_names_of_clusters_do_not_matter(labels, names):
    renamed = np.array(names)[labels]
    assert c.semantic_entropy(renamed) == pytest.approx(c.semantic_entropy(labels), abs=1e-12)
    assert c.diversity(renamed) == c.diversity(labels)
    assert c.adjusted_rand(labels, renamed) == pytest.approx(1)
    assert c.pair_agreement(labels, renamed) == 1


def test_all_answers_there_are_weighted_by_likelihood_have_the_entropy_of_what_they_mean():
    chances, meaning = np.array([0.5, 0.2, 0.2, 0.1]), [0, 1, 0, 2]
    exact = -sum(p * np.log(p) for p in (0.7, 0.2, 0.1))
    assert c.weighted_entropy(meaning, np.log(chances)) == pytest.approx(exact)
    # Of answers drawn again each counts once, where that is asked for.
    again = [0, 0, 0, 1, 2, 3]
    labels, logprobs = np.array(meaning)[again], np.log(chances)[again]
    assert c.weighted_entropy(labels, logprobs, again) == pytest.approx(exact)
    assert c.weighted_entropy(labels, logprobs) < exact


def test_likely_answers_are_weighed_though_their_probability_underflows():
    labels = [0, 1, -1]
    assert c.weighted_entropy(labels, [-2000, -2000, 0]) == pytest.approx(np.log(2))


# Of many prompts


def test_the_single_cluster_rate_leaves_out_what_is_not_known():
    found = c.single_cluster_rate([1, 0, np.nan, 1, 0, np.nan])
    assert found.estimate == 0.5
    assert found == c.single_cluster_rate([1, 0, 1, 0])
    assert np.isnan(c.single_cluster_rate([np.nan]).estimate)


def test_the_interval_of_the_rate_is_wilsons():
    # Newcombe (1998), table I: 15 of 148 is 0.0624 to 0.1605.
    found = c.single_cluster_rate([1] * 15 + [0] * 133)
    assert (found.low, found.high) == pytest.approx((0.0624, 0.1605), abs=5e-5)


@pytest.mark.parametrize(
    ("mass", "chance"), [(0.5, 0.0020), (0.7, 0.0283), (0.9, 0.3487), (0.95, 0.5987)]
)
def test_ten_answers_are_equal_as_often_as_published(mass, chance):
    assert c.chance_of_one_cluster(mass, 10) == pytest.approx(chance, abs=5e-5)
    assert c.mode_mass(c.chance_of_one_cluster(mass, 10), 10) == pytest.approx(mass, abs=1e-6)


def test_a_rate_that_chance_would_exceed_has_no_mode():
    assert c.mode_mass(1.0, 10) == 1
    assert np.isnan(c.mode_mass(0.0, 10))
    assert np.isnan(c.mode_mass(0.5, 1))
    assert np.isnan(c.mode_mass(np.nan, 10))


# Whether two clusterings agree


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=12))
def test_agreement_is_sklearns(couples):
    one, other = np.array(couples).T
    assert c.adjusted_rand(one, other) == pytest.approx(adjusted_rand_score(one, other), abs=1e-12)
    assert c.pair_agreement(one, other) == pytest.approx(rand_score(one, other), abs=1e-12)


def test_answers_that_belong_to_no_cluster_have_no_say_in_agreement():
    assert c.pair_agreement([0, 0, 1, -1], [0, 0, 1, 1]) == 1
    assert c.adjusted_rand([0, 0, 1, 0], [0, 0, -1, 0]) == 1
    assert np.isnan(c.adjusted_rand([0, -1], [0, 0]))
    assert np.isnan(c.pair_agreement([-1, 0], [0, -1]))


def test_of_ones_singles_the_others_share_is_told_of_prompts_that_both_know():
    assert c.singles_shared([1, 1, 1, 0, 1], [1, 0, 1, 1, np.nan]) == pytest.approx(2 / 3)
    assert np.isnan(c.singles_shared([0, 0], [1, 1]))
