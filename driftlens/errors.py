"""The errors that a caller can mend, each in three parts."""

from typing import Self


class DriftlensError(ValueError):
    """Something the caller can put right.

    Its three parts are asked for by name, so that no message leaves one out.

    Args:
        expected: What was needed, in the caller's words.
        found: What was there instead.
        remedy: What to type next.
    """

    exit_code = 2
    """What the command line leaves with."""

    def __init__(self, expected: str, *, found: str, remedy: str) -> None:
        super().__init__(f"expected {expected}, found {found}. {remedy}")
        self.found = found
        self.parts = expected, found, remedy

    def at(self, where: str) -> Self:
        """The same, and where it was found."""
        expected, found, remedy = self.parts
        same = type(self)(f"{expected} {where}", found=found, remedy=remedy)
        same.exit_code = self.exit_code
        return same


class LoadError(DriftlensError):
    """A model or a file that could not be loaded."""

    exit_code = 3
