"""Results in the order in which they are read, asked for by their kind."""

from collections.abc import Sequence
from typing import Any, SupportsIndex, overload

from driftlens.errors import DriftlensError

from .result import Result


class Results(list[Result]):
    """A list of results, of which each is also found by its kind, or by kind and pack.

    Example:
        >>> from driftlens.results import Results
        >>> Results()["forgetting"]
        Traceback (most recent call last):
        ...
        driftlens.errors.DriftlensError: expected ...
    """

    @overload
    def __getitem__(self, key: SupportsIndex) -> Result: ...
    @overload
    def __getitem__(self, key: slice) -> "Results": ...
    @overload
    def __getitem__(self, key: str | tuple[str, str]) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        """The result at a place, those of a slice, or the one of a kind (and pack).

        Raises:
            DriftlensError: None is of that kind, or several are.
        """
        if isinstance(key, str | tuple):
            return self._named(*((key,) if isinstance(key, str) else key))
        found = super().__getitem__(key)
        return Results(found) if isinstance(key, slice) else found

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "no results"

    def _repr_html_(self) -> str:
        from .markup import listed

        return listed(self)

    def _named(self, kind: str, pack: str | None = None) -> Result:
        found = [one for one in self if one.kind == kind and pack in (None, one.pack)]
        if len(found) == 1:
            return found[0]
        if found:
            raise DriftlensError(
                f"one result of kind {kind!r}",
                found=f"{len(found)}, on {', '.join(one.pack for one in found)}",
                remedy=f"Name the pack too, as [{kind!r}, {found[0].pack!r}].",
            )
        raise DriftlensError(
            f"a result of kind {kind!r}" + (f" on {pack}" if pack else ""),
            found=", ".join(dict.fromkeys(one.kind for one in self)) or "none",
            remedy="Name one of these, or measure what gives it.",
        )


class Findings:
    """What has results, and perhaps checks, and shows a line for each of them."""

    results: Sequence[Result]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self.results)} results>\n{Results(self.results)!r}"

    def _repr_html_(self) -> str:
        from .markup import listed

        return listed(self.results, getattr(self, "checks", ()))
