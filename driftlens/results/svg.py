"""A drawing as a page holds it: only what is seen of it, in as few bytes as show the same."""

import re
from collections.abc import Mapping
from itertools import groupby
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

PAGE = {
    "fill": "currentColor",
    "font-family": "system-ui, sans-serif",
    "font-size": "10px",
    "stroke-linecap": "butt",
    "stroke-linejoin": "round",
}
"""What a drawing is drawn with, unless a part of it says otherwise."""

_INHERITED = {
    *PAGE,
    *("fill-opacity", "font-style", "font-weight", "text-anchor"),
    *("stroke", "stroke-opacity", "stroke-width", "stroke-miterlimit"),
    *("stroke-dasharray", "stroke-dashoffset"),
}
"""What parts take from the whole."""

_SHARED = _INHERITED | {"clip-path"}
"""What neighbours can be given together; opacity, given so, would be that of their union."""

_PLACES = {"d", "x", "y", "width", "height", "transform"}
_TARGET = re.compile(r"(?<=url\(#)[^)]+")
_REFERRING = {"href": re.compile(r"(?<=^#).+"), "clip-path": _TARGET, "fill": _TARGET}


def slim(text: str, mark: str) -> Element:
    """The element of a drawing, without what nobody sees.

    Args:
        text: What Matplotlib wrote.
        mark: What its ids begin with, so that those of two drawings on a page do not meet.
    """
    root = ElementTree.fromstring(text)
    for element in root.iter():
        _plain(element)
    _rename(root, mark)
    targets = {element.get("id"): element for element in root.iter() if element.get("id")}
    _leave_unsaid(root, PAGE | {"stroke": "none", "text-anchor": "start"}, targets)
    _leave_out(root)
    _say_once(root)
    root.set("style", "; ".join(f"{name}: {value}" for name, value in PAGE.items()))
    root.set("xmlns", "http://www.w3.org/2000/svg")
    return root


def written(root: Element) -> str:
    """The element as text."""
    return ElementTree.tostring(root, encoding="unicode").replace(" />", "/>")


def _plain(element: Element) -> None:
    """Bare names, styles as attributes, and places to a hundredth of a point."""
    element.tag = _bare(element.tag)
    said = {_bare(name): what for name, what in element.attrib.items()}
    styles = [style.split(":", 1) for style in said.pop("style", "").split(";") if style.strip()]
    named = {name.strip(): what.strip() for name, what in styles}
    # Some properties, as `font`, are no attributes.
    others = [f"{name}: {named.pop(name)}" for name in {*named} - _INHERITED - {"opacity"}]
    said |= named | ({"style": "; ".join(sorted(others))} if others else {})
    if re.match(r"rotate\(-?0[ ,]", said.get("transform", "")):
        del said["transform"]
    element.attrib.clear()
    element.attrib.update({n: _rounded(what) if n in _PLACES else what for n, what in said.items()})
    element.tail = None
    if element.tag != "text":
        element.text = None


def _bare(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _rounded(places: str) -> str:
    places = re.sub(r"-?\d+\.\d+", lambda found: f"{round(float(found[0]), 2) + 0.0:.2f}", places)
    places = re.sub(r"(\.\d*?)0+(?=\D|$)", r"\1", places)
    places = re.sub(r"\.(?=\D|$)", "", places)
    return re.sub(r"\s*\b([MLQCz])\b\s*|\s*\n\s*", r"\1", places).strip()


def _rename(root: Element, mark: str) -> None:
    """Short ids for what is referred to, and none for anything else."""
    names: dict[str, str] = {}

    def short(found: re.Match[str]) -> str:
        return names.setdefault(found[0], f"{mark}-{len(names)}")

    for element in root.iter():
        for name, target in _REFERRING.items():
            if name in element.attrib:
                element.set(name, target.sub(short, element.attrib[name]))
    for element in root.iter():
        if (old := element.attrib.pop("id", None)) in names:
            element.set("id", names[old])


def _leave_unsaid(
    element: Element, around: Mapping[str, str], targets: Mapping[str | None, Element]
) -> None:
    """Take from each part what it would be drawn with anyway."""
    for name in _INHERITED & {*element.attrib}:
        if element.get(name) == around.get(name):
            del element.attrib[name]
    # What is used elsewhere says itself how it is drawn, whatever is around the place of its use.
    for name in _INHERITED & {*element.attrib} & {*_target(element, targets)}:
        del element.attrib[name]
    around = {**around, **{name: element.get(name, "") for name in _INHERITED & {*element.attrib}}}
    for child in element:
        _leave_unsaid(child, {} if element.tag == "defs" else around, targets)


def _target(element: Element, targets: Mapping[str | None, Element]) -> Mapping[str, str]:
    """The attributes of what an element uses."""
    name = element.get("href", "").removeprefix("#")
    return targets[name].attrib if element.tag == "use" and name in targets else {}


def _leave_out(element: Element, stroke: str = "none") -> None:
    """Take out what is not drawn, and groups that say nothing."""
    stroke = element.get("stroke", stroke)
    for child in list(element):
        _leave_out(child, stroke)
    kept: list[Element] = []
    for child in element:
        if child.tag == "g" and not child.attrib:
            kept += child
        elif not _blank(child, element, stroke):
            kept.append(child)
    element[:] = kept


def _blank(child: Element, parent: Element, stroke: str) -> bool:
    if child.tag in ("g", "defs"):
        return not len(child)
    outlined = child.get("stroke", stroke) != "none"
    return (
        child.tag == "path"
        and parent.tag != "defs"
        and not outlined
        and child.get("fill") == "none"
    )


def _say_once(element: Element) -> None:
    """Give what neighbours have in common to a group of them."""
    for child in element:
        _say_once(child)
    if element.tag == "defs":
        return
    kept: list[Element] = []
    for common, run in groupby(element, _common):
        parts = list(run)
        if not common or len(parts) < 2:
            kept += parts
            continue
        group = Element("g", dict(common))
        for part in parts:
            for name, _ in common:
                del part.attrib[name]
            group.extend([part] if part.attrib or part.tag != "g" else part)
        kept.append(group)
    element[:] = kept


def _common(element: Element) -> tuple[tuple[str, str], ...]:
    return tuple((n, what) for n, what in sorted(element.attrib.items()) if n in _SHARED)
