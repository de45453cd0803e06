"""The plots of the report, as SVG that takes the page's font and colour."""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distcap.report.runs import CURVES, INK, Run

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, ...]
"""Centre x, centre y, width, height."""


def tradeoff(runs: Sequence[Run], base: Run, recall_key: str, ranker: str) -> "Markup | None":
    """Distinctiveness against writing quality, one point a run; the baseline's lines part better from worse."""
    points = [(run, run.value("cider"), run.value(recall_key)) for run in runs]
    shown = [(run, x, y) for run, x, y in points if x is not None and y is not None]
    if not shown:
        return None
    figure, axes = _axes(6.6, 4.2)
    axes.margins(0.2)
    axes.set_xlabel("writing quality (CIDEr) →", color=INK)
    axes.set_ylabel(f"distinctiveness ({ranker} t2i R@1, %) →", color=INK, labelpad=8)
    for run, x, y in shown:
        axes.plot(x, y, "o", markersize=10, color=run.color)
        if run is base and len(shown) > 1:
            axes.axvline(x, color=INK, alpha=0.4, linewidth=1, linestyle=(0, (2, 4)), zorder=0)
            axes.axhline(y, color=INK, alpha=0.4, linewidth=1, linestyle=(0, (2, 4)), zorder=0)
    figure.draw_without_rendering()  # settles the layout, so that points have a place among which to fit their names
    spots = [tuple(axes.transData.transform((x, y))) for _, x, y in shown]
    names = [run.name for run, _, _ in shown]
    for text, (x, y, *_) in zip(names, _places(names, spots, axes.bbox.x0, axes.bbox.x1), strict=True):
        axes.annotate(text, (x, y), xycoords="figure pixels", ha="center", va="center", color=INK, parse_math=False)
    return _svg(figure, "tradeoff")


def _places(names: Sequence[str], spots: Sequence[Box], left: float, right: float) -> list[Box]:
    """A box for the name of each point, at the corner of the point where it hits the fewest points and names."""
    boxes: dict[int, Box] = {}
    for _ in range(2):  # a second look lets the first names make room for those that came later
        for i, (name, (x, y)) in enumerate(zip(names, spots, strict=True)):
            width = 7.3 * len(name)
            taken = [(*spot, 14.0, 14.0) for spot in spots] + [box for j, box in boxes.items() if j != i]
            corners = [(x + side * (width / 2 + 8), y + up * 12, width, 19.0) for up in (1, -1) for side in (1, -1)]
            costs = [
                sum(_overlap(box, other) for other in taken)
                + 2 * (abs(2 * box[0] - left - right) > right - left - width)
                for box in corners
            ]
            boxes[i] = corners[costs.index(min(costs))]
    return list(boxes.values())


def _overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share an area."""
    return all(abs(one[i] - other[i]) < (one[i + 2] + other[i + 2]) / 2 for i in (0, 1))


def curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The curves to watch, of the runs that logged them."""
    plots = []
    for key, (title, advice) in CURVES.items():
        shown = [run for run in runs if key in run.curves]
        if shown:
            figure, axes = _axes(3.8, 2.5)
            axes.set_xlabel("step", color=INK)
            for run in shown:
                axes.plot(*zip(*run.curves[key], strict=True), color=run.color, linewidth=1.8)
            plots.append({"key": key, "title": title, "advice": advice, "runs": shown, "svg": _svg(figure, key)})
    return plots


def _axes(width: float, height: float) -> "tuple[Figure, Axes]":
    """Bare axes. At 72 dots per inch a pixel is a point, in the layout and in the SVG alike."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=INK, alpha=0.4)
    axes.tick_params(color=INK, labelcolor=INK, length=3)
    axes.locator_params(nbins=6)
    axes.grid(color=INK, alpha=0.1, linewidth=1)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: "Figure", salt: str) -> "Markup":
    """The figure as SVG for inlining: text stays text, and takes the page's font and colour."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    # A fixed salt makes the same runs give the same page, and keeps the ids of two figures apart.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Inside HTML the namespaces and the metadata are noise, and the style element would leak into the page.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>| xmlns(:xlink)?=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    return Markup(svg.replace(INK, "currentColor"))
