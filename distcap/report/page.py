"""The page: tables, plots and a gallery, in one HTML file.

It reads what evaluation left in each run's folder: metrics.json, captions_test.json and, where a CSV logger wrote one,
metrics.csv. The page carries everything it shows, so it can be mailed, archived or printed, and it runs no script.
"""

import base64
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distcap.report.plots import curves, tradeoff
from distcap.report.runs import BASELINE, OURS, Run, load_runs
from distcap.report.tables import TABLES, page_table, table
from distcap.report.template import template
from distcap.types import UserError
from distcap.writable import require_writable

# The last rank of each shade of a rank's badge; "far" is what lies beyond.
RANKS = {"first": 1, "near": 5, "middle": 10}


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
    output = Path(output) if output else folder / "report.html"
    runs, split = load_runs(folder)
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file with --output")
    require_writable(output)
    pictures = Pictures()
    page = render(folder.resolve().name, runs, split, pictures, images=images, seed=seed)
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


def render(
    title: str, runs: Sequence[Run], split: str, pictures: "Pictures", *, images: int = 24, seed: int = 0
) -> str:
    """The page as a string."""
    from distcap import __version__

    base = next((run for run in runs if run.name == BASELINE), runs[0])
    best = next((run for run in runs if run.name == OURS), runs[-1])
    ids = sorted({image_id for run in runs for image_id in run.captions})
    drawn = random.Random(seed).sample(ids, min(max(images, 0), len(ids)))
    gains, losses = extremes(base, best)
    # Evaluation ranks by the judge where there is one. Without it, the page says so and goes by the reward CLIP.
    judged = any(run.value("judge_t2i_recall@1") is not None for run in runs)
    recall_key, ranker = ("judge_t2i_recall@1", "judge") if judged else ("t2i_recall@1", "reward CLIP")
    # The template's macros leave blank lines behind, and a page starts with its doctype.
    return (
        template("page")
        .render(
            title=title,
            version=__version__,
            split=split,
            seed=seed,
            runs=runs,
            base=base,
            best=best,
            recall_key=recall_key,
            ranker=ranker,
            tables=[page_table(heading, groups, runs) for heading, groups in TABLES.items()],
            tradeoff=tradeoff(runs, base, recall_key, ranker),
            curves=curves(runs),
            total=len(ids),
            gallery=[_card(image_id, runs, pictures) for image_id in drawn],
            gains=[_card(image_id, runs, pictures) for image_id in gains],
            losses=[_card(image_id, runs, pictures) for image_id in losses],
            missing=len(pictures.missing),
        )
        .lstrip()
    )


def extremes(base: Run, other: Run, count: int = 3) -> tuple[list[int], list[int]]:
    """Image ids whose caption's rank improved the most from base to other, and those where it worsened the most."""
    shared = base.captions.keys() & other.captions.keys()
    gain = {i: base.captions[i]["rank"] - other.captions[i]["rank"] for i in shared}
    order = sorted(shared, key=lambda i: (-gain[i], i))
    return [i for i in order[:count] if gain[i] > 0], [i for i in order[::-1][:count] if gain[i] < 0]


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
            except UserError:
                self._seen[file] = None
                self.missing.append(file)
        return self._seen[file]

    def _read(self, file: str) -> dict[str, Any]:
        from distcap.pictures import open_picture

        image = open_picture(file)
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
