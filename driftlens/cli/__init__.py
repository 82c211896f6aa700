"""The command line: parse, call, print. No other package reads arguments or prints."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from driftlens import ranks
from driftlens.errors import DriftlensError
from driftlens.versions import versions

from . import completion, elsewhere, phased, series
from .capture import capture
from .compare import compare
from .evals import evals
from .help import AFTER, BEFORE, COMPARE, INSIDE, App
from .log import log
from .mitigate import mitigate
from .plan import plan
from .probe import probe
from .shared import (
    FORMATS,
    OF_LOSS,
    OF_LOSSES,
    OF_MEASURE,
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
    Embedding,
    Entailment,
    Evaluated,
    Format,
    Identical,
    KeepStore,
    Length,
    Limit,
    Mitigate,
    Mixed,
    NewTokens,
    Offline,
    Overwrite,
    PackNames,
    Parameter,
    Preferred,
    Quiet,
    Remote,
    ReportTo,
    Revision,
    Samples,
    Scores,
    Seed,
    Temperature,
    Text,
    TwoPhase,
    called,
    check_division,
    check_given,
    check_kinds,
    count_of,
    crash,
    fail,
    formats_of,
    identity,
    in_words,
    kept,
    leave,
    leave_to_first,
    loaded_for_check,
    lora_of,
    measured,
    of_preflight,
    packs_of,
    pair_of,
    preferences_of,
    print_checks,
    protected,
    record_of,
    reported,
    slug,
    stoppable,
    tell,
    together,
    together_told,
    told,
    told_how_far,
    trackers_of,
    try_out,
    within,
)
from .show import show
from .steer import steer

app = App(
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

NAME = "driftlens"
"""What it is called by, however it was started."""


def main() -> None:
    """Run the command line, and leave with what a caller can act on.

    0 done, 1 a threshold was crossed, 2 usage or input to mend, 3 a model or file could not be
    loaded, 130 interrupted.
    """
    if os.environ.get(completion.COMPLETE) == "complete_bash":
        completion.answer_bash(lambda: app(prog_name=NAME))
    try:
        with together():
            _told_once()
    except DriftlensError as error:
        # The processes that were to share a run did not find each other.
        fail(in_words(error), error.exit_code)


def _told_once() -> None:
    """Run the command to the end of all processes, and tell why it ends early."""
    try:
        try:
            app(prog_name=NAME)
        except SystemExit as left:
            if not left.code:
                ranks.meet()
            elif not ranks.speaks(cast(int, left.code)):
                raise SystemExit(ranks.code(cast(int, left.code))) from None
            raise
    except ranks.Lost as lost:
        fail(str(ranks.named(lost) if ranks.speaks(lost.exit_code) else lost), lost.exit_code)
    except DriftlensError as error:
        fail(in_words(error), error.exit_code)
    except Exception as error:
        from driftlens.budget import out_of_memory

        if out_of_memory(error):
            remedy = "Give a smaller --max-length, another --dtype, or a larger device."
            fail(f"expected memory for both models, found less. {remedy}", 2)
        if ranks.size() == 1:
            raise
        crash(error)


def _tell_versions(asked: bool) -> None:
    if asked:
        for name, version in versions().items():
            typer.echo(f"{name} {version}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_tell_versions,
            help="Print the versions that a number may depend on.",
        ),
    ] = False,
) -> None:
    """Where, and by what, an aligned language model drifted from its base.

    Begin with the demo pair: it ships with driftlens, and its page shows what there is to find.

    Examples:
        # First: two tiny models, without a download.
        driftlens report demo:base demo:aligned
        # Then: a pair of your own, on the text that is to be kept.
        driftlens report org/base org/aligned --text held-out.jsonl
        # And before you align: what would these pairs do?
        driftlens check org/sft --preferences pairs.jsonl
    """


@app.command(rich_help_panel=COMPARE)
@told()
def report(
    context: typer.Context,
    base: Base,
    aligned: Aligned,
    later: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[LATER]...",
            help="Models of later stages: each is compared with the one before it.",
            show_default=False,
        ),
    ] = None,
    text: Text = None,
    pack: PackNames = None,
    preferences: Preferred = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the report.", show_default=False)
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Blocks at which drift is measured, as 0,5,10-12.")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = "auto",
    max_length: Length = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    base_device: BaseDevice = None,
    aligned_device: AlignedDevice = None,
    dtype: Dtype = "auto",
    allow_mixed_dtypes: Mixed = False,
    two_phase: TwoPhase = None,
    keep_store: KeepStore = None,
    seed: Seed = 0,
    format: Format = FORMATS,
    report_to: ReportTo = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Leave with 1 if this holds, as 'forgetting.loss_rise>0.1'."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    overwrite: Overwrite = False,
    allow_identical: Identical = False,
    published_polarity: Annotated[
        bool,
        typer.Option(
            "--published-polarity",
            help="Show beside polarity what the published code would say, for comparison only.",
        ),
    ] = False,
    published_shift: Annotated[
        bool,
        typer.Option(
            "--published-shift",
            help="Show beside token shift the KL over common top tokens, for comparison only.",
        ),
    ] = False,
    every_site: Annotated[
        bool,
        typer.Option(
            "--every-site",
            help="Take CKA and Procrustes everywhere, in as many passes as their sums need.",
        ),
    ] = False,
    samples: Samples = 10,
    new_tokens: NewTokens = 64,
    temperature: Temperature = 1.0,
    embedding: Embedding = None,
    nli: Entailment = None,
    beta: Annotated[float, typer.Option(help="β of implicit rewards on preferences.")] = 0.1,
    mitigate: Mitigate = True,
    lm_eval: Evaluated = None,
    scores: Scores = None,
    revision: Revision = None,
    aligned_revision: AlignedRevision = None,
    trust_remote_code: Remote = False,
    attn_implementation: Attention = "sdpa",
    backend: Backend = "hooks",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare two models and write a report.

    Of more than two, stages of one training in their order, each is compared with the one before
    it and the last with the first, and the page says what each stage has of the whole.

    Examples:
        # The demo pair: nothing is downloaded, and a page is there in some minutes.
        driftlens report demo:base demo:aligned
        # A pair of your own, on the text that is to be kept.
        driftlens report org/base org/aligned --text held-out.jsonl
        # Every stage of a training: what each of them cost.
        driftlens report org/base org/sft org/dpo
        # In CI: leave with 1 if more was lost than 0.1 nats a token.
        driftlens report ./base ./aligned --fail-on 'forgetting.loss_rise>0.1'
    """
    from driftlens.partial import Partial

    started = datetime.now(UTC)
    rows = None if batch_size == "auto" else count_of(batch_size, "--batch-size")
    formats, to = formats_of(format), trackers_of(report_to)
    out = out or (
        series.place_of(series.named(context))
        if later
        else Path("reports") / f"{slug(base)}-{slug(aligned)}"
    )
    try_out(out, overwrite or resume)
    store = keep_store or out.resolve().parent / f".{out.resolve().name}.store"
    partial = Partial(out, resume=resume and not phased.only_base(out, store))
    bounds = [Bound.of(text, reported()) for text in fail_on or []]
    models = [base, aligned, *(later or ())]
    given = preferences_of(preferences or (), models, context.params)
    packs = [*(packs_of(text, pack, limit) if text or pack or not given else ()), *given]
    check_given(bounds, packs, context.params)
    beside = elsewhere.read(lm_eval, scores)
    if later:
        phased.refuse_series(context)
        elsewhere.refuse_series(context)
        series.reported(context, packs, bounds, partial, out, formats, to, rows, started)
        return
    loaded = phased.models_of(context, store)
    from driftlens import doctor, suite
    from driftlens import plan as planning
    from driftlens.report import Report

    options = measured(context.params, loaded.depth, rows)
    pair, checks, floors = phased.begun(context, loaded, packs, options, store)
    planned = planning.plan_of(pair, planning.work_of(packs, options))
    if planned is not None:
        # By the memory that the first process finds.
        room = ranks.lead(lambda: planned.sums_bytes)
        options = replace(options, sums_bytes=room)
        if not quiet:
            typer.echo(planned.line, err=True)
    if pair.together:
        checks = doctor.examine(pair, packs, allow_identical=allow_identical, length=max_length)
        doctor.require(checks)
    asked = {
        **{name: context.params[name] for name in OF_MEASURE},
        "layers": sorted(options.layers) if options.layers else None,
        "batch_size": rows or "auto",
        "two_phase": not pair.together,
    }
    about = record_of(base, aligned, pair, packs, seed, asked, started)
    about["plan"] = None if planned is None else planned.record()
    partial.begin({**identity(about), "room for sums": options.sums_bytes})
    with told_how_far(quiet) as progress, stoppable(partial, out):
        found = suite.examine(
            *(pair, packs, options),
            checks=checks,
            partial=partial,
            floors=floors,
            progress=progress,
        )
        results = list(found)
        undone, said = suite.undone(pair, packs, options, checks=checks, progress=progress)
        results, checks = [*results, *undone], [*checks, *said]
        ranks.meet()
    leave_to_first()
    results = together_told([*results, *beside.results(seed)])
    about["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    title = f"{called(pair.base.name)} → {called(pair.aligned.name)}"
    page = Report(title, results, checks, about)
    with kept(out):
        written = page.write(out, overwrite=overwrite or resume, formats=formats)
    partial.remove()
    if keep_store is None:
        phased.forget(store)
    leave(bounds, results, tell(page, written, quiet, as_json, to))


@app.command(
    rich_help_panel=COMPARE, short_help="Divide the rise in loss among layers, heads and tokens."
)
@told()
def attribute(
    context: typer.Context,
    base: Base,
    aligned: Aligned,
    text: Text = None,
    pack: PackNames = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the page.", show_default=False)
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="weight-path, sweep, graft, shapley or screen; may be given again."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="Divide weights by layer, component, head or module.")
    ] = "component",
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
    """Divide the rise in loss among layers, components or heads, and tokens.

    Examples:
        # By layer, on the usual packs of text.
        driftlens attribute demo:base demo:aligned --by layer
        # Which heads, on text of your own.
        driftlens attribute org/base org/aligned --text held-out.jsonl --by head
        # Exact swaps and Shapley shares, to hold against the path.
        driftlens attribute org/base org/aligned --method graft --method shapley
    """
    started = datetime.now(UTC)
    rows = None if batch_size == "auto" else count_of(batch_size, "--batch-size")
    formats, to = formats_of(format), trackers_of(report_to)
    out = out or Path("reports") / f"{slug(base)}-{slug(aligned)}-attribution"
    try_out(out, overwrite)
    methods = tuple(dict.fromkeys(method or ["weight-path"]))
    check_division(methods, by, level)
    packs = packs_of(text, pack, limit)
    if text or pack:
        check_kinds(packs, "text", "whose loss can be divided")
    packs = [pack for pack in packs if pack.kind == "text"]
    pair = pair_of(context)
    from driftlens import attribution, doctor
    from driftlens.report import Report

    options = attribution.Options(cast(Any, by), level, seed, rows, max_length)
    checks = doctor.examine(pair, packs, allow_identical=allow_identical, length=max_length)
    doctor.require(checks)
    asked = {
        "method": list(methods),
        "by": by,
        "level": level,
        "batch_size": rows or "auto",
        "max_length": max_length,
    }
    about = record_of(base, aligned, pair, packs, seed, asked, started)
    with told_how_far(quiet) as progress:
        results = [
            result
            for one in packs
            for result in attribution.attribute(pair, one, methods, options, progress=progress)
        ]
    leave_to_first()
    about["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    title = f"{called(pair.base.name)} → {called(pair.aligned.name)}, attributed"
    page = Report(title, results, checks, about)
    written = page.write(out, overwrite=overwrite, formats=formats)
    leave((), results, tell(page, written, quiet, as_json, to))


@app.command(
    rich_help_panel=BEFORE, short_help="Look at a preference set through a model's gradients."
)
@told()
def check(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, folder or demo:sft: what is trained.")
    ],
    preferences: Annotated[
        str,
        typer.Option(help="JSONL or Parquet of prompt, chosen, rejected; - for standard input."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the page.", show_default=False)
    ] = None,
    loss: Annotated[str, typer.Option(help="dpo, simpo, ipo, … : see the table on the page.")] = (
        "dpo"
    ),
    beta: Parameter = None,
    alpha: Parameter = None,
    tau: Parameter = None,
    gamma: Parameter = None,
    delta: Parameter = None,
    lambda_: Annotated[float | None, typer.Option("--lambda", help=OF_LOSS)] = None,
    label_smoothing: Parameter = None,
    desirable_weight: Parameter = None,
    undesirable_weight: Parameter = None,
    z: Parameter = None,
    temperature: Parameter = None,
    reference: Annotated[
        str | None, typer.Option(help="The reference model; the model itself if none is named.")
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(help="Train a LoRA adapter, as r=16,targets=q_proj+v_proj or all-linear."),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(help="Train only weights whose name fits, as 'model.layers.11.*'."),
    ] = None,
    protect: Annotated[
        str | None, typer.Option(help="A pack or a file of text that is to be kept, or none.")
    ] = "everyday",
    token_map: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Also map this pair token by token; its number, from 0."),
    ] = None,
    append_eos: Annotated[
        bool,
        typer.Option(
            "--append-eos/--no-append-eos",
            help="Close answers that are strings with the end-of-text token, as trainers do.",
        ),
    ] = True,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Look only at the first N pairs.")
    ] = None,
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
        typer.Option(help="Leave with 1 if this holds, as 'first_step.case_both_down>0.2'."),
    ] = None,
    overwrite: Overwrite = False,
    revision: Revision = None,
    aligned_revision: Annotated[
        str | None, typer.Option("--reference-revision", help="The same of the reference.")
    ] = None,
    trust_remote_code: Remote = False,
    attn_implementation: Attention = "sdpa",
    backend: Backend = "hooks",
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Look at a preference set through a model's gradients, before anyone trains.

    Examples:
        # The pairs that the demo's aligned model learnt, before it did.
        driftlens check demo:sft --preferences demo:pairs
        # As you would train: the loss, its β, and a LoRA adapter.
        driftlens check org/sft --preferences pairs.jsonl --loss dpo --beta 0.1 --lora r=16
        # Which weights would move text that is to be kept?
        driftlens check org/sft --preferences pairs.jsonl --protect held-out.jsonl
    """
    from driftlens.formulas.preferences import loss_of
    from driftlens.preferences import Preferences

    started = datetime.now(UTC)
    rows = None if batch_size == "auto" else count_of(batch_size, "--batch-size")
    formats, to = formats_of(format), trackers_of(report_to)
    out = out or Path("reports") / f"{slug(model)}-check"
    try_out(out, overwrite)
    named = {name: context.params[name] for name in OF_LOSSES if context.params[name] is not None}
    asked_loss = loss_of(loss, **named)
    adapter = None if lora is None else lora_of(lora)
    if aligned_revision and not reference:
        raise DriftlensError(
            "--reference beside --reference-revision",
            found="none",
            remedy="Name the reference, or give --revision for the model itself.",
        )
    bounds = [Bound.of(text, of_preflight()) for text in fail_on or []]
    prefs = Preferences.read(preferences).limit(limit)
    texts = None if protect in (None, "none") else protected(cast(str, protect))
    pair = loaded_for_check(context, adapter)
    from driftlens import preflight
    from driftlens.report import Report
    from driftlens.report.report import SAFE

    patterns = tuple(train or (["*lora_*"] if adapter else ["*"]))
    maps = tuple(dict.fromkeys(token_map or ()))
    options = preflight.Options(
        asked_loss, patterns, append_eos, seed, 0.95, rows, max_length, token_map=maps
    )
    with told_how_far(quiet) as progress:
        found = preflight.check(pair, prefs, options, protect=texts, progress=progress)
    asked = {
        "loss": loss,
        **{name: getattr(asked_loss, name) for name in vars(asked_loss)},
        "train": list(patterns),
        "lora": lora,
        "protect": protect,
        "token_map": list(maps),
        "append_eos": append_eos,
        "batch_size": rows or "auto",
        "max_length": max_length,
    }
    about = record_of(
        reference or model, model, pair, [found.pack, *filter(None, [texts])], seed, asked, started
    )
    leave_to_first()
    about["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    on = within(preferences, prefs.name) if Path(preferences).parent.name else prefs.name
    title = f"{called(pair.aligned.name)} before training on {on}"
    page = Report(title, found.results, found.checks, about)
    safe = found.safe(prefs)
    written = page.write(out, overwrite=overwrite, formats=formats, safe=safe)
    if not quiet:
        for one in found.checks:
            if one.status == "warn":
                typer.echo(f"! {one.name}: {one.detail}", err=True)
        place = written.parent / SAFE
        of = len(prefs.pairs)
        typer.echo(f"{place}: {len(safe)} of {of} pairs, which are safe each by itself", err=True)
    leave(bounds, found.results, tell(page, written, quiet, as_json, to))


@app.command(
    rich_help_panel=BEFORE, short_help="Run a report's gates and its noise floor, nothing else."
)
@told()
def doctor(
    context: typer.Context,
    base: Base,
    aligned: Aligned,
    text: Text = None,
    pack: PackNames = None,
    limit: Limit = None,
    max_length: Length = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    base_device: BaseDevice = None,
    aligned_device: AlignedDevice = None,
    dtype: Dtype = "auto",
    allow_mixed_dtypes: Mixed = False,
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
    """Run the gates that a report runs first, and the noise floor; measure nothing else.

    Examples:
        # Do these two models fit each other?
        driftlens doctor demo:base demo:aligned
        # And how large is the noise on this text, in this precision?
        driftlens doctor org/base org/aligned --text held-out.jsonl --dtype bfloat16
    """
    packs = packs_of(text, pack, limit)
    pair = pair_of(context)
    from driftlens import doctor, suite

    checks = doctor.examine(pair, packs, allow_identical=allow_identical, length=max_length)
    failed = any(check.status == "fail" for check in checks)
    floors = doctor.Floors()
    if not failed:
        floors = suite.floors_of(pair, packs[0], suite.Options(length=max_length), checks)
    leave_to_first()
    if as_json:
        record = {"checks": [vars(check) for check in checks], "noise_floor": floors.sizes}
        typer.echo(json.dumps(record, indent=2))
    else:
        print_checks(checks)
        for kind, sizes in floors.sizes.items():
            for name, size in sizes.items():
                typer.echo(f"floor  {kind}.{name}: {size:.2g}")
    if failed:
        raise typer.Exit(2)


app.command(rich_help_panel=AFTER, short_help="Print a report in the terminal.")(show)


@app.command(rich_help_panel=AFTER, short_help="Draw a report's page again.")
def render(folder: Annotated[Path, typer.Argument(help="Folder of a report.")]) -> None:
    """Draw a report's page again from its record and tables alone.

    Examples:
        # After an upgrade: the same numbers on a newer page.
        driftlens render reports/mine
    """
    leave_to_first()
    from driftlens import preflight, suite
    from driftlens.report import render

    assert all((preflight, suite)), "kinds of results are known once these are imported"
    typer.echo(render(folder))


@app.command(rich_help_panel=AFTER)
def schema() -> None:
    """Print the JSON Schema of results.json.

    Examples:
        # For whoever reads results.json in another language.
        driftlens schema > results.schema.json
    """
    leave_to_first()
    from driftlens.report import schema

    typer.echo(json.dumps(schema(), indent=2, ensure_ascii=False))


@app.command(rich_help_panel=BEFORE)
def packs() -> None:
    """List the packs that ship with driftlens.

    Examples:
        # Their names go to --pack.
        driftlens packs
    """
    leave_to_first()
    from driftlens.packs import STANDARD, Pack, names

    for name in names():
        pack = Pack.load(name)
        mark = "*" if name in STANDARD else " "
        title = pack.card.get("title", "")
        count = pack.card.get("examples", len(pack.examples))
        typer.echo(f"{mark} {name:16} {pack.kind:11} {count:5}  {title}")
    typer.echo("* taken by a report unless --text or --pack says otherwise")


app.command(
    rich_help_panel=BEFORE, short_help="Say what a report would take: memory, passes, bytes, time."
)(told()(plan))
app.command(
    rich_help_panel=INSIDE, short_help="Keep what a model holds in a folder that scripts read."
)(capture)
app.command(rich_help_panel=AFTER, short_help="Put finished runs side by side.")(told()(compare))
app.add_typer(evals, name="evals", rich_help_panel=COMPARE)
app.command(rich_help_panel=COMPARE, short_help="Ask what would undo a loss without training.")(
    mitigate
)
app.command(rich_help_panel=AFTER)(log)
app.add_typer(probe, name="probe", rich_help_panel=INSIDE)
app.add_typer(steer, name="steer", rich_help_panel=INSIDE)
