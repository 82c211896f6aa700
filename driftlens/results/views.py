"""Texts whose tokens are coloured by a value; what they look like is the page's affair."""

from collections.abc import Sequence
from typing import NamedTuple


class TokenView(NamedTuple):
    """A token as a reader sees it."""

    text: str
    value: float
    """Signed, in nats: above 0 the aligned model is worse, NaN where nothing is known."""

    title: str = ""
    """What is told of the token when asked: base and aligned probability and rank."""


class DocumentView(NamedTuple):
    """A document, or a stretch of one."""

    label: str
    tokens: Sequence[TokenView]


class TextView(NamedTuple):
    """Documents shown under one heading."""

    title: str
    documents: Sequence[DocumentView]
