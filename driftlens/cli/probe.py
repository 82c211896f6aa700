"""`driftlens probe`: train probes, apply them to any text, show what they are worth."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftlens.errors import DriftlensError

from .help import App
from .shared import (
    AdapterBase,
    AdapterRevision,
    AsJson,
    Attention,
    Backend,
    BatchSize,
    Device,
    Dtype,
    Length,
    Offline,
    Quiet,
    Remote,
    Revision,
    count_of,
    layers_of,
    leave_to_first,
    model_of,
    print_table,
    slug,
    texts_in,
    told,
    told_how_far,
    try_out,
)

if TYPE_CHECKING:
    from driftlens.models import Model
    from driftlens.packs import Pack
    from driftlens.probe import Options, TrainedProbes

probe = App(
    help="""Train probes of contrasts, and use them.

    Examples:
        # Learn what tells a statement from its opposite, at every layer.
        driftlens probe train demo:aligned --pack deeds --out probe
        # Ask what the model holds true.
        driftlens probe apply probe demo:aligned --text statements.txt
    """
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a probe.")]
Pairs = Annotated[
    str | None,
    typer.Option(help="JSONL or Parquet of pair_id, polarity, statement; - for standard input."),
]
OnePack = Annotated[
    str | None,
    typer.Option(help="A shipped pack of contrasts by name, or a pack's folder. See `packs`."),
]


@probe.command()
@told()
def train(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder or demo:aligned.")],
    pack: OnePack = None,
    pairs: Pairs = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the probe.", show_default=False)
    ] = None,
    method: Annotated[
        str, typer.Option(help="pa-ccs, ccs, crc, vinc, difference-of-means or logistic.")
    ] = "pa-ccs",
    layers: Annotated[str, typer.Option(help="Blocks to read, as 0,5,10-12, or all.")] = "all",
    form: Annotated[
        list[str] | None, typer.Option(help="A form of the pack, its first if none is named.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of the searches, as 0,1,2.")] = "0",
    folds: Annotated[int, typer.Option(help="Parts that pairs are held out in.")] = 5,
    restarts: Annotated[int, typer.Option(help="Descents of each search.")] = 10,
    steps: Annotated[int, typer.Option(help="Steps of each descent.")] = 1500,
    mode: Annotated[
        str, typer.Option(help="ours; or published, for comparison with published figures only.")
    ] = "ours",
    normalize: Annotated[
        str, typer.Option(help="auto, scale, mean, standard, median or none.")
    ] = "auto",
    polarity: Annotated[
        float, typer.Option(help="Weight of the term of pa-ccs that only pairs have.")
    ] = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first N pairs.")] = None,
    base: AdapterBase = None,
    batch_size: BatchSize = "auto",
    max_length: Length = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the probe that stands there.")
    ] = False,
    revision: Revision = None,
    aligned_revision: AdapterRevision = None,
    trust_remote_code: Remote = False,
    attn_implementation: Attention = "sdpa",
    backend: Backend = "hooks",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Learn probes of a model's layers from statements and their opposites.

    Examples:
        # On a pack that ships with driftlens.
        driftlens probe train demo:aligned --pack deeds --out probe
        # On pairs of your own, in the middle of the stack.
        driftlens probe train org/model --pairs pairs.jsonl --layers 8-16 --seeds 0,1,2
    """
    from driftlens.probe import CARD, TENSORS, Options
    from driftlens.probe.asked import UNSETTLED, Asked

    rows = None if batch_size == "auto" else count_of(batch_size, "--batch-size")
    out = out or Path("reports") / f"{slug(model)}-{method}"
    try_out(out, overwrite, {CARD, TENSORS})
    chosen = {"auto": UNSETTLED, "none": None}.get(normalize, normalize)
    settings: dict[str, Any] = {
        "method": method,
        "form": tuple(form or ()),
        "seeds": _numbers(seeds),
        "folds": folds,
        "restarts": restarts,
        "steps": steps,
        "mode": mode,
        "normalize": chosen,
        "polarity": polarity,
        "rows": rows,
        "length": max_length,
    }
    contrasts = _first(_contrasts(pack, pairs), limit)
    Asked.of(contrasts, Options(**settings))
    loaded = model_of(context, model, base)
    if layers != "all":
        settings["layers"] = layers_of(layers, loaded.depth)
    if (where := str(getattr(loaded, "device", "cpu"))).startswith("cuda"):
        settings["device"] = where
    _train(loaded, contrasts, Options(**settings), out, overwrite, quiet, as_json)


def _train(
    model: "Model",
    pack: "Pack",
    options: "Options",
    out: Path,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from driftlens.probe import train

    with told_how_far(quiet) as progress:
        probes = train(model, pack, options, progress=progress)
    leave_to_first()
    probes.save(out, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(probes.card, indent=2))
        return
    if not quiet:
        typer.echo(_verdict(probes), err=True)
    typer.echo(out)


@probe.command()
@told()
def apply(
    context: typer.Context,
    folder: Folder,
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="The model it was trained on; or a series."),
    ],
    text: Annotated[
        str | None,
        typer.Option(help="Statements, one to a line or as JSONL; - for standard input."),
    ] = None,
    pack: OnePack = None,
    pairs: Pairs = None,
    layer: Annotated[
        int | None, typer.Option(min=0, help="The block to read; the best one if left out.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Read another model of the same shape too.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take only the first N statements or pairs.")
    ] = None,
    base: AdapterBase = None,
    batch_size: BatchSize = "auto",
    max_length: Length = None,
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
    """Read statements with a probe, in its own model or along a series of models.

    Examples:
        # What does the model hold true?
        driftlens probe apply probe demo:aligned --text statements.txt
        # Does the probe still read the next stage?
        driftlens probe apply probe demo:base demo:sft demo:aligned --pack deeds
    """
    from driftlens.probe import TrainedProbes

    rows = None if batch_size == "auto" else count_of(batch_size, "--batch-size")
    how: dict[str, Any] = {"rows": rows, "length": max_length}
    probes = TrainedProbes.load(folder)
    if layer is not None:
        probes.probe(layer)
    if (text is None) == (pack is None and pairs is None):
        raise DriftlensError(
            "--text, --pack or --pairs, one of them",
            found="none" if text is None else "more",
            remedy="Give statements with --text, or pairs of them with --pack.",
        )
    on: Pack | list[str]
    if text is None:
        on = _first(_contrasts(pack, pairs), limit)
    else:
        on = statements = texts_in(text, "statement")[:limit]
        if len(models) == 1:
            _say(probes, model_of(context, models[0], base), statements, layer, force, how, as_json)
            return
    # Of a series only one can match; of a single model it is a matter of asking.
    found: list[dict[str, Any]] = []
    for name in models:
        loaded = model_of(context, name, base)
        if len(models) == 1:
            probes.require(loaded, probes.layers, force=force)
        found += probes.monitor([loaded], on, layers=None if layer is None else [layer], **how)
    leave_to_first()
    _watch(probes, found, quiet, as_json)


@probe.command()
@told()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """Print whose probes they are, what they learnt from, and what they are worth.

    Examples:
        # Before you believe it.
        driftlens probe show probe
    """
    leave_to_first()
    from driftlens.probe import TrainedProbes

    probes = TrainedProbes.load(folder)
    card = probes.card
    if as_json:
        typer.echo(json.dumps(card, indent=2))
        return
    typer.secho(_verdict(probes), bold=True)
    model, forms = card["model"], " | ".join(f"{yes!r}, {no!r}" for _, yes, no in card["forms"])
    for name, what in {
        "model": f"{model['name']}, weights {model['sha256'][:12]}, width {model['width']}",
        "read": f"after blocks {', '.join(map(str, card['layers']))}, at the {card['token']}",
        "method": f"{card['method']} (mode {card['mode']}, normalize {card['normalize']}, "
        f"seeds {', '.join(map(str, card['seeds']))})",
        "form": forms,
        "pack": f"{card['pack']['name']}, {len(card['pack']['pairs'])} pairs learnt from, "
        f"sha256 {card['pack']['sha256'][:12]}",
        "judged on": card["judged_on"],
        "orientation": card["orientation"],
        "a mark": f"whether a statement is negated names {card['metrics'][0]['lexical_esa']:.3f} "
        "of them rightly",
        "best": f"{card['best']}. {card['best_by']}",
    }.items():
        typer.echo(f"{name:12} {what}")
    typer.echo("")
    print_table([{name: row[name] for name in SHOWN if name in row} for row in card["metrics"]])


def script(method: str) -> None:
    """`driftlens probe train` with a method that is settled, for a script of its own."""
    # The package holds this module, and is asked for its main only when all of it is there.
    from driftlens.cli import main

    sys.argv[1:1] = ["probe", "train", "--method", method]
    main()


# What the commands share

SHOWN = (
    *("layer", "esa", "low", "high", "auroc", "pc", "ci", "sd"),
    *("random_esa", "p_value", "verdict"),
)
"""Columns of the table of a probe; the card has them all."""


def _verdict(probes: "TrainedProbes") -> str:
    """A probe in one sentence."""
    card, row = probes.card, probes.card["metrics"][probes.layers.index(probes.best)]
    count = len(probes.layers)
    of = "the only layer" if count == 1 else f"the best of {count} layers"
    sure = "" if row["p_value"] is None else f", p = {row['p_value']:.3g}"
    return (
        f"{card['method']} of {card['model']['name']}: polarity is {row['verdict']} after block "
        f"{probes.best}, {of}: ESA {row['esa']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{sure} "
        f"({card['judged_on']})."
    )


def _say(
    probes: "TrainedProbes",
    model: "Model",
    texts: Sequence[str],
    layer: int | None,
    force: bool,
    how: Mapping[str, Any],
    as_json: bool,
) -> None:
    """What the probe makes of each statement."""
    found = probes.apply(model, texts, layer=layer, force=force, **how)
    leave_to_first()
    columns = (found.p_yes, found.p_no, found.score)
    rows = [
        {"text": text} | dict(zip(("p_yes", "p_no", "score"), map(float, three), strict=True))
        for text, *three in zip(texts, *columns, strict=True)
    ]
    if as_json:
        record = {"model": model.name, "layer": found.layer, "texts": rows}
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{model.name} after block {found.layer}; a score over 0.5 is positive")
    print_table(rows)


def _watch(
    probes: "TrainedProbes", found: list[dict[str, Any]], quiet: bool, as_json: bool
) -> None:
    """What the probes make of one set of statements in each model."""
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    own = list(dict.fromkeys(row["model"] for row in found if row["trained_on"]))
    if not quiet:
        named = ", ".join(own) or f"none of these, but {probes.card['model']['name']}"
        typer.echo(f"trained on: {named}", err=True)
        if learnt := max(row.get("learnt_from", 0) for row in found):
            of = found[0]["pairs"]
            typer.echo(f"{learnt} of {of} pairs were learnt from: not held out", err=True)
    hidden = ("sha256", "trained_on", "pairs", "learnt_from", "loss", "sd", "pc_median_abs")
    print_table([{name: what for name, what in row.items() if name not in hidden} for row in found])


def _contrasts(pack: str | None, pairs: str | None) -> "Pack":
    """The one pack that is named."""
    from driftlens.packs import Pack
    from driftlens.probe.asked import refuse_other_kinds

    if (pack is None) == (pairs is None):
        raise DriftlensError(
            "--pack or --pairs, one of them",
            found="none" if pack is None else "both",
            remedy="Name a pack that `driftlens packs` lists as contrast, or a file of pairs.",
        )
    found = Pack.load(pack) if pack is not None else Pack.read(str(pairs))
    refuse_other_kinds(found)
    return found


def _first(pack: "Pack", pairs: int | None) -> "Pack":
    """The pack's first pairs, in every form."""
    from dataclasses import replace

    if pairs is None:
        return pack
    kept = set(list(dict.fromkeys(example.group for example in pack.examples))[:pairs])
    return replace(pack, examples=[example for example in pack.examples if example.group in kept])


def _numbers(text: str) -> tuple[int, ...]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdigit() for piece in pieces):
        raise DriftlensError("--seeds as 0,1,2", found=repr(text), remedy="Leave it out for 0.")
    return tuple(map(int, pieces))
