"""The shift of tokens: its formulas, and what was planted in a pair."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

import nets
from driftlens.diagnostics import PublishedShift, ShiftedTokens, TokenShift
from driftlens.errors import DriftlensError
from driftlens.formulas import divergence, shift
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.generation import Sampling, answers
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack


def logits_of(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


BASE, ALIGNED = (0.35, 0.33, 0.32), (0.90, 0.04, 0.06)
"""Of the two likeliest of each, only the first id is in both."""


# Formulas


def test_the_classes_are_those_of_the_paper():
    ranks = [-1, 0, 1, 2, 3, 50_000]
    assert [shift.CLASSES[c] for c in shift.classes(ranks)] == [
        *("shifted", "unshifted", "marginal", "marginal", "shifted", "shifted")
    ]


def test_the_published_divergence_is_negative_where_the_exact_one_is_not():
    base, aligned = logits_of(*BASE), logits_of(*ALIGNED)
    ours, theirs = 0.35 / 0.68, 0.90 / 0.96
    found = shift.kl_topk_intersection(base, aligned, 2)
    assert float(found) == pytest.approx(ours * np.log(ours / theirs), abs=1e-12)
    assert float(found) < -0.3
    found = shift.kl_topk_intersection(base, aligned, 2, renormalised=False)
    assert float(found) == pytest.approx(0.35 * np.log(0.35 / 0.90), abs=1e-12)
    exact = sum(p * np.log(p / q) for p, q in zip(BASE, ALIGNED, strict=True))
    assert float(divergence.kl(base, aligned)) == pytest.approx(exact, abs=1e-12)
    assert exact > 0.9


def test_the_published_divergence_over_the_whole_vocabulary_is_the_exact_one():
    base, aligned = torch.randn(2, 5, 17, generator=torch.Generator().manual_seed(0))
    oracle = rel_entr(softmax(base.double(), -1), softmax(aligned.double(), -1)).sum(-1)
    for renormalised in (True, False):
        found = shift.kl_topk_intersection(base, aligned, 99, renormalised=renormalised)
        np.testing.assert_allclose(found, oracle, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20), k=st.integers(1, 12))
def test_the_published_numbers_are_those_of_a_naive_loop(seed, k):
    base, aligned = 3 * torch.randn(
        2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    ours, theirs = ({*np.argsort(-z.numpy())[:k].tolist()} for z in (base, aligned))
    p, q = (softmax(z.numpy()) for z in (base, aligned))
    a, b = p / sum(p[i] for i in ours), q / sum(q[i] for i in theirs)
    naive = sum(a[i] * np.log(a[i] / b[i]) for i in ours & theirs)
    assert float(shift.kl_topk_intersection(base, aligned, k)) == pytest.approx(naive, abs=1e-12)
    jaccard = len(ours & theirs) / len(ours | theirs)
    assert float(shift.jaccard_at(base, aligned, k)) == pytest.approx(jaccard)
    assert float(shift.overlap(base, aligned)) == pytest.approx(p @ q)


def test_two_draws_of_one_even_distribution_meet_once_in_its_size():
    even = torch.zeros(3, 8)
    np.testing.assert_allclose(shift.overlap(even, even), 1 / 8)
    assert (shift.jaccard_at(even, even, 3) == 1).all()
    assert (shift.kl_topk_intersection(even, even, 3) == 0).all()


def test_what_falls_on_the_first_positions_adds_up():
    values, order = np.array([4.0, 2.0, 1.0, 1.0]), np.array([0, 1, 2, 7])
    found = shift.within_first(values, order, (1, 2, 5, 20)).sum(0) / values.sum()
    np.testing.assert_array_equal(found, [4 / 8, 6 / 8, 7 / 8, 1])


# What was planted in a pair


BOOSTED = tuple(nets.tokenizer().convert_tokens_to_ids(["c", "k", "Q"]))
"""Ids of letters to which one net is made to give more."""

LONG = max(nets.TEXTS, key=len)


@cache
def base():
    """A net whose head has a bias, so that a logit can be moved alone and by an exact step."""
    return nets.net("phi")


def changed(how):
    """The pair of the net and of one whose head was changed."""
    words, aligned = nets.tokenizer(), deepcopy(base())
    with torch.no_grad():
        how(aligned.get_output_embeddings())
    return ModelPair(HookedModel(base(), words, "base"), HookedModel(aligned, words, "aligned"))


def boosted(by=3.0, ids=BOOSTED):
    def boost(head):
        head.bias[[*ids]] += by

    return changed(boost)


def logits(pair, text):
    """[token, vocab] what both nets say after each token of a text but the last."""
    ids = torch.tensor([nets.tokenizer()(text)["input_ids"]])
    nets_ = pair.base.net, pair.aligned.net
    with torch.no_grad():
        return [net(ids).logits[0, :-1].double().numpy() for net in nets_]


def shown(pair, metrics, texts=nets.TEXTS, **how):
    return measure(pair, nets.pack(texts) if isinstance(texts, tuple) else texts, metrics, **how)


def test_the_boosted_tokens_are_the_shifted_ones_and_their_ranks_are_exact():
    pair = boosted()
    found, tokens = shown(pair, [TokenShift(), ShiftedTokens()])
    ranks, kl, gains = [], [], []
    for text in nets.TEXTS:
        b, a = logits(pair, text)
        top = a.argmax(1)
        here = np.arange(len(top))
        ranks.append((b > b[here, top][:, None]).sum(1))
        p, q = softmax(b, 1), softmax(a, 1)
        kl.append(rel_entr(q, p).sum(1))
        gains.append(np.log(q[here, top] / p[here, top]))
    rank = np.concatenate(ranks)
    assert found.scored == len(rank)
    assert found.unshifted_share.value == pytest.approx((rank == 0).mean())
    assert found.marginal_share.value == pytest.approx(((rank > 0) & (rank < 3)).mean())
    assert found.shifted_share.value == pytest.approx((rank > 2).mean())
    assert found.within_5.value == pytest.approx((rank < 5).mean())
    assert 0 < found.unshifted_share.value < 1
    assert found.shifted_share.value > 0.1
    assert found.kl_aligned_base.value == pytest.approx(np.concatenate(kl).mean(), abs=1e-5)
    assert tokens.changed == (rank > 0).sum() == tokens.rows()
    assert tokens.changed_share.value == pytest.approx((rank > 0).mean())
    for document, position, r, gain in zip(
        tokens.document, tokens.position, tokens.base_rank, tokens.gain, strict=True
    ):
        # Place 0 is the added beginning of text, which nothing precedes.
        assert r == ranks[document][position - 1]
        assert gain == pytest.approx(gains[document][position - 1], abs=1e-4)
    assert (np.diff(tokens.gain) <= 0).all()
    words = {nets.tokenizer().decode([token]) for token in BOOSTED}
    assert {*tokens.newly_chosen} <= words
    assert {*tokens.aligned_says} <= words
    assert sum(tokens.newly_chosen_times) == (rank > 2).sum()
    assert all(
        t <= of for t, of in zip(tokens.newly_chosen_times, tokens.newly_chosen_of, strict=True)
    )


def test_another_temperature_shifts_no_token_but_has_a_divergence():
    def cool(head):
        head.weight *= 1.5
        head.bias *= 1.5

    found, tokens = shown(changed(cool), [TokenShift(), ShiftedTokens()])
    assert found.unshifted_share.value == 1
    assert (found.unshifted == 1).all()
    assert found.kl_aligned_base.value > 0.01
    assert found.base_probability.value < found.aligned_probability.value
    assert tokens.rows() == tokens.changed == 0
    assert tokens.newly_chosen == ()
    assert tokens.summary() == "Nowhere is aligned's first choice another than base's."


def test_a_model_and_itself_have_every_choice_in_common():
    model = HookedModel(base(), nets.tokenizer())
    found, tokens = shown(ModelPair(model, model), [TokenShift(), ShiftedTokens()])
    assert found.unshifted_share == (1, 1, 1)
    assert found.kl_aligned_base == found.kl_base_aligned == (0, 0, 0)
    # Of no divergence no part lies anywhere.
    assert np.isnan(found.kl_in_first_5.value)
    assert tokens.rows() == 0
    assert "100.0%" in found.summary()


def test_what_base_holds_equally_likely_is_no_shift():
    words, blank = nets.tokenizer(), deepcopy(base())
    with torch.no_grad():
        for weight in blank.get_output_embeddings().parameters():
            weight.zero_()
    pair = ModelPair(HookedModel(blank, words), HookedModel(base(), words))
    found, tokens = shown(pair, [TokenShift(), ShiftedTokens()])
    assert found.unshifted_share.value == 1
    assert tokens.rows() == 0
    assert found.kl_aligned_base.value > 0


def test_positions_and_first_tokens_count_from_the_end_of_the_prompt():
    pair = boosted()
    asked = Pack("asked", "text", [replace(nets.pack([LONG]).examples[0], scored=(20, len(LONG)))])
    (found,) = shown(pair, [TokenShift()], asked)
    ends = [end for _, end in nets.tokenizer()(LONG, return_offsets_mapping=True)["offset_mapping"]]
    scored = np.array(ends[1:]) > 20
    b, a = (z[scored] for z in logits(pair, LONG))
    kl = rel_entr(softmax(a, 1), softmax(b, 1)).sum(1)
    rows = found.by == "position"
    cuts = [0, 1, 2, 5, 10, 20, len(kl)]
    assert list(found.where[rows]) == ["1", "2", "3–5", "6–10", "11–20", "later"]
    assert list(found.tokens[rows]) == list(np.diff(cuts))
    means = [kl[i:j].mean() for i, j in pairwise(cuts)]
    np.testing.assert_allclose(found.row_kl_aligned_base[rows], means, atol=1e-5)
    for first in (5, 10, 20):
        share = getattr(found, f"kl_in_first_{first}").value
        assert share == pytest.approx(kl[:first].sum() / kl.sum(), abs=1e-5)
        assert getattr(found, f"tokens_in_first_{first}") == pytest.approx(first / len(kl))


def test_positions_are_those_of_the_document_however_it_is_cut_into_windows():
    pair = boosted()
    whole, cut = (
        shown(pair, [TokenShift()], (LONG,), length=length, rows=1)[0] for length in (96, 16)
    )
    rows = whole.by == "position"
    np.testing.assert_array_equal(whole.tokens[rows], cut.tokens[rows])
    assert whole.tokens[rows].sum() == whole.tokens[~rows].sum() == whole.scored


def test_a_divergence_at_the_first_token_alone_lies_there_whole():
    pair = boosted()
    examples = [replace(nets.pack([LONG]).examples[0], scored=(n, len(LONG))) for n in (20, 9)]
    metric = TokenShift()
    encoder = pair.encoder(Pack("p", "text", examples))
    metric.begin(pair, encoder)
    for windows in encoder.batches(9999):
        frame = pair.frame(encoder, windows)
        first = torch.from_numpy(frame.order_of_scored == 0)
        planted = frame.comparison._replace(kl_aligned_base=first.float() * 0.7)
        vars(frame)["comparison"] = planted
        metric.update(frame)
    found = metric.compute()
    assert found.kl_in_first_5 == (1, 1, 1)
    assert found.row_kl_aligned_base[0] == pytest.approx(0.7)
    assert not found.row_kl_aligned_base[1 : int((found.by == "position").sum())].any()


def test_a_token_that_base_does_not_have_is_shifted_and_said_to_be():
    words = nets.tokenizer()
    longer = deepcopy(words)
    longer.add_tokens(["<user>"])
    net = deepcopy(base())
    net.resize_token_embeddings(len(longer), mean_resizing=False)
    with torch.no_grad():
        net.get_output_embeddings().bias[-1] += 99
    pair = ModelPair(HookedModel(base(), words), HookedModel(net, longer))
    found, tokens, published = shown(pair, [TokenShift(), ShiftedTokens(), PublishedShift()])
    assert found.shifted_share.value == 1
    assert np.isnan(found.base_probability.value)
    assert found.notes[0].startswith(f"{found.scored} of aligned's first choices are tokens that")
    assert {*tokens.aligned_says} == {"<user>"}
    assert (tokens.base_rank == -1).all()
    assert np.isnan(tokens.gain).all()
    # Of the tokens that both have, the two nets say the same.
    assert published.jaccard.value == 1
    assert abs(published.published_kl.value) < 1e-5


def test_what_is_kept_of_the_tokens_is_what_gained_most_and_is_said():
    pair = boosted()
    every, few = shown(pair, [ShiftedTokens(), ShiftedTokens(4)])
    assert few.rows() == 4 < every.rows()
    np.testing.assert_array_equal(few.gain, every.gain[:4])
    assert few.notes == (f"The 4 of {every.rows()} changed places that gained most.",)
    assert few.newly_chosen == every.newly_chosen
    (view,) = few.views()
    for row, document in enumerate(view.documents):
        number, place = few.document[row], few.position[row]
        start = nets.tokenizer()(nets.TEXTS[number], return_offsets_mapping=True)
        start = start["offset_mapping"][place][0]
        assert document.tokens[0].text == nets.TEXTS[number][:start][-60:]
        assert document.tokens[1].text == few.aligned_says[row]


def test_the_published_numbers_stand_beside_the_exact_one():
    pair = ModelPair(boosted().aligned, boosted().base)
    found, exact = shown(pair, [PublishedShift(7), TokenShift()])
    sides = zip(*(logits(pair, text) for text in nets.TEXTS), strict=True)
    both = [torch.from_numpy(np.concatenate(side)) for side in sides]
    published = shift.kl_topk_intersection(*both, 7)
    for name, oracle in (
        ("published_kl", published),
        ("negative", (published < 0).double()),
        ("subset_kl", shift.kl_topk_intersection(*both, 7, renormalised=False)),
        ("jaccard", shift.jaccard_at(*both)),
        ("overlap", shift.overlap(*both)),
    ):
        assert getattr(found, name).value == pytest.approx(float(oracle.mean()), abs=1e-5)
    assert found.exact_kl.value == pytest.approx(exact.kl_base_aligned.value)
    assert found.negative.value > 0


def test_figures_show_the_classes_the_divergence_and_the_new_choices():
    found, tokens = shown(boosted(), [TokenShift(), ShiftedTokens()])
    left, right = found.figure().axes
    assert left.get_ylabel() == "share of tokens"
    assert right.get_ylabel() == "KL [nats/token]"
    tops = sum(np.array([bar.get_height() for bar in stack]) for stack in left.containers)
    np.testing.assert_allclose(tops, 1)
    (panel,) = tokens.figure().axes
    assert panel.get_ylabel() == "times newly chosen"
    assert [bar.get_height() for bar in panel.patches] == list(tokens.newly_chosen_times)
    assert found.headline() == f"{found.shifted_share.value:.1%} of its first choices are shifted"


# Of what aligned answers itself


PROMPTS = ("Mira sells", "The clock of Tolmar", "Seven boats")


def prompts():
    return Pack("asked", "prompt", [Example(p, topic="t") for p in PROMPTS])


def test_answered_prompts_are_texts_of_which_the_answer_is_scored():
    found = prompts().answered({2: " sank.", 0: " bread.", 1: "  "})
    assert (found.name, found.kind) == ("asked answered", "text")
    assert [e.text for e in found.examples] == ["Mira sells bread.", "Seven boats sank."]
    assert [e.text[slice(*e.scored)] for e in found.examples] == [" bread.", " sank."]
    assert {e.topic for e in found.examples} == {"t"}


@pytest.mark.parametrize("answers", [{}, {0: " "}])
def test_prompts_without_an_answer_are_no_texts(answers):
    with pytest.raises(DriftlensError, match="a text that answers one of them"):
        prompts().answered(answers)


def test_only_prompts_are_answered():
    with pytest.raises(DriftlensError, match="texts of kind 'text'"):
        nets.pack(PROMPTS).answered({0: "yes"})


def test_what_aligned_answers_greedily_is_what_it_holds_likeliest():
    # Letters that no text has are never joined, so that answers are cut as they were said.
    pair = boosted(20.0, nets.tokenizer().convert_tokens_to_ids([*"QZXJ"]))
    sampling = Sampling(samples=0, tokens=6)
    said = {a.prompt: a.text for a in answers(pair.aligned, PROMPTS, sampling)}
    pack = prompts().answered(said)
    found, tokens = shown(pair, [TokenShift(), ShiftedTokens()], pack)
    assert found.scored == 6 * len(PROMPTS)
    assert tokens.changed > 9
    # The text is what aligned says, so that the rank is that of the token in the text.
    assert list(tokens.aligned_says) == list(tokens.in_text)
    frame = next(pair.frames(pack))
    ranks = frame.comparison.base_rank.numpy()
    assert found.shifted_share.value == pytest.approx((ranks > 2).mean())
