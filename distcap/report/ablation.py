"""The ablation's page and its table in the docs: all systems over seeds, the trade-off, and what is claimed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distcap.report.claims import OURS, RULES, Claim, Comparison, judge_claims
from distcap.report.plots import Point, front_plot, inline_svg, svg_file
from distcap.report.statistics import pareto_front
from distcap.report.systems import SECONDS, SPREAD, Ablation, System, load_ablation
from distcap.report.tables import COLUMNS, TABLES, Column, Group, page_table
from distcap.report.template import template

_RETRIEVAL, _WRITING = TABLES
*_RECALLS, _HACKING = TABLES[_RETRIEVAL]
GROUPS: dict[str, tuple[Group, ...]] = {
    _RETRIEVAL: tuple(_RECALLS),
    _WRITING: (
        Group(
            "likeness to the human captions",
            "Compared with the image's ground-truth captions.",
            tuple(COLUMNS[key] for key in ("cider", "bleu@4", "rouge_l", "meteor", "spice")),
        ),
        Group(
            "style",
            "Looks at the generated captions alone.",
            tuple(COLUMNS[key] for key in ("length", "vocabulary", "repetition", "bad_endings")),
        ),
        _HACKING,  # beside the recalls it would be pushed out of sight
        Group("cost", "On the machine of the runs.", (Column(SECONDS, "minutes", "of training", 1, better=0),)),
    ),
}
SHOWN = {column.key: column for groups in GROUPS.values() for group in groups for column in group.columns}

NOTES = ("<!-- notes -->", "<!-- end of notes -->")
"""What stands between these in docs/results.md is people's, and survives."""
TABLE = ("<!-- ablation -->", "<!-- end of ablation -->")
"""What stands between these in README.md is written anew."""


def ablation_report(folder: Path, output: Path | None = None, docs: Path | None = None) -> Path:
    """Write the page of an ablation and, in `docs`, results.md and tradeoff.svg.

    Args:
        folder: systems.json, and the runs in seed-S/SYSTEM. Runs that are missing are named, and done without.
        output: the page; FOLDER/report.html by default.
        docs: the folder of the docs, beside a README that may have a place for the table; None leaves them alone.

    Returns:
        the page that was written.
    """
    folder = Path(folder)
    ablation = load_ablation(folder, SHOWN)
    judged = any(system.value("judge_t2i_recall@1") is not None for system in ablation.systems)
    recall, ranker = ("judge_t2i_recall@1", "judge") if judged else ("t2i_recall@1", "reward CLIP")
    claims = judge_claims(ablation, recall)
    points, front = tradeoff(ablation, recall)
    shown: dict[str, Any] = {
        "headline": headline(claims),
        "ablation": ablation,
        "claims": claims,
        "front": [points[i].name for i in front],
        "ranker": ranker,
        "rules": RULES,
        "spread": [SHOWN[key].label for key in SPREAD],
        "tables": [page_table(heading, groups, ablation.systems) for heading, groups in GROUPS.items()],
    }
    figure = front_plot(points, front, ranker) if points else None
    output = Path(output) if output else folder / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    from distcap import __version__

    page = template("ablation").render(
        shown, version=__version__, plot=figure and inline_svg(figure, "ablation"), told=told, label=label,
        families=_families(ablation.systems), title=shown["headline"],
    )  # fmt: skip
    output.write_text(page.lstrip(), encoding="utf-8")
    if docs:
        docs = Path(docs)
        docs.mkdir(parents=True, exist_ok=True)
        if figure:
            svg_file(figure, docs / "tradeoff.svg")
        results = docs / "results.md"
        results.write_text(markdown(shown, _notes(results), plot=figure is not None), encoding="utf-8")
        _into_readme(docs.resolve().parent / "README.md", ablation.systems, recall)
    return output


def headline(claims: Sequence[Claim]) -> str:
    """How many of the paper's claims hold, in a sentence."""
    claims = [claim for claim in claims if claim.letter != OURS]
    holding = sum(claim.verdict == "holds" for claim in claims)
    count = "None" if not holding else "All" if holding == len(claims) else f"{holding}"
    verb = "holds" if holding in (0, 1) else "hold"
    return f"{count} of the paper’s {len(claims)} claims {verb} here"  # noqa: RUF001


def tradeoff(ablation: Ablation, recall: str) -> tuple[list[Point], list[int]]:
    """The systems as points of writing and retrieval, and which of them no other beats on both."""
    points = []
    for system in ablation.systems:
        x, y = ablation.estimate(system, "cider"), ablation.estimate(system, recall)
        if x and y:
            points.append(Point(system.name, system.color, x, y))
    front = pareto_front(np.array([(p.x.mean, p.y.mean) for p in points])) if points else []
    return points, front


def label(key: str) -> str:
    """A metric of a claim in words."""
    return "CIDEr" if key == "cider" else f"{'judge' if key.startswith('judge') else 'reward CLIP'} t2i R@1"


def told(comparison: Comparison) -> dict[str, str]:
    """A comparison as the cells of a table: difference, interval, seeds, p, wanted, found."""
    digits = SHOWN[comparison.key].digits + 1
    wanted: str = comparison.wish
    if wanted == "not lower" and comparison.bound is not None:
        wanted += f" than {_signed(comparison.bound, digits)}"
    found = {"yes": "shown", "no": "contrary shown", "unclear": "not shown", "missing": "no runs", "": "—"}
    estimate = comparison.estimate
    if estimate is None:
        numbers = dict.fromkeys(("difference", "interval", "seeds", "p"), "—")
    else:
        numbers = {
            "difference": _signed(estimate.mean, digits),
            "interval": f"{_signed(estimate.low, digits)} to {_signed(estimate.high, digits)}",
            "seeds": ", ".join(_signed(value, digits) for value in estimate.seeds),
            "p": "< 0.001" if estimate.p < 0.001 else f"{estimate.p:.3f}",
        }
    return {**numbers, "wanted": wanted or "—", "found": found[comparison.verdict]}


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")  # noqa: RUF001


def _families(systems: Sequence[System]) -> dict[str, str]:
    """Family -> its colour, in the order of the table."""
    return {system.family: system.color for system in systems if system.family}


def _notes(file: Path) -> str:
    """What people wrote between the marks of an older results.md."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    start, end = (text.find(mark) for mark in NOTES)
    return text[start + len(NOTES[0]) : end] if 0 <= start < end else "\n\n"


def markdown(shown: dict[str, Any], notes: str, plot: bool) -> str:
    """docs/results.md."""
    ablation: Ablation = shown["ablation"]
    seeds = ", ".join(map(str, ablation.seeds))
    lines = [
        "# Results",
        "",
        "Written by `make ablation`, but for the notes. Change nothing else here: it will be overwritten.",
        "",
        f"**{shown['headline']}.** {len(ablation.systems)} systems, seeds {seeds}, {_images(ablation)} to test on.",
        "Means over seeds; below each, its 95 % interval over images and seeds by the hierarchical bootstrap, which is",
        "too narrow where training runs differ by more than images do, with this few seeds. Below the vocabulary and",
        "the minutes of training, the lowest and the highest seed. METEOR is the mean of captions.",
    ]
    if ablation.missing:
        lines += ["", f"Missing, and done without: {'; '.join(ablation.missing)}."]
    lines += ["", "## The trade-off", ""]
    if plot:
        lines += [f"![{label_of_plot(shown['ranker'])}](tradeoff.svg)", ""]
    lines += [
        "Nothing here is better on both axes than these, the Pareto front from the best retrieval to the best",
        "CIDEr:",
    ]
    lines[-1] += f" {', '.join(f'`{name}`' for name in shown['front'])}."
    lines += ["", "## The claims", "", RULES]
    for claim in shown["claims"]:
        lines += [
            "",
            f"### ({claim.letter}) {claim.statement} **{claim.verdict.capitalize()}.**",
            "",
            claim.reading,
            "",
        ]
        heads: tuple[str, ...] = ("difference", "metric", "mean", "95 % interval", "by seed", "p", "needed", "found")
        lines += _table(heads, [_comparison_row(c) for c in claim.comparisons])
    for table in shown["tables"]:
        lines += ["", f"## {table['heading']}", ""]
        heads = ("system", *(f"{g.title}: {c.label}" for g in table["groups"] for c in g.columns), "command")
        rows = []
        for system, cells in table["rows"]:
            texts = [
                (f"**{text}**" if best else text) + (f"<br><sub>{interval}</sub>" if interval else "")
                for text, best, _, interval in cells
            ]
            rows.append((f"**{system.name}**<br>{system.title}", *texts, f"`{system.command}`"))
        lines += _table(heads, rows)
    lines += ["", "## What was tried and failed", "", NOTES[0]]
    return "\n".join(lines) + notes + NOTES[1] + "\n"


def _into_readme(file: Path, systems: Sequence[System], recall: str) -> None:
    """Put the short table into a README that has a place for it."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    start, end = (text.find(mark) for mark in TABLE)
    if 0 <= start < end:
        keys = (recall, recall.replace("t2i", "i2t"), "cider", "length")
        rows = [
            (
                f"`{system.name}`: {system.title.rstrip('.')}",
                *(_cell(system, key) for key in keys),
                f"{len(system.seeds)}",
                f"`{system.command}`",
            )
            for system in systems
        ]
        heads = ("system", "R@1 caption to image", "R@1 image to caption", "CIDEr", "words", "seeds", "command")
        table = "\n".join(_table(heads, rows))
        file.write_text(f"{text[:start]}{TABLE[0]}\n\n{table}\n\n{text[end:]}", encoding="utf-8")


def _cell(system: System, key: str) -> str:
    value, interval, digits = system.value(key), system.interval(key), SHOWN[key].digits
    bounds = "" if interval is None else f" ({interval[0]:.{digits}f} – {interval[1]:.{digits}f})"  # noqa: RUF001
    return "—" if value is None else f"{value:.{digits}f}{bounds}"


def _comparison_row(comparison: Comparison) -> tuple[str, ...]:
    cells = told(comparison)
    names = f"`{comparison.system}` − `{comparison.base}`"  # noqa: RUF001
    numbers = (cells[key] for key in ("difference", "interval", "seeds", "p", "wanted", "found"))
    return names, label(comparison.key), *numbers


def label_of_plot(ranker: str) -> str:
    """What the plot shows, for those who can't see it."""
    return f"CIDEr against text-to-image recall at 1 by the {ranker}, a point a system, with 95 % intervals"


def _images(ablation: Ablation) -> str:
    counts = sorted(set(ablation.images.values()))
    number = " or ".join(f"{count:,}" for count in counts)
    return f"{number} images" + (
        "" if len(ablation.seeds) == 1 else ", the same for all" if ablation.crossed else " each"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in markdown; the first column is text, the others numbers."""
    lines = [heads, ("---", *["---:"] * (len(heads) - 1)), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]
