"""Prompts that directions are found on and judged on never share a family; what cannot is told."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

import nets
from driftlens.errors import DriftlensError
from driftlens.models import ModelPair, Site, Wants
from driftlens.models.steering import Ablate, Add, Steer, steered
from driftlens.models.tokens import Batch, continuation
from driftlens.packs import TWINS, Example, Pack
from driftlens.steer import selection

ANSWERS = {"choices": (" yes", " no"), "wanted": (0,)}


def prompts(families=6):
    """Two prompts of each role in every family; the families of the roles are their own."""
    return Pack(
        "prompts",
        "roles",
        [
            Example(f"The {role} kite {family} {n}", role=role, family=f"{role} {family}")
            for role in TWINS
            for family in range(families)
            for n in range(2)
        ],
    )


def asked(*answers):
    return Pack("asked", "choice", [Example(f"Question {n}:", **a) for n, a in enumerate(answers)])


def test_families_judge_or_are_learnt_from_and_both_hold_both_roles():
    pack = prompts()
    learning, judging = selection._parted(pack)
    families = [{e.family for e in part.examples} for part in (learning, judging)]
    assert not families[0] & families[1]
    assert families[0] | families[1] == {e.family for e in pack.examples}
    assert [sum(e.role == role for e in judging.examples) for role in TWINS] == [4, 4]
    assert len(learning.examples) == 16


REFUSED = {
    r"one set of answers for all items of asked.*found 2 sets": (
        prompts(),
        asked(ANSWERS, {**ANSWERS, "wanted": (1,)}),
    ),
    r"prompts alone in prompts.*found a response in text 0": (
        replace(prompts(), examples=[replace(e, scored=(3, 5)) for e in prompts().examples]),
        asked(ANSWERS),
    ),
    r"families enough of both roles in prompts.*found none of positive and negative in one part": (
        prompts(families=1),
        asked(ANSWERS),
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_judged_is_refused_before_a_model_reads_anything(said, monkeypatch):
    monkeypatch.setattr(selection, "measure", lambda *_, **__: pytest.fail("something was read"))
    contrast, behaviour = REFUSED[said]
    with pytest.raises(DriftlensError, match=said):
        selection.select(nets.pair("llama"), contrast, behaviour, 0)


@pytest.mark.slow
def test_a_directions_three_scores_are_those_of_the_live_net_and_the_rule_takes_the_best():
    pair = ModelPair.load("demo:base", "demo:aligned")
    contrast, behaviour = Pack.load("guarded"), Pack.load("guarded-choices")
    found = selection.select(pair, contrast, behaviour, 1, depth=1.0)
    net, words = pair.aligned.net, pair.aligned.tokenizer
    learnt, judged = selection._parted(contrast)
    layer = found.chosen_layer
    assert found.chosen_position == -1

    def ends(texts, *steers):
        logits, states = [], []
        for text in texts:
            ids = words(text, return_tensors="pt").input_ids
            with steered(net, steers) if steers else nullcontext(), torch.no_grad():
                seen = net(input_ids=ids, output_hidden_states=True)
            logits.append(seen.logits[0, -1].double())
            states.append(pair.aligned.trace(_batch(ids), Wants(frozenset({"out"}), None)))
        return torch.stack(logits), states

    def states_of(role):
        some = [e.text for e in learnt.examples if e.role == role]
        return torch.stack([t.activations[Site(layer)][0, -1] for t in ends(some)[1]]).double()

    v = states_of("positive").mean(0) - states_of("negative").mean(0)
    agree = [
        continuation(words, judged.examples[0].text, behaviour.examples[0].choices[n]).first
        for n in behaviour.examples[0].wanted
    ]

    def score(logits):
        p = logits.softmax(1)[:, agree].sum(1)
        return float(((p + 1e-8).log() - (1 - p + 1e-8).log()).mean())

    harmful, harmless = (
        [e.text for e in judged.examples if e.role == role] for role in ("positive", "negative")
    )
    ablate = [Steer(Ablate(v), None, part) for part in ("in", "attn", "mlp")]
    add = Steer(Add(v, float(v.norm())), layer)
    (row,) = np.flatnonzero((found.position == -1) & (found.layer == layer))
    assert found.norm[row] == pytest.approx(float(v.norm()), rel=1e-5)
    assert found.positive_still.value == pytest.approx(score(ends(harmful)[0]), abs=1e-3)
    assert found.bypass[row] == pytest.approx(score(ends(harmful, *ablate)[0]), abs=1e-3)
    assert found.induce[row] == pytest.approx(score(ends(harmless, add)[0]), abs=1e-3)
    still, after = (ends(harmless, *some)[0].log_softmax(1) for some in ((), ablate))
    kl = float((still.exp() * (still - after)).sum(1).mean())
    assert found.kl[row] == pytest.approx(kl, abs=1e-4)
    kept = found.reason == ""
    assert kept[row]
    assert found.bypass[row] == found.bypass[kept].min()


def _batch(ids):
    none = torch.zeros(0, dtype=torch.long)
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), (none, none), (none, none), none)
