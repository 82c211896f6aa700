"""A report: results in order, the gates before them, and the run they came from."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from driftlens.errors import DriftlensError
from driftlens.results import Check, Findings, Result, figures
from driftlens.results.markup import called
from driftlens.results.store import (
    put,
    read_json,
    rebuilt,
    staged,
    understood,
    writable,
    write_columns,
    write_json,
)

from .html import page

SCHEMA_VERSION = "1.0"
FORMATS = ("html", "json", "parquet", "figures")
PAGE, RECORD, TABLES, FIGURES = "index.html", "results.json", "tables", "figures"
SAFE = "safe.jsonl"
"""The examples that a check found nothing against."""

STAGES = "stages"
"""Where the reports of a series' stages lie."""

WRITTEN = frozenset({PAGE, RECORD, TABLES, FIGURES, SAFE, STAGES})
"""Everything that a report's folder may hold."""


@dataclass(frozen=True, repr=False)
class Report(Findings):
    """Results in the order in which they are read; those of the first pack give the verdict."""

    title: str
    results: Sequence[Result]
    checks: Sequence[Check] = ()
    run: Mapping[str, Any] | None = None
    """Where it all came from: command, seed, versions, times, models, packs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", _plain(self.title))
        object.__setattr__(self, "results", tuple(self.results))
        object.__setattr__(self, "checks", tuple(self.checks))
        object.__setattr__(self, "run", _plain(self.run or {}))

    def verdict(self) -> str:
        """The first sentence of the page: the headlines of the first pack, in a row."""
        first = [result for result in self.results if result.pack == self.results[0].pack]
        headlines = [headline.rstrip(". ") for result in first if (headline := result.headline())]
        if headlines:
            sentence = "; ".join(headlines)
            return f"{sentence[0].upper()}{sentence[1:]}."
        return first[0].summary() if first else "Nothing was measured."

    def names(self) -> list[str]:
        """A name for the files of each result, safe on every system and used once."""
        return names_of((result.kind, result.pack) for result in self.results)

    def write(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        formats: Collection[str] = FORMATS,
        safe: Sequence[Mapping[str, Any]] | None = None,
        stages: Mapping[str, "Report"] | None = None,
    ) -> Path:
        """Write the report, whole or not at all; return its page, or its record without one.

        Args:
            folder: Where; nothing may stand there, unless it is a report and `overwrite` is said.
            overwrite: Whether to replace an earlier report.
            formats: Which of html, json, parquet and figures to write.
            safe: Records to write beside it, one a line.
            stages: Reports to write beneath it, by the names of their folders.
        """
        if not formats or not set(formats) <= set(FORMATS):
            raise DriftlensError(
                f"formats among {', '.join(FORMATS)}",
                found=", ".join(formats) or "none",
                remedy="Leave --format out to write them all.",
            )
        with staged(folder, WRITTEN, overwrite=overwrite) as draft:
            if safe is not None:
                lines = (json.dumps(record, ensure_ascii=False, default=str) for record in safe)
                put(draft / SAFE, "".join(f"{line}\n" for line in lines).encode())
            self._fill(draft, formats)
            for name, report in (stages or {}).items():
                (draft / STAGES / name).mkdir(parents=True)
                report._fill(draft / STAGES / name, formats)
        return Path(folder) / (PAGE if "html" in formats else RECORD)

    def _fill(self, draft: Path, formats: Collection[str]) -> None:
        drawings = ["" for _ in self.results]
        if {"html", "figures"} & set(formats):
            drawings = self._draw(draft if "figures" in formats else None)
        tables = self._tables(draft) if "parquet" in formats else [None for _ in self.results]
        if "html" in formats:
            put(draft / PAGE, page(self, self.names(), drawings, tables).encode())
        if "json" in formats:
            drawn = drawings if "figures" in formats else ["" for _ in self.results]
            write_json(self._record(tables, drawn), draft / RECORD)

    @classmethod
    def read(cls, folder: str | Path) -> "Report":
        """The report that was written to `folder`, from its record and its tables alone.

        The modules that define its kinds of results must have been imported.
        """
        return cls._of(read_record(Path(folder)), Path(folder))

    @classmethod
    def _of(cls, record: Mapping[str, Any], folder: Path) -> "Report":
        with understood(folder / RECORD, KeyError, TypeError, AttributeError):
            results = [rebuilt(entry, folder, RECORD) for entry in record["results"]]
            checks = [Check(**check) for check in record["checks"]]
            return cls(record["title"], results, checks, record["run"])

    def _draw(self, folder: Path | None) -> list[str]:
        """[result] its figure as SVG, or nothing; also as files, where there is a folder."""
        return [
            _drawn(result, name, folder)
            for result, name in zip(self.results, self.names(), strict=True)
        ]

    def _tables(self, folder: Path) -> list[str | None]:
        """[result] the file of its table, which is written, or None if it has no columns."""
        (folder / TABLES).mkdir()
        tables = []
        for result, name in zip(self.results, self.names(), strict=True):
            tables.append(f"{TABLES}/{name}.parquet" if result.columns() else None)
            if result.columns():
                write_columns(result, folder / TABLES / f"{name}.parquet")
        return tables

    def _record(self, tables: Sequence[str | None], drawings: Sequence[str]) -> dict[str, Any]:
        """What results.json holds; `schema` describes it."""
        parts = zip(self.results, self.names(), tables, drawings, strict=True)
        return {
            "schema_version": SCHEMA_VERSION,
            "title": self.title,
            "verdict": _plain(self.verdict()),
            "run": self.run,
            "checks": [asdict(check) for check in self.checks],
            "results": [
                _plain(result.to_json())
                | {"table": table, "figure": f"{FIGURES}/{name}.svg" if drawing else None}
                for result, name, table, drawing in parts
            ],
        }


def render(folder: str | Path) -> Path:
    """Draw the page of a written report again, and its figures if it has any; return the page.

    The pages of its stages, if it has any, are drawn again too.
    """
    folder = Path(folder)
    for stage in sorted(folder.glob(f"{STAGES}/*/{RECORD}")):
        render(stage.parent)
    record = read_record(folder)
    report = Report._of(record, folder)
    with writable(folder):
        drawings = report._draw(folder if (folder / FIGURES).is_dir() else None)
        tables = [entry["table"] for entry in record["results"]]
        put(folder / PAGE, page(report, report.names(), drawings, tables).encode())
    return folder / PAGE


def schema() -> dict[str, Any]:
    """The JSON Schema of results.json."""
    return json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))


def names_of(results: Iterable[tuple[str, str]]) -> list[str]:
    """For each kind and pack a name that is safe on every system and used once."""
    names: list[str] = []
    for known in results:
        wanted = "-".join(filter(None, map(_slug, known))) or "result"
        others = (f"{wanted}-{count}" for count in range(2, len(names) + 3))
        names.append(next(name for name in (wanted, *others) if name not in names))
    return names


def read_record(folder: Path) -> dict[str, Any]:
    """What results.json of a report's folder holds, if this version can read it."""
    record = read_json(folder / RECORD)
    version = str(record.get("schema_version"))
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise DriftlensError(
            f"{folder / RECORD} in version {SCHEMA_VERSION} of its schema",
            found=f"version {version}",
            remedy="Write the report again, or install the version of driftlens that wrote it.",
        )
    return record


def _drawn(result: Result, name: str, folder: Path | None) -> str:
    figure = result.figure()
    if figure is None:
        return ""
    drawing = figures.svg(figure, called(result), result.alt(), name=name)
    if folder:
        (folder / FIGURES).mkdir(exist_ok=True)
        put(folder / FIGURES / f"{name}.svg", drawing.encode())
        put(folder / FIGURES / f"{name}.png", figures.png(figure))
    return drawing


def _slug(name: str) -> str:
    """The letters and digits of a name, and nothing that a file system could take amiss."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower())[:60].strip("-")


def _plain(what: Any) -> Any:
    """Anything as plain JSON: what is not finite is None, what is not known is its text."""
    if isinstance(what, Mapping):
        return {_plain(str(name)): _plain(part) for name, part in what.items()}
    if isinstance(what, list | tuple | set):
        return [_plain(part) for part in what]
    if isinstance(what, float):
        return float(what) if isfinite(what) else None
    if isinstance(what, bool | int | None):
        return what
    return str(what).encode("utf-8", "backslashreplace").decode("utf-8")
