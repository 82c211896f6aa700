"""What every command says of itself, from the command line's own tree."""

import re
from collections.abc import Iterator
from inspect import cleandoc
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .text import inline, table


class Commands(SphinxDirective):
    """`{commands}`: what every command says of itself, from the command line's own tree."""

    def run(self) -> list[nodes.Node]:
        """A section for each command."""
        from typer.main import get_command

        from driftlens.cli import app

        def below(command: Any, path: str) -> Iterator[tuple[str, Any]]:
            for name, inner in getattr(command, "commands", {}).items():
                yield f"{path} {name}", inner
                yield from below(inner, f"{path} {name}")

        return [self._section(path, one) for path, one in below(get_command(app), "driftlens")]

    def _section(self, path: str, command: Any) -> nodes.section:
        label = nodes.make_id(path)
        section = nodes.section("", nodes.title(path, path), ids=[label])
        context = command.make_context(path, [], resilient_parsing=True)
        usage = " ".join([path, *command.collect_usage_pieces(context)])
        section += nodes.literal_block(usage, usage, language="text", classes=["formula"])
        for paragraph in cleandoc(command.help or "").split("\n\n"):
            flat = " ".join(paragraph.split())
            shell = flat.startswith("driftlens ")
            section += (
                nodes.literal_block(flat, flat, language="sh", classes=["formula"])
                if shell
                else nodes.paragraph("", "", *inline(flat))
            )
        rows = [
            ([nodes.literal("", _called(record[0]))], inline(record[1]))
            for parameter in command.get_params(context)
            if (record := parameter.get_help_record(context))
        ]
        section += table(("Argument or option", "What it is"), rows, (2, 3))
        return section


def _called(usage: str) -> str:
    """A parameter as a reader types it, without Python's word for several."""
    return re.sub(r"<list\[(\w+)\]>", r"<\1> …", usage)
