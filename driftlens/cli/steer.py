"""`driftlens steer`: directions that are kept, what a model says along them, and other formats."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperArgument

from driftlens.errors import DriftlensError

from .help import App, Group
from .shared import (
    FORMATS,
    AdapterBase,
    AdapterRevision,
    AlignedRevision,
    AsJson,
    Attention,
    Backend,
    BatchSize,
    Bound,
    Device,
    DeviceMap,
    Dtype,
    Format,
    Identical,
    Length,
    Limit,
    Offline,
    Quiet,
    Remote,
    ReportTo,
    Revision,
    Seed,
    called,
    check_level,
    count_of,
    formats_of,
    layers_of,
    leave,
    leave_to_first,
    model_of,
    of_steering,
    pack_of,
    pair_of,
    print_table,
    record_of,
    slug,
    tell,
    texts_in,
    told,
    told_how_far,
    trackers_of,
    try_out,
)

if TYPE_CHECKING:
    from driftlens.models.steering import Positions
    from driftlens.steer import Applied, KeptDirections


class ModelOrCommand(Group):
    """Commands, of which `measure` goes without saying: `steer MODEL` is `steer measure MODEL`."""

    unsaid = "measure"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say the command where its name is left out."""
        known = {*self.commands, *self.get_help_option_names(ctx)}
        if args and args[0] not in known:
            args = [self.unsaid, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Names of commands, and what may stand first in the one that goes without saying."""
        first = next(p for p in self.commands[self.unsaid].params if isinstance(p, TyperArgument))
        return super().shell_complete(ctx, incomplete) + first.shell_complete(ctx, incomplete)


steer = App(
    cls=ModelOrCommand,
    subcommand_metavar="MODEL --contrast PACK ... | COMMAND ...",
    help="""Find directions that steer a model, and what they gain and cost.

    `driftlens steer MODEL --contrast PACK` finds the directions between two roles of texts,
    measures what going along them gains and costs, and keeps them in a folder. It is short for
    `driftlens steer measure`, which has its options. The others use such a folder.

    Examples:
        # Find politeness in the demo's aligned model: a page, and a folder of directions.
        driftlens steer demo:aligned --contrast manners --out reports/manners
        # Talk to the model along them.
        driftlens steer apply reports/manners-directions demo:aligned --prompt "Where is it?"
    """,
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of directions.")]
File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A file that ends in .gguf or .safetensors.")
]
Layers = Annotated[
    str | None, typer.Option("--layer", "--layers", help="A block or several, as 5 or 4-7 or 2,5.")
]
Overwritten = Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")]


@steer.command()
@told()
def measure(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, folder or demo:base: who is steered.")
    ],
    contrast: Annotated[
        str,
        typer.Option(
            help="Texts of two roles: a pack of kind roles, choice or contrast, or a file."
        ),
    ],
    aligned: Annotated[
        str | None, typer.Option(help="An aligned version of MODEL, to steer and compare as well.")
    ] = None,
    behaviour: Annotated[
        str | None,
        typer.Option(
            "--behaviour",
            "--behavior",
            help="Choices to measure behaviour by; those that the contrast's card names if left "
            "out, or a half of a contrast of choices.",
        ),
    ] = None,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            help="What is to be kept: choices with right answers, or text; again for more."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the page.", show_default=False)
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            help="Folder of the directions, one in it for each of two models; beside the page if "
            "left out.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="mean-difference, caa, pca, pca-shuffled, discriminant or logistic."),
    ] = "mean-difference",
    at: Annotated[
        str,
        typer.Option(
            help="Where texts are read: last, answer, response; auto is last, or answer of caa."
        ),
    ] = "auto",
    layer: Layers = None,
    part: Annotated[str, typer.Option(help="What of the block is steered: out, attn or mlp.")] = (
        "out"
    ),
    parts: Annotated[
        str, typer.Option(help="What of blocks directions are found at, as out,attn,mlp.")
    ] = "out",
    select: Annotated[
        bool,
        typer.Option("--select", help="Choose token and block by ablating and adding, of prompts."),
    ] = False,
    select_depth: Annotated[
        float, typer.Option(help="Share of the blocks, from below, that --select chooses from.")
    ] = 0.8,
    positions: Annotated[
        str, typer.Option(help="At which tokens to steer: all, prompt, response or last.")
    ] = "all",
    strengths: Annotated[
        str | None,
        typer.Option(help="Strengths in the mean length of a state, as -1,0,1; else they follow."),
    ] = None,
    points: Annotated[
        int, typer.Option(min=11, help="About how many strengths to look at where none are given.")
    ] = 17,
    controls: Annotated[
        int, typer.Option(min=0, help="Random directions of equal length to hold against it.")
    ] = 4,
    weight: Annotated[
        float, typer.Option(min=0.0, help="What the whole of a capability is worth in behaviour.")
    ] = 1.0,
    max_tokens: Annotated[
        int,
        typer.Option(min=1, help="About the most tokens to read of a pack at each strength."),
    ] = 8192,
    level: Annotated[float, typer.Option(help="Part of the draws that an interval holds.")] = 0.95,
    limit: Limit = None,
    batch_size: BatchSize = "auto",
    max_length: Length = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    seed: Seed = 0,
    format: Format = FORMATS,
    report_to: ReportTo = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Leave with 1 if this holds, as 'tradeoff.cost>0.1'."),
    ] = None,
    overwrite: Overwritten = False,
    allow_identical: Identical = False,
    revision: Revision = None,
    aligned_revision: AlignedRevision = None,
    trust_remote_code: Remote = False,
    attn_implementation: Attention = "sdpa",
    backend: Backend = "hooks",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find the directions between two roles of texts, and what steering along them does.

    Examples:
        # Politeness in both of the demo's models.
        driftlens steer demo:base --aligned demo:aligned --contrast manners
        # A contrast of your own, what it should change, and what is to be kept.
        driftlens steer org/model --contrast pairs.jsonl --behaviour asked.jsonl \
--capability mmlu.jsonl
        # Which token and block carry refusal?
        driftlens steer org/aligned --contrast refusal --select
    """
    from driftlens.report import Report
    from driftlens.steer import Options, examine, kept_by
    from driftlens.steer.asked import matched

    started = datetime.now(UTC)
    rows = None if batch_size == "auto" else count_of(batch_size, "--batch-size")
    formats, to = formats_of(format), trackers_of(report_to)
    out = out or Path("reports") / f"{slug(aligned or model)}-steering"
    keep = keep or out.parent / f"{out.name}-directions"
    _refuse_nested(out, keep)
    try_out(out, overwrite)
    _try_out_kept(keep, overwrite)
    bounds = [Bound.of(text, of_steering()) for text in fail_on or []]
    check_level(level)
    texts = pack_of(contrast).limit(limit)
    asked = None if behaviour is None else pack_of(behaviour).limit(limit)
    kept = [pack_of(name) for name in capability] if capability else kept_by(texts)
    kept = [pack.limit(limit) for pack in kept]
    if (Path(model) / "adapter_config.json").is_file():
        raise DriftlensError(
            "the model that an adapter sits on as MODEL",
            found=f"the adapter {model}",
            remedy="Name its base as MODEL, and the adapter with --aligned.",
        )
    settings: dict[str, Any] = {
        "method": method,
        "at": ("answer" if method == "caa" else "last") if at == "auto" else at,
        "parts": tuple(piece.strip() for piece in parts.split(",")),
        "part": part,
        "select": select,
        "select_depth": select_depth,
        "positions": positions,
        "strengths": None if strengths is None else tuple(_numbers(strengths, "--strengths")),
        "points": points,
        "controls": controls,
        "weight": weight,
        "seed": seed,
        "level": level,
        "rows": rows,
        "length": max_length,
        "tokens": max_tokens,
        "allow_identical": allow_identical,
    }
    Options(**settings)
    context.params["base"], context.params["aligned"] = model, aligned or model
    pair = pair_of(context)
    if layer is not None:
        settings["layers"] = tuple(sorted(layers_of(layer, pair.depth)))
    options = Options(**settings)
    with told_how_far(quiet) as progress:
        found = examine(pair, texts, kept, asked, options, progress=progress)
    shown = [texts, *filter(None, [asked or matched(texts)]), *kept]
    about = record_of(model, aligned or model, pair, shown, seed, {**vars(options)}, started)
    leave_to_first()
    about["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    names = [called(pair.base.name)] + ([] if aligned is None else [called(pair.aligned.name)])
    page = Report(
        f"{' → '.join(names)}, steered by {texts.name}", found.results, found.checks, about
    )
    written = page.write(out, overwrite=overwrite, formats=formats)
    directions = found.kept()
    apart = directions if aligned else {"": directions["base"]}
    _keep(apart, keep, overwrite)
    for name in () if quiet else apart:
        typer.echo(f"directions: {keep / name}", err=True)
    leave(bounds, found.results, tell(page, written, quiet, as_json, to))


@steer.command()
@told()
def apply(
    context: typer.Context,
    folder: Folder,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model that the directions are of.")
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="A text to go on with.")] = None,
    text: Annotated[
        str | None,
        typer.Option(help="A file of prompts, one to a line or as JSONL; - for standard input."),
    ] = None,
    strength: Annotated[
        str | None,
        typer.Option(
            help="Strengths with commas, as 0,2,4; 0 and what the card recommends if left out."
        ),
    ] = None,
    relative: Annotated[
        bool,
        typer.Option("--relative", help="Count strengths in the mean length of a state there."),
    ] = False,
    layer: Layers = None,
    mode: Annotated[str, typer.Option(help="add, ablate, clamp or project.")] = "add",
    positions: Annotated[
        str | None,
        typer.Option(help="all, prompt, response or last; what the card says if left out."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="How many tokens come after a prompt, at most.")
    ] = 40,
    temperature: Annotated[
        float | None,
        typer.Option(help="Draw tokens at this temperature; the likeliest each time if left out."),
    ] = None,
    seed: Seed = 0,
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply-chat-template", help="Make each prompt a user's turn of the chat template."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Steer another model of the same shape too.")
    ] = False,
    base: AdapterBase = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Prompts that are gone on with at a time.")
    ] = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    aligned_revision: AdapterRevision = None,
    trust_remote_code: Remote = False,
    attn_implementation: Attention = "sdpa",
    backend: Backend = "hooks",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show what a model goes on to say, steered and not.

    Examples:
        # The same prompt at three strengths.
        driftlens steer apply politeness demo:aligned --prompt "Where is it?" --strength 0,2,4
        # With the direction taken out.
        driftlens steer apply politeness demo:aligned --text prompts.txt --mode ablate
    """
    leave_to_first()
    from driftlens.steer import KeptDirections, applied
    from driftlens.steer.applied import check

    kept = KeptDirections.load(folder)
    prompts = _prompts(prompt, text)
    at = cast("Positions | None", positions)
    how: dict[str, Any] = {"mode": mode, "relative": relative}
    if layer is not None:
        how["layers"] = sorted(layers_of(layer, kept.card["model"]["depth"]))
    asked = _strengths(strength)
    wanted: Sequence[float | None] = asked or [None]
    for r in wanted:
        kept.steers(r, **how)
    check(max_new_tokens, temperature, batch_size, at)
    found = applied(
        model_of(context, model, base),
        kept,
        prompts,
        asked,
        **how,
        positions=at,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        apply_chat_template=apply_chat_template,
        rows=batch_size,
        force=force,
    )
    if asked is None and mode == "add" and kept.strength is not None:
        asked = [kept.strength.r]
    _say(found, asked or [None], mode, as_json)


@steer.command()
@told()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """Print whose directions they are, how they were found, and how sure they are.

    Examples:
        # Before you steer by them.
        driftlens steer show politeness
    """
    leave_to_first()
    from driftlens.steer import KeptDirections

    kept = KeptDirections.load(folder)
    card = kept.card
    if as_json:
        typer.echo(json.dumps(card, indent=2))
        return
    model, source = card["model"], card["pack"] or card["file"]
    typer.secho(_verdict(kept), bold=True)
    for name, what in {
        "model": f"{model['name']}, weights {model['sha256'][:12]}, width {model['width']}, "
        f"{model['depth']} blocks",
        "place": f"{card['part']} of blocks {', '.join(map(str, kept.layers))}",
        "method": card["method"] + (f", at {card['at']}" if card["at"] else ""),
        "positions": card["positions"],
        "pack" if card["pack"] else "file": f"{source['name']}, sha256 {source['sha256'][:12]}",
    }.items():
        typer.echo(f"{name:12} {what}")
    typer.echo("")
    print_table(card["metrics"])


@steer.command()
@told()
def export(
    folder: Folder, file: File, layer: Layers = None, overwrite: Overwritten = False
) -> None:
    """Write the directions for repeng and llama.cpp (.gguf) or for anyone (.safetensors).

    A strength of 1 there is a step from one role's mean to the other's. A .gguf has no place for \
block 0, which is left out of it.

    Examples:
        # For repeng and llama.cpp, some blocks.
        driftlens steer export politeness politeness.gguf --layer 1-5
        # For anyone.
        driftlens steer export politeness politeness.safetensors
    """
    leave_to_first()
    from driftlens.steer import KeptDirections
    from driftlens.steer.exchange import first_of

    kept = KeptDirections.load(folder)
    depth = kept.card["model"]["depth"]
    layers = None if layer is None else sorted(layers_of(layer, depth))
    written = kept.export(file, layers=layers, overwrite=overwrite)
    if layers is None and kept.layers[0] < first_of(file):
        typer.echo("block 0 is left out: a control vector has no place for it", err=True)
    typer.echo(written)


@steer.command("import")
@told()
def import_(
    context: typer.Context,
    file: File,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model that the directions are for.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the directions.")],
    layer: Annotated[
        int | None, typer.Option(min=0, help="The block to steer at where none is named.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="Where to steer if nothing is said: all, prompt, response, last.")
    ] = "all",
    force: Annotated[
        bool, typer.Option("--force", help="Take directions of another type of model too.")
    ] = False,
    overwrite: Overwritten = False,
    base: AdapterBase = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    aligned_revision: AdapterRevision = None,
    trust_remote_code: Remote = False,
    attn_implementation: Attention = "sdpa",
    backend: Backend = "hooks",
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Keep the directions of a file of others, for one model.

    Examples:
        # A control vector that someone else trained.
        driftlens steer import happy.gguf org/model --out happy
    """
    leave_to_first()
    from driftlens.steer import CARD, TENSORS, KeptDirections
    from driftlens.steer.exchange import exchanged

    exchanged(file)
    try_out(out, overwrite, {CARD, TENSORS})
    loaded, at = model_of(context, model, base), cast("Positions", positions)
    kept = KeptDirections.imported(file, loaded, layer=layer, positions=at, force=force)
    kept.save(out, overwrite=overwrite)
    typer.echo(out)


# What the commands share


def _refuse_nested(out: Path, keep: Path) -> None:
    """Raise if one of two folders, each of which is replaced whole, is or holds the other."""
    page, directions = out.resolve(), keep.resolve()
    if page.is_relative_to(directions) or directions.is_relative_to(page):
        raise DriftlensError(
            "two folders, neither in the other, for the page and for the directions",
            found=f"--out {out} and --keep {keep}",
            remedy="Name them side by side, as --out seen --keep seen-directions.",
        )


def _try_out_kept(keep: Path, overwrite: bool) -> None:
    """Raise unless directions can be kept there, of one model or of each of two."""
    from driftlens.contrasts import MODELS
    from driftlens.steer import CARD, TENSORS

    try_out(keep, overwrite, {CARD, TENSORS, *MODELS})
    # Folders of these names may be somebody's models, and would be replaced with the whole.
    for folder in (keep / name for name in MODELS):
        if folder.exists():
            try_out(folder, overwrite, {CARD, TENSORS})


def _keep(found: Mapping[str, "KeptDirections"], keep: Path, overwrite: bool) -> None:
    """Write the folder whole: directions by the folder in it, which has no name of one model."""
    from driftlens.contrasts import MODELS
    from driftlens.results.store import staged
    from driftlens.steer import CARD, TENSORS

    # Again, as hours may have passed since.
    _try_out_kept(keep, overwrite)
    with staged(keep, {CARD, TENSORS, *MODELS}, overwrite=overwrite) as draft:
        for name, directions in found.items():
            directions.save(draft / name)


def _verdict(kept: "KeptDirections") -> str:
    """Directions in one sentence."""
    card, count = kept.card, len(kept.layers)
    said = f"{count} direction{'s' * (count > 1)} of {card['model']['name']} ({card['method']})"
    if kept.layer is None:
        return f"{said}; no block is recommended."
    row = card["metrics"][kept.layers.index(kept.layer)]
    said += f"; at block {kept.layer} the roles lie {row['norm']:.3g} apart"
    if row["relative_norm"] is not None:
        said += f", {row['relative_norm']:.2f} E‖h‖"
    told = kept.strength
    if told is None:
        return f"{said}; no strength is recommended."
    said += f"; a strength of {told.r:.3g} is recommended"
    if isfinite(told.low) and isfinite(told.high):
        said += f" [{told.low:.3g}, {told.high:.3g}]"
    if isfinite(told.gain) and isfinite(told.cost):
        said += f", which gains {told.gain:.3g} of behaviour for {told.cost:.3g} of capability"
    return f"{said}."


def _say(
    found: Sequence["Applied"], asked: Sequence[float | None], mode: str, as_json: bool
) -> None:
    """What was said after each prompt, a column for each strength."""
    if as_json:
        rows = [
            {
                "prompt": one.prompt,
                "unsteered": one.unsteered,
                "steered": [
                    {"mode": mode, "strength": r, "text": said}
                    for r, said in zip(asked, one.steered, strict=True)
                ],
            }
            for one in found
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # A step of nothing is what stands under unsteered.
    shown = [n for n, r in enumerate(asked) if mode != "add" or r != 0]
    names = [mode if asked[n] is None else f"{mode} {asked[n]:g}" for n in shown]
    table = Table(show_lines=True)
    for name in ("prompt", "unsteered", *names):
        table.add_column(name, overflow="fold")
    for one in found:
        cells = (one.prompt, one.unsteered, *(one.steered[n] for n in shown))
        table.add_row(*map(escape, cells))
    Console().print(table)


def _strengths(text: str | None) -> list[float] | None:
    return None if text is None else _numbers(text, "--strength")


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(piece) for piece in text.split(",")]
    except ValueError:
        raise DriftlensError(
            f"{option} as 0,2,4", found=repr(text), remedy="Leave it out for what is recommended."
        ) from None


def _prompts(prompts: Sequence[str] | None, file: str | None) -> list[str]:
    """The prompts that are given, or those of a file: its lines, or what its rows call so."""
    if (not prompts) == (file is None):
        raise DriftlensError(
            "--prompt or --text, one of them",
            found="none" if file is None else "both",
            remedy="Give a prompt with --prompt, or a file of them with --text.",
        )
    return list(prompts or ()) if file is None else texts_in(file, "prompt")
