"""What TAB offers: names that are known without a model library, and at once."""

import ast
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent.parent
"""The package, whose sources name what it knows."""

COMPLETE = "_DRIFTLENS_COMPLETE"
"""The variable in which a shell says how it wants to be answered."""


class Offer(NamedTuple):
    """A word that is offered, with what the classes of every shell ask of it."""

    value: str
    type: str = "plain"
    help: str | None = None


def attach(command: Any) -> None:
    """Let the parameters of a command be completed."""
    for param in command.params:
        offer = _offer(command, param)
        if offer is None:
            continue

        def complete(ctx: Any, incomplete: str, offer: Any = offer) -> list[Any]:
            return [Offer(name) for name in offer(incomplete)]

        param.shell_complete = complete


def _offer(command: Any, param: Any) -> "Callable[[str], list[str]] | None":
    callback = getattr(command, "callback", None)
    where = str(getattr(callback, "__module__", "")).rpartition(".")[2]
    names = OFFERED.get(f"{where}.{param.name}") or OFFERED.get(param.name)
    if names is None:
        return None

    def offer(incomplete: str) -> list[str]:
        return [name for name in names(incomplete) if name.startswith(incomplete)]

    return offer


# Names in the sources


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse((HERE / module).read_text(encoding="utf-8"))


def constant(module: str, name: str) -> list[str]:
    """The strings of a tuple, or the keys of a mapping, that a module gives a name to."""
    for node in _parsed(module).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value: Any = node.value  # type: ignore[attr-defined]
            held = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
            return [str(one.value) for one in held if isinstance(one, ast.Constant)]
    return []


def losses() -> list[str]:
    """The names of the preference losses."""
    return [
        name
        for node in _parsed("formulas/preferences.py").body
        if isinstance(node, ast.ClassDef)
        for name in _assigned(node, "name")
    ]


def _assigned(node: ast.ClassDef, name: str) -> list[str]:
    return [
        str(one.value.value)
        for one in node.body
        if isinstance(one, ast.Assign)
        and isinstance(one.value, ast.Constant)
        and any(isinstance(target, ast.Name) and target.id == name for target in one.targets)
    ]


def figures() -> list[str]:
    """Every value of every kind of result, as `kind.name`."""
    classes = dict(_classes())
    return sorted(
        f"{kind}.{name}"
        for node in classes.values()
        for kind in _assigned(node, "kind")
        for name in _values(node, classes)
        if kind
    )


def _classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for file in (*sorted((HERE / "diagnostics").glob("*.py")), *SOURCES):
        source = file.read_text(encoding="utf-8")
        # Most of the time goes into parsing, and most modules declare nothing.
        if " = value(" in source or "Result):" in source or "(Divided)" in source:
            for node in ast.parse(source).body:
                if isinstance(node, ast.ClassDef):
                    yield node.name, node


SOURCES = (
    HERE / "doctor.py",
    HERE / "series.py",
    HERE / "comparison.py",
    HERE / "results/divided.py",
)
"""Where results are declared besides the diagnostics."""


def _values(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Iterator[str]:
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            yield from _values(classes[base.id], classes)
    for one in node.body:
        if not (isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)):
            continue
        if isinstance(one.value, ast.Call) and getattr(one.value.func, "id", "") == "value":
            yield one.target.id


# Names on the disk


def packs() -> list[str]:
    """The shipped packs."""
    from driftlens.packs import names

    return names()


def models(incomplete: str) -> list[str]:
    """The demo's stages, and folders that hold a model; a shell offers other folders itself."""
    from driftlens.demo import STAGES

    return [*(f"demo:{stage}" for stage in STAGES), *_holding(incomplete, MODEL)]


def reports(incomplete: str) -> list[str]:
    """Folders that hold a finished report."""
    return _holding(incomplete, ("results.json",))


MODEL = ("config.json", "adapter_config.json")


def _holding(incomplete: str, files: Iterable[str]) -> list[str]:
    """Folders that hold one of some files: where the word leads, and in `reports` there."""
    above = incomplete[: incomplete.rfind("/") + 1]
    found = []
    for place in (above, f"{above}reports/"):
        root = Path(place or ".")
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if any((folder / file).is_file() for file in files):
                found.append(f"{place}{folder.name}")
    return found


def _listed(names: Iterable[str]) -> Callable[[str], list[str]]:
    """The next of some names with commas between them."""

    def offer(incomplete: str) -> list[str]:
        done = incomplete[: incomplete.rfind(",") + 1]
        given = done.split(",")
        return [f"{done}{name}" for name in names if name not in given]

    return offer


def _these(*names: str) -> Callable[[str], list[str]]:
    return lambda incomplete: list(names)


def _constant(module: str, name: str) -> Callable[[str], list[str]]:
    return lambda incomplete: constant(module, name)


def _packs(incomplete: str) -> list[str]:
    return packs()


TRACKERS = ("integrations/trackers.py", "TRACKERS")

OFFERED: dict[str, Callable[[str], list[str]]] = {
    **dict.fromkeys(("base", "aligned", "later", "model", "models", "reference"), models),
    **dict.fromkeys(("folder", "folders"), reports),
    "steer.folder": lambda incomplete: _holding(incomplete, ("directions.safetensors",)),
    "probe.folder": lambda incomplete: _holding(incomplete, ("probe.safetensors",)),
    **dict.fromkeys(
        ("pack", "contrast", "capability", "alignment", "behaviour", "protect"), _packs
    ),
    "preferences": _these("demo:pairs"),
    "device": _these("auto", "cpu", "cuda", "mps"),
    "device_map": _these("auto", "balanced", "sequential"),
    "dtype": _these("auto", "float32", "bfloat16", "float16"),
    "plan.dtype": _these("auto", "float32", "bfloat16", "float16", "int8", "int4"),
    "dtype_store": _these("as-is", "float32", "bfloat16", "float16"),
    "attn_implementation": _these("sdpa", "eager", "flash_attention_2"),
    "backend": _constant("models/backends.py", "BACKENDS"),
    "format": _listed(("html", "json", "parquet", "figures")),
    "report_to": _constant(*TRACKERS),
    "to": _constant(*TRACKERS),
    "fail_on": lambda incomplete: figures(),
    "method": _constant("attribution.py", "METHODS"),
    "mitigate.method": _constant("mitigation/asked.py", "METHODS"),
    "steer.method": _constant("diagnostics/directions.py", "METHODS"),
    "probe.method": _constant("probe/asked.py", "METHODS"),
    "by": _these("layer", "component", "head", "module"),
    "loss": lambda incomplete: losses(),
    "at": _these("auto", "last", "answer", "response"),
    "part": _these("out", "attn", "mlp"),
    "parts": _listed(("out", "attn", "mlp")),
    "positions": _these("all", "prompt", "response", "last"),
    "capture.positions": _constant("activations/plan.py", "POSITIONS"),
    "mode": _these("add", "ablate", "clamp", "project"),
    "probe.mode": _constant("estimators/polarity.py", "MODES"),
    "normalize": _these("auto", "scale", "mean", "standard", "median", "none"),
    "preference": _these("accuracy", "margin"),
}
"""What is offered for a parameter by its name, with that of its module where they differ."""


# bash, which takes demo:base for three words


def answer_bash(run: Callable[[], None]) -> None:
    """Complete for bash, which breaks words at colons and puts back what follows the last."""
    from contextlib import redirect_stdout
    from io import StringIO

    words, at = joined(os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"]))
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(words), str(at)
    incomplete = words[at] if at < len(words) else ""
    before = incomplete[: incomplete.rfind(":") + 1]
    told = StringIO()
    try:
        with redirect_stdout(told):
            run()
    finally:
        for line in told.getvalue().splitlines():
            sys.stdout.write(line.removeprefix(before) + "\n")


def joined(words: list[str], at: int) -> tuple[list[str], int]:
    """Words that were broken at colons and signs of equality as they were typed, and the place."""
    found: list[str] = []
    place, glued = at, False
    for number, word in enumerate(words):
        breaks = bool(word) and set(word) <= {":", "="}
        if (breaks or (glued and word)) and number > 1:
            found[-1] += word
        else:
            found.append(word)
        if number == at:
            place = len(found) - 1
        glued = breaks
    return found, place
