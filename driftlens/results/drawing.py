"""A figure that a notebook shows by itself, whether or not pyplot was imported."""

from matplotlib.figure import Figure

from . import figures


class Drawing(Figure):
    """A matplotlib figure like any other, which draws itself as a PNG on white."""

    def _repr_png_(self) -> bytes:
        return figures.small_png(self)
