"""`driftlens plan`: what a report would take, before anything is loaded."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftlens.errors import DriftlensError

from .shared import (
    AsJson,
    Base,
    Length,
    Offline,
    PackNames,
    Remote,
    Revision,
    Text,
    packs_of,
    print_table,
)

if TYPE_CHECKING:
    from driftlens.plan import Machine, Plan, Work

UNITS = {"": 1e9, "mb": 1e6, "gb": 1e9, "tb": 1e12, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def plan(
    base: Base,
    aligned: Annotated[
        str | None,
        typer.Argument(
            metavar="[ALIGNED]",
            help="The same of its aligned version, or an adapter; if left out, as the base.",
        ),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(help="Memory of a device, as 24GB or 80GiB; this machine's if left out."),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many such devices.")] = 1,
    documents: Annotated[int | None, typer.Option(min=1, help="How many documents.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="How many tokens in all.")] = None,
    text: Text = None,
    pack: PackNames = None,
    max_length: Length = None,
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16, float16; int8 or int4 of quantised.")
    ] = "auto",
    every_site: Annotated[
        bool, typer.Option("--every-site", help="As of `report`: CKA and Procrustes everywhere.")
    ] = False,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Tokens that both models read in a second, if measured."),
    ] = None,
    revision: Revision = None,
    trust_remote_code: Remote = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Say what a report would take: memory, passes, bytes, time. A config.json is enough.

    Examples:
        # Does it fit on this machine?
        driftlens plan demo:base demo:aligned
        # Would it on eight others, and how long would it take?
        driftlens plan org/model --device-memory 80GB --devices 8 --tokens 1000000
    """
    import os

    from driftlens import plan as planning
    from driftlens.models import shape
    from driftlens.suite import Options

    local = offline or os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes")
    hub: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    ours = shape.shape_named(base, revision=revision, **hub)
    numbers = None if aligned is None else shape.adapter_numbers(aligned, base, **hub)
    theirs = None
    if aligned is not None and numbers is None:
        theirs = shape.shape_named(aligned, **hub)
    options = Options(length=max_length, every_site=every_site or None)
    work = _work(documents, tokens, text, pack, options)
    machine = _machine(device_memory, devices)
    if tokens_per_second:
        both = planning.operations(ours, theirs or ours, work, 1)["both models"] / work.tokens
        machine = planning.Machine(
            machine.devices, machine.memory, machine.kind, tokens_per_second * both
        )
    found = planning.plan(ours, theirs, machine, work, dtype=dtype, adapter=numbers)
    if as_json:
        typer.echo(json.dumps(found.record(), indent=1))
        return
    _tell(found)
    typer.echo("")
    print_table(planning.ways(ours, theirs, machine, work, numbers))


def _tell(found: "Plan") -> None:
    from driftlens.plan import duration, gigabytes

    said = found.line.removeprefix("plan: ")
    typer.echo(f"{said[0].upper()}{said[1:]}.")
    typer.echo(
        f"{found.work.tokens:,} tokens of {found.work.documents:,} documents, "
        f"{found.replicas} pair{'s' * (found.replicas != 1)} side by side."
    )
    rows = [("device", name, size) for name, size in found.device.items()]
    rows += [("CPU", name, size) for name, size in found.host.items()]
    typer.echo("")
    print_table([{"where": w, "what": what, "bytes": gigabytes(size)} for w, what, size in rows])
    rate = "measured" if found.machine.rate else "assumed"
    total = sum(found.operations.values())
    typer.echo("")
    print_table(
        [
            {"work": name, "share": f"{count / total:.1%}"}
            for name, count in found.operations.items()
            if count
        ]
    )
    typer.echo("")
    typer.echo(
        f"About {duration(found.seconds)} at {found.machine.speed:.3g} operations a second of a "
        f"device ({rate}); as much as {total / found.bare:.1f} bare passes of both models."
    )
    if found.written:
        typer.echo(f"The first of the two phases writes {gigabytes(found.written)}.")
    if found.left_out:
        typer.echo(
            f"CKA and Procrustes are left out at {found.left_out} sites, for want of room: type "
            "--every-site to have all of them in more passes."
        )


def _work(documents: int | None, tokens: int | None, text: Any, pack: Any, options: Any) -> "Work":
    from driftlens.models.pair import LENGTH
    from driftlens.plan import DOCUMENT, Work, work_of

    if not (tokens or documents):
        return work_of(packs_of(text, pack, None), options)
    tokens = tokens or (documents or 1) * DOCUMENT
    documents = documents or max(1, tokens // DOCUMENT)
    length = min(options.length or LENGTH, -(-tokens // documents))
    return Work(tokens, documents, length=length, options=options)


def _machine(memory: str | None, devices: int) -> "Machine":
    import torch

    from driftlens.models.memory import capacity
    from driftlens.plan import Machine

    if memory is not None:
        return Machine(devices, bytes_of(memory))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Machine(devices, capacity(device), device.type)


def bytes_of(text: str) -> int:
    """What `24GB`, `80GiB` or `24` of gigabytes say in bytes.

    Raises:
        DriftlensError: It is no size.
    """
    digits = text.strip().rstrip("BGIMTbgimt")
    unit = text.strip()[len(digits) :].lower()
    try:
        size = float(digits) * UNITS[unit]
    except (ValueError, KeyError):
        size = 0.0
    if not size > 0:
        raise DriftlensError(
            "a size of memory as 24GB or 80GiB", found=repr(text), remedy="Give one like these."
        )
    return int(size)
