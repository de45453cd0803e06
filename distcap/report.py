"""The report: one HTML page, and one table in the terminal, that compare the runs of a folder.

It reads what evaluation left in each run's folder: metrics.json, captions_test.json and, where a CSV logger wrote one,
metrics.csv. The page carries everything it shows, so it can be mailed, archived or printed, and it runs no script.
"""

import base64
import csv
import io
import json
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcap.types import UserError

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

BASELINE, OURS = "mle", "distcap"
# The three systems of the demo tell one story: before, the disease, the cure. Other runs follow in order of time.
COLORS = {BASELINE: "#6b7a90", "clip_only": "#d9622b", OURS: "#12897b"}
MORE_COLORS = ("#8a63d2", "#2f7fc9", "#c2477f", "#8a7a1f", "#a0522d")
# Matplotlib needs a colour where the page wants "whatever the text's colour is, in light and in dark".
INK = "#012345"
MISSING = "—"
# The last rank of each shade of a rank's badge; "far" is what lies beyond.
RANKS = {"first": 1, "near": 5, "middle": 10}
Box = tuple[float, ...]
"""Centre x, centre y, width, height."""


@dataclass(frozen=True)
class Column:
    """A column of the tables."""

    key: str
    label: str
    meaning: str
    digits: int = 3
    better: int = 1
    """1 where higher is better, -1 where lower is, 0 where neither: only the first two have a best run."""


@dataclass(frozen=True)
class Group:
    """Neighbouring columns under one heading."""

    title: str
    meaning: str
    columns: tuple[Column, ...]


def _recall(prefix: str, ranker: str, direction: str) -> Group:
    arrow, task = {
        "t2i": ("caption → image", "a generated caption is the query, and its own image is looked for among all"),
        "i2t": ("image → caption", "an image is the query, and its own generated caption is looked for among all"),
    }[direction]
    meaning = f"Ranked by {ranker}: {task}."
    columns = [
        Column(f"{prefix}{direction}_recall@{k}", f"R@{k}", f"percent found among the first {k}", digits=1)
        for k in (1, 5, 10)
    ]
    return Group(f"{ranker.removeprefix('the ')}, {arrow}", meaning, tuple(columns))


TABLES: dict[str, tuple[Group, ...]] = {
    "Does a caption find its image?": (
        _recall("judge_", "the judge", "t2i"),
        _recall("judge_", "the judge", "i2t"),
        _recall("", "the reward CLIP", "t2i"),
        _recall("", "the reward CLIP", "i2t"),
    ),
    "Is it well written?": (
        Group(
            "likeness to the human captions",
            "Compared with the image's ground-truth captions.",
            (
                Column("cider", "CIDEr", "shared phrases, rare ones counting more", digits=2),
                *(Column(f"bleu@{n}", f"BLEU-{n}", f"precision of phrases of 1 to {n} words") for n in range(1, 5)),
                Column("rouge_l", "ROUGE-L", "longest common subsequence"),
                Column("meteor", "METEOR", "aligned words, synonyms included"),
                Column("spice", "SPICE", "shared objects, attributes and relations"),
            ),
        ),
        Group(
            "style",
            "Looks at the generated captions alone.",
            (
                Column("length", "length", "mean length of a caption in words", digits=1, better=0),
                Column("distinct@1", "distinct", "different words as a share of all words"),
                Column("repetition", "repeats", "share of word pairs that a caption has said before", better=-1),
                Column("bad_endings", "cut off", "share of captions that break off: “a dog on a”", better=-1),
            ),
        ),
    ),
}
COLUMNS = {column.key: column for groups in TABLES.values() for group in groups for column in group.columns}
TERMINAL = {
    "judge_t2i_recall@1": "judge\nt2i@1",
    "judge_t2i_recall@10": "judge\nt2i@10",
    "judge_i2t_recall@1": "judge\ni2t@1",
    "t2i_recall@1": "CLIP\nt2i@1",
    "i2t_recall@1": "CLIP\ni2t@1",
    "cider": "\nCIDEr",
    "bleu@4": "BLEU\n@4",
    "rouge_l": "ROUGE\n-L",
    "length": "\nlength",
    "repetition": "re-\npeats",
    "bad_endings": "cut\noff",
}
CURVES = {
    "reward/total": ("Reward", "Should rise, then level off. Scales differ from run to run: compare shapes."),
    "policy/length": ("Length", "Should stay near the human captions'. A steady climb is padding for the reward."),
    "policy/entropy": ("Entropy", "May sink slowly. A plunge to zero means every image gets the same few words."),
}


@dataclass
class Run:
    """What evaluation, and a CSV logger, left in the folder of one run."""

    name: str
    color: str = INK
    metrics: dict[str, float] = field(default_factory=dict)
    """of the split that the report shows"""
    captions: dict[int, dict[str, Any]] = field(default_factory=dict)
    """image id -> row of the caption table"""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """log key -> (step, value) pairs"""

    def value(self, key: str) -> float | None:
        """The metric, or None where it wasn't measured or isn't a finite number."""
        value = self.metrics.get(key)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def report(folder: Path, *, output: Path | None = None, images: int = 24, seed: int = 0) -> Path:
    """Compare the runs of a folder: write one self-contained HTML page and print their table.

    Args:
        folder: the folder that holds the runs, such as runs/demo.
        output: the page to write; FOLDER/report.html by default.
        images: how many images the gallery shows.
        seed: of the random draw of those images.

    Returns:
        the page that was written.
    """
    from rich.console import Console

    folder = Path(folder)
    runs, split = load_runs(folder)
    pictures = Pictures()
    page = render(folder.resolve().name, runs, split, pictures, images=images, seed=seed)
    output = Path(output) if output else folder / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")

    console = Console()
    if not console.is_terminal:  # a log file has no width of its own, and rich would assume 80
        console = Console(width=100)
    console.print(table(runs, split))
    if pictures.missing:
        console.print(
            f"Image files that could not be opened: {len(pictures.missing)}, the first is {pictures.missing[0]}. Their "
            "cards show a placeholder. Relative paths are looked up from the folder where the command runs.",
            markup=False,
        )
    console.print(f"Report: {output}", markup=False, soft_wrap=True)
    return output


def load_runs(folder: Path) -> tuple[list[Run], str]:
    """The evaluated runs of a folder, in the order of the report, and the split they are compared on."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Pass the folder that holds the runs, or make one: `make demo`.")
    if (folder / "metrics.json").exists():
        raise UserError(f"{folder} is a single run. Pass the folder that holds it: `distcap report {folder.parent}`.")
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    evaluated = [path for path in found if (path / "metrics.json").exists()]
    if not evaluated:
        names = ", ".join(path.name for path in found) or "no folder at all"
        raise UserError(
            f"{folder} holds no run with a metrics.json; found {names}. Train and evaluate one with "
            "`distcap fit --config demo/mle.yaml`, or all of the demo's with `make demo`."
        )
    known = list(COLORS)
    evaluated.sort(key=lambda path: (path / "metrics.json").stat().st_mtime)
    evaluated.sort(key=lambda path: known.index(path.name) if path.name in known else len(known))
    metrics = {path: _read_metrics(path / "metrics.json") for path in evaluated}
    split = "test" if any("test" in splits for splits in metrics.values()) else "val"
    strangers = [path.name for path in evaluated if path.name not in known]
    colors = COLORS | {name: MORE_COLORS[i % len(MORE_COLORS)] for i, name in enumerate(strangers)}
    runs = [
        Run(
            name=path.name,
            color=colors[path.name],
            metrics=splits.get(split, {}),
            captions=_read_captions(path / f"captions_{split}.json"),
            curves=_read_curves(path / "metrics.csv"),
        )
        for path, splits in metrics.items()
    ]
    return runs, split


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON ({error}). Evaluate the run again, or move it away.") from error


def _read_metrics(path: Path) -> dict[str, dict[str, float]]:
    metrics = _read_json(path)
    if not isinstance(metrics, dict) or not all(isinstance(split, dict) for split in metrics.values()):
        raise UserError(f"{path} should map each split to its metrics, as in {{'test': {{'cider': 1.2}}}}.")
    return metrics


def _read_captions(path: Path) -> dict[int, dict[str, Any]]:
    if not path.exists():
        return {}
    rows = _read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path} should be a list with one row an image; found {rows!r:.80}.")
    keys = {"image_id", "file", "caption", "rank", "ground_truth", "lookalike"}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not keys <= row.keys():
            raise UserError(f"{path}: row {number} should have the keys {', '.join(sorted(keys))}; found {row!r:.120}.")
    return {row["image_id"]: row for row in rows}


def _read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    if not path.exists():
        return {}
    curves: dict[str, list[tuple[float, float]]] = {key: [] for key in CURVES}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for key, curve in curves.items():
                    # The logger leaves a cell empty where a step did not log that key.
                    if row.get(key) and math.isfinite(value := float(row[key])):
                        curve.append((float(row["step"]), value))
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a CSV log with a step column ({error}). Move it away.") from error
    return {key: _thinned(curve) for key, curve in curves.items() if len(curve) > 1}


def _thinned(curve: list[tuple[float, float]], points: int = 60) -> list[tuple[float, float]]:
    """Means of neighbours: a long run's curve stays light, and its trend is seen through the noise."""
    size = math.ceil(len(curve) / points)
    chunks = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def cells(runs: Sequence[Run], column: Column) -> list[tuple[str, bool]]:
    """A column's text for each run, and whether that run is the best. Equal to the digits shown is equally good."""
    values = [run.value(column.key) for run in runs]
    texts = [MISSING if value is None else f"{value:.{column.digits}f}" for value in values]
    scores = [column.better * float(text) for text in texts if text != MISSING]
    contest = len(set(scores)) > 1  # never where neither high nor low is better: all scores are zero
    return [(text, contest and text != MISSING and column.better * float(text) == max(scores)) for text in texts]


def table(runs: Sequence[Run], split: str = "test") -> "Table":
    """The main metrics of the runs for a terminal of 100 columns, the best of each in bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    caption = f"{split} split. t2i: caption finds image. i2t: image finds caption. judge: the held-out CLIP."
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    result.add_column("\nrun", overflow="fold")
    columns = [COLUMNS[key] for key in TERMINAL if any(run.value(key) is not None for run in runs)]
    for column in columns:
        result.add_column(TERMINAL[column.key], justify="right", no_wrap=True)
    body = [cells(runs, column) for column in columns]
    for number, run in enumerate(runs):
        texts = [Text(text, style="bold" if best else "") for text, best in (column[number] for column in body)]
        result.add_row(Text(run.name), *texts)
    return result


def render(
    title: str, runs: Sequence[Run], split: str, pictures: "Pictures", *, images: int = 24, seed: int = 0
) -> str:
    """The page as a string."""
    import jinja2

    from distcap import __version__

    # Captions are a model's output on anybody's images, so nothing reaches the page unescaped but the plots.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8"))
    base = next((run for run in runs if run.name == BASELINE), runs[0])
    best = next((run for run in runs if run.name == OURS), runs[-1])
    ids = sorted({image_id for run in runs for image_id in run.captions})
    drawn = random.Random(seed).sample(ids, min(max(images, 0), len(ids)))
    gains, losses = extremes(base, best)
    # Evaluation ranks by the judge where there is one. Without it, the page says so and goes by the reward CLIP.
    judged = any(run.value("judge_t2i_recall@1") is not None for run in runs)
    recall_key, ranker = ("judge_t2i_recall@1", "judge") if judged else ("t2i_recall@1", "reward CLIP")
    # The template's macros leave blank lines behind, and a page starts with its doctype.
    return template.render(
        title=title,
        version=__version__,
        split=split,
        seed=seed,
        runs=runs,
        base=base,
        best=best,
        recall_key=recall_key,
        ranker=ranker,
        tables=[_page_table(heading, groups, runs) for heading, groups in TABLES.items()],
        tradeoff=_tradeoff(runs, base, recall_key, ranker),
        curves=_curves(runs),
        total=len(ids),
        gallery=[_card(image_id, runs, pictures) for image_id in drawn],
        gains=[_card(image_id, runs, pictures) for image_id in gains],
        losses=[_card(image_id, runs, pictures) for image_id in losses],
        missing=len(pictures.missing),
    ).lstrip()


def extremes(base: Run, other: Run, count: int = 3) -> tuple[list[int], list[int]]:
    """Image ids whose caption's rank improved the most from base to other, and those where it worsened the most."""
    shared = base.captions.keys() & other.captions.keys()
    gain = {i: base.captions[i]["rank"] - other.captions[i]["rank"] for i in shared}
    order = sorted(shared, key=lambda i: (-gain[i], i))
    return [i for i in order[:count] if gain[i] > 0], [i for i in order[::-1][:count] if gain[i] < 0]


def _page_table(heading: str, groups: Iterable[Group], runs: Sequence[Run]) -> dict[str, Any]:
    """A table's heading, groups and body; columns that no run has, such as METEOR without Java, are left out."""
    kept = []
    for group in groups:
        columns = tuple(column for column in group.columns if any(run.value(column.key) is not None for run in runs))
        if columns:
            kept.append(Group(group.title, group.meaning, columns))
    # The first column of a group carries the rule that sets it apart from its neighbour.
    columns_ = [(column, column is group.columns[0]) for group in kept for column in group.columns]
    body = [(cells(runs, column), starts) for column, starts in columns_]
    rows = [(run, [(*column[number], starts) for column, starts in body]) for number, run in enumerate(runs)]
    return {"heading": heading, "groups": kept, "rows": rows}


class Pictures:
    """Image files as small data URIs, and the list of those that could not be opened."""

    def __init__(self, size: int = 400) -> None:
        self.size = size
        self.missing: list[str] = []
        self._seen: dict[str, dict[str, Any] | None] = {}

    def __call__(self, file: str) -> dict[str, Any] | None:
        """A picture's uri, width and height; None for a file that is gone or damaged."""
        if file not in self._seen:
            try:
                self._seen[file] = self._read(file)
            except (OSError, ValueError):
                self._seen[file] = None
                self.missing.append(file)
        return self._seen[file]

    def _read(self, file: str) -> dict[str, Any]:
        from PIL import Image, ImageOps

        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        image.thumbnail((self.size, self.size))
        kind = "png" if max(image.size) <= 128 else "jpeg"  # JPEG smears drawings of a few pixels and saves nothing
        buffer = io.BytesIO()
        image.save(buffer, kind, quality=85)
        uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return {"uri": uri, "width": image.width, "height": image.height}


def _card(image_id: int, runs: Sequence[Run], pictures: Pictures) -> dict[str, Any]:
    """What the gallery shows of one image."""
    rows = [(run, run.captions[image_id]) for run in runs if image_id in run.captions]
    first = rows[0][1]
    lookalike = first["lookalike"]
    return {
        "image_id": image_id,
        "picture": pictures(first["file"]),
        "lookalike": lookalike and {"image_id": lookalike["image_id"], "picture": pictures(lookalike["file"])},
        "ground_truth": first["ground_truth"],
        "captions": [
            {
                "run": run,
                "caption": row["caption"],
                "rank": f"{row['rank']:g}",
                "of": len(run.captions),
                "level": next((name for name, last in RANKS.items() if row["rank"] <= last), "far"),
            }
            for run, row in rows
        ],
    }


def _tradeoff(runs: Sequence[Run], base: Run, recall_key: str, ranker: str) -> "Markup | None":
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


def _curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
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
