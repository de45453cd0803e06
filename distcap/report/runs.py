"""The runs of a folder: what evaluation, and a CSV logger, left of each."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distcap.run_files import read_captions, read_metrics, read_warnings
from distcap.types import UserError

BASELINE, OURS = "mle", "distcap"
# The three systems of the demo tell one story: before, the disease, the cure. Other runs follow in order of time.
COLORS = {BASELINE: "#6b7a90", "clip_only": "#d9622b", OURS: "#12897b"}
MORE_COLORS = ("#8a63d2", "#2f7fc9", "#c2477f", "#8a7a1f", "#a0522d")
# Matplotlib needs a colour where the page wants "whatever the text's colour is, in light and in dark".
INK = "#012345"
HEALTH = {
    "Is it learning?": {
        "reward/total": ("Reward", "Should rise, then level off. Its sign and scale mean nothing: compare shapes."),
        "reward/gap": ("Sampled less greedy reward", "A little below zero. Far below, the sampler strays too far."),
        "advantage/positive": ("Samples above the baseline", "Near half. Near none or all, the baseline is off."),
        "advantage/std": ("Spread of the advantages", "What a step can learn from. At zero, nothing."),
        "reward/zero_std": ("Images with no spread", "All samples score alike. Near one, nothing is learnt."),
    },
    "Does it still say what people say?": {
        "policy/greedy_cider": ("CIDEr of greedy captions", "Should hold. Falling while the reward rises is hacking."),
        "policy/cider": ("CIDEr of samples", "Likewise, though a mere loss of entropy raises it."),
        "policy/length": ("Length", "Should stay near the human captions'. A steady climb is padding for the reward."),
        "policy/repetition": ("Repeated phrases", "Near the human captions'. A climb says that saying it twice pays."),
        "policy/bad_endings": ("Captions that break off", 'Near zero. A climb is "a dog on a".'),
        "policy/unfinished": ("Samples without an end", "Near zero. A climb says that stopping is being forgotten."),
        "policy/truncated": ("Captions that CLIP cuts", "Near zero. The reward reads only what fits into CLIP."),
        "discriminator/accuracy": ("Discriminator's accuracy", "At a half, chance, samples pass for human."),
        "val/judge_gap": (
            "Reward CLIP less judge (R@1)",
            "Should stay. If it grows, the reward CLIP is being hacked.",
        ),
    },
    "Is it collapsing?": {
        "policy/entropy": ("Entropy", "May sink slowly. A plunge to zero means every image gets the same few words."),
        "policy/vocabulary": ("Different words in a step", "Should hold. Where words are lost, so are differences."),
        "policy/kl": (
            "KL to the captioner before RL",
            "Levels off. A steady climb forgets what people taught it.",
        ),
    },
}
"""Question -> log key -> title of a curve, and what to look for."""
CURVES = {key: texts for curves in HEALTH.values() for key, texts in curves.items()}


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
    warnings: list[dict[str, Any]] | None = None
    """step, symptom and sentence of each, as HackingWatch left them; None if the run was not watched"""

    def value(self, key: str) -> float | None:
        """The metric, or None where it wasn't measured or isn't a finite number."""
        value = self.metrics.get(key)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def interval(self, key: str) -> tuple[float, float] | None:
        """How far the metric is to be trusted, where that is known: of one run it is not."""
        return None


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
    metrics = {path: read_metrics(path / "metrics.json") for path in evaluated}
    split = "test" if any("test" in splits for splits in metrics.values()) else "val"
    strangers = [path.name for path in evaluated if path.name not in known]
    colors = COLORS | {name: MORE_COLORS[i % len(MORE_COLORS)] for i, name in enumerate(strangers)}
    runs = [
        Run(
            name=path.name,
            color=colors[path.name],
            metrics=splits.get(split, {}),
            captions=read_captions(path / f"captions_{split}.json"),
            curves=_read_curves(path / "metrics.csv"),
            warnings=read_warnings(path / "health.json"),
        )
        for path, splits in metrics.items()
    ]
    return runs, split


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
