"""What `results.json` holds, from the schema that it is held to."""

from collections.abc import Iterator, Mapping
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .text import table


class Schema(SphinxDirective):
    """`{schema}`: what `results.json` holds, from the schema that it is held to."""

    def run(self) -> list[nodes.Node]:
        """A section for the file, and one for each part that it is made of."""
        from driftlens.report import schema

        whole = schema()
        parts = {"The file": whole} | {
            f"A {name}": part for name, part in whole["$defs"].items() if "properties" in part
        }
        return [section for name, part in parts.items() for section in self._sections(name, part)]

    def _sections(self, name: str, part: Mapping[str, Any]) -> Iterator[nodes.section]:
        inner = {}
        section = nodes.section("", nodes.title(name, name), ids=[nodes.make_id(f"schema {name}")])
        section += nodes.paragraph("", part["description"])
        rows = []
        for key, what in part["properties"].items():
            below = what.get("items", what)
            if "properties" in below:
                inner[f"{name}: {key}"] = {"description": what.get("description", ""), **below}
            needed = "yes" if key in part.get("required", ()) else "no"
            rows.append(
                (
                    [nodes.literal("", key)],
                    [nodes.Text(_type(what))],
                    [nodes.Text(needed)],
                    [nodes.Text(what.get("description", ""))],
                )
            )
        section += table(("Name", "Type", "Always there", "What it is"), rows, (2, 2, 1, 5))
        yield section
        for name, what in inner.items():
            yield from self._sections(name, what)


def _type(what: Mapping[str, Any]) -> str:
    if "$ref" in what:
        return what["$ref"].rpartition("/")[2]
    if "enum" in what:
        return ", ".join(what["enum"])
    several = what.get("type", "anything")
    said = several if isinstance(several, str) else " or ".join(several)
    within = what.get("items") or what.get("additionalProperties")
    return f"{said} of {_type(within)}" if within else said
