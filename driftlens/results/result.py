"""A result declares its numbers and units once; its table, its record and its label follow."""

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from driftlens.errors import DriftlensError

from .numbers import Estimate, shown
from .views import TextView

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def value(unit: str, **options: Any) -> Any:
    """A field that is a headline figure: an `Estimate`, or a number that becomes one."""
    return field(metadata={"role": "value", "unit": unit}, **options)


def column(unit: str = "", *, named: str = "", **options: Any) -> Any:
    """A field that is a column of the table: [row] numbers, truths or strings.

    Where a value has the name that the column needs, the column is `named` so in the table.
    """
    return field(metadata={"role": "column", "unit": unit, "named": named}, **options)


def fact(unit: str = "", **options: Any) -> Any:
    """A field that describes the run: a count, a number, a string, or a tuple of them."""
    return field(metadata={"role": "fact", "unit": unit}, **options)


@dataclass(frozen=True)
class Check:
    """A gate that a pair of models passed or not, before any number was believed."""

    name: str
    status: Literal["pass", "warn", "fail", "skip"]
    detail: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _text(self.name))
        object.__setattr__(self, "detail", _text(self.detail))

    def __str__(self) -> str:
        return f"{self.status:4}  {self.name}: {self.detail}"


@dataclass(frozen=True)
class Result:
    """What a metric found. Subclasses declare fields; the rest is here.

    A subclass that names its `kind` can be written, and read back by that name.

    Example:
        >>> @dataclass(frozen=True)
        ... class Growth(Result):
        ...     kind = "growth"
        ...     title = "Growth"
        ...     rise: Estimate = value("m")
        ...     year: np.ndarray = column()
        ...     height: np.ndarray = column("m")
        >>> growth = Growth(Estimate(0.1, 0.08, 0.12), year=[1, 2], height=[0.8, 0.9])
        >>> growth.summary()
        'Rise 0.100 ± 0.020 m.'
        >>> growth.label("height")
        'height [m]'
    """

    kind: ClassVar[str] = ""
    title: ClassVar[str] = ""
    over: ClassVar[str] = "What alignment cost, in nats"
    """What stands above the title of a page that opens with it."""

    how: ClassVar[str] = ""
    """How it was measured: paragraphs of plain text, with the formula and its source."""

    adds: ClassVar[tuple[str, ...]] = ()
    """Values that are what aligned has of something less what base has of it on the same tokens:
    those of one stage of training after another add up to those of the whole. Of the first, more
    is worse."""

    levels: ClassVar[Mapping[str, str]] = {}
    """What `base_…` and `aligned_…` values say of either model alone, by name, with the value
    that is their difference, or nothing."""

    sided: ClassVar[tuple[str, ...]] = ()
    """Values that speak of the one model that the fact `model` names."""

    layered: ClassVar[str] = ""
    """The column from which `of_layers` tells what each layer has."""

    divides: ClassVar[bool] = False
    """Whether what `of_layers` tells adds up, over the layers, to the rise in loss."""

    opened: ClassVar[bool] = False
    """Whether its table stands open on the page."""

    unsaid: ClassVar[tuple[str, ...]] = ()
    """Facts that the page has no need to list."""

    pack: str = field(default="", kw_only=True)
    """Name of the pack it was measured on."""

    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """What a reader must know: samples drawn, numbers that are undefined, things left out."""

    floor: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    """Size below which a value or a column, by name, cannot be told from noise."""

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """The result of whatever its fields can be made of: numbers, lists and arrays."""
        return cls(**fields)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            # Dataclasses give each class one of its own, which would print whole arrays.
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]
        if "kind" in vars(cls):
            _register(cls)

    def __post_init__(self) -> None:
        for name in self._names("value"):
            self._set(name, _estimate(getattr(self, name)))
        for name in self._names("column"):
            self._set(name, _column(name, getattr(self, name)))
        for name in self._names("fact"):
            self._set(name, _plain(getattr(self, name)))
        self._set("pack", _text(self.pack))
        self._set("notes", tuple(map(_text, self.notes)))
        self._set("floor", {name: float(size) for name, size in self.floor.items()})
        self._check_lengths()
        self._check_names()

    def values(self) -> dict[str, dict[str, Any]]:
        """Values, and facts that are numbers, with unit and bounds, ready for JSON.

        What is not finite is None; if it is infinite, `infinite` says which way.
        """
        facts = {name: getattr(self, name) for name in self._names("fact")}
        numbers = {name: Estimate(what) for name, what in facts.items() if _is_number(what)}
        return {
            name: self._entry(name, estimate)
            for name, estimate in (self.estimates() | numbers).items()
        }

    def table(self) -> "DataFrame":
        """The columns, in the order in which they are declared."""
        from pandas import DataFrame

        return DataFrame(self.columns())

    def estimates(self) -> dict[str, Estimate]:
        """The headline figures, by name."""
        return {name: getattr(self, name) for name in self._names("value")}

    def columns(self) -> dict[str, np.ndarray]:
        """[row] array by name of column."""
        return {_named(f): getattr(self, f.name) for f in self._columns()}

    def rows(self) -> int:
        """How many rows the table has."""
        return max(map(len, self.columns().values()), default=0)

    def units(self) -> dict[str, str]:
        """Unit by name of column."""
        return {_named(f): f.metadata["unit"] for f in self._columns()}

    def figure(self) -> "Figure | None":
        """The picture of it, if one says more than the table."""
        return None

    def alt(self) -> str:
        """What the figure shows, for someone who cannot see it."""
        measured = [name for name, rows in self.columns().items() if rows.dtype.kind == "f"]
        ranges = "; ".join(self._range(name) for name in measured[:3])
        return f"{self.summary()} {ranges[0].upper()}{ranges[1:]}." if ranges else self.summary()

    def summary(self) -> str:
        """One sentence with its number, its unit and its error."""
        for name, estimate in self.estimates().items():
            words = name.replace("_", " ").capitalize()
            return f"{words} {estimate} {self.unit(name)}".rstrip() + "."
        return f"{self.title}."

    def headline(self) -> str:
        """A fragment of the page's first sentence, or nothing."""
        return ""

    def of_layers(self) -> Mapping[str, Estimate]:
        """What each layer has, by `embed`, number of the block, or `head`; nothing by default."""
        return {}

    def views(self) -> Sequence[TextView]:
        """Texts with their tokens coloured by a value."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """All but the columns, ready for JSON; whoever writes the table names its file."""
        facts = {name: getattr(self, name) for name in self._names("fact")}
        return {
            "kind": self.kind,
            "pack": self.pack,
            "title": self.title,
            "summary": self.summary(),
            "values": self.values(),
            "facts": {name: what for name, what in facts.items() if not _is_number(what)},
            "table": None,
            "columns": self.units(),
            "notes": list(self.notes),
            "floor": {name: _finite(size) for name, size in self.floor.items()},
        }

    @staticmethod
    def rebuild(record: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> "Result":
        """The result that gave `record`, from it and the columns of its table."""
        kind = record.get("kind")
        if kind not in _KINDS:
            raise DriftlensError(
                "a result of a known kind",
                found=f"kind {kind!r} among {', '.join(sorted(_KINDS)) or 'none'}",
                remedy="Import the module that defines it, or install the version that wrote it.",
            )
        return _rebuilt(_KINDS[kind], record, columns)

    def unit(self, name: str) -> str:
        """The unit of a value, a column or a fact."""
        return type(self).__dataclass_fields__[name].metadata["unit"]

    def label(self, name: str) -> str:
        """A field's name and unit, as an axis of a figure shows them."""
        units = self.units()
        words = " ".join(SPELT.get(word, word) for word in name.split("_"))
        unit = units[name] if name in units else self.unit(name)
        return f"{words} [{unit}]" if unit else words

    def above_floor(self, name: str) -> Any:
        """Whether a value, or [row] each number of a column, is larger than its noise floor."""
        what = getattr(self, name)
        size = self.floor.get(name, -np.inf)
        if isinstance(what, Estimate):
            return bool(abs(what.value) > size)
        return np.abs(what) > size if isinstance(what, np.ndarray) else bool(abs(what) > size)

    def __repr__(self) -> str:
        on = f" on {self.pack}" if self.pack else ""
        return f"<{type(self).__name__}{on}: {self.summary()}>"

    def _repr_html_(self) -> str:
        from .markup import cell

        return cell(self)

    def _names(self, role: str) -> list[str]:
        return [f.name for f in fields(self) if f.metadata.get("role") == role]

    def _columns(self) -> list[Field]:
        return [f for f in fields(self) if f.metadata.get("role") == "column"]

    def _range(self, name: str) -> str:
        rows = self.columns()[name]
        rows = rows[np.isfinite(rows)]
        if not len(rows):
            return f"{self.label(name)} undefined"
        return f"{self.label(name)} from {shown(float(rows.min()))} to {shown(float(rows.max()))}"

    def _set(self, name: str, what: Any) -> None:
        object.__setattr__(self, name, what)

    def _entry(self, name: str, estimate: Estimate) -> dict[str, Any]:
        numbers = estimate._asdict()
        entry: dict[str, Any] = {"unit": self.unit(name)}
        entry |= {part: _finite(number) for part, number in numbers.items()}
        if infinite := {part: str(n) for part, n in numbers.items() if abs(n) == np.inf}:
            entry["infinite"] = infinite
        if name in self.floor:
            entry["floor"] = _finite(self.floor[name])
        return entry

    def _check_lengths(self) -> None:
        lengths = {name: len(rows) for name, rows in self.columns().items()}
        if len(set(lengths.values())) > 1:
            raise DriftlensError(
                f"columns of one length in {type(self).__name__}",
                found=", ".join(f"{name} of {length}" for name, length in lengths.items()),
                remedy="Give every column a number for each row; NaN where there is none.",
            )

    def _check_names(self) -> None:
        known = {f.name for f in fields(self) if f.metadata.get("role")}
        own = {f.name for f in fields(self)} - {f.name for f in fields(Result)}
        if strangers := (set(self.floor) | own) - known:
            raise DriftlensError(
                f"values, columns and facts in {type(self).__name__} and its floor",
                found=", ".join(sorted(strangers)),
                remedy="Declare fields with value(), column() or fact(); name floors after them.",
            )


SPELT = {"l2": "L2", "procrustes": "Procrustes", "platt": "Platt"} | {
    name: name.upper() for name in ("cka", "kl", "ece", "auroc", "esa", "pc", "ci", "crc", "nll")
}
"""How words of a field's name are written that are a name or an abbreviation."""

_KINDS: dict[str, type[Result]] = {}


def kinds() -> dict[str, type[Result]]:
    """Every kind of result that has been imported, by name."""
    return dict(_KINDS)


def same(a: Result, b: Result) -> bool:
    """Whether two results are of one kind and hold the same, NaN being equal to NaN."""
    if type(a) is not type(b):
        return False
    left, right = a.columns(), b.columns()
    return _comparable(a) == _comparable(b) and all(
        left[name].dtype == right[name].dtype and _same_rows(left[name], right[name])
        for name in left
    )


def _register(cls: type[Result]) -> None:
    other = _KINDS.get(cls.kind, cls)
    if other.__module__ != cls.__module__:
        raise DriftlensError(
            "one class for each kind of result",
            found=f"{cls.kind!r} in {other.__module__} and in {cls.__module__}",
            remedy="Give one of them another kind.",
        )
    _KINDS[cls.kind] = cls


def _rebuilt(cls: type[Result], record: Mapping[str, Any], columns: Mapping[str, Any]) -> Result:
    stores = {"value": record["values"], "fact": record["facts"] | record["values"]}
    given: dict[str, Any] = {name: record[name] for name in ("pack", "notes")}
    given["floor"] = {name: _number(size) for name, size in record["floor"].items()}
    for f in fields(cls):
        if not (role := f.metadata.get("role")):
            continue
        store, name = stores.get(role, columns), _named(f)
        if name not in store:
            raise DriftlensError(
                f"a {role} called {name} in a stored result of kind {cls.kind}",
                found=", ".join(store) or "none",
                remedy="Measure again, or install the version that wrote it.",
            )
        given[f.name] = _read(store[name])
    return cls(**given)


def _named(f: Field) -> str:
    """What the table calls a column, and everyone any other field."""
    return f.metadata.get("named") or f.name


def _read(stored: Any) -> Any:
    """A field's content from its entry: an estimate, a number, a fact or a column."""
    if not (isinstance(stored, Mapping) and "unit" in stored):
        return stored
    infinite = stored.get("infinite", {})
    parts = {part: infinite.get(part, stored[part]) for part in Estimate._fields}
    number = parts["value"] if isinstance(parts["value"], int) else _number(parts["value"])
    return Estimate(number, _number(parts["low"]), _number(parts["high"]))


def _number(stored: float | str | None) -> float:
    return nan if stored is None else float(stored)


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None


def _is_number(what: Any) -> bool:
    return isinstance(what, int | float) and not isinstance(what, bool)


def _estimate(what: Any) -> Estimate:
    return Estimate(*map(float, what)) if isinstance(what, tuple) else Estimate(float(what))


def _text(text: Any) -> str:
    """The text with lone surrogates spelt out, for no file can hold them."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(what: Any) -> Any:
    """A fact as plain Python, so that JSON gives back what it was given."""
    if isinstance(what, Estimate):
        return what.value
    if isinstance(what, np.generic | np.ndarray):
        what = what.tolist()
    if isinstance(what, list | tuple):
        return tuple(map(_plain, what))
    return what if isinstance(what, bool | int | float | None) else _text(what)


def _column(name: str, rows: Any) -> np.ndarray:
    """[row] a copy that cannot be written to; strings as objects."""
    # Fixed-width numpy strings drop trailing NULs, and a token may be one.
    if not isinstance(rows, np.ndarray) and any(isinstance(row, str) for row in rows):
        rows = np.array([*rows, None], dtype=object)[:-1]
    array = np.array(rows)
    if array.dtype.kind in "UO":
        texts = [None if row is None else _text(row) for row in array.ravel()]
        array = np.array([*texts, None], dtype=object)[:-1].reshape(array.shape)
    if array.ndim != 1 or array.dtype.kind not in "biufO":
        raise DriftlensError(
            f"one number, truth or string for each row of {name}",
            found=f"an array of shape {array.shape} and type {array.dtype}",
            remedy="Give a row for each point, and its coordinates as columns of their own.",
        )
    array.flags.writeable = False
    return array


def _comparable(result: Result) -> str:
    """All but the columns, as a text in which NaN equals NaN."""
    rest = dict.fromkeys(f.name for f in result._columns())
    return repr({f.name: getattr(result, f.name) for f in fields(result)} | rest)


def _same_rows(left: np.ndarray, right: np.ndarray) -> bool:
    return np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
