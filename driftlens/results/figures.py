"""The house style: how curves, bars and heatmaps are drawn, once for all results.

Every helper gives a figure of its own, or decorates the panel it is given as `on`.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO, StringIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np

from .svg import slim, written
from .visible import visible

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE, ALIGNED, GREEN, PURPLE, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
"""Okabe and Ito's colours, told apart by all eyes; the base is blue, the aligned model orange."""

INK, GREY = "#22313f", "#8a929a"
"""Ink becomes the colour of the page's text; grey stands on light and on dark."""

PALETTE = (BASE, ALIGNED, GREEN, PURPLE, YELLOW, GREY, "#56b4e9")
STROKES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), "-", (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "x", "P")

MANY = 4
"""Lines whose names need more room than they leave among themselves."""

MARKS = ((GREEN, "D"), (PURPLE, "^"), (YELLOW, "v"))
"""What marks heights that stand beside bars."""

CASES = (GREEN, ALIGNED, BASE, GREY)
"""What went well, and what went otherwise."""

PLACES = (*CASES[:3], PURPLE, GREY)
"""What groups of points on a plane are told apart by."""

WIDTH, WIDE, HEIGHT = 7.2, 8.5, 3.2
"""Inches of a figure with one panel across, or with several; the page is about as wide."""

CLOUD = 2000
"""Points from which a plane is drawn in pixels, not one by one."""

LETTER, HANDLE = 0.08, 0.42
"""Inches of a letter, on average, and of what stands before a name and after it."""

LINE, SLANTED = 0.2, 0.21
"""Inches of a line of a legend, and between slanted names that do not meet."""

SLANT, NAME, ASIDE = 20, 30, 44
"""Letters of a name that is slanted, in a legend, and beside a panel; the table has them all."""

DPI = 160
"""Dots an inch of a PNG."""

COLOURS = 128
"""Of a picture in a notebook; lines and bands need no more."""

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "legend.borderpad": 0.2,
    "legend.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "driftlens",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def panels(count: int, *, columns: int = 2) -> "tuple[Figure, np.ndarray]":
    """A figure with `count` panels in rows of `columns`, and [panel] its axes."""
    from .drawing import Drawing

    columns = min(count, columns)
    rows = -(-count // columns)
    height = HEIGHT * rows
    with _style():
        size = (WIDTH if columns == 1 else WIDE, height)
        figure = Drawing(figsize=size, layout="constrained")
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def curves(
    x: Sequence[Any] | np.ndarray,
    lines: Mapping[str, np.ndarray],
    *,
    xlabel: str,
    ylabel: str,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    floor: float | None = None,
    on: "Axes | None" = None,
) -> "Figure":
    """Lines over x, each with its name, and the noise floor in grey.

    Args:
        x: [point] numbers, or names of places in order.
        lines: [point] heights by name; lines are told apart by colour, stroke and marker.
        xlabel: What x is, with its unit.
        ylabel: What the heights are, with their unit.
        bands: ([point] low, [point] high) by the name of the line they belong to.
        floor: Size below which a height cannot be told from noise.
        on: A panel to draw in, instead of a figure of its own.
    """
    panel = _panel(on, xlabel, ylabel)
    at = _places(panel, x)
    looks = zip(PALETTE * 9, STROKES * 9, MARKERS * 9, strict=True)
    # A marker on each of many points is a caterpillar.
    size = 4 if len(at) <= 50 else 0
    for (name, y), (colour, stroke, marker) in zip(lines.items(), looks, strict=False):
        style = {"color": colour, "linestyle": stroke, "marker": marker, "markersize": size}
        panel.plot(at, _finite(y), label=_told(name), linewidth=1.4, **style)
        if bands and name in bands:
            panel.fill_between(at, *map(_finite, bands[name]), color=colour, alpha=0.2, linewidth=0)
    _floor(panel, floor, np.concatenate([_finite(y) for y in lines.values()]))
    if len(lines) >= MANY:
        panel.margins(y=0.2)
    if len(lines) > 1 or floor is not None:
        legend(panel)
    return panel.figure


def bars(
    labels: Sequence[Any] | np.ndarray,
    values: np.ndarray,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    *,
    ylabel: str,
    xlabel: str,
    floor: float | None = None,
    second: Mapping[str, np.ndarray] | None = None,
    label: str = "",
    on: "Axes | None" = None,
) -> "Figure":
    """Bars with their intervals; grey where the noise floor hides them.

    Args:
        labels: [bar] names.
        values: [bar] heights: worse is orange, better is blue.
        low: [bar] lower bounds.
        high: [bar] upper bounds.
        ylabel: What the heights are, with their unit.
        xlabel: What the bars are.
        floor: Size below which a height cannot be told from noise.
        second: [bar] other heights by name, at most three, drawn as marks.
        label: Name of the bars, where a second has one.
        on: A panel to draw in, instead of a figure of its own.
    """
    panel = _panel(on, xlabel, ylabel)
    at = _places(panel, list(map(str, labels)))
    values = _finite(values)
    signs = np.where(values > 0, ALIGNED, BASE)
    colours = np.where(np.abs(values) > (-1 if floor is None else floor), signs, GREY)
    _floor(panel, floor, np.append(values, 0))
    panel.bar(at, values, color=colours, alpha=0.85, width=0.72)
    if label:
        # A bar of no height, for the first of the others may be grey.
        panel.bar(at[:1], [0], color=ALIGNED, alpha=0.85, label=_told(label))
    if low is not None and high is not None:
        spread = np.clip([values - _finite(low), _finite(high) - values], 0, None)
        panel.errorbar(at, values, spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    others = list((second or {}).items())
    assert len(others) <= len(MARKS), "as many as can be told apart"
    for (name, heights), (colour, marker) in zip(others, MARKS, strict=False):
        style = {"marker": marker, "markersize": 5, "linestyle": "none", "markerfacecolor": "none"}
        panel.plot(
            at,
            _finite(heights),
            color=colour,
            markeredgewidth=1.4,
            label=_told(name),
            **style,
        )
    if second or floor is not None:
        legend(panel)
    return panel.figure


def stacks(
    labels: Sequence[Any],
    parts: Mapping[str, np.ndarray],
    *,
    xlabel: str,
    ylabel: str,
    colours: Sequence[str] = CASES,
    on: "Axes | None" = None,
) -> "Figure":
    """Bars that are divided into the same parts.

    Args:
        labels: [bar] names.
        parts: [bar] heights by name, from the bottom up.
        xlabel: What the bars are.
        ylabel: What the heights are, with their unit.
        colours: Of the parts, in their order.
        on: A panel to draw in, instead of a figure of its own.
    """
    panel = _panel(on, xlabel, ylabel)
    at, below = _places(panel, list(map(str, labels))), np.zeros(len(labels))
    for (name, heights), colour in zip(parts.items(), colours, strict=False):
        style = {"color": colour, "alpha": 0.85, "width": 0.72}
        panel.bar(at, heights, bottom=below, label=_told(name), **style)
        below = below + heights
    legend(panel)
    return panel.figure


def pairs(
    labels: Sequence[Any],
    base: np.ndarray,
    aligned: np.ndarray,
    *,
    ylabel: str,
    xlabel: str,
    ideal: float | None = None,
    on: "Axes | None" = None,
) -> "Figure":
    """Base beside aligned for each of a few quantities, joined by a line.

    Args:
        labels: [pair] names.
        base: [pair] heights of base.
        aligned: [pair] heights of aligned.
        ylabel: What the heights are, with their unit.
        xlabel: What the pairs are.
        ideal: A height to compare with, drawn across.
        on: A panel to draw in, instead of a figure of its own.
    """
    panel = _panel(on, xlabel, ylabel)
    at = _places(panel, list(map(str, labels)))
    if ideal is not None:
        panel.axhline(ideal, color=GREY, linewidth=0.8, linestyle=":", label=f"{ideal:g}")
    panel.vlines(at, base, aligned, color=GREY, linewidth=1.4)
    for name, heights, colour, marker in (
        ("base", base, BASE, MARKERS[0]),
        ("aligned", aligned, ALIGNED, MARKERS[1]),
    ):
        style = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6}
        panel.plot(at, heights, label=name, **style)
    panel.margins(x=0.2)
    legend(panel)
    return panel.figure


def points(
    x: np.ndarray,
    y: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    names: Mapping[str, str],
    xlabel: str,
    ylabel: str,
    lines: tuple[float, float] | None = None,
    within: tuple[float, float] | None = None,
    on: "Axes | None" = None,
) -> "Figure":
    """Points on a plane, told apart by colour and marker.

    Args:
        x: [point] places across.
        y: [point] places up.
        groups: [point] which of `names` each belongs to.
        names: What each group is called; those without a point are left out.
        xlabel: What x is, with its unit.
        ylabel: What y is, with its unit.
        lines: Where a line stands across x, and across y.
        within: Bounds of both axes; what lies outside is drawn at them.
        on: A panel to draw in, instead of a figure of its own.
    """
    panel = _panel(on, xlabel, ylabel)
    low, high = within or (-np.inf, np.inf)
    x, y = (np.clip(_finite(z), low, high) for z in (x, y))
    groups = np.asarray(groups)
    if lines:
        panel.axvline(lines[0], color=GREY, linewidth=0.9, linestyle=":")
        panel.axhline(lines[1], color=GREY, linewidth=0.9, linestyle=":")
    looks = zip(names.items(), PLACES, MARKERS, strict=False)
    for (group, name), colour, marker in looks:
        mine = groups == group
        if mine.any():
            style = {"linestyle": "none", "marker": marker, "markersize": 5, "alpha": 0.8}
            style["rasterized"] = len(x) > CLOUD
            panel.plot(x[mine], y[mine], color=colour, label=_told(name), **style)
    if len(set(groups)) > 1:
        legend(panel)
    return panel.figure


def dumbbells(
    labels: Sequence[Any],
    base: np.ndarray,
    aligned: np.ndarray,
    *,
    xlabel: str,
    marks: Mapping[str, np.ndarray] | None = None,
    on: "Axes | None" = None,
) -> "Figure":
    """Base and aligned on a row for each of some things, joined by a line.

    Args:
        labels: [row] names, the first on top.
        base: [row] places of base.
        aligned: [row] places of aligned.
        xlabel: What the places are, with their unit.
        marks: [row] other places by name, at most one.
        on: A panel to draw in, instead of a figure of its own.
    """
    panel = _panel(on, xlabel, "")
    at = _rows(panel, labels)
    panel.hlines(at, _finite(base), _finite(aligned), color=GREY, linewidth=1.4)
    for name, places in (marks or {}).items():
        panel.plot(_finite(places), at, color=GREY, marker="|", linestyle="none", label=name)
    for name, places, colour, marker in (
        ("base", base, BASE, MARKERS[0]),
        ("aligned", aligned, ALIGNED, MARKERS[1]),
    ):
        style = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 6}
        panel.plot(_finite(places), at, label=name, **style)
    legend(panel)
    return panel.figure


def forest(
    labels: Sequence[Any],
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    names: Mapping[str, str],
    xlabel: str,
    on: "Axes | None" = None,
) -> "Figure":
    """A number with its interval on a row for each of some things, and a line at 0.

    Args:
        labels: [row] names, the first on top.
        values: [row] numbers.
        low: [row] lower bounds.
        high: [row] upper bounds.
        groups: [row] which of `names` each belongs to.
        names: What each group is called, at most four: worse, better, neither, not known.
        xlabel: What the numbers are, with their unit.
        on: A panel to draw in, instead of a figure of its own.
    """
    panel = _panel(on, xlabel, "")
    at, groups = _rows(panel, labels), np.asarray(groups)
    panel.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    looks = zip(names.items(), (ALIGNED, BASE, GREY, PURPLE), MARKERS, strict=False)
    for (group, name), colour, marker in looks:
        mine = groups == group
        if mine.any():
            middle = _finite(values)[mine]
            spread = [middle - _finite(low)[mine], _finite(high)[mine] - middle]
            style = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "none"}
            bars = {"elinewidth": 1.2, "capsize": 2}
            spread = np.clip(spread, 0, None)
            panel.errorbar(middle, at[mine], xerr=spread, label=_told(name), **style, **bars)
    legend(panel)
    return panel.figure


def cross(x: Any, y: Any, *, label: str, on: "Axes") -> None:
    """A point with its interval either way, on a plane.

    Args:
        x: Number, lower and upper bound across.
        y: The same up.
        label: What it is.
        on: The panel.
    """
    spread = [[[z[0] - z[1]], [z[2] - z[0]]] for z in (x, y)]
    style: dict[str, Any] = {"color": INK, "marker": "D", "markersize": 5, "zorder": 5}
    style |= {"linestyle": "none", "elinewidth": 1.4}
    on.errorbar([x[0]], [y[0]], *np.clip(spread, 0, None)[::-1], label=label, **style)
    legend(on)


def legend(panel: "Axes") -> None:
    """What the marks of a panel mean, above it: among them it would hide some."""
    _, names = panel.get_legend_handles_labels()
    widths = sorted((HANDLE + LETTER * len(name) for name in names), reverse=True)
    # Columns are as wide as their widest name.
    fitting = [count for count in range(1, len(names)) if sum(widths[:count]) < _room(panel)]
    columns = len(names) if sum(widths) < _room(panel) else max(fitting, default=1)
    _grow(panel, LINE * (-(-len(names) // max(1, columns)) - 1))
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    place |= {"columnspacing": 1.2, "handlelength": 1.8, "handletextpad": 0.5}
    with _style():
        panel.legend(**place, ncols=max(1, columns))


def legend_below(figure: "Figure", panel: "Axes") -> None:
    """One legend for all panels of a figure, beneath them: that of a panel."""
    handles, labels = panel.get_legend_handles_labels()
    if (legend := panel.get_legend()) is not None:
        legend.remove()
    with _style():
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def heatmap(
    matrix: np.ndarray,
    *,
    rows: Sequence[Any],
    columns: Sequence[Any],
    xlabel: str,
    ylabel: str,
    label: str,
    room: int = 16,
    on: "Axes | None" = None,
) -> "Figure":
    """[row, column] signed values: blue below 0, clear at 0, orange above, grey if undefined.

    Args:
        matrix: [row, column] values.
        rows: [row] names, the first on top.
        columns: [column] names.
        xlabel: What the columns are.
        ylabel: What the rows are.
        label: What the values are, with their unit.
        room: How many rows' names to have room for.
        on: A panel to draw in, instead of a figure of its own.
    """
    panel = _panel(on, xlabel, ylabel)
    if on is None:
        panel.figure.set_size_inches(WIDTH, HEIGHT * max(1, min(room, len(rows)) / 16))
    matrix = _finite(matrix)
    limit = np.nanmax(np.abs([*matrix.ravel(), 0])) or 1.0
    style = {"cmap": _diverging(), "vmin": -limit, "vmax": limit}
    image = panel.imshow(matrix, aspect="auto", interpolation="none", **style)
    panel.spines[:].set_visible(False)
    _names(panel.xaxis, columns, 32)
    _names(panel.yaxis, rows, room)
    with _style():
        bar = panel.figure.colorbar(image, ax=panel, label=label)
    bar.outline.set_visible(False)
    return panel.figure


def svg(figure: "Figure", title: str, description: str, *, name: str = "") -> str:
    """The figure as an SVG element that takes the page's ink and tells what it shows.

    The same figure gives the same bytes.

    Args:
        figure: Any figure of the house style.
        title: Its name.
        description: What it shows, in words.
        name: What tells it from others on the page that look and are called alike.
    """
    page = StringIO()
    blank = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    with _drawing(figure):
        figure.savefig(page, format="svg", facecolor="none", metadata=blank, dpi=160)
    text = re.sub(r"<(metadata|style).*?</\1>\s*", "", page.getvalue(), flags=re.DOTALL)
    text = re.sub(_ILLEGAL, lambda found: visible(found[0]), text[text.index("<svg") :])
    mark = "f" + sha256("\0".join([name, title, description, text]).encode()).hexdigest()[:8]
    element = slim(re.sub(r"<[^>]*>", lambda found: _tag(found[0]), text), mark)
    _describe(element, mark, visible(title), visible(description))
    return f"{written(element)}\n"


def small_png(figure: "Figure") -> bytes:
    """The same in few colours, a quarter of the bytes: a notebook holds many of them."""
    from PIL import Image

    page = BytesIO()
    with Image.open(BytesIO(png(figure))) as whole:
        few = whole.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(page, format="png", optimize=True)
    return page.getvalue()


def png(figure: "Figure") -> bytes:
    """The figure as a PNG on white, for a slide or a paper."""
    page = BytesIO()
    with _drawing(figure):
        figure.savefig(page, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return page.getvalue()


_ILLEGAL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]"
"""What no XML may hold."""


def _tag(text: str) -> str:
    """A tag in the ink and the face of the page."""
    text = text.replace(INK, "currentColor")
    return re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)


def _describe(element: "Element", mark: str, title: str, description: str) -> None:
    """Give an element a role, a title and a description that readers aloud find."""
    from xml.etree.ElementTree import Element

    element.set("role", "img")
    for place, (tag, text) in enumerate({"title": title, "desc": description}.items()):
        told = Element(tag, {"id": f"{mark}-{tag}"})
        told.text = text
        element.insert(place, told)
    element.set("aria-labelledby", f"{mark}-title")
    element.set("aria-describedby", f"{mark}-desc")


@contextmanager
def _style() -> Any:
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


@contextmanager
def _drawing(figure: "Figure") -> Any:
    """The style, without a warning for letters that only the page's fonts have."""
    with _style(), catch_warnings():
        filterwarnings("ignore", message="Glyph .* missing from font")
        # A layout moves by a hair each time it is found; once found, it stays.
        if figure.get_layout_engine() is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        yield


def _panel(on: "Axes | None", xlabel: str, ylabel: str) -> Any:
    panel: Any = panels(1)[1][0] if on is None else on
    grid, size = panel.get_subplotspec().get_gridspec(), panel.figure.get_size_inches()
    across, up = (int(size[n] / (grid.ncols, grid.nrows)[n] / LETTER) for n in (0, 1))
    panel.set(xlabel=_cut(visible(xlabel), across), ylabel=_cut(visible(ylabel), up))
    # Ticks are made when drawn, outside of any style; the axis remembers this for them.
    panel.tick_params(colors=INK, width=0.7)
    return panel


def _places(panel: "Axes", x: Any) -> np.ndarray:
    """[point] where to draw: x itself, or a place in a row for each name."""
    if not len(x) or not isinstance(x[0], str):
        return np.asarray(x, dtype=float)
    _names(panel.xaxis, x, int(_room(panel) / SLANTED))
    slanted = [label for label in panel.get_xticklabels() if label.get_rotation()]
    longest = max((len(label.get_text()) for label in slanted), default=0)
    _grow(panel, 0.7 * LETTER * longest - 3 * LINE)
    return np.arange(len(x))


def _finite(values: Any) -> np.ndarray:
    """The values with NaN, which is not drawn, for what is infinite."""
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _told(name: str) -> str:
    """A name in a legend."""
    return _cut(visible(name), NAME)


def _cut(text: str, room: int) -> str:
    """The text, or its beginning where it would leave no room for what is drawn."""
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _names(axis: Any, names: Sequence[Any], room: int) -> None:
    """Names at the ticks of an axis, only every n-th where they would not all fit."""
    step = -(-len(names) // room) or 1
    texts = [_cut(visible(str(name), spaces=True), ASIDE) for name in names]
    texts = [text if text.strip(" ") else "␣" * len(text) for text in texts]
    across = axis.axis_name == "x"
    # Whoever reads one number of a block knows the next; other names are slanted instead.
    counted = sum(text.isdigit() for text in texts) >= max(3, len(texts) - 2)
    while across and counted and step < len(texts) and _meet(axis, texts[::step]):
        step += 1
    texts = texts[::step]
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    turned = across and _meet(axis, texts)
    texts = [_cut(text, SLANT) for text in texts] if turned else texts
    axis.set_ticks(range(0, len(names), step), texts, **(slanted if turned else {}))


def _meet(axis: Any, texts: Sequence[str]) -> bool:
    """Whether names that lie side by side would touch."""
    letters = _room(axis.axes) / LETTER / max(1, len(texts))
    return any((len(one) + len(other)) / 2 + 1 > letters for one, other in pairwise([*texts, ""]))


def _rows(panel: Any, labels: Sequence[Any]) -> np.ndarray:
    """[row] heights of some rows, the first on top, with their names."""
    _names(panel.yaxis, labels, 60)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    return np.arange(len(labels))


def _floor(panel: "Axes", floor: float | None, heights: np.ndarray) -> None:
    """The noise floor, and a line at 0 where the heights come near it."""
    low, high = np.nanmin([*heights, np.inf]), np.nanmax([*heights, -np.inf])
    size = np.inf if floor is None else floor
    if np.isfinite(size) or low <= 0 <= high:
        panel.axhline(0, color=GREY, linewidth=0.7, zorder=0)
    if np.isfinite(size):
        band = (-size if low < 0 else 0, size)
        panel.axhspan(*band, color=GREY, alpha=0.25, linewidth=0, label="noise floor", zorder=0)


def _grow(panel: Any, inches: float) -> None:
    """Make a figure so much higher in each of its rows that what is around a panel has room."""
    rows = panel.get_subplotspec().get_gridspec().nrows
    height = max(panel.figure.get_figheight(), rows * (HEIGHT + inches))
    panel.figure.set_figheight(height)


def _room(panel: Any) -> float:
    """Inches that a panel is about wide."""
    count = panel.get_subplotspec().get_gridspec().ncols
    names = getattr(panel.yaxis.get_major_formatter(), "seq", ()) or ["0.000"]
    return panel.figure.get_figwidth() / count - 0.4 - LETTER * max(map(len, names))


def _diverging() -> Any:
    """Blue to orange through nothing: clear at 0, so that it sits on any page."""
    from matplotlib.colors import ListedColormap, to_rgb

    size = np.linspace(-1, 1, 257)
    colours = np.array([[*to_rgb(ALIGNED if s > 0 else BASE), abs(s)] for s in size])
    shades = ListedColormap(colours, name="driftlens")
    return shades.with_extremes(bad=(*to_rgb(GREY), 0.5))
