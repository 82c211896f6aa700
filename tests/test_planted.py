"""Damage done on purpose, and whether the diagnostics find it where it was done."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch

import nets
from driftlens.diagnostics import (
    Drift,
    Forgetting,
    LayerForgetting,
    LayerForgettingResult,
    Lens,
    TokenForgetting,
    TokenKinds,
    TokenLayers,
)
from driftlens.metric import measure
from driftlens.models import ModelPair, Site
from driftlens.models.hooks import HookedModel

PACK = nets.pack(nets.TEXTS)
PLACES = {
    "the embedding": (["embed_tokens"], "embed"),
    "block 0": (["layers.0."], "0"),
    "block 1": (["layers.1."], "1"),
    "block 2": (["layers.2."], "2"),
    "final norm and head": (["model.norm", "lm_head"], "head"),
}
ROUNDED = 1e-6
"""Nats a token that float32 leaves where two orders of the same arithmetic meet."""


@cache
def damaged(*names, size=0.1, family="llama"):
    """A tiny model, and the same with only some weights moved."""
    base = nets.net(family)
    aligned = deepcopy(base)
    for seed, name in enumerate(names):
        nets.moved(aligned, size, seed + 1, only=name)
    return of(base, aligned, family)


def of(base, aligned, family="llama"):
    words = nets.tokenizer_for(family)
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def found(pair, *metrics, pack=PACK, **how):
    results = measure(pair, pack, metrics, **how)
    return results[0] if len(metrics) == 1 else results


# Where the damage is


@pytest.mark.parametrize("place", PLACES)
def test_all_of_the_loss_lies_at_the_one_place_that_was_changed_in_both_orders(place):
    names, stage = PLACES[place]
    result = found(damaged(*names), LayerForgetting())
    here = result.stage == stage
    assert abs(result.total.value) > 1e-3
    for share in (result.share, result.share_backward, result.mean_share):
        np.testing.assert_allclose(share[here], result.total.value, atol=ROUNDED)
        np.testing.assert_allclose(share[~here], 0, atol=ROUNDED)
    before = np.arange(len(here)) < here.argmax()
    assert (result.share[before] == 0).all()


@pytest.mark.parametrize("block", range(3))
def test_nothing_drifts_before_the_block_that_was_changed(block):
    drift, lens = found(damaged(f"layers.{block}."), Drift(), Lens())
    before = drift.layer < block
    for name in ("relative_l2", "cosine", "mean_shift", "procrustes", "relative_l2_with_first"):
        rows = getattr(drift, name)
        assert (rows[before] == 0).all(), name
        assert (rows[~before] > 0).all(), name
    assert (drift.cka[before] == 1).all()
    assert (lens.kl_own[lens.layer < block] == 0).all()
    assert (lens.kl_own[lens.layer >= block] > 0).all()
    assert f"the first site that moved is {block}.attn" in drift.summary()


def test_a_changed_readout_moves_no_activation_and_only_the_own_lens():
    drift, lens = found(damaged("model.norm", "lm_head"), Drift(), Lens())
    assert (drift.relative_l2 == 0).all()
    assert (drift.cka == 1).all()
    assert (lens.kl_common == 0).all()
    assert (lens.kl_own > 0).all()


@pytest.mark.parametrize("names", [("layers.0.", "layers.2."), ("embed", "layers.1.", "lm_head")])
def test_shares_of_several_damages_telescope_to_the_total(names):
    result, forgetting = found(damaged(*names), LayerForgetting(), Forgetting())
    assert abs(result.residual.value) < 1e-9
    assert abs(result.residual_backward.value) < 1e-9
    assert result.share.sum() == pytest.approx(result.total.value, abs=1e-9)
    assert result.share_backward.sum() == pytest.approx(result.total.value, abs=1e-9)
    assert result.total.value == pytest.approx(forgetting.loss_rise.value, abs=1e-12)
    np.testing.assert_allclose(result.mean_share, (result.share + result.share_backward) / 2)


def test_two_damaged_blocks_that_lean_on_each_other_share_differently_in_each_order():
    result = found(damaged("layers.0.", "layers.2."), LayerForgetting())
    assert np.abs(result.share - result.share_backward).max() > 1e-3


def test_a_share_is_what_the_weights_swapped_up_to_its_block_restore():
    pair = damaged("")
    result = found(pair, LayerForgetting())
    prefixes = ["nothing"], ["embed"], ["embed", "layers.0."], ["embed", "layers.0.", "layers.1."]
    losses = []
    for names in prefixes:
        hybrid = deepcopy(pair.aligned.net)
        ours = {n: w for n, w in pair.base.net.state_dict().items() if any(p in n for p in names)}
        hybrid.load_state_dict(ours, strict=False)
        losses.append(found(of(pair.base.net, hybrid), Forgetting()).loss_rise.value)
    np.testing.assert_allclose(result.share[:3], -np.diff(losses), atol=1e-5)


def test_each_column_of_the_map_adds_up_to_its_tokens_rise():
    layers, tokens = found(damaged(""), TokenLayers(), TokenForgetting(), length=24)
    rises = dict(zip(zip(tokens.document, tokens.position, strict=True), tokens.rise, strict=True))
    mine = list(zip(layers.document, layers.position, strict=True))
    for place in set(mine):
        shares = layers.share[[other == place for other in mine]]
        assert shares.sum() == pytest.approx(rises[place], abs=1e-9)


def test_the_map_begins_with_the_window_whose_mean_rise_is_largest():
    pair = damaged("")
    layers, tokens = found(pair, TokenLayers(), TokenForgetting(), length=24)
    encoder = pair.encoder(PACK, 24)
    means = {}
    for window in encoder.plan:
        _, first, last = encoder.document(window.example).windows[window.number]
        within = (tokens.position >= first) & (tokens.position < last)
        rises = tokens.rise[(tokens.document == window.example) & within]
        if len(rises):
            means[window.example, first] = rises.mean()
    document, first = max(means, key=means.get)
    assert layers.document[0] == document
    assert first <= layers.position[0] <= first + 1


def test_the_headline_names_the_blocks_that_carry_the_loss():
    pair = damaged("layers.1.")
    # Texts so often repeated have an interval so narrow that one direction is surely a loss.
    often = nets.pack(nets.TEXTS * 60)
    pairs = [ModelPair(*models) for models in permutations([pair.base, pair.aligned])]
    results = [found(pair, LayerForgetting(), pack=often) for pair in pairs]
    result = max(results, key=lambda result: result.total.value)
    assert result.total.low > 0
    assert result.headline() == "100% of it in block 1"


def test_what_may_be_no_loss_at_all_is_given_no_place_and_no_kind():
    pair = damaged("layers.1.")
    for models in permutations([pair.base, pair.aligned]):
        layers, kinds = found(ModelPair(*models), LayerForgetting(), TokenKinds())
        assert layers.total.low <= 0
        assert layers.headline() == kinds.headline() == ""


# Which tokens it falls on


def biased(ids, by=-6.0, family="phi"):
    """A model whose head has a bias, and the same biased against some tokens."""
    base = nets.net(family)
    aligned = deepcopy(base)
    with torch.no_grad():
        aligned.lm_head.bias[list(ids)] += by
    return of(base, aligned, family)


def test_a_token_that_was_unlearnt_is_the_worst_wherever_it_stands():
    words = nets.tokenizer()
    unlearnt = words("A bell, a bell!", add_special_tokens=False)["input_ids"][2]
    result = found(biased([unlearnt]), TokenForgetting())
    texts = [words.convert_ids_to_tokens(unlearnt).replace("Ġ", " ")]
    order = np.argsort(-result.rise)
    planted = np.isin(result.token.astype(str), texts)
    assert 0 < planted.sum() < len(planted) / 2
    assert planted[order[: planted.sum()]].all()
    assert (result.rise[~planted] <= 0).all()
    assert (result.aligned_rank[planted] > result.base_rank[planted]).all()


def test_damage_to_digits_is_found_in_numbers():
    texts = ("It costs 37 coins and 4 nuts.", "The year 1984 had 366 days.", "Mira sells 12 eggs.")
    words = nets.tokenizer()
    digits = [i for token, i in words.get_vocab().items() if token.strip("Ġ").isdigit()]
    result = found(biased(digits), TokenKinds(), pack=nets.pack(texts))
    worst = result.token_kind[result.rise.argmax()]
    assert worst == "number"
    assert (result.rise[result.token_kind != "number"] <= 0).all()
    assert result.headline() == "mostly numbers"
    assert result.tokens.sum() == sum(len(words(t)["input_ids"]) - 1 for t in texts)


def test_kinds_of_tokens_that_did_not_move_lost_nothing_and_one_text_has_no_bounds():
    pair = biased(range(40))
    alone = ModelPair(pair.base, pair.base)
    still = found(alone, TokenKinds())
    assert still.summary() == (
        "No kind of token got worse or better by what can be told from noise."
    )
    one = found(pair, TokenKinds(), pack=nets.pack(nets.TEXTS[:1]))
    assert np.isnan(one.high).all()
    assert "lost most" in one.summary()
    assert "nan" not in one.summary()


def test_the_rises_of_a_documents_tokens_add_up_to_its_rise_in_loss():
    pair = damaged("")
    result = found(pair, TokenForgetting())
    for number, text in enumerate(nets.TEXTS):
        ours, theirs = (float(naive(m.net, text)[0].sum()) for m in (pair.base, pair.aligned))
        rises = result.rise[result.document == number]
        assert rises.sum() == pytest.approx(ours - theirs, abs=1e-4)


# How large it is


def naive(net, text):
    """[token] log-likelihood and [token, vocab] log-probabilities of one text, alone."""
    ids = nets.tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = net(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None])[:, 0], logprobs


def test_forgetting_is_what_a_plain_loop_over_documents_finds():
    pair = damaged("")
    result = found(pair, Forgetting(), rows=4)
    ours, theirs = ([naive(m.net, text) for text in nets.TEXTS] for m in (pair.base, pair.aligned))
    base, aligned = (torch.cat([gold for gold, _ in side]) for side in (ours, theirs))
    p, q = (torch.cat([whole for _, whole in side]) for side in (ours, theirs))
    rise = (base - aligned).sum()
    characters = sum(map(len, nets.TEXTS))
    size = sum(len(text.encode()) for text in nets.TEXTS)
    expected = {
        "loss_rise": rise / len(base),
        "base_loss": -base.mean(),
        "aligned_loss": -aligned.mean(),
        "characters_rise": rise / characters,
        "bits_per_byte_rise": rise / size / np.log(2),
        "perplexity_ratio": (base.mean() - aligned.mean()).exp(),
        "kl_base_aligned": (p.exp() * (p - q)).sum(-1).mean(),
        "kl_aligned_base": (q.exp() * (q - p)).sum(-1).mean(),
        "base_entropy": -(p.exp() * p).sum(-1).mean(),
        "aligned_entropy": -(q.exp() * q).sum(-1).mean(),
        "worse_share": (aligned < base).double().mean(),
        "base_outside": 0,
    }
    for name, number in expected.items():
        assert getattr(result, name).value == pytest.approx(float(number), abs=1e-5), name
    assert result.scored == len(base)


def test_each_group_of_a_pack_is_what_its_documents_alone_give():
    pair = damaged("")
    parts = nets.pack(nets.TEXTS[:4], topic="a"), nets.pack(nets.TEXTS[4:], topic="b")
    whole = replace(parts[0], examples=[*parts[0].examples, *parts[1].examples])
    result = found(pair, Forgetting(), pack=whole)
    assert result.group.tolist() == ["a", "b"]
    for row, part in enumerate(parts):
        alone = found(pair, Forgetting(), pack=part)
        assert result.rise[row] == pytest.approx(alone.loss_rise.value, abs=ROUNDED)
        assert result.tokens[row] == alone.scored


def test_a_documents_windows_count_each_token_once_whatever_their_length():
    pair = damaged("")
    whole = found(pair, TokenForgetting())
    for length in (2, 5, 24):
        cut = found(pair, TokenForgetting(), length=length)
        np.testing.assert_array_equal(cut.document, whole.document)
        np.testing.assert_array_equal(cut.position, whole.position)


def moved_stream(change):
    """Drift of a model from itself once the aligned stream is changed by hand."""
    pair = damaged("layers.2.")
    metric = Drift()
    encoder = pair.encoder(PACK)
    metric.begin(pair, encoder)
    for windows in encoder.batches(400):
        frame = pair.frame(encoder, windows, metric.wants)
        changed = {site: change(stream) for site, stream in frame.base.activations.items()}
        metric.update(replace(frame, aligned=replace(frame.base, activations=changed)))
    return metric.compute()


def rotation(width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]


ALIKE = {
    "rotated": lambda h: h @ rotation(h.shape[-1]),
    "scaled": lambda h: 3 * h,
    "shifted": lambda h: h + torch.linspace(-1, 1, h.shape[-1]),
}


@pytest.mark.parametrize("how", ALIKE)
def test_rotation_scale_and_shift_move_activations_but_not_their_similarity(how):
    result = moved_stream(ALIKE[how])
    assert (result.relative_l2 > 0.05).all()
    np.testing.assert_allclose(result.cka, 1, atol=1e-4)
    # The root of float32's rounding, as `similarity.procrustes` says.
    np.testing.assert_allclose(result.procrustes, 0, atol=2e-3)


def test_a_stream_three_times_as_long_has_moved_by_twice_its_length_and_turned_nowhere():
    result = moved_stream(ALIKE["scaled"])
    np.testing.assert_allclose(result.relative_l2, 2, rtol=1e-6)
    np.testing.assert_allclose(result.cosine, 0, atol=1e-6)


def test_a_common_shift_is_wholly_directed():
    result = moved_stream(ALIKE["shifted"])
    np.testing.assert_allclose(result.directedness, 1, atol=1e-5)
    np.testing.assert_allclose(result.mean_shift, result.relative_l2, rtol=1e-5)


def test_noise_moves_the_stream_by_its_own_length():
    generator = torch.Generator().manual_seed(0)
    result = moved_stream(lambda h: h + 0.05 * torch.randn(h.shape, generator=generator))
    lengths = [
        frame.both(Site(1))[0][torch.from_numpy(frame.units.position > 0)].norm(dim=-1)
        for frame in damaged("layers.2.").frames(PACK, Drift().wants)
    ]
    expected = 0.05 * np.sqrt(result.width) / float(torch.cat(lengths).mean())
    # 180 tokens of 32 dimensions know a length to about 1 / √(2 · 180 · 32) = 0.9 %.
    row = result.site.tolist().index("1.out")
    assert result.relative_l2[row] == pytest.approx(expected, rel=0.03)


def test_where_sums_do_not_fit_cka_is_taken_of_the_stream_and_said_so(monkeypatch):
    from driftlens.diagnostics import drift

    pair = damaged("")
    whole = found(pair, Drift())
    streams = np.flatnonzero(np.isin(whole.part, ["in", "out"]))
    for room, expected, first in ((2 * len(streams), streams, True), (2, streams[[0, -1]], False)):
        monkeypatch.setattr(drift, "SUMS_BYTES", room * 3 * 8 * pair.width**2)
        result = found(pair, Drift(every_site=False))
        assert np.flatnonzero(np.isfinite(result.cka)).tolist() == expected.tolist()
        assert np.isfinite(result.procrustes_with_first).any() == first
        np.testing.assert_array_equal(result.cka[expected], whole.cka[expected])
        np.testing.assert_array_equal(result.relative_l2, whole.relative_l2)
        assert f"taken at {len(expected)}" in result.notes[1]
        assert result.figure() is not None


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([0, 0, 9, 0, 0, 1], "90% of it in block 1"),
        ([0, 0, 4, 4, 0, 2], "80% of it in blocks 1–2"),
        ([0, 5, 0, 0, 1, 4], "90% of it in block 0 and the head"),
        ([6, 0, 1, 4, 0, -1], "60% of it in the embedding"),
        ([2, 2, 2, 2, 2, 2], ""),
    ],
)
def test_the_fewest_stages_that_carry_most_are_named(shares, said):
    shares = np.array(shares) / sum(shares)
    result = LayerForgettingResult.of(
        total=(1.0, 0.9, 1.1), residual=0.0, residual_backward=0.0,
        stage=["embed", "0", "1", "2", "3", "head"],
        share=shares, low=shares, high=shares,
        share_backward=shares, low_backward=shares, high_backward=shares,
        mean_share=shares, of_total=shares,
    )  # fmt: skip
    assert result.headline() == said
    assert "nan" not in result.summary()
