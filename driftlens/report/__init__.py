"""From results to a page and its files. It knows results, and no diagnostic."""

from .report import Report, render, schema

__all__ = ["Report", "render", "schema"]
