"""Texts whose tokens are coloured by a value; what they look like is the page's affair."""

from collections.abc import Sequence
from typing import NamedTuple


class TokenView(NamedTuple):
    """A token as a reader sees it."""

    text: str
    value: float
    """Signed, in nats; NaN where nothing is known. The view says what its sign means."""

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

    above: str = "aligned is worse"
    """What a value above 0 says."""

    below: str = "aligned is better"
    """What one below 0 says; empty where there is none."""
