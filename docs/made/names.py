"""Public names, each documented once, by their docstrings."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, get_args

from docutils import nodes
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from .docstrings import escaped, home_of

DOCUMENTED = (
    "driftlens",
    "driftlens.results",
    "driftlens.report",
    "driftlens.packs",
    "driftlens.models",
    "driftlens.activations",
    "driftlens.steer",
    "driftlens.mitigation",
    "driftlens.probe",
    "driftlens.estimators",
    "driftlens.formulas",
    "driftlens.integrations",
)
"""Packages whose public names are documented, each name in the first that has it."""


class Public(NamedTuple):
    """A public name: the module that is to be imported for it, and what it is."""

    module: str
    name: str
    what: Any


def modules(package: str) -> list[str]:
    """The package itself where it says what is public, else its modules."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return [package]
    return [f"{package}.{found.name}" for found in pkgutil.iter_modules(module.__path__)]


def names(module: str) -> list[str]:
    """What a module makes public: what it says, or all it defines without an underscore."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return sorted(found.__all__)
    said = {name for home, name in ModuleAnalyzer.for_module(module).find_attr_docs() if not home}
    own = {name for name, what in vars(found).items() if home_of(what) == module}
    return sorted(name for name in own | said if not name.startswith("_"))


@cache
def public() -> Mapping[str, Public]:
    """Every public name, once, by where it is documented."""
    found: dict[str, Public] = {}
    seen: set[int] = set()
    for module in (module for package in DOCUMENTED for module in modules(package)):
        for name in names(module):
            what = getattr(importlib.import_module(module), name)
            if not inspect.ismodule(what) and not (home_of(what) and id(what) in seen):
                seen.add(id(what))
                found[f"{module}.{name}"] = Public(module, name, what)
    return found


def _is(what: Any, kind: type) -> bool:
    return inspect.isclass(what) and issubclass(what, kind)


def _is_found(what: Any) -> bool:
    """Whether something is a kind of result, which the methods page tells of."""
    from driftlens.results import Result

    return _is(what, Result) and bool(what.kind)


def given(metric: Any) -> list[Any]:
    """The kinds of result that a metric gives: that of which it is one, and those beside it."""
    from driftlens.results import Result

    bases = (base for one in metric.__mro__ for base in getattr(one, "__orig_bases__", ()))
    main = (arg for base in bases for arg in get_args(base) if _is(arg, Result))
    return [*list(main)[:1], *metric.also]


class PublicNames(SphinxDirective):
    """`.. public:: driftlens.packs`: its public names, by their docstrings, in reStructuredText."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A section for each module, or the names of the one."""
        from driftlens.metric import Metric

        (package,) = self.arguments
        lines: list[str] = []
        for module in (homes := modules(package)):
            mine = [public for public in _public_of(module) if not _is_found(public.what)]
            if homes != [package]:
                lines += [module, "-" * len(module), ""]
            lines += ["", f".. automodule:: {module}", "   :no-members:", "   :no-index:", ""]
            tools = [one for one in mine if _is(one.what, Metric) and one.what is not Metric]
            lines += [line for one in mine if one not in tools for line in self._entry(one)]
            if tools:
                lines += ["Instruments", "-----------", ""]
                lines += [line for one in tools for line in self._instrument(one)]
            if elsewhere := self._elsewhere(module):
                lines += ["", f"Also found here: {elsewhere}.", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

    def _entry(self, public: Public) -> Iterator[str]:
        module, name, what = public
        if inspect.isclass(what):
            yield from (f".. autoclass:: {module}.{name}", "   :members:", "")
        elif inspect.isroutine(what):
            yield from (f".. autofunction:: {module}.{name}", "")
        else:
            # The order of a set differs from run to run.
            value = "" if isinstance(what, frozenset) else repr(what)
            yield from (f".. py:currentmodule:: {module}", "", f".. py:data:: {name}")
            if value and len(value) < SHORT and " at 0x" not in value:
                yield f"   :value: {value}"
            yield from ("", *_indented(said(public)), "")

    def _instrument(self, one: Public) -> Iterator[str]:
        """A metric without what every metric has, which is told of once, and what it gives."""
        from driftlens.metric import Metric

        homes = {id(other.what): where for where, other in public().items()}
        found = (homes[id(result)] for result in given(one.what) if id(result) in homes)
        yield from (f".. autoclass:: {one.module}.{one.name}", "   :members:")
        yield f"   :exclude-members: {', '.join(n for n in vars(Metric) if n[0] != '_')}"
        yield from ("", f"   Gives {', '.join(f':py:obj:`~{result}`' for result in found)}.", "")

    def _elsewhere(self, module: str) -> str:
        """Names that the module has, and another has before it."""
        homes = {id(one.what): where for where, one in public().items() if home_of(one.what)}
        found = importlib.import_module(module)
        others = (
            homes.get(id(getattr(found, name)))
            for name in names(module)
            if f"{module}.{name}" not in public()
        )
        return ", ".join(f":py:obj:`{other}`" for other in others if other)


SHORT = 70
"""The longest value of a constant that is shown."""


def _public_of(module: str) -> list[Public]:
    return [one for one in public().values() if one.module == module]


def said(one: Public) -> list[str]:
    """What stands below a constant, in whichever module it was written, its own first."""
    ours = sorted(name for name in sys.modules if name.startswith("driftlens."))
    ours.sort(key=lambda name: not name.startswith(one.module))
    for home in (one.module, *ours):
        lines = ModuleAnalyzer.for_module(home).find_attr_docs().get(("", one.name))
        if lines and getattr(sys.modules[home], one.name) is one.what:
            return escaped(lines)
    return []


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"   {line}" for line in lines]
