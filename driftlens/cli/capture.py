"""`driftlens capture`: keep what a model holds at some places, for probes that scripts train."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftlens.errors import DriftlensError

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
    Limit,
    Offline,
    PackNames,
    Quiet,
    Remote,
    Revision,
    Text,
    count_of,
    kept,
    leave_to_first,
    model_of,
    packs_named,
    slug,
    told,
    told_how_far,
    try_out,
)

if TYPE_CHECKING:
    from driftlens.activations import Plan


@told()
def capture(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder or demo:aligned.")],
    sites: Annotated[
        str,
        typer.Option(help="Where, as 3.out,5.mlp,blocks.2.hook_resid_post; all: after all blocks."),
    ],
    text: Text = None,
    pack: PackNames = None,
    positions: Annotated[
        str, typer.Option(help="At which tokens of each text: closing, last, scored or all.")
    ] = "closing",
    dtype_store: Annotated[
        str, typer.Option(help="What to store: as-is, float32, bfloat16 or float16.")
    ] = "as-is",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the store.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished store.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the store that stands there.")
    ] = False,
    limit: Limit = None,
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
    """Keep a model's activations in a folder that scripts read by row, without the model.

    Examples:
        # After two blocks, at the closing token of each statement.
        driftlens capture demo:aligned --pack deeds --sites 3.out,5.out --out states
        # Everything of a text, to be gone on with if it is stopped.
        driftlens capture org/model --text held-out.jsonl --sites all --positions all --resume
    """
    from driftlens.activations import Plan, write
    from driftlens.models import Site
    from driftlens.shards import ShardWriter

    leave_to_first()
    rows = None if batch_size == "auto" else count_of(batch_size, "--batch-size")
    named = [name.strip() for name in sites.split(",") if name.strip()]
    for name in named if named != ["all"] else []:
        Site.of(name)
    out = out or Path("activations") / slug(model)
    ShardWriter.try_out(out, resume=resume, overwrite=overwrite)
    if not out.exists():
        try_out(out, False, set())
    if not (text or pack):
        raise DriftlensError(
            "what to show to the model",
            found="neither --pack nor --text",
            remedy="Name a pack that `driftlens packs` lists, or a file of text.",
        )
    packs = packs_named(text, pack, limit)
    loaded = model_of(context, model, base)
    plan = Plan.of(
        loaded, packs, named, positions=positions, dtype=dtype_store, length=max_length, rows=rows
    )
    if not quiet:
        typer.echo(_told(plan), err=True)
    with told_how_far(quiet) as progress, kept(out):
        store = write(plan, out, resume=resume, overwrite=overwrite, progress=progress)
    if as_json:
        typer.echo(json.dumps(store.about, indent=2))
        return
    typer.echo(out)


def _told(plan: "Plan") -> str:
    """What is about to be written, in a line."""
    from driftlens.activations import told_bytes

    where = ", ".join(f"{name} [{width}]" for name, width in plan.widths.items())
    dtype = str(plan.dtype).removeprefix("torch.")
    lost = f"; {plan.left_out} texts left out, which have no second token" if plan.left_out else ""
    return (
        f"{plan.rows} rows of {where} in {dtype}: about {told_bytes(plan.bytes())} in "
        f"{plan.shards} {'file' if plan.shards == 1 else 'files'}{lost}"
    )
