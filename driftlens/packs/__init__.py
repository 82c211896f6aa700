"""Packs: what is shown to the two models, as plain text. No model, no tokenizer.

A pack is a folder with a `card.toml` (kind, source, licence, how made, sha256) and an
`examples.jsonl`. A file of the caller's own text is a pack too: see `Pack.read`.
"""

from .contrast import FEWEST, MARK, MARKER, VERDICT, Form, contrasts, forms_of, marked, negated
from .example import ANSWERS, REPLIES, ROLES, SIDES, TWINS, Example
from .pack import (
    KINDS,
    LAYOUTS,
    STANDARD,
    Pack,
    checked,
    names,
    shipped,
)
from .prompt import RULES
from .rows import Row, named, number, share, string, table, wrong
from .twins import Twins, between

__all__ = [
    "ANSWERS",
    "FEWEST",
    "KINDS",
    "LAYOUTS",
    "MARK",
    "MARKER",
    "REPLIES",
    "ROLES",
    "RULES",
    "SIDES",
    "STANDARD",
    "TWINS",
    "VERDICT",
    "Example",
    "Form",
    "Pack",
    "Row",
    "Twins",
    "between",
    "checked",
    "contrasts",
    "forms_of",
    "marked",
    "named",
    "names",
    "negated",
    "number",
    "share",
    "shipped",
    "string",
    "table",
    "wrong",
]
