"""What the models leave open after the same words."""

from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

import nets
from driftlens.diagnostics import Entropy
from driftlens.formulas.words import kinds
from driftlens.metric import measure
from driftlens.models import ModelPair
from driftlens.models.hooks import HookedModel
from driftlens.packs import Example, Pack

NET = nets.net("llama").requires_grad_(False)
PACK = nets.pack(nets.TEXTS)


def of(base, aligned):
    words = nets.tokenizer()
    return ModelPair(HookedModel(base, words, "base"), HookedModel(aligned, words, "aligned"))


def found(pair, pack=PACK, **how):
    return measure(pair, pack, [Entropy()], **how)[0]


def scaled(by):
    net = deepcopy(NET)
    net.lm_head.weight.mul_(by)
    return net


def shares(net):
    """For each text, [token, vocab] what the net gives to what may come next."""
    words = nets.tokenizer()
    each = [torch.tensor([words(text).input_ids]) for text in nets.TEXTS]
    return [net(input_ids=ids).logits[0, :-1].double().softmax(-1).numpy() for ids in each]


class Mixed(HookedModel):
    """A model that is certain of its likeliest token in some of the cases."""

    certain = 0.3

    def readout(self, stream, room=None):
        """[row, vocab] logarithms of the mixture with what is likeliest."""
        p = super().readout(stream).double().softmax(-1)
        mode = torch.nn.functional.one_hot(p.argmax(-1), p.shape[-1])
        return ((1 - self.certain) * p + self.certain * mode).log().float()


def binary(p):
    return stats.entropy([p, 1 - p])


def test_entropies_are_those_that_scipy_finds_and_so_is_their_change():
    other = scaled(2)
    result = found(of(NET, other))
    base, aligned = (
        np.concatenate([stats.entropy(p, axis=-1) for p in shares(net)]) for net in (NET, other)
    )
    assert result.base_entropy.value == pytest.approx(base.mean(), abs=1e-5)
    assert result.aligned_entropy.value == pytest.approx(aligned.mean(), abs=1e-5)
    assert result.entropy_change.value == pytest.approx((aligned - base).mean(), abs=1e-5)
    assert result.fallen_share.value == (aligned < base).mean() == 1
    assert result.choices_ratio.value == pytest.approx(np.exp((aligned - base).mean()), rel=1e-5)
    assert result.base_choices.value == pytest.approx(np.exp(base.mean()), rel=1e-5)
    assert "leaves less open" in result.headline()


def test_a_model_mixed_with_its_likeliest_token_loses_entropy_by_the_closed_form():
    words = nets.tokenizer()
    result = found(ModelPair(HookedModel(NET, words, "base"), Mixed(NET, words, "aligned")))
    changes = []
    for p in np.concatenate(shares(NET)):
        top, entropy = p.max(), stats.entropy(p)
        # What is left beside the likeliest keeps its shape, and so its own entropy.
        rest = (entropy - binary(top)) / (1 - top)
        mixed = 0.3 + 0.7 * top
        changes.append(binary(mixed) + (1 - mixed) * rest - entropy)
    assert result.entropy_change.value == pytest.approx(np.mean(changes), abs=1e-5)
    assert max(changes) < 0
    assert result.entropy_change.high < 0


def test_a_model_that_knows_nothing_leaves_every_token_open():
    result = found(of(NET, scaled(0)))
    assert result.aligned_entropy.value == pytest.approx(np.log(nets.WORDS))
    assert result.aligned_choices.value == pytest.approx(nets.WORDS)
    assert result.fallen_share.value == 0
    assert "leaves more open" in result.headline()
    assert "rose" in result.summary()


def test_a_model_leaves_as_much_open_as_itself():
    result = found(of(NET, NET))
    assert result.entropy_change == (0, 0, 0)
    assert result.choices_ratio == (1, 1, 1)
    assert (result.change == 0).all()
    assert (result.fallen == 0).all()
    assert result.headline() == ""


@pytest.mark.parametrize("length", [96, 24])
def test_each_token_stands_in_one_part_of_either_division(length):
    result = found(of(NET, scaled(2)), length=length)
    for division in ("position", "kind"):
        mine = result.division == division
        tokens = result.tokens[mine]
        assert tokens.sum() == result.scored
        mean = tokens @ result.change[mine] / tokens.sum()
        assert mean == pytest.approx(result.entropy_change.value)
        fallen = tokens @ result.fallen[mine] / tokens.sum()
        assert fallen == pytest.approx(result.fallen_share.value)


def test_places_are_counted_from_the_first_scored_token():
    text = nets.TEXTS[2]
    lead = 30
    result = found(of(NET, scaled(2)), Pack("end", "text", [Example(text, (lead, len(text)))] * 2))
    own = nets.tokenizer()(text, return_offsets_mapping=True).offset_mapping
    scored = np.array([lead < end for _, end in own])
    base, aligned = (stats.entropy(shares(net)[2], axis=-1) for net in (NET, scaled(2)))
    change = (aligned - base)[scored[1:]]
    mine = result.division == "position"
    assert result.part[mine].tolist() == ["1", "2–5", "6–10", "11–20", "21 on"]
    ends = [0, 1, 5, 10, 20, len(change)]
    assert result.tokens[mine].tolist() == [2 * n for n in np.diff(ends)]
    for row, (start, end) in enumerate(pairwise(ends)):
        assert result.change[mine][row] == pytest.approx(change[start:end].mean(), abs=1e-5)


def test_kinds_are_those_of_the_words():
    result = found(of(NET, scaled(2)))
    counts: dict[str, int] = {}
    for text in nets.TEXTS:
        spans = nets.tokenizer()(text, return_offsets_mapping=True).offset_mapping[1:]
        for kind in kinds(text, spans):
            counts[kind] = counts.get(kind, 0) + 1
    mine = result.division == "kind"
    assert dict(zip(result.part[mine], result.tokens[mine].tolist(), strict=True)) == counts


def test_a_token_that_is_ruled_out_leaves_entropy_unknown_and_says_so():
    class Ruled(HookedModel):
        def readout(self, stream, room=None):
            logits = super().readout(stream).clone()
            logits[:, 3] = -torch.inf
            return logits

    words = nets.tokenizer()
    result = found(ModelPair(HookedModel(NET, words, "base"), Ruled(NET, words, "aligned")))
    assert np.isnan(result.entropy_change.value)
    assert np.isfinite(result.base_entropy.value)
    assert any("rules some token out" in note for note in result.notes)


def test_both_divisions_are_drawn():
    left, right = found(of(NET, scaled(2))).figure().axes
    assert left.get_xlabel() == "scored token of the document"
    assert right.get_ylabel() == "change in entropy [nats/token]"
