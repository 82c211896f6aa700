"""What commands share: the options they take, how they load, what they print."""

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from driftlens import ranks
from driftlens.errors import DriftlensError
from driftlens.versions import versions

if TYPE_CHECKING:
    from rich.console import Console

    from driftlens.models import Model, ModelPair
    from driftlens.packs import Pack
    from driftlens.report import Report
    from driftlens.results import Check, Result
    from driftlens.suite import Options

# Options

Base = Annotated[
    str, typer.Argument(metavar="BASE", help="Hub id, folder or demo:base of the base model.")
]
Aligned = Annotated[
    str,
    typer.Argument(
        metavar="ALIGNED", help="The same of its aligned version; also a PEFT adapter's folder."
    ),
]
Text = Annotated[
    list[str] | None,
    typer.Option(
        "--text", help="A file of text (plain, JSONL or Parquet), or - for standard input."
    ),
]
PackNames = Annotated[
    list[str] | None,
    typer.Option("--pack", help="A shipped pack by name, or a pack's folder. See `packs`."),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Show only the first N examples of each pack.")
]
Length = Annotated[
    int | None, typer.Option("--max-length", min=2, help="The most tokens in a window.")
]
Device = Annotated[str, typer.Option(help="Where to run: auto, cpu, cuda, cuda:1, mps.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Spread each model over devices: auto, balanced, sequential, or a JSON file that "
        "names a device for each part."
    ),
]
BaseDevice = Annotated[str | None, typer.Option(help="Where to run the base model alone.")]
AlignedDevice = Annotated[str | None, typer.Option(help="The same of the aligned model.")]
Mixed = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-dtypes", help="Go on although the models differ in dtype or quantisation."
    ),
]
TwoPhase = Annotated[
    bool | None,
    typer.Option(
        "--two-phase/--no-two-phase",
        help="Run base first, keep what it saw on disk, free it, then run aligned; by itself "
        "where memory cannot hold both.",
        show_default=False,
    ),
]
KeepStore = Annotated[
    Path | None,
    typer.Option(help="Keep what base saw in this folder, and go on with what is there."),
]
Dtype = Annotated[str, typer.Option(help="What to load in: auto, float32, bfloat16, float16.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the base model.")]
AlignedRevision = Annotated[str | None, typer.Option(help="The same of the aligned model.")]
AdapterBase = Annotated[
    str | None, typer.Option(help="What a model that is an adapter's folder sits on.")
]
AdapterRevision = Annotated[
    str | None, typer.Option("--adapter-revision", help="The same of an adapter.")
]
Remote = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let code that comes with a model run.")
]
Attention = Annotated[
    str, typer.Option("--attn-implementation", help="sdpa, eager, flash_attention_2.")
]
Backend = Annotated[
    str, typer.Option(help="Look into the models by hooks, transformer_lens or nnsight.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Ask nothing of the hub.")]
Identical = Annotated[
    bool, typer.Option("--allow-identical", help="Go on although both models are the same.")
]
BatchSize = Annotated[str, typer.Option(help="Windows shown at a time; auto plans by memory.")]
Preferred = Annotated[
    list[str] | None,
    typer.Option(
        "--preferences", help="JSONL or Parquet of prompt, chosen, rejected: how both rank them."
    ),
]
Samples = Annotated[
    int,
    typer.Option(min=0, help="Answers to draw of each prompt in packs of prompts; 0 draws none."),
]
NewTokens = Annotated[int, typer.Option(min=1, help="The most tokens of such an answer.")]
Temperature = Annotated[float, typer.Option(help="Temperature at which answers are drawn.")]
Embedding = Annotated[
    str | None, typer.Option(help="A sentence encoder by which answers are told apart too.")
]
Entailment = Annotated[
    str | None, typer.Option("--nli", help="A model of entailment that tells them apart too.")
]
Evaluated = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        "--lm-eval",
        metavar="BASE ALIGNED",
        help="What lm-evaluation-harness wrote of base, and of aligned.",
        show_default=False,
    ),
]
Scores = Annotated[
    str | None,
    typer.Option(
        help="Toxicity and faithfulness of what both models said, JSONL or Parquet.",
        show_default=False,
    ),
]
Mitigate = Annotated[
    bool,
    typer.Option(
        "--mitigate/--no-mitigate",
        help="Ask what would undo the loss, where a pack of choices or preferences tells what "
        "alignment gained.",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Of every sample and every bootstrap.")
]
Format = Annotated[
    str, typer.Option(help="What to write: html, json, parquet, figures, with commas.")
]
FORMATS = "html,json,parquet,figures"
ReportTo = Annotated[
    list[str] | None,
    typer.Option(
        "--report-to",
        help="Tell a tracker too: wandb, tensorboard, mlflow or trackio; again for more.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the report that stands there.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
OF_LOSS = "Of the loss, where it has one so called."
Parameter = Annotated[float | None, typer.Option(help=OF_LOSS)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]

PLACING = ("device_map", "base_device", "aligned_device", "allow_mixed_dtypes")
"""The same of commands that spread models over devices; of others they are as if not given."""

OF_LOSSES = (
    *("beta", "alpha", "tau", "gamma", "delta", "lambda_", "label_smoothing"),
    *("desirable_weight", "undesirable_weight", "z", "temperature"),
)
"""Parameters of the losses, by their own names."""

OF_MEASURE = (
    *("layers", "batch_size", "max_length", "published_polarity", "published_shift"),
    *("every_site", "samples", "new_tokens", "temperature", "embedding", "nli", "beta", "mitigate"),
)
"""Options of what a report measures, by their own names."""

LOADING = (
    "device",
    "dtype",
    "revision",
    "aligned_revision",
    "trust_remote_code",
    "attn_implementation",
    "backend",
)
"""Options that loading takes by their own names. A command declares them; `pair_of` reads them."""


# What commands do


@contextmanager
def told() -> Iterator[None]:
    """An interrupt while there is nothing yet to keep is told of in a line."""
    try:
        yield
    except KeyboardInterrupt:
        # Not raised on: the library of the command line would leave without a word.
        fail("interrupted; nothing was written", 130)


def fail(message: str, code: int) -> NoReturn:
    """Leave with a word on standard error, which one process says for all."""
    if ranks.speaks(code):
        # Of the processes that share a run all but the first were silenced.
        shown = sys.__stderr__ if ranks.size() > 1 else sys.stderr
        typer.secho(ranks.who() + message, file=shown, fg=None if code == 130 else "red")
        raise SystemExit(code)
    raise SystemExit(ranks.code(code))


def crash(error: BaseException) -> NoReturn:
    """Leave with the traceback of what nobody foresaw."""
    import traceback

    fail("".join(traceback.format_exception(error)), 1)


@contextmanager
def together() -> Iterator[None]:
    """Where several processes share a run: one voice, and one end."""
    if not ranks.launched():
        yield
        return
    # What torch's own threads say of connections that close, where one line is said by us.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    code: Any = 0
    with ranks.joined():
        if ranks.rank():
            sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        try:
            yield
        except SystemExit as left:
            code = left.code or 0
    for stream in (sys.stdout, sys.stderr, sys.__stderr__):
        if stream is not None:
            stream.flush()
    # A thread of the group that lets go of a tensor after the interpreter is gone would abort it.
    os._exit(code)


def leave_to_first() -> None:
    """Let the first process do the rest, which is not shared; the others wait for its end."""
    if not ranks.leave_to_first():
        raise typer.Exit


def packs_of(
    text: Sequence[str] | None, names: Sequence[str] | None, limit: int | None
) -> list["Pack"]:
    """What is to be shown: the files and packs that are named, or the usual packs."""
    from driftlens.packs import STANDARD, shipped

    usual = [] if text or names else [str(shipped() / name) for name in STANDARD]
    return packs_named(text, names or usual, limit)


def packs_named(
    text: Sequence[str] | None, names: Sequence[str] | None, limit: int | None
) -> list["Pack"]:
    """The files and packs that are named, of any kind."""
    from driftlens.packs import Pack

    # Files of one name in different folders are told apart by their folders.
    stems = [Path(file).name for file in text or ()]
    texts = [
        pack if stems.count(Path(file).name) == 1 else replace(pack, name=within(file, pack.name))
        for file, pack in zip(text or (), map(Pack.read, text or ()), strict=True)
    ]
    found = [pack.limit(limit) for pack in (*texts, *map(Pack.load, names or ()))]
    twice = {pack.name for pack in found if sum(p.name == pack.name for p in found) > 1}
    if twice:
        raise DriftlensError(
            "packs of different names",
            found=f"{', '.join(sorted(twice))} more than once",
            remedy="Rename a file or leave one out.",
        )
    return found


def preferences_of(
    files: Sequence[str], models: Sequence[str], asked: Mapping[str, Any]
) -> list["Pack"]:
    """Preference sets as packs, by the tokenizer of the last model that has one.

    Args:
        files: In the schema of TRL's trainers.
        models: The models that will read them, in their order.
        asked: What the command was given.
    """
    if not files:
        return []
    from driftlens.models.load import tokenizer_of
    from driftlens.preferences import Preferences

    revision = asked.get("aligned_revision")
    tokenizer = tokenizer_of([*models[::-1]], revision, asked["offline"] or None)
    return [
        Preferences.read(file).pack(tokenizer, length=asked["max_length"])[0].limit(asked["limit"])
        for file in files
    ]


def measured(asked: Mapping[str, Any], depth: int, rows: int | None) -> "Options":
    """What a report is asked to measure, of models of so many blocks."""
    from driftlens.suite import Options

    chosen = None if asked["layers"] is None else layers_of(asked["layers"], depth)
    names = ("published_polarity", "published_shift", *OF_MEASURE[OF_MEASURE.index("samples") :])
    return Options(
        chosen,
        asked["seed"],
        rows,
        asked["max_length"],
        every_site=asked["every_site"] or None,
        **{name: asked[name] for name in names},
    )


def together_told(results: "Sequence[Result]") -> "list[Result]":
    """Results, after what they say together; what is of no one pack comes first."""
    from driftlens.diagnostics import overview

    return [*overview(results), *sorted(results, key=lambda result: bool(result.pack))]


def within(file: str, name: str) -> str:
    """A file's name with that of its folder."""
    return f"{Path(file).resolve().parent.name}/{name}"


def pair_of(context: typer.Context) -> "ModelPair":
    """The pair that a command was asked for, by the options that every such command has."""
    from driftlens.models import ModelPair

    asked = context.params
    with loading(asked) as options:
        return ModelPair.load(asked["base"], asked["aligned"], **options)


@contextmanager
def loading(asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What models are loaded with, by a command's options; what loading warns of is told."""
    import transformers

    transformers.logging.set_verbosity_error()
    if asked["quiet"] or not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    with warnings.catch_warnings(record=True) as warned:
        yield {
            "local_files_only": asked["offline"] or None,
            **{name: asked[name] for name in LOADING},
            **{name: asked[name] for name in PLACING if asked.get(name)},
        }
    for warning in [] if asked["quiet"] else warned:
        typer.secho(f"warning: {warning.message}", err=True, fg="yellow")


def model_of(context: typer.Context, model: str, base: str | None) -> "Model":
    """A model by the options that every command has; an adapter with the base it sits on."""
    asked = context.params
    adapter = (Path(model) / "adapter_config.json").is_file()
    if adapter and base is None:
        raise DriftlensError(
            "the model that an adapter sits on",
            found=f"the adapter {model} alone",
            remedy="Name that model with --base.",
        )
    asked["base"], asked["aligned"] = (base, model) if adapter else (model, model)
    return pair_of(context).aligned


def check_division(methods: Sequence[str], by: str, level: float) -> None:
    """Before anything is loaded: whether a loss can be divided so."""
    from driftlens.attribution import METHODS
    from driftlens.models.pieces import DIVISIONS

    for asked, known, option in ((methods, METHODS, "--method"), ([by], DIVISIONS, "--by")):
        if unknown := [name for name in asked if name not in known]:
            raise DriftlensError(
                f"{option} among {', '.join(known)}",
                found=", ".join(unknown),
                remedy="Give one of these.",
            )
    check_level(level)


def check_level(level: float) -> None:
    """Before anything is loaded: whether intervals can hold such a part of the draws."""
    if not 0 < level < 1:
        raise DriftlensError(
            "--level between 0 and 1", found=f"{level:g}", remedy="Give 0.95, or leave it out."
        )


def check_kinds(packs: Sequence["Pack"], kind: str, what: str) -> None:
    """Before anything is loaded: whether every pack that was asked for is of a kind."""
    if others := [f"{pack.name} of kind {pack.kind}" for pack in packs if pack.kind != kind]:
        raise DriftlensError(
            f"packs of kind {kind}, {what}",
            found=", ".join(others),
            remedy="Give --text, or a --pack that `driftlens packs` lists with that kind.",
        )


def leave(
    bounds: "Sequence[Bound]", results: Sequence["Result"], unsent: Sequence[str] = ()
) -> None:
    """Leave with 1 if a threshold was crossed, or with 2 if a tracker was not told."""
    crossed = [bound.said for bound in bounds if bound.crossed(results)]
    end(f"threshold crossed: {'; '.join(crossed)}" if crossed else "", unsent)


def end(crossed: str, unsent: Sequence[str]) -> None:
    """Leave with 1 if there is a word of thresholds, or with 2 if something is to be sent again.

    Args:
        crossed: Which thresholds were crossed, or nothing.
        unsent: What to type for each tracker that was not told.
    """
    again = f"the report is written; to tell of it, type {' and '.join(unsent)}" if unsent else ""
    if crossed or again:
        fail(". ".join(filter(None, (crossed, again))), 1 if crossed else 2)


def trackers_of(names: Sequence[str] | None) -> tuple[str, ...]:
    """The trackers that a caller names, each once, before anything is loaded.

    Raises:
        DriftlensError: One of them is none of ours, or could not be told later on.
    """
    if not names:
        return ()
    from driftlens.integrations import trackers

    for name in (named := tuple(dict.fromkeys(names))):
        trackers.ready(name)
    return named


def report_written(folder: Path, to: Sequence[str], quiet: bool) -> list[str]:
    """Tell trackers of a report that is written; what to type again for those that fail."""
    return [f"driftlens log {folder} --to {name}" for name in to if not _told(name, folder, quiet)]


def _told(name: str, folder: Path, quiet: bool) -> bool:
    from driftlens.integrations import trackers

    try:
        # Some of them talk, and what we print is for pipes.
        with redirect_stdout(sys.stderr):
            told, where = trackers.send(folder, name)
    except KeyboardInterrupt:
        fail(f"interrupted; the report is written: type driftlens log {folder} --to {name}", 130)
    except Exception as error:
        # Whatever a tracker raises, it is no reason to lose what was measured.
        said = in_words(error) if isinstance(error, DriftlensError) else f"{error}"
        typer.secho(f"{name} was not told: {type(error).__name__}: {said}", err=True, fg="red")
        return False
    if not quiet:
        typer.echo(f"{name}: {told.extent()}: {where}", err=True)
        for what in told.left_out[:LEFT_OUT]:
            typer.echo(f"{name}: left out {what}", err=True)
        if (more := len(told.left_out) - LEFT_OUT) > 0:
            typer.echo(f"{name}: left out {more} more, which are listed there", err=True)
    return True


LEFT_OUT = 3
"""Things that a tracker is not told of which are named; there they all are."""


def lora_of(text: str) -> dict[str, Any]:
    """What `r=16,targets=q_proj+v_proj` asks for."""
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    rank, targets = parts.pop("r", "16"), parts.pop("targets", "all-linear")
    if parts or not rank.isdigit() or int(rank) < 1 or not targets:
        raise DriftlensError(
            "--lora as r=16,targets=q_proj+v_proj, or r=16,targets=all-linear",
            found=repr(text),
            remedy="Join the names of modules by +.",
        )
    named = targets if targets == "all-linear" else targets.split("+")
    return {"r": int(rank), "targets": named}


def pack_of(name: str) -> "Pack":
    """A shipped pack by name, a pack's folder, or a file."""
    from driftlens.packs import Pack, names

    known = name in names() or Path(name).is_dir()
    return Pack.load(name) if known else Pack.read(name)


def protected(name: str) -> "Pack":
    """A pack or a file whose likelihood is to be kept."""
    pack = pack_of(name)
    check_kinds([pack], "text", "whose likelihood is to be kept")
    return pack


def loaded_for_check(context: typer.Context, adapter: dict[str, Any] | None) -> "ModelPair":
    """The reference beside the model that would be trained."""
    from driftlens.models import ModelPair
    from driftlens.models.load import with_lora

    asked = context.params
    if not asked["reference"] and (Path(asked["model"]) / "adapter_config.json").is_file():
        raise DriftlensError(
            "the model that an adapter sits on",
            found=f"the adapter {asked['model']} alone",
            remedy="Name that model with --reference, and --train '*lora_*'.",
        )
    asked["base"] = asked["reference"] or asked["model"]
    asked["aligned"] = asked["model"] if asked["reference"] else asked["base"]
    if asked["reference"]:
        asked["revision"], asked["aligned_revision"] = (
            asked["aligned_revision"],
            asked["revision"],
        )
    pair = pair_of(context)
    if adapter is None:
        return pair
    with warnings.catch_warnings():
        # peft asks transformers for an attribute by a name that is about to go.
        warnings.simplefilter("ignore", FutureWarning)
        # The adapter adds nothing yet, so that the net with it is its own reference.
        trained = with_lora(pair.aligned, **adapter, seed=asked["seed"])
    return ModelPair(trained if pair.base is pair.aligned else pair.base, trained)


def tell(
    page: "Report", written: Path, quiet: bool, as_json: bool, to: Sequence[str] = ()
) -> list[str]:
    """What a command that wrote a page leaves with; what to type for trackers that failed."""
    if as_json:
        typer.echo((written.parent / "results.json").read_text("utf-8"))
    else:
        if not quiet:
            typer.echo(page.verdict(), err=True)
        typer.echo(written)
    return report_written(written.parent, to, quiet)


def in_words(error: DriftlensError) -> str:
    """An error, and what was noted of it."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])


def record_of(
    base: str,
    aligned: str,
    pair: "ModelPair",
    packs: Sequence["Pack"],
    seed: int,
    options: dict[str, Any],
    started: datetime,
) -> dict[str, Any]:
    """Where a report came from."""

    def known(model: Any, given: str) -> dict[str, Any]:
        return {"given": given, "name": model.name, **getattr(model, "source", {})}

    models = {"base": known(pair.base, base), "aligned": known(pair.aligned, aligned)}
    return record(models, packs, seed, options, started)


def record(
    models: Mapping[str, Any],
    packs: Sequence["Pack"],
    seed: int,
    options: Mapping[str, Any],
    started: datetime,
) -> dict[str, Any]:
    """Where numbers came from, of models that are known."""
    return {
        "command": " ".join(["driftlens", *sys.argv[1:]]),
        "seed": seed,
        "options": options,
        "versions": versions(),
        "processes": ranks.size(),
        "started": started.isoformat(timespec="seconds"),
        "models": models,
        "packs": [
            {
                "name": pack.name,
                "kind": pack.kind,
                "examples": len(pack.examples),
                "sha256": pack.sha256,
                **{k: pack.card[k] for k in ("title", "source", "licence") if k in pack.card},
            }
            for pack in packs
        ],
    }


def identity(run: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to be taken up again."""
    models = {side: known.get("sha256") for side, known in run["models"].items()}
    how = {
        f"{name} of {side}": known.get(name)
        for side, known in run["models"].items()
        for name in ("dtype", "device", "attention", "backend")
    }
    packs = [[pack["name"], pack["sha256"]] for pack in run["packs"]]
    return {
        **{f"{side} model": sha256 for side, sha256 in models.items()},
        **how,
        "packs": packs,
        "seed": run["seed"],
        **{name.replace("_", "-"): chosen for name, chosen in run["options"].items()},
        **{f"version of {name}": version for name, version in run["versions"].items()},
    }


@contextmanager
def stoppable(partial: Any, out: Path) -> Iterator[None]:
    """The first interrupt stops after the batch in hand; the second at once."""

    def stop(*_: object) -> None:
        if partial.stopping:
            raise KeyboardInterrupt
        partial.stopping = True
        typer.echo("stopping after this batch; once more to stop at once", err=True)

    before = signal.signal(signal.SIGINT, stop)
    try:
        with kept(out):
            yield
    except Exception as error:
        if isinstance(error, DriftlensError):
            partial.tidy()
        if partial.begun() and not isinstance(error, ranks.Lost):
            error.add_note("What was finished is kept: once mended, go on with --resume.")
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def kept(out: Path) -> Iterator[None]:
    """An interrupt once something is measured is told of with how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        fail(
            "interrupted; what was finished is kept: give the same command with --resume "
            f"to go on with {out}",
            130,
        )


@contextmanager
def told_how_far(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar for each pack on standard error, with the time left."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    bars: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as shown:

        def progress(name: str, done: int, of: int) -> None:
            if name not in bars:
                bars[name] = shown.add_task(name, total=of)
            shown.update(bars[name], completed=done)

        yield progress


def try_out(out: Path, overwrite: bool, names: Set[str] | None = None) -> None:
    """Before anything is loaded: whether a folder can be written there, by undoing an empty one.

    Args:
        out: The folder.
        overwrite: Whether an earlier one may be replaced.
        names: What it will hold; what a report does if None.
    """
    from driftlens.report.report import WRITTEN
    from driftlens.results.store import staged

    class Undone(Exception):
        pass

    names = WRITTEN if names is None else names

    def tried() -> None:
        with suppress(Undone), staged(out, names, overwrite=overwrite):
            raise Undone

    ranks.lead(tried)


def texts_in(file: str, name: str) -> list[str]:
    """Texts from a file: its lines, or what its rows call by the name, or `text`."""
    from driftlens.packs.rows import contents, decoded, form_of, rows_of, string

    raw = contents(file)
    form = form_of(file, raw)
    if form == "plain":
        found = [line.strip() for line in decoded(file, raw).split("\n") if line.strip()]
    else:
        rows = rows_of(file, raw, form)
        found = [string(at, row, name if name in row else "text") for at, row in rows]
    if not found:
        raise DriftlensError(f"{name}s in {file}", found="none", remedy="Write one to a line.")
    return found


def formats_of(text: str) -> set[str]:
    """The formats that a caller names, and the record without which no page can be drawn."""
    from driftlens.report.report import FORMATS

    formats = {name.strip() for name in text.split(",")}
    if not formats <= set(FORMATS):
        raise DriftlensError(
            f"formats among {', '.join(FORMATS)}",
            found=repr(text),
            remedy="Leave --format out to write them all.",
        )
    return {*formats, "json"}


def layers_of(text: str, depth: int) -> frozenset[int]:
    """Blocks that are named as 0,5,10-12."""
    found: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, depth)
        if not first <= last < depth:
            raise DriftlensError(
                f"blocks from 0 to {depth - 1}, as 0,5,10-12",
                found=repr(text),
                remedy="Give --layers with numbers in that range.",
            )
        found.update(range(first, last + 1))
    return frozenset(found)


def count_of(text: str, option: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise DriftlensError(
            f"{option} as auto or a whole number from 1",
            found=repr(text),
            remedy=f"Give {option} auto.",
        )
    return int(text)


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


@dataclass(frozen=True)
class Bound:
    """A threshold on a value of some kind of result, and how the caller wrote it."""

    said: str
    kind: str
    name: str
    sign: str
    limit: float

    @classmethod
    def of(cls, text: str, known: Sequence[str]) -> "Bound":
        """Read what the caller wrote; the value must be one of `known`."""
        match = re.fullmatch(r"\s*(\w+)\.(\w+)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*", text)
        try:
            limit = float(match[4]) if match else None
        except ValueError:
            limit = None
        if match is None or limit is None:
            raise DriftlensError(
                "a threshold as 'forgetting.loss_rise>0.1'",
                found=repr(text),
                remedy="Write kind, value, comparison and number.",
            )
        check_value(f"{match[1]}.{match[2]}", known)
        return cls(text.strip(), match[1], match[2], match[3], limit)

    def crossed(self, results: Sequence["Result"]) -> bool:
        """Whether any result of its kind crosses it.

        Raises:
            DriftlensError: There is none, or its value is undefined.
        """
        mine = [result for result in results if result.kind == self.kind]
        if not mine:
            raise DriftlensError(
                f"a result of kind {self.kind} to hold against {self.said!r}",
                found=f"only {', '.join(sorted({r.kind for r in results}))}",
                remedy="The report's checks say what this pair leaves out: hold another value.",
            )
        numbers = [result.estimates()[self.name].value for result in mine]
        if any(number != number for number in numbers):
            raise DriftlensError(
                f"a number to hold against {self.said!r}",
                found=f"{self.kind}.{self.name} is undefined here",
                remedy="Choose another value, or give more text.",
            )
        return any(map(self.holds, numbers))

    def holds(self, number: float) -> bool:
        """Whether one number crosses it."""
        return _COMPARE[self.sign](number, self.limit)


def check_given(bounds: Sequence[Bound], packs: Sequence["Pack"], asked: Mapping[str, Any]) -> None:
    """Before anything is loaded: whether the packs can give what is to be held against bounds."""
    if not bounds:
        return
    from driftlens.packs import Pack, names

    from .elsewhere import KINDS

    given = values_by_pack()
    for bound in bounds:
        value = f"{bound.kind}.{bound.name}"
        option = KINDS.get(bound.kind, "")
        if option and not asked.get(option.removeprefix("--").replace("-", "_")):
            raise DriftlensError(
                f"what gives {bound.kind}, to hold it against {bound.said!r}",
                found=f"no {option}",
                remedy=f"Give {option}.",
            )
        if (
            not option
            and bound.kind not in OF_ALL
            and not any(value in given[pack.kind] for pack in packs)
        ):
            givers = [kind for kind, values in given.items() if value in values]
            shipped = [name for name in names() if Pack.load(name).kind in givers]
            raise DriftlensError(
                f"a pack that gives {bound.kind}, to hold it against {bound.said!r}",
                found=", ".join(f"{pack.name} of kind {pack.kind}" for pack in packs),
                remedy=f"Add one of kind {' or '.join(givers)}, as --pack {shipped[0]}.",
            )


def check_value(value: str, known: Sequence[str]) -> None:
    """Raise if a value that is to be held against a bound is not on the page."""
    if value not in known:
        raise DriftlensError(
            "a value that the page holds: " + ", ".join(known),
            found=value,
            remedy="Give one of these to --fail-on.",
        )


OF_ALL = ("overview",)
"""Kinds of result that every report holds."""


def reported() -> list[str]:
    """Every value that a report can hold, as `kind.name`."""
    from driftlens.results.result import kinds

    from .elsewhere import KINDS

    of_packs = [value for values in values_by_pack().values() for value in values]
    others = [value for kind in (*OF_ALL, *KINDS) for value in values_of(kinds()[kind])]
    return list(dict.fromkeys([*of_packs, *others]))


def of_preflight() -> list[str]:
    """Every value that a check holds, as `kind.name`."""
    from typing import get_type_hints

    from driftlens import diagnostics

    metrics = ("Entanglement", "FirstStep", "PreferenceFacts", "EntanglementByLayer")
    others = ("CapabilityConflict", "PreferenceLosses", "EntanglementByPosition", "TokenMap")
    return [
        value
        for name in (*metrics, *others)
        for value in values_of(get_type_hints(getattr(diagnostics, name).compute)["return"])
    ]


def of_steering() -> list[str]:
    """Every value that a study of steering holds, as `kind.name`."""
    from driftlens.steer.study import KINDS

    return [value for kind in KINDS for value in values_of(kind)]


def of_mitigation() -> list[str]:
    """Every value that a page of mitigation holds, as `kind.name`."""
    from driftlens import diagnostics

    kinds = ("MitigationResult", "MitigationConflictResult", "MitigationStepsResult")
    return [value for name in kinds for value in values_of(getattr(diagnostics, name))]


def values_of(result: "type[Result]") -> list[str]:
    """Every value that results of a kind hold, as `kind.name`."""
    return [
        f"{result.kind}.{name}"
        for name, field in result.__dataclass_fields__.items()
        if field.metadata.get("role") == "value"
    ]


def values_by_pack() -> dict[str, list[str]]:
    """For each kind of pack, the values that a report can hold of it, as `kind.name`."""
    from typing import get_type_hints

    from driftlens import doctor, suite

    found = {}
    for pack, plan in suite.PLAN.items():
        metrics = plan(suite.Options())
        results = [
            result
            for metric in metrics
            for result in (get_type_hints(metric.compute)["return"], *metric.also)
        ]
        # Of what is sampled there is no noise floor.
        results += [doctor.NoiseFloorResult] if pack != "prompt" else []
        found[pack] = [value for result in results for value in values_of(result)]
    return found | {"roles": list(dict.fromkeys([*of_steering(), *found["roles"]]))}


def called(name: str) -> str:
    """A model's name as a title has room for it."""
    from driftlens.models import model

    return model.called(name)


def slug(name: str) -> str:
    """A name as a folder may have it."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[-40:] or "model"


def print_checks(checks: Sequence["Check"]) -> None:
    """A line for each gate."""
    colours = {"pass": "green", "warn": "yellow", "fail": "red", "skip": None}
    for check in checks:
        typer.secho(f"{check.status:4}", fg=colours[check.status], nl=False)
        typer.echo(f"  {check.name}: {check.detail}")


@contextmanager
def screened() -> Iterator["Console"]:
    """Where tables are printed: styled in a terminal, plain text of any width in a pipe."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    screen = Console(
        markup=False,
        highlight=False,
        emoji=False,
        # Without colours there are no other signs of style either, which a pipe would hand on.
        color_system=None if os.environ.get("NO_COLOR") or not terminal else "auto",
        force_terminal=terminal,
        width=None if terminal or "COLUMNS" in os.environ else PIPE,
    )
    if terminal:
        yield screen
        return
    with screen.capture() as told:
        yield screen
    typer.echo("\n".join(line.rstrip() for line in told.get().splitlines()))


PIPE = 10_000
"""Letters of a line in a pipe, where nobody wants it broken."""


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table with a column for each name, numbers to three places."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name, what in rows[0].items():
        left = isinstance(what, str)
        justify: Any = "left" if left else "right"
        table.add_column(Text(name.replace("_", " ")), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(what)) for what in row.values()))
    with screened() as screen:
        screen.print(table)


def _cell(what: Any) -> str:
    if what is None:
        return "–"
    return f"{what:.3f}" if isinstance(what, float) else str(what)
