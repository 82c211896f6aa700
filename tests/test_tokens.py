"""Texts as tokens, units and windows: nothing is lost, and nothing counts twice."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

import nets
from driftlens.errors import DriftlensError
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.models.tokens import Encoder, alike
from driftlens.packs import Example, Pack

LONG = " ".join(nets.TEXTS) * 3
COARSE = nets.tokenizer(merges=20)
texts = st.text(alphabet=st.sampled_from("abe ATho.ïß日🚣🏽\n"), min_size=2, max_size=40)
whole = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def encoded(pack, tokenizers, length=10_000, **options):
    encoder = Encoder(pack, tokenizers, length, **options)
    return encoder, *encoder.encode(sorted(encoder.plan, key=lambda w: (w.example, w.number)))


def tokens_of(words, text):
    return words(text)["input_ids"]


# Windows


@whole
@given(text=texts, length=st.integers(2, 12), bos=st.booleans())
def test_every_token_is_scored_exactly_once_after_its_own_text(text, length, bos):
    words = nets.tokenizer(bos=bos)
    ids = tokens_of(words, text)
    assume(len(ids) > 1)  # A single token has nothing before it: such a text is refused.
    _, batch, _, units = encoded(nets.pack([text]), (words, words), length)
    assert units.position.tolist() == list(range(len(ids)))
    assert units.scored.tolist() == [False] + [True] * (len(ids) - 1)
    positions = units.position[units.scored][batch.owner.numpy()]
    assert positions.tolist() == list(range(1, len(ids)))
    for row, token, position in zip(
        *map(torch.Tensor.tolist, batch.target), positions, strict=True
    ):
        before = batch.ids[row, : token + 1].tolist()
        # The window is the text up to the token, from somewhere on, after the added token.
        start = before[bos:]
        assert len(before) >= 2
        assert start == ids[position + 1 - len(start) : position + 1]
        assert not bos or before[0] == words.bos_token_id
    assert batch.ids.shape[1] <= length
    assert batch.mask.sum(1).max() <= length


@whole
@given(text=texts, length=st.integers(6, 14))
def test_windows_of_two_tokenizers_score_every_unit_once(text, length):
    fine = nets.tokenizer()
    # Six tokens hold <s> and any unit of this alphabet but a flag, which is drawn nowhere.
    _, ours, theirs, units = encoded(nets.pack([text]), (fine, COARSE), length)
    assert units.position.tolist() == list(range(len(units.position)))
    for words, batch in ((fine, ours), (COARSE, theirs)):
        assert batch.targets.tolist() == tokens_of(words, text)[1:]
        assert sorted(set(batch.owner.tolist())) == list(range(units.scored.sum()))
        assert int(batch.mask.sum(1).max()) <= length


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_a_document_that_fits_is_one_window(spare):
    for words, masked in ((nets.tokenizer(), False), (nets.enclosing(), True)):
        length = len(tokens_of(words, LONG)) + spare
        encoder = Encoder(nets.pack([LONG]), (words, words), length, masked=masked)
        assert (len(encoder.plan) == 1) == (spare >= 0)
        assert encoder.windowed == (spare < 0)


def test_windows_overlap_by_half():
    words = nets.tokenizer()
    encoder = Encoder(nets.pack([LONG]), (words, words), 40)
    windows = encoder.document(0).windows
    for (_, _, last), (first, fresh, _) in pairwise(windows):
        assert fresh == last
        assert 19 <= fresh - first <= 20


def test_units_of_later_windows_stand_where_they_stand_in_the_document():
    words = nets.tokenizer()
    _, _, _, units = encoded(nets.pack([LONG]), (words, words), 24)
    _, _, _, at_once = encoded(nets.pack([LONG]), (words, words))
    for name in ("position", "start", "end", "characters", "bytes", "scored"):
        assert np.array_equal(getattr(units, name), getattr(at_once, name)), name


def test_likelihoods_in_windows_are_those_of_the_stretches_alone():
    pair = nets.pair("llama")
    words = pair.base.tokenizer
    encoder = pair.encoder(nets.pack([LONG]), 24)
    frame = pair.frame(encoder, sorted(encoder.plan, key=lambda w: w.number))
    ids = torch.tensor(tokens_of(words, LONG))
    naive = []
    for first, fresh, last in encoder.document(0).windows:
        stretch = torch.cat([ids[:1], ids[first:last]]) if first else ids[:last]
        with torch.no_grad():
            logprobs = pair.base.net(stretch[None]).logits[0, :-1].log_softmax(-1)
        mine = logprobs.gather(-1, stretch[1:, None])[:, 0]
        naive.append(mine[-(last - fresh) :] if first else mine)
    torch.testing.assert_close(frame.likelihoods[0], torch.cat(naive).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("bos", "length"), [(True, 1), (False, 1)])
def test_a_window_without_room_for_a_token_and_its_context_is_refused(bos, length):
    words = nets.tokenizer(bos=bos)
    with pytest.raises(DriftlensError, match=r"1 tokens are allowed.*found a unit.*--max-length"):
        Encoder(nets.pack(["one two"]), (words, words), length)


def test_batches_hold_every_window_once_whatever_their_size(pack):
    words = nets.tokenizer()
    encoder = Encoder(pack, (words, words), 12)
    for batches in (encoder.batches(100), encoder.batches(1), encoder.batches(0, rows=4)):
        shown = [window for batch in batches for window in batch]
        assert sorted(shown, key=str) == sorted(encoder.plan, key=str)
    assert max(map(len, encoder.batches(0, rows=4))) == 4


# Units


@pytest.mark.parametrize("other", [nets.tokenizer(), COARSE], ids=["same", "coarser"])
@pytest.mark.parametrize("text", nets.TEXTS)
def test_bytes_and_characters_add_up_to_the_text(text, other):
    _, _, _, units = encoded(nets.pack([text]), (nets.tokenizer(), other))
    assert units.characters.sum() == len(text)
    assert units.bytes.sum() == len(text.encode())
    assert min(units.characters.min(), units.bytes.min()) >= 0
    assert np.array_equal(units.end, units.characters.cumsum())


def test_tokens_that_end_at_one_character_are_units_of_their_own_in_one_tokenizer():
    words = nets.tokenizer(bos=False)
    text = "𝄞"
    _, _, _, units = encoded(nets.pack([text]), (words, words))
    assert len(units.position) == 4
    assert units.end.tolist() == [1, 1, 1, 1]
    assert units.bytes.tolist() == [4, 0, 0, 0]


def test_the_last_of_the_tokens_that_end_at_one_character_closes_a_shared_unit():
    fine = nets.tokenizer()
    _, ours, theirs, units = encoded(nets.pack(["𝄞𝄞 The clock of Tolmar"]), (fine, COARSE))
    assert units.end.tolist()[:2] == [1, 2]
    for batch in (ours, theirs):
        assert batch.closing[1].tolist()[:2] == [4, 8]
        assert batch.owner.tolist()[:8] == [0] * 4 + [1] * 4


def test_two_tokenizers_share_units_where_both_cut():
    fine, coarse = nets.tokenizer(), COARSE
    text = nets.TEXTS[0]
    _, _, _, units = encoded(nets.pack([text]), (fine, coarse))
    ends = [
        {end for _, end in words(text, return_offsets_mapping=True)["offset_mapping"]} - {0}
        for words in (fine, coarse)
    ]
    assert units.end.tolist() == sorted(ends[0] & ends[1])
    assert ends[0] != ends[1]


def test_likelihoods_of_units_add_up_to_those_of_the_texts():
    base, aligned = nets.net("llama"), nets.net("llama", seed=1)
    pair = ModelPair(
        HookedModel(base, nets.tokenizer(), "base"), HookedModel(aligned, COARSE, "aligned")
    )
    encoder = pair.encoder(nets.pack(nets.TEXTS))
    frame = pair.frame(encoder, encoder.plan)
    assert not encoder.same
    for model, found in zip((pair.base, pair.aligned), frame.likelihoods, strict=True):
        for number, text in enumerate(nets.TEXTS):
            ids = torch.tensor([tokens_of(model.tokenizer, text)])
            with torch.no_grad():
                logprobs = model.net(ids).logits[0, :-1].log_softmax(-1)
            naive = float(logprobs.gather(-1, ids[0, 1:, None]).double().sum())
            mine = float(found[frame.scored.document == number].sum())
            # float32 over up to 60 tokens.
            assert mine == pytest.approx(naive, abs=1e-4)


def test_the_first_unit_is_not_scored_without_an_added_token_before_it():
    fine, coarse = nets.tokenizer(bos=False), nets.tokenizer(bos=False, merges=20)
    for tokenizers in ((fine, coarse), (nets.tokenizer(), coarse), (fine, COARSE)):
        _, *batches, units = encoded(nets.pack(nets.TEXTS[:1]), tokenizers)
        assert units.scored.tolist() == [False] + [True] * (len(units.scored) - 1)
        for words, batch in zip(tokenizers, batches, strict=True):
            text = nets.TEXTS[0][units.end[0] :]
            assert words.decode(batch.targets) == text


def test_an_added_end_of_text_is_in_no_shared_unit():
    closing, coarse = nets.enclosing(), COARSE
    _, ours, theirs, _ = encoded(nets.pack(nets.TEXTS[:1]), (closing, coarse))
    assert closing.eos_token_id not in ours.targets.tolist()
    assert closing.decode(ours.targets) == coarse.decode(theirs.targets) == nets.TEXTS[0]


def test_tokenizers_that_share_no_unit_are_refused():
    one = nets.fast(Tokenizer(models.WordLevel({"<s>": 0, "x": 1}, unk_token="x")))
    with pytest.raises(DriftlensError, match=r"cut at common places.*none in texts \(9 doc.*Give"):
        Encoder(nets.pack(nets.TEXTS), (nets.tokenizer(bos=False), one), 99)


def test_documents_without_a_token_to_score_are_left_out_and_counted():
    words = nets.tokenizer(bos=False)
    encoder = Encoder(nets.pack(["a", "", "a bell"]), (words, words), 99)
    assert encoder.skipped == 2
    assert {window.example for window in encoder.plan} == {2}
    with pytest.raises(DriftlensError, match=r"at least two tokens.*\(2 documents\)"):
        Encoder(nets.pack(["a", ""]), (words, words), 99)


@pytest.mark.parametrize("other", [nets.tokenizer(), COARSE], ids=["same", "coarser"])
def test_only_what_ends_inside_the_scored_characters_is_scored(other):
    text = "Mira sells cheese."
    pack = Pack("p", "text", [Example(text, scored=(5, 17))])
    _, batch, _, units = encoded(pack, (nets.tokenizer(), other))
    assert all(((units.end > 5) & (units.end <= 17)) == units.scored)
    assert units.scored.any()
    assert nets.tokenizer().decode(batch.targets).strip() == "sells cheese"


def test_windows_of_which_nothing_is_scored_are_shown_all_the_same():
    pair = nets.pair("llama")
    encoder = pair.encoder(Pack("p", "text", [Example(LONG, scored=(0, 9))]), 16)
    assert len(encoder.plan) > 9
    total = torch.cat([pair.frame(encoder, [window]).likelihoods[0] for window in encoder.plan])
    at_once = pair.frame(encoder, encoder.plan)
    assert float(total.sum()) == pytest.approx(float(at_once.likelihoods[0].sum()), abs=1e-5)
    assert at_once.scored.end.max() == 9


def test_scored_units_are_counted_from_the_end_of_the_prompt_over_all_windows():
    text = max(nets.TEXTS, key=len)
    pack = nets.pack([text, "I do."])
    half = Pack("half", "text", [replace(pack.examples[0], scored=(20, 60)), pack.examples[1]])
    pair = nets.pair("llama")
    seen: dict[int, list] = {}
    for frame in pair.frames(half, rows=1, length=12):
        assert frame.encoder.windowed == 1
        rows = zip(frame.scored.document, frame.scored.position, frame.order_of_scored, strict=True)
        for document, position, order in rows:
            seen.setdefault(int(document), []).append((int(position), int(order)))
    for found in seen.values():
        assert [order for _, order in sorted(found)] == list(range(len(found)))
    assert min(seen[0])[0] > 5


def test_a_stereotype_is_scored_from_its_beginning():
    words = nets.tokenizer(bos=False)
    pack = Pack("p", "stereotype", [Example("Twins are loud.")])
    _, batch, _, units = encoded(pack, (words, words))
    assert batch.ids[0, 0] == words.bos_token_id
    assert words.decode(batch.targets) == "Twins are loud."
    assert units.scored.tolist()[:2] == [False, True]


def test_texts_of_units_are_what_stands_there():
    encoder, _, _, units = encoded(nets.pack(nets.TEXTS), (nets.tokenizer(), COARSE))
    for number, text in enumerate(nets.TEXTS):
        mine = units.document == number
        said = encoder.texts(units.document[mine], units.position[mine])
        assert "".join(said) == text
    words = nets.tokenizer()
    encoder, *_ = encoded(nets.pack(["A 🚣"]), (words, words))
    said = encoder.texts(np.zeros(4, int), np.arange(4)).tolist()
    assert said[:2] == ["<s>", "A"]


# Pairs of answers


def pairs(*words, prompt="A bell."):
    """A pack of one pair for each two numbers of words of their answers."""
    examples = []
    for group, counts in enumerate(words):
        for role, count in zip(("chosen", "rejected"), counts, strict=True):
            text = prompt + " boat" * count
            examples.append(Example(text, (len(prompt), len(text)), group, role))
    return Pack("pairs", "preference", examples)


MANY = pairs((1, 9), (4, 2), (9, 9), (1, 1), (3, 8), (2, 2), (7, 1))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, None])
@pytest.mark.parametrize("tokens", [1, 60, 200, 10_000])
def test_both_answers_follow_one_another_in_one_batch(rows, tokens):
    words = nets.tokenizer()
    # The order of the file is no matter, nor is that of the roles.
    shuffled = Pack("pairs", "preference", MANY.examples[1::2][::-1] + MANY.examples[::2])
    for pack in (MANY, shuffled):
        encoder = Encoder(pack, (words, words), 99)
        batches = encoder.batches(tokens, rows)
        shown = [pack.examples[window.example] for batch in batches for window in batch]
        assert sorted(e.text for e in shown) == sorted(e.text for e in MANY.examples)
        assert [e.role for e in shown] == ["chosen", "rejected"] * len(MANY.examples[::2])
        assert [e.group for e in shown[::2]] == [e.group for e in shown[1::2]]
        for batch in batches:
            assert len(batch) % 2 == 0
            area = len(batch) * max(window.length for window in batch)
            assert len(batch) == 2 or (len(batch) <= rows if rows else area <= tokens)


def test_likelihoods_of_pairs_are_the_same_in_any_batches():
    pair = nets.pair("llama")
    encoder = pair.encoder(MANY)
    found = []
    for batches in (encoder.batches(0, rows=1), encoder.batches(90), encoder.batches(9999)):
        sums = np.zeros(len(MANY.examples))
        for windows in batches:
            frame = pair.frame(encoder, windows)
            np.add.at(sums, frame.scored.document, frame.likelihoods[0].numpy())
        found.append(sums)
    # float32 in batches of other widths.
    assert np.ptp(found, axis=0).max() < 1e-4
    alone = pair.encoder(pairs((1, 9)))
    frame = pair.frame(alone, alone.plan)
    chosen = frame.likelihoods[0].numpy()[frame.scored.document == 0].sum()
    assert found[0][0] == pytest.approx(chosen, abs=1e-5)


def test_a_pair_of_which_one_answer_does_not_fit_is_left_out_whole():
    words = nets.tokenizer()
    pack = pairs((1, 1), (1, 40), (40, 1), (2, 2))
    sizes = [len(tokens_of(words, example.text)) for example in pack.examples]
    encoder = Encoder(pack, (words, words), sizes[6])
    assert [window.example for window in encoder.plan] == [0, 1, 6, 7]
    assert (encoder.skipped, encoder.windowed) == (4, 0)
    assert encoder.tokens == sizes[0] + sizes[1] + sizes[6] + sizes[7]
    whole = Encoder(pack, (words, words), max(sizes))
    assert (len(whole.plan), whole.skipped, whole.windowed) == (8, 0, 0)
    with pytest.raises(DriftlensError, match=r"neither has more than 5 tokens.*--max-length"):
        Encoder(pack, (words, words), 5)


def test_a_pair_of_which_one_answer_has_no_token_to_score_is_left_out_whole():
    words = nets.tokenizer(bos=False)
    ends = [("a", "A bell"), ("I do.", "A bell")]
    examples = [
        Example(text, None, group, role)
        for group, texts in enumerate(ends)
        for role, text in zip(("chosen", "rejected"), texts, strict=True)
    ]
    encoder = Encoder(Pack("pairs", "preference", examples), (words, words), 99)
    assert [window.example for window in encoder.plan] == [2, 3]
    assert encoder.skipped == 2


def test_pairs_of_two_tokenizers_are_never_cut():
    tokenizers = (nets.tokenizer(), COARSE)
    sizes = [max(len(tokens_of(t, e.text)) for t in tokenizers) for e in MANY.examples]
    length = sorted(set(sizes))[-2]
    encoder = Encoder(MANY, tokenizers, length)
    fits = [max(both) <= length for both in zip(sizes[::2], sizes[1::2], strict=True)]
    assert not encoder.same
    assert encoder.skipped == 2 * fits.count(False) > 0
    assert len(encoder.plan) == 2 * fits.count(True)
    for windows in encoder.batches(99):
        *batches, units = encoder.encode(windows)
        for batch in batches:
            assert int(batch.mask.sum(1).max()) <= length
        for document in {window.example for window in windows}:
            first, last = MANY.examples[document].scored
            mine = units.scored & (units.document == document)
            assert units.characters[mine].sum() >= last - first


# Vocabularies


def renamed(base, words, other):
    """The same net for a tokenizer that gives the same tokens other ids."""
    net = deepcopy(base)
    net.resize_token_embeddings(len(other), mean_resizing=False)
    with torch.no_grad():
        for token, i in words.get_vocab().items():
            for table, old in (
                (net.get_input_embeddings(), base.get_input_embeddings()),
                (net.get_output_embeddings(), base.get_output_embeddings()),
            ):
                table.weight[other.get_vocab()[token]] = old.weight[i]
    return net


def frame_of(pair):
    encoder = pair.encoder(nets.pack(nets.TEXTS))
    return pair.frame(encoder, sorted(encoder.plan, key=lambda w: w.example))


PERMUTED = nets.tokenizer(specials="<pad> <mask> </s> <s>")
LARGER = nets.tokenizer(specials="<user> <s> </s> <pad> <mask>")


def test_a_permuted_vocabulary_changes_nothing():
    words, base = nets.tokenizer(), nets.net("llama")
    aligned = renamed(base, words, PERMUTED)
    pair = ModelPair(HookedModel(base, words), HookedModel(aligned, PERMUTED))
    ours, theirs = pair.shared
    assert len(ours) == len(words)
    assert words.convert_ids_to_tokens(ours) == PERMUTED.convert_ids_to_tokens(theirs)
    frame = frame_of(pair)
    assert frame.encoder.same
    assert not torch.equal(frame.base.batch.ids, frame.aligned.batch.ids)
    c = frame.comparison
    # The soft-max adds the same numbers in another order.
    torch.testing.assert_close(c.base_logprob, c.aligned_logprob, rtol=0, atol=2e-6)
    assert float(c.kl_base_aligned.abs().max()) < 1e-6
    assert float(c.base_outside.abs().max()) < 1e-6


def test_mass_outside_the_shared_vocabulary_is_that_of_a_naive_softmax():
    words, base = nets.tokenizer(), nets.net("llama")
    aligned = nets.moved(renamed(base, words, LARGER), 0.03, 1)
    pair = ModelPair(HookedModel(base, words), HookedModel(aligned, LARGER))
    frame = frame_of(pair)
    ours, theirs = pair.shared
    assert set(LARGER.convert_ids_to_tokens(range(len(LARGER)))) - set(
        LARGER.convert_ids_to_tokens(theirs)
    ) == {"<user>"}
    p = pair.base.readout(frame.base.predictors).double().softmax(-1)
    q = pair.aligned.readout(frame.aligned.predictors).double().softmax(-1)
    c = frame.comparison
    outside = q[:, LARGER.get_vocab()["<user>"]]
    assert float(outside.min()) > 0
    torch.testing.assert_close(c.aligned_outside.double(), outside, rtol=0, atol=1e-6)
    assert float(c.base_outside.abs().max()) < 1e-6
    p, q = (x[:, i] / x[:, i].sum(1, keepdim=True) for x, i in ((p, ours), (q, theirs)))
    kl = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(c.kl_base_aligned.double(), kl, rtol=0, atol=1e-5)


def test_tokens_added_at_the_end_leave_the_ids_shared():
    words, base = nets.tokenizer(), nets.net("llama")
    longer = deepcopy(words)
    longer.add_tokens(["<user>"])
    pair = ModelPair(HookedModel(base, words), HookedModel(renamed(base, words, longer), longer))
    ours, theirs = pair.shared
    assert torch.equal(ours, theirs)
    assert len(ours) == len(words) == len(longer) - 1


def test_one_vocabulary_is_shared_whole():
    assert nets.pair("llama").shared is None
    twin = deepcopy(nets.tokenizer())
    assert alike(nets.tokenizer(), twin)
    net = nets.net("llama")
    assert ModelPair(HookedModel(net, twin), HookedModel(net, nets.tokenizer())).shared is None
    assert not alike(nets.tokenizer(), nets.tokenizer(bos=False))


def test_logits_beyond_the_tokenizer_are_not_shared():
    words = nets.tokenizer()
    base, wider = nets.net("llama"), nets.net("llama", vocab_size=nets.WORDS + 8)
    pair = ModelPair(HookedModel(base, words), HookedModel(wider, words))
    assert len(pair.shared[0]) == nets.WORDS
    outside = frame_of(pair).comparison.aligned_outside
    assert float(outside.min()) > 0
