"""The plots of the report, as SVG that takes the page's font and colour."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distcap.report.runs import HEALTH, INK, Run
from distcap.report.statistics import Estimate

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, ...]
"""Centre x, centre y, width, height."""


@dataclass(frozen=True)
class Point:
    """A system in the plot of the trade-off."""

    name: str
    color: str
    x: Estimate
    """writing quality"""
    y: Estimate
    """distinctiveness"""


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
    return inline_svg(figure, "tradeoff")


_LEADER = {"arrowstyle": "-", "shrinkB": 0, "color": INK, "alpha": 0.45, "linewidth": 0.7, "shrinkA": 5}


def front_plot(points: Sequence[Point], front: Sequence[int], ranker: str) -> "Figure":
    """Distinctiveness against writing quality, one point a system with its intervals, and a line along the front.

    Args:
        points: the systems.
        front: which of them nothing beats, from left to right.
        ranker: who ranked the images.
    """
    figure, axes = _axes(11.6, 7.6)
    axes.margins(0.08)
    axes.set_xlabel("writing quality (CIDEr) →", color=INK)
    axes.set_ylabel(f"distinctiveness ({ranker} t2i R@1, %) →", color=INK, labelpad=8)
    for number, p in enumerate(points):
        faint: dict[str, Any] = {"color": p.color, "alpha": 0.35, "linewidth": 1.2, "zorder": 1}
        axes.plot((p.x.low, p.x.high), (p.y.mean, p.y.mean), **faint)
        axes.plot((p.x.mean, p.x.mean), (p.y.low, p.y.high), **faint)
        edge = INK if number in front else "none"
        axes.plot(p.x.mean, p.y.mean, "o", markersize=9, color=p.color, markeredgecolor=edge, markeredgewidth=1.5)
    line = [(points[i].x.mean, points[i].y.mean) for i in front]
    axes.plot(*zip(*line, strict=True), color=INK, alpha=0.55, linewidth=1.2, linestyle=(0, (5, 4)), zorder=0)
    figure.draw_without_rendering()

    def pixels(x: float, y: float) -> tuple[float, float]:
        return tuple(axes.transData.transform((x, y)))

    spots = [pixels(p.x.mean, p.y.mean) for p in points]
    bars: list[Box] = []
    for p, (x, y) in zip(points, spots, strict=True):
        (left, bottom), (right, top) = pixels(p.x.low, p.y.low), pixels(p.x.high, p.y.high)
        bars += [((left + right) / 2, y, right - left, 2.0), (x, (bottom + top) / 2, 2.0, top - bottom)]
    names, frame = [p.name for p in points], axes.bbox
    boxes = _places(names, spots, frame.x0, frame.x1, letter=5.6, rings=9, bottom=frame.y0, top=frame.y1, crossed=bars)
    for name, spot, box in zip(names, spots, boxes, strict=True):
        end = tuple(_edge(np.array([box]), *spot)[0])
        if math.dist(end, spot) > 16:  # too far off for the eye to tell whose name it is
            axes.annotate("", end, spot, "figure pixels", "figure pixels", arrowprops=_LEADER)
        x, y, *_ = box
        axes.annotate(
            name, (x, y), xycoords="figure pixels", ha="center", va="center", color=INK, size=9, parse_math=False
        )
    return figure


def _places(
    names: Sequence[str],
    spots: Sequence[Box],
    left: float,
    right: float,
    *,
    letter: float = 7.3,
    rings: int = 1,
    bottom: float = -math.inf,
    top: float = math.inf,
    crossed: Sequence[Box] = (),
) -> list[Box]:
    """A box for the name of each point, where it hits the fewest points and names: the nearest such place.

    Args:
        names: one a point.
        spots: (x, y) of the points.
        left, right, bottom, top: what a name stays within.
        letter: width of one.
        rings: how far from its point a name may go; beyond the first ring, a line leads to it.
        crossed: boxes that a name had better not cross.
    """
    boxes: dict[int, Box] = {}
    points = np.array([(*spot, 14.0, 14.0) for spot in spots])
    height = 19.0 if rings == 1 else 13.0
    side, up, out, lift = np.stack(np.meshgrid([1, -1], [1, -1], range(rings), range(rings))).reshape(4, -1)
    for _ in range(1 + rings):  # a second look lets the first names make room for those that came later
        for i, (name, (x, y)) in enumerate(zip(names, spots, strict=True)):
            width = letter * len(name)
            places = np.column_stack(
                [
                    x + side * (width / 2 + 8 + 14 * out),
                    y + up * (12 + 14 * lift),
                    *np.full((2, len(side)), [[width], [height]]),
                ]
            )
            distance = np.hypot(*(_edge(places, x, y) - (x, y)).T)
            rivals = {j: box for j, box in boxes.items() if j != i}
            taken = np.array([*points, *rivals.values()])
            lines = [dot for j, box in rivals.items() for dot in _leader(np.array([box]), *spots[j])[0]]
            costs = _hits(places, taken) + _hits(places, lines) + 0.2 * _hits(places, crossed) + distance / 200
            costs += 2 * (abs(2 * places[:, 0] - left - right) > right - left - width)
            costs += 2 * ((places[:, 1] < bottom + height / 2) | (places[:, 1] > top - height / 2))
            costs += np.array([_hits(line, np.delete(taken, i, axis=0)).sum() for line in _leader(places, x, y)])
            boxes[i] = tuple(map(float, places[costs.argmin()]))
    return list(boxes.values())


def _hits(boxes: np.ndarray, others: np.ndarray | Sequence[Box]) -> np.ndarray:
    """(K, 4), (M, 4) -> (K,) how many of the others each box shares an area with."""
    return _overlap(boxes[:, None], np.reshape(others, (1, -1, 4))).sum(1)


def _edge(boxes: np.ndarray, x: float, y: float) -> np.ndarray:
    """(K, 4) -> (K, 2) the point of each box that is nearest to (x, y)."""
    return np.clip((x, y), boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2)


def _leader(boxes: np.ndarray, x: float, y: float) -> np.ndarray:
    """(K, 4) -> (K, 12, 4) dots along the line from a point to each box, but for where it leaves and where it ends."""
    share = np.linspace(0.25, 0.95, 12)[:, None]
    dots = (x, y) + (_edge(boxes, x, y)[:, None] - (x, y)) * share
    return np.concatenate([dots, np.full_like(dots, 2.0)], axis=2)


def _overlap(one: np.ndarray | Box, other: np.ndarray | Box) -> np.ndarray:
    """(..., 4), (..., 4) -> (...) whether two boxes share an area."""
    one, other = np.asarray(one), np.asarray(other)
    return (abs(one[..., :2] - other[..., :2]) < (one[..., 2:] + other[..., 2:]) / 2).all(-1)


def curves(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Question -> the curves that answer it, of the runs that logged them."""
    plots: dict[str, list[dict[str, Any]]] = {}
    for question, wanted in HEALTH.items():
        for key, (title, advice) in wanted.items():
            shown = [run for run in runs if key in run.curves]
            if shown:
                figure, axes = _axes(3.8, 2.2)
                axes.set_xlabel("step", color=INK)
                for run in shown:
                    axes.plot(*zip(*run.curves[key], strict=True), color=run.color, linewidth=1.8)
                svg = inline_svg(figure, key)
                plots.setdefault(question, []).append({"title": title, "advice": advice, "runs": shown, "svg": svg})
    return plots


def svg_file(figure: "Figure", file: Path) -> None:
    """The figure as an SVG that stands alone: letters are shapes, ink is dark, and paper white whatever lies behind."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": file.stem}):
        # Without a date, the same results give the same file.
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    file.write_text(file.read_text().replace(INK, "#1f2328"))


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


def inline_svg(figure: "Figure", salt: str) -> "Markup":
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
