"""What a report holds beside what it measures: evaluations that were run elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from driftlens.errors import DriftlensError

if TYPE_CHECKING:
    from driftlens.evals import Evaluation
    from driftlens.judged import Judged
    from driftlens.results import Result

KINDS = {"capability": "--lm-eval", "faithfulness": "--scores"}
"""Kinds of result that a report holds if it is given what they are made of, and by which option."""


class Elsewhere(NamedTuple):
    """What was read of it."""

    tasks: "tuple[Evaluation, Evaluation] | None"
    """What lm-evaluation-harness wrote of base and of aligned."""

    judged: "Judged | None"
    """Toxicity and faithfulness of what both said."""

    def results(self, seed: int) -> "list[Result]":
        """What a report shows of it."""
        from driftlens.diagnostics import capability, faithfulness

        found: list[Result] = [capability(*self.tasks, seed=seed)] if self.tasks else []
        return [*found, *([faithfulness(self.judged, seed=seed)] if self.judged else [])]


def read(tasks: tuple[Path, Path] | None, scores: str | None) -> Elsewhere:
    """Everything that the files tell, before a model is loaded.

    Raises:
        DriftlensError: A file is missing, or is not what it is taken for.
    """
    from driftlens.evals import Evaluation
    from driftlens.judged import Judged

    both = (Evaluation.read(tasks[0]), Evaluation.read(tasks[1])) if tasks else None
    return Elsewhere(both, Judged.read(scores) if scores else None)


def refuse_series(context: typer.Context) -> None:
    """What was measured elsewhere is of two models.

    Raises:
        DriftlensError: It is given with a series of more.
    """
    if given := [option for option in KINDS.values() if context.params.get(_named(option))]:
        raise DriftlensError(
            "two models, whose results from elsewhere are shown beside each other",
            found=f"{' and '.join(given)} with a series of more",
            remedy="Leave it out, or report on each two of them.",
        )


def _named(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")
