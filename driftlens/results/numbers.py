"""A number with its interval, and how a number is written for a reader."""

from math import floor, inf, isfinite, isnan, log10, nan
from typing import NamedTuple


class Estimate(NamedTuple):
    """A number with its interval; bounds that are not known are NaN.

    Example:
        >>> print(Estimate(0.4213, 0.3893, 0.4533))
        0.421 ± 0.032
        >>> print(Estimate(0.4213, 0.4, 0.6))
        0.42 [0.40, 0.60]
    """

    value: float
    low: float = nan
    high: float = nan

    @property
    def error(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        """The number and its interval, cut to the digits that the interval leaves standing."""
        if not (isfinite(self.value) and isfinite(self.error) and self.error > 0):
            return shown(self.value)
        places = _places(self.error, 2)
        number = _fixed(self.value, places)
        lopsided = abs(self.high + self.low - 2 * self.value) > 0.3 * self.error
        if lopsided:
            return f"{number} [{_fixed(self.low, places)}, {_fixed(self.high, places)}]"
        return f"{number} ± {_fixed(self.error, places)}"


def shown(number: float, digits: int = 4) -> str:
    """A number to so many significant digits, with a true minus; counts in full.

    Example:
        >>> shown(-0.0123456), shown(1234567), shown(float("nan"))
        ('−0.01235', '1\u202f234\u202f567', 'undefined')
    """
    if isinstance(number, int):
        return _fixed(number, 0)
    if isnan(number):
        return "undefined"
    if number in (inf, -inf):
        return "∞" if number > 0 else "−∞"
    if number and not 1e-4 <= abs(number) < 1e15:
        mantissa, power = f"{number:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa} × 10{str(int(power)).translate(_RAISED)}".replace("-", "−")
    text = _fixed(number, _places(number, digits))
    return text.rstrip("0").rstrip(".") if "." in text else text


def multiple(ratio: float) -> str:
    """How often one number goes into another, to the digits that anyone needs.

    Example:
        >>> multiple(3.14), multiple(4595933.0)
        ('3.1 ×', 'over 1000 ×')
    """
    return f"{shown(ratio, 2)} ×" if ratio <= 1000 else "over 1000 ×"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _places(number: float, digits: int) -> int:
    """Decimal places that show so many significant digits of `number`."""
    return max(0, digits - 1 - floor(log10(abs(number)))) if number else 0


def _fixed(number: float, places: int) -> str:
    text = f"{number:,.{places}f}" if abs(number) >= 1e4 else f"{number:.{places}f}"
    if not text.strip("-0.,"):
        text = text.removeprefix("-")
    return text.replace("-", "−").replace(",", "\u202f")
