"""What was found: numbers with their errors and units, their table and their figure."""

from . import figures
from .divided import Divided
from .found import Findings, Results
from .numbers import Estimate, multiple, shown
from .result import Check, Result, column, fact, kinds, same, value
from .store import load, save
from .views import DocumentView, TextView, TokenView

__all__ = [
    "Check",
    "Divided",
    "DocumentView",
    "Estimate",
    "Findings",
    "Result",
    "Results",
    "TextView",
    "TokenView",
    "column",
    "fact",
    "figures",
    "kinds",
    "load",
    "multiple",
    "same",
    "save",
    "shown",
    "value",
]
