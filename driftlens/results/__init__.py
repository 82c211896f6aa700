"""What was found: numbers with their errors and units, their table and their figure."""

from . import figures
from .divided import Divided
from .numbers import Estimate, multiple, shown
from .result import Check, Result, column, fact, kinds, same, value
from .store import load, save
from .views import DocumentView, TextView, TokenView

__all__ = [
    "Check",
    "Divided",
    "DocumentView",
    "Estimate",
    "Result",
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
