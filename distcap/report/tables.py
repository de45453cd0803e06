"""The columns of the report, and the tables made of them: on the page and in the terminal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distcap.report.runs import Run

if TYPE_CHECKING:
    from rich.table import Table

MISSING = "—"


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
        Group(
            "hacking",
            "What only the CLIP that gives the reward sees.",
            (
                Column(
                    "judge_gap", "gap", "caption → image R@1 by the reward CLIP less that by the judge", 1, better=-1
                ),
            ),
        ),
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
                Column("vocabulary", "words", "different words in all captions", digits=0, better=0),
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


def cells(runs: Sequence[Run], column: Column) -> list[tuple[str, bool]]:
    """A column's text for each run, and whether that run is the best. Equal to the digits shown is equally good."""
    values = [run.value(column.key) for run in runs]
    texts = [MISSING if value is None else f"{value:.{column.digits}f}" for value in values]
    scores = [column.better * float(text) for text in texts if text != MISSING]
    contest = len(set(scores)) > 1  # never where neither high nor low is better: all scores are zero
    return [(text, contest and text != MISSING and column.better * float(text) == max(scores)) for text in texts]


def span(run: Run, column: Column) -> str:
    """The interval of a run's metric as text, "" where none is known."""
    interval = run.interval(column.key)
    if interval is None:
        return ""
    dash = "–" if interval[0] >= 0 else " to "  # noqa: RUF001 - a dash before a minus is hard to read
    return dash.join(f"{bound:.{column.digits}f}" for bound in interval)


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


def page_table(heading: str, groups: Iterable[Group], runs: Sequence[Run]) -> dict[str, Any]:
    """A table's heading, groups and body; columns that no run has, such as METEOR without Java, are left out."""
    kept = []
    for group in groups:
        columns = tuple(column for column in group.columns if any(run.value(column.key) is not None for run in runs))
        if columns:
            kept.append(Group(group.title, group.meaning, columns))
    # The first column of a group carries the rule that sets it apart from its neighbour.
    columns_ = [(column, column is group.columns[0]) for group in kept for column in group.columns]
    body = [(column, cells(runs, column), starts) for column, starts in columns_]
    rows = [
        (run, [(*texts[number], starts, span(run, column)) for column, texts, starts in body])
        for number, run in enumerate(runs)
    ]
    return {"heading": heading, "groups": kept, "rows": rows}
