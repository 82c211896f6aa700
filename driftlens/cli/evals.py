"""`driftlens evals`: what was measured elsewhere, of both models side by side."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftlens.errors import DriftlensError

from .help import App
from .shared import (
    FORMATS,
    Aligned,
    AlignedDevice,
    AlignedRevision,
    AsJson,
    Attention,
    Base,
    BaseDevice,
    Bound,
    Device,
    DeviceMap,
    Dtype,
    Format,
    Mixed,
    Offline,
    Overwrite,
    Quiet,
    Remote,
    ReportTo,
    Revision,
    Seed,
    called,
    formats_of,
    leave,
    leave_to_first,
    pair_of,
    record,
    slug,
    tell,
    told,
    trackers_of,
    try_out,
    values_of,
)
from .steer import ModelOrCommand

if TYPE_CHECKING:
    from driftlens.evals import Evaluation


class ResultsOrCommand(ModelOrCommand):
    """Commands, of which `read` goes without saying: `evals BASE ALIGNED` reads results."""

    unsaid = "read"


evals = App(
    cls=ResultsOrCommand,
    subcommand_metavar="BASE_RESULTS ALIGNED_RESULTS ... | COMMAND ...",
    help="""Lay what was measured elsewhere of both models side by side.

    `driftlens evals BASE_RESULTS ALIGNED_RESULTS` reads what lm-evaluation-harness has written,
    and tells what was lost, task by task. It is short for `driftlens evals read`, which has its
    options.

    Examples:
        # Results that lie in two folders.
        driftlens evals evals/base evals/aligned
        # Run the tasks first.
        driftlens evals run org/base org/aligned --tasks arc_easy,gsm8k
    """,
)

Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for the page.", show_default=False)
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(help="Leave with 1 if this holds, as 'capability.worst_change<-0.02'."),
]
AnyPrompt = Annotated[
    bool,
    typer.Option("--any-prompt", help="Compare them although they read other prompts."),
]
Chance = Annotated[
    list[str] | None,
    typer.Option(help="What guessing scores on a task, as gsm8k=0; may be given again."),
]


@evals.command("read")
@told()
def read(
    base_results: Annotated[
        Path,
        typer.Argument(
            metavar="BASE_RESULTS", help="results_….json of base, or the folder it lies in."
        ),
    ],
    aligned_results: Annotated[
        Path, typer.Argument(metavar="ALIGNED_RESULTS", help="The same of aligned.")
    ],
    out: Out = None,
    any_prompt: AnyPrompt = False,
    chance: Chance = None,
    fail_on: FailOn = None,
    seed: Seed = 0,
    format: Format = FORMATS,
    report_to: ReportTo = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare two models' results of lm-evaluation-harness, and write a page.

    Examples:
        # What was lost, task by task.
        driftlens evals evals/base evals/aligned --out reports/tasks
        # In CI: leave with 1 if a task lost more than two points.
        driftlens evals evals/base evals/aligned --fail-on 'capability.worst_change<-0.02'
    """
    leave_to_first()
    started = datetime.now(UTC)
    formats, to = formats_of(format), trackers_of(report_to)
    from driftlens.diagnostics import CapabilityResult
    from driftlens.evals import Evaluation

    bounds = [Bound.of(text, values_of(CapabilityResult)) for text in fail_on or []]
    guessed = guesses_of(chance)
    both = Evaluation.read(base_results), Evaluation.read(aligned_results)
    out = out or Path("reports") / f"{slug(both[0].name)}-{slug(both[1].name)}-tasks"
    try_out(out, overwrite)
    asked = {"any_prompt": any_prompt, "chance": guessed}
    written(both, asked, out, formats, to, bounds, seed, started, overwrite, quiet, as_json)


def written(
    both: "tuple[Evaluation, Evaluation]",
    asked: dict,
    out: Path,
    formats: set[str],
    to: Sequence[str],
    bounds: list[Bound],
    seed: int,
    started: datetime,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the page of two models' results, and leave with what it says."""
    from driftlens.diagnostics import capability
    from driftlens.report import Report

    found = capability(*both, any_prompt=asked["any_prompt"], chance=asked["chance"], seed=seed)
    models = {
        side: {"name": one.name, "results": one.source, "lm_eval": one.version}
        for side, one in zip(("base", "aligned"), both, strict=True)
    }
    about = record(models, [], seed, asked, started)
    about["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    title = f"{called(both[0].name)} → {called(both[1].name)} on tasks"
    page = Report(title, [found], (), about)
    place = page.write(out, overwrite=overwrite, formats=formats)
    leave(bounds, [found], tell(page, place, quiet, as_json, to))


def guesses_of(chance: list[str] | None) -> dict[str, float]:
    """What guessing scores by task, as `task=0.25` tells it."""
    found = {}
    for text in chance or []:
        task, _, number = text.rpartition("=")
        try:
            found[task] = float(number)
        except ValueError:
            task = ""
        if not task:
            raise DriftlensError(
                "--chance as TASK=NUMBER", found=repr(text), remedy="Write it as gsm8k=0."
            )
    return found


@evals.command("run")
@told()
def run(
    context: typer.Context,
    base: Base,
    aligned: Aligned,
    tasks: Annotated[str, typer.Option(help="Tasks or groups of lm-eval, with commas.")],
    out: Out = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question; the task's own.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask only the first N items of each task.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts into each model's own chat template.")
    ] = False,
    include: Annotated[Path | None, typer.Option(help="A folder of further tasks as YAML.")] = None,
    chance: Chance = None,
    fail_on: FailOn = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    base_device: BaseDevice = None,
    aligned_device: AlignedDevice = None,
    dtype: Dtype = "auto",
    allow_mixed_dtypes: Mixed = False,
    seed: Seed = 0,
    format: Format = FORMATS,
    report_to: ReportTo = None,
    overwrite: Overwrite = False,
    revision: Revision = None,
    aligned_revision: AlignedRevision = None,
    trust_remote_code: Remote = False,
    attn_implementation: Attention = "sdpa",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Ask both models tasks of lm-evaluation-harness (driftlens[evals]), and write a page.

    Examples:
        # Two tasks, 200 items of each.
        driftlens evals run org/base org/aligned --tasks arc_easy,gsm8k --limit 200
        # As a chat, with the examples that a paper gave.
        driftlens evals run org/base org/aligned --tasks gsm8k --shots 5 --chat
    """
    leave_to_first()
    started = datetime.now(UTC)
    formats, to = formats_of(format), trackers_of(report_to)
    from driftlens.diagnostics import CapabilityResult

    bounds = [Bound.of(text, values_of(CapabilityResult)) for text in fail_on or []]
    guessed = guesses_of(chance)
    out = out or Path("reports") / f"{slug(base)}-{slug(aligned)}-tasks"
    try_out(out, overwrite)
    context.params["backend"] = "hooks"
    pair = pair_of(context)
    from driftlens.models.harness import evaluated

    named = [name.strip() for name in tasks.split(",") if name.strip()]
    folder = None if include is None else str(include)
    how: dict[str, Any] = {"shots": shots, "limit": limit, "chat": chat, "include": folder}
    both = evaluated(pair, named, rows=batch_size, seed=seed, **how)
    # Of each model's own template the prompts are others, as was asked for.
    asked = {"tasks": named, **how, "any_prompt": chat, "chance": guessed}
    written(both, asked, out, formats, to, bounds, seed, started, overwrite, quiet, as_json)


@evals.command("scores")
@told()
def scores(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="JSONL or Parquet of scores, or of texts.")
    ],
    out: Out = None,
    toxicity: Annotated[
        str | None,
        typer.Option(help="A classifier that says how toxic texts are, as NAME:LABEL."),
    ] = None,
    faithfulness: Annotated[
        str | None,
        typer.Option(help="One that says whether a text follows from its source, likewise."),
    ] = None,
    clean: Annotated[float, typer.Option(help="Toxicity below which a text is clean.")] = 0.5,
    least: Annotated[
        float, typer.Option(min=0, help="How much a score must fall to have fallen.")
    ] = 0.0,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Leave with 1 if this holds, as 'faithfulness.over_cleaned>0.1'."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where classifiers run.")] = "cpu",
    seed: Seed = 0,
    format: Format = FORMATS,
    report_to: ReportTo = None,
    overwrite: Overwrite = False,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Tell what safety cost in faithfulness, from scores or by classifiers that are named.

    Examples:
        # Scores that you have already.
        driftlens evals scores scores.jsonl
        # Texts, to be judged by classifiers that you trust.
        driftlens evals scores texts.jsonl --toxicity org/toxic:toxic \
--faithfulness org/nli:entailment
    """
    leave_to_first()
    started = datetime.now(UTC)
    formats, to = formats_of(format), trackers_of(report_to)
    from driftlens import diagnostics
    from driftlens.judged import Judged, judged, texts
    from driftlens.packs import named
    from driftlens.report import Report

    known = values_of(diagnostics.FaithfulnessResult)
    bounds = [Bound.of(text, known) for text in fail_on or []]
    out = out or Path("reports") / f"{slug(named(file))}-faithfulness"
    try_out(out, overwrite)
    models = {
        score: dict(zip(("given", "label"), _label(told), strict=True))
        for score, told in (("toxicity", toxicity), ("faithfulness", faithfulness))
        if told is not None
    }
    if len(models) == 1:
        raise DriftlensError(
            "--toxicity and --faithfulness together, to judge texts",
            found=f"--{next(iter(models))} alone",
            remedy="Name both, or give a file of scores.",
        )
    if models:
        from driftlens.models.classifier import Classifier

        judges = {
            score: Classifier(
                told["given"],
                told["label"],
                paired=score == "faithfulness",
                device=device,
                local_files_only=offline,
            )
            for score, told in models.items()
        }
        read = judged(named(file), texts(file), judges["toxicity"], judges["faithfulness"])
    else:
        read = Judged.read(file)
    found = diagnostics.faithfulness(read, clean=clean, least=least, seed=seed)
    about = record(models, [], seed, {"clean": clean, "least": least}, started)
    about["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    page = Report(f"Toxicity and faithfulness of {read.name}", [found], (), about)
    place = page.write(out, overwrite=overwrite, formats=formats)
    leave(bounds, [found], tell(page, place, quiet, as_json, to))


def _label(told: str) -> tuple[str, str]:
    """A classifier and its label, as NAME:LABEL tells them."""
    name, _, label = told.rpartition(":")
    if not name or not label:
        raise DriftlensError(
            "a classifier as NAME:LABEL", found=repr(told), remedy="Write it as org/toxic:toxic."
        )
    return name, label
