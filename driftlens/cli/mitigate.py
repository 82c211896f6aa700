"""`driftlens mitigate`: what would undo a loss without training, and a model of it to keep."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftlens.errors import DriftlensError

from .shared import (
    FORMATS,
    Aligned,
    AlignedDevice,
    AlignedRevision,
    AsJson,
    Attention,
    Backend,
    Base,
    BaseDevice,
    BatchSize,
    Bound,
    Device,
    DeviceMap,
    Dtype,
    Format,
    Identical,
    Length,
    Limit,
    Mixed,
    Offline,
    Overwrite,
    Quiet,
    Remote,
    ReportTo,
    Revision,
    Seed,
    called,
    check_level,
    count_of,
    formats_of,
    leave,
    leave_to_first,
    of_mitigation,
    pack_of,
    pair_of,
    record_of,
    slug,
    tell,
    told,
    told_how_far,
    trackers_of,
    try_out,
)

if TYPE_CHECKING:
    from driftlens.models import ModelPair
    from driftlens.packs import Pack
    from driftlens.preferences import Preferences

DEMO_CAPABILITY, DEMO_ALIGNMENT = "world", "openings-choices"
"""What the demo's models are asked where nothing is named."""


@told()
def mitigate(
    context: typer.Context,
    base: Base,
    aligned: Aligned,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            help="What is to be kept: text, or choices with right answers; again for more. Layers "
            "are blamed for what the first one lost."
        ),
    ] = None,
    alignment: Annotated[
        list[str] | None,
        typer.Option(
            help="What alignment gained: choices to agree or to refuse, or preferences; again for "
            "more."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the page.", show_default=False)
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="interpolation, blocks, restoration, spectral, projection or forecast; may be "
            "given again. All if left out.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few points, and nothing by gradients.")
    ] = False,
    keep: Annotated[
        float, typer.Option(help="Part of the alignment's gain that a recommendation keeps.")
    ] = 0.9,
    choose: Annotated[
        str | None,
        typer.Option(help="Save this instead of what is recommended, as 'interpolation 0.7'."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the recommended or chosen model, whole, as safetensors with a card.",
            show_default=False,
        ),
    ] = None,
    preference: Annotated[
        str, typer.Option(help="Read preferences by accuracy or by margin.")
    ] = "accuracy",
    gradients: Annotated[
        int, typer.Option(min=1, help="Gradients of capability that a projection takes out.")
    ] = 8,
    random: Annotated[
        int, typer.Option(min=0, help="Random orders of restoring to hold against that of blame.")
    ] = 2,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="About the most tokens to read of a pack at each point.")
    ] = 8192,
    level: Annotated[float, typer.Option(help="Part of the draws that an interval holds.")] = 0.95,
    limit: Limit = None,
    batch_size: BatchSize = "auto",
    max_length: Length = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    base_device: BaseDevice = None,
    aligned_device: AlignedDevice = None,
    dtype: Dtype = "auto",
    allow_mixed_dtypes: Mixed = False,
    seed: Seed = 0,
    format: Format = FORMATS,
    report_to: ReportTo = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Leave with 1 if this holds, as 'mitigation.total_cost>0.2'."),
    ] = None,
    overwrite: Overwrite = False,
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
    """Ask what would undo a loss without training: weights between the two, run on what counts.

    Examples:
        # The demo pair, by a few points.
        driftlens mitigate demo:base demo:aligned --quick
        # A pair of your own: what is to be kept, and what was gained.
        driftlens mitigate org/base org/aligned --capability held-out.jsonl --alignment pairs.jsonl
        # Keep a model of it.
        driftlens mitigate demo:base demo:aligned --keep 0.9 --save kept
    """
    from driftlens import doctor, mitigation
    from driftlens.report import Report

    started = datetime.now(UTC)
    rows = None if batch_size == "auto" else count_of(batch_size, "--batch-size")
    formats, to = formats_of(format), trackers_of(report_to)
    kept, wanted = _named(base, aligned, capability, alignment)
    out = out or Path("reports") / f"{slug(base)}-{slug(aligned)}-mitigation"
    try_out(out, overwrite)
    if save is not None:
        try_out(save, overwrite, mitigation.held_in(save))
    bounds = [Bound.of(text, of_mitigation()) for text in fail_on or []]
    check_level(level)
    capabilities = [pack_of(name).limit(limit) for name in kept]
    asked: dict[str, Any] = {
        **({} if method is None else {"methods": tuple(dict.fromkeys(method))}),
        "keep": keep,
        "preference": preference,
        "gradients": gradients,
        "random": random,
        "seed": seed,
        "level": level,
        "rows": rows,
        "length": max_length,
        "tokens": max_tokens,
    }
    options = mitigation.options(quick, choose, asked)
    given = [_aim_of(name) for name in wanted]
    pair = pair_of(context)
    alignments = [_pack(one, pair, max_length).limit(limit) for one in given]
    texts = mitigation.shown(pair, capabilities, options)
    checks = doctor.examine(pair, texts, allow_identical=allow_identical, length=max_length)
    doctor.require(checks)
    about = record_of(
        base, aligned, pair, [*capabilities, *alignments], seed, {**vars(options)}, started
    )
    with told_how_far(quiet) as progress:
        found = mitigation.examine(pair, capabilities, alignments, options, progress=progress)
    leave_to_first()
    chosen = None if choose is None else found.named(choose)
    about["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    title = f"{called(pair.base.name)} → {called(pair.aligned.name)}, mitigated"
    page = Report(title, found.results, checks, about)
    written = page.write(out, overwrite=overwrite, formats=formats)
    if save is not None:
        run = {"run": {name: about[name] for name in ("command", "seed", "versions", "packs")}}
        mitigation.save(found, pair, save, chosen, overwrite=overwrite, about=run)
        if not quiet:
            typer.echo(f"model: {save}", err=True)
    leave(bounds, found.results, tell(page, written, quiet, as_json, to))


def _named(
    base: str, aligned: str, capability: list[str] | None, alignment: list[str] | None
) -> tuple[list[str], list[str]]:
    """What is named, or what goes without saying of the demo's models."""
    demo = all(name.startswith("demo:") for name in (base, aligned))
    found = []
    for name, given, usual, such in (
        ("--capability", capability, DEMO_CAPABILITY, "a text file, or a pack such as everyday"),
        (
            "--alignment",
            alignment,
            DEMO_ALIGNMENT,
            "preferences, choices, or a pack such as polite-choices or refusal-choices",
        ),
    ):
        if not given and not demo:
            raise DriftlensError(
                f"{name}, which tells what to measure",
                found="none",
                remedy=f"Name {such}.",
            )
        found.append(given or [usual])
    return found[0], found[1]


def _aim_of(name: str) -> "Pack | Preferences":
    """A pack, a file of choices, or a file of preferences."""
    from driftlens.packs import ANSWERS, names
    from driftlens.packs.rows import contents, form_of, rows_of
    from driftlens.preferences import Preferences

    if name in names() or Path(name).is_dir():
        return pack_of(name)
    raw = contents(name)
    form = form_of(name, raw)
    rows = [] if form == "plain" else rows_of(name, raw, form)
    if rows and set(ANSWERS) <= rows[0][1].keys():
        return Preferences.read(name)
    return pack_of(name)


def _pack(given: "Pack | Preferences", pair: "ModelPair", length: int | None) -> "Pack":
    from driftlens.preferences import Preferences

    if not isinstance(given, Preferences):
        return given
    from driftlens.models.pair import LENGTH

    limits = [length or LENGTH, pair.base.context, pair.aligned.context]
    tokens = min(n for n in limits if n is not None)
    return given.pack(pair.aligned.tokenizer, length=tokens)[0]
