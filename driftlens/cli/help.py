"""Help pages that teach by example: what a command is for, what to type, then its options.

A command's docstring is its page: a sentence, perhaps more, then `Examples:` with a word on each.
"""

import sys
from collections.abc import Iterator, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from . import completion

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 100
"""Letters of a line, however wide the terminal."""

LEFT = 28
"""Letters of the column of options; what is longer stands alone on its line."""

SHOWN, MODELS, OUTPUT = "What to show", "Models and devices", "Output"
MEASURED, OPTIONS = "What to measure", "Options"

COMMANDS = COMPARE, BEFORE, INSIDE, AFTER = (
    *("Compare two models", "Before you train", "Look inside", "Afterwards"),
)
"""Panels of commands, in their order."""

PANELS = {
    SHOWN: (
        *("text", "pack", "limit", "max_length", "preferences", "lm_eval", "scores", "pairs"),
        *("form", "contrast", "behaviour", "capability", "alignment", "prompt", "protect"),
        *("documents", "tokens", "tasks", "include", "shots", "chat", "apply_chat_template"),
    ),
    MODELS: (
        *("base", "aligned", "reference", "revision", "aligned_revision", "trust_remote_code"),
        *("attn_implementation", "backend", "device", "device_map", "base_device"),
        *("aligned_device", "dtype", "allow_mixed_dtypes", "two_phase", "keep_store"),
        *("batch_size", "offline", "allow_identical", "device_memory", "devices"),
    ),
    OUTPUT: (
        *("out", "format", "report_to", "fail_on", "resume", "overwrite", "save", "quiet"),
        *("as_json", "help"),
    ),
}
"""Options by the panel they stand in; of a command that writes pages all others are measured."""

CODES = {
    0: "done",
    1: "a threshold was crossed",
    2: "something to mend in the call or its input",
    3: "a model or file could not be loaded",
    130: "interrupted",
}
"""What a command leaves with."""


METAVARS = {
    **dict.fromkeys(("text", "preferences", "scores", "pairs", "include"), "FILE"),
    **dict.fromkeys(("pack", "contrast", "behaviour", "capability", "alignment"), "PACK"),
    **dict.fromkeys(("base", "aligned", "reference", "embedding", "nli"), "MODEL"),
    **dict.fromkeys(("device", "base_device", "aligned_device"), "DEVICE"),
    **dict.fromkeys(("method", "backend", "loss", "report_to", "to", "only"), "NAME"),
    **dict.fromkeys(("out", "keep_store", "save"), "DIR"),
    **dict.fromkeys(("fail_on",), "BOUND"),
}
"""What stands for a value in help, where its type says too little."""


class Example(NamedTuple):
    """A line to type, and what it is for."""

    what: str
    line: str


class Command(TyperCommand):
    """A command whose help teaches by example, and whose options are completed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        completion.attach(self)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print its page."""
        _print(lambda screen: _command(screen, self, ctx))


class Group(TyperGroup):
    """Commands in panels, with one line for each."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print its page."""
        _print(lambda screen: _group(screen, self, ctx))


class App(typer.Typer):
    """An app all of whose commands are ours."""

    def __init__(self, **options: Any) -> None:
        given: dict[str, Any] = {"cls": Group, "no_args_is_help": True} | options
        super().__init__(**given)

    def command(self, name: str | None = None, **options: Any) -> Any:
        """Register a command."""
        return super().command(name, **{"cls": Command} | options)


def _print(write: Any) -> None:
    # Not handed to the formatter: of a call without arguments typer throws away what that holds.
    typer.echo(rendered(write), nl=False)


def rendered(write: Any) -> str:
    """What is written on a screen, styled if it goes to a terminal that may be."""
    from os import environ

    from rich.console import Console

    terminal = sys.stdout.isatty() and not environ.get("NO_COLOR")
    screen = Console(
        markup=False,
        highlight=False,
        emoji=False,
        color_system="standard" if terminal else None,
        force_terminal=terminal,
    )
    screen.width = min(screen.width, WIDEST)
    with screen.capture() as told:
        write(screen)
    return "\n".join(line.rstrip() for line in told.get().splitlines()) + "\n"


def prose_of(help: str | None) -> list[str]:
    """The paragraphs of a page before its examples, each as one line."""
    text = cleandoc(help or "").split("\nExamples:\n")[0]
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def examples_of(help: str | None) -> list[Example]:
    """The examples of a page, each line with what was said above it."""
    found, said = [], ""
    _, _, block = cleandoc(help or "").partition("\nExamples:\n")
    for line in block.replace("\\\n", " ").splitlines():
        if line.strip().startswith("#"):
            said = line.strip("# ")
        elif line.strip():
            found.append(Example(said, " ".join(line.split())))
    return found


def broken(line: str, width: int) -> list[str]:
    """A line to type in pieces of a width, each but the last with what goes on to the next."""
    import shlex

    pieces = [""]
    lexer = shlex.shlex(line, posix=False, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    for word in lexer:
        if len(pieces[-1]) + len(word) + 3 > width and pieces[-1].strip():
            pieces[-1] += " \\"
            pieces.append("    " + word)
        else:
            pieces[-1] = (
                f"{pieces[-1]} {word}".strip() if pieces == [""] else f"{pieces[-1]} {word}"
            )
    return pieces


def panel_of(command: Any, param: Any) -> str:
    """The panel that an option stands in."""
    if param.rich_help_panel:
        return str(param.rich_help_panel)
    writes = any(one.name == "format" for one in command.params)
    known = (panel for panel, names in PANELS.items() if param.name in names)
    return next(known, MEASURED if writes else OPTIONS)


def codes_of(command: Any) -> str:
    """What a command leaves with."""
    names = {param.name for param in command.params}
    found = dict(CODES)
    if "fail_on" not in names:
        del found[1]
    if command.name == "doctor":
        found[2] = "a gate failed, or something is to be mended in the call or its input"
    if "report_to" in names:
        found[2] += ", or a tracker was not told"
    if "resume" in names:
        found[130] = "interrupted: go on with --resume"
    return "; ".join(f"{code} {what}" for code, what in found.items()) + "."


def _command(screen: "Console", command: Command, ctx: Any) -> None:
    _opening(screen, command, ctx)
    params = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    arguments = [param for param in params if isinstance(param, TyperArgument)]
    options = [param for param in params if not isinstance(param, TyperArgument)]
    if arguments:
        _listed(screen, "Arguments", [(_argument(one), _told(one, ctx)) for one in arguments])
    panels = dict.fromkeys((SHOWN, MEASURED, OPTIONS, MODELS, OUTPUT))
    by_panel: dict[str, list[Any]] = {panel: [] for panel in panels}
    for option in options:
        where = OUTPUT if option.name == "help" else panel_of(command, option)
        by_panel.setdefault(where, []).append(option)
    for panel, held in by_panel.items():
        if held:
            _listed(screen, panel, [(_option(one), _told(one, ctx)) for one in held])
    _headed(screen, "Exit codes")
    _paragraph(screen, codes_of(command), "  ")


def _group(screen: "Console", group: Group, ctx: Any) -> None:
    _opening(screen, group, ctx)
    panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in COMMANDS}
    for name in group.list_commands(ctx):
        command: Any = group.get_command(ctx, name)
        first = command.short_help or " ".join(prose_of(command.help)[:1])
        panels.setdefault(command.rich_help_panel or "Commands", []).append((name, first))
    for panel, commands in panels.items():
        if commands:
            _listed(screen, panel, commands)
    options = [param for param in group.get_params(ctx) if not getattr(param, "hidden", False)]
    _listed(screen, OPTIONS, [(_option(one), _told(one, ctx)) for one in options])
    screen.print()
    path = ctx.command_path
    _paragraph(screen, f"Type {path} COMMAND --help for its examples and its options.", "")


def _opening(screen: "Console", command: Any, ctx: Any) -> None:
    """What is typed, what it does, and examples of it."""
    from rich.text import Text

    _paragraph(screen, f"Usage: {ctx.command_path} {' '.join(_pieces(command, ctx))}", "", "dim")
    for number, paragraph in enumerate(prose_of(command.help)):
        screen.print()
        _paragraph(screen, paragraph, "", "" if number else "bold")
    if examples := examples_of(command.help):
        _headed(screen, "Examples")
        for what, line in examples:
            if what:
                _paragraph(screen, f"# {what}", "  ", "dim")
            for piece in broken(line, screen.width - 2):
                screen.print(Text(f"  {piece}", "cyan", no_wrap=True, overflow="ignore"))


def _pieces(command: Any, ctx: Any) -> Iterator[str]:
    for param in command.params:
        if isinstance(param, TyperArgument):
            yield _argument(param)
        elif param.required:
            yield f"{param.opts[0]} {_metavar(param)}"
    yield "[OPTIONS]"
    if isinstance(command, TyperGroup):
        yield command.subcommand_metavar


def _headed(screen: "Console", title: str) -> None:
    from rich.text import Text

    screen.print()
    screen.print(Text(title, "bold yellow"))


def _listed(screen: "Console", title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Names on the left, and what they are on the right."""
    from rich.text import Text

    _headed(screen, title)
    fitting = [len(name) for name, _ in rows if len(name) <= LEFT]
    left = max(fitting, default=LEFT) + 4
    for name, told in rows:
        lines = Text(told).wrap(screen, screen.width - left) if told else [Text("")]
        head = f"  {name}"
        if len(head) + 2 > left:
            screen.print(Text(head, "green"))
            head = ""
        for line in lines:
            gap = " " * (left - len(head))
            screen.print(Text.assemble((head, "green"), gap, line), no_wrap=True, overflow="ignore")
            head = ""


def _paragraph(screen: "Console", text: str, indent: str, style: str = "") -> None:
    from rich.text import Text

    for line in Text(text, style).wrap(screen, screen.width - len(indent)):
        screen.print(Text.assemble(indent, line), no_wrap=True, overflow="ignore")


def _argument(param: Any) -> str:
    name = param.metavar or param.name.upper()
    if name.startswith("[") or param.required:
        return name
    return f"[{name}]"


def _option(param: Any) -> str:
    names = [*sorted(param.opts, key=len), *param.secondary_opts]
    metavar = "" if param.is_flag or param.count else f" {_metavar(param)}"
    return f"{', '.join(names)}{metavar}"


def _metavar(param: Any) -> str:
    """What stands for an option's value."""
    if param.metavar:
        return str(param.metavar)
    if param.name in METAVARS:
        return METAVARS[param.name]
    kinds = {int: "N", float: "X", Path: "PATH"}
    annotation: Any = getattr(getattr(param, "type_descriptor", None), "annotation", str)
    inner = (*getattr(annotation, "__args__", ()), annotation)
    return next((kinds[one] for one in inner if one in kinds), "TEXT")


def _told(param: Any, ctx: Any) -> str:
    """What a parameter is, its range, and what goes without saying."""
    said = [" ".join((param.help or "").split())]
    if getattr(param, "multiple", False) and "again" not in said[0]:
        said.append("May be given again.")
    least, most = getattr(param, "min", None), getattr(param, "max", None)
    bounds = [f"from {least:g}" if least is not None else "", f"to {most:g}" if most else ""]
    # A bound that no one would reach is not worth a word.
    bounds = [bounds[0], bounds[1] if most is not None and most < 2**31 else ""]
    if (least or (most is not None and most < 2**31)) and any(bounds):
        said.append(f"[{' '.join(filter(None, bounds))}]")
    default = param.get_default(ctx, call=False)
    if isinstance(param, TyperOption) and param.required:
        said.append("[required]")
    elif isinstance(default, bool):
        if param.secondary_opts and default is not None:
            said.append(f"[default: {(param.opts if default else param.secondary_opts)[0]}]")
    elif default not in (None, "", (), []) and param.show_default:
        said.append(f"[default: {default}]")
    return " ".join(filter(None, said))
