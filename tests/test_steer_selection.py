"""Prompts that directions are found on and judged on never share a family; what cannot is told."""

from dataclasses import replace

import pytest

import nets
from driftlens.errors import DriftlensError
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
