"""The systems of an ablation: one recipe each, trained with several seeds, and their metrics over seeds and images."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from distcap.metrics.ngram import bleu
from distcap.report.runs import BASELINE, COLORS, MORE_COLORS, OURS, Run
from distcap.report.statistics import Bootstrap, Estimate, Statistic, mean
from distcap.run_files import read_captions, read_json, read_metrics, read_scores
from distcap.types import UserError

PALETTE = (*COLORS.values(), *MORE_COLORS)

SECONDS = "train_minutes"
"""Key of the training time, which is no metric of captions."""
SPREAD = ("vocabulary", SECONDS)
"""What an image has no share in: told as mean, lowest and highest over seeds."""


@dataclass
class System(Run):
    """One recipe, and what its runs left: its metrics are means over seeds."""

    title: str = ""
    paper: str = ""
    command: str = ""
    family: str = ""
    seeds: tuple[int, ...] = ()
    """those with a run"""
    scores: dict[str, dict[int, np.ndarray]] = field(default_factory=dict, repr=False)
    """metric -> seed -> (N,) or, of "bleu_counts", (N, 10) values of the images"""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """metric -> bounds of the 95 % interval, or lowest and highest seed of what is in SPREAD"""

    def interval(self, key: str) -> tuple[float, float] | None:
        return self.intervals.get(key)

    def rows(self, key: str, seeds: Iterable[int]) -> list[np.ndarray] | None:
        """For each seed, (N, C) of which `statistic` makes the metric; None where a seed did not measure it."""
        if key == "judge_gap":
            ours, judges = self.rows("t2i_recall@1", seeds), self.rows("judge_t2i_recall@1", seeds)
            return [a - b for a, b in zip(ours, judges, strict=True)] if ours and judges else None
        found = self.scores.get("bleu_counts" if key == "bleu@4" else key, {})
        values = [found.get(seed) for seed in seeds]
        known = [value for value in values if value is not None and np.isfinite(value).all()]
        if not known or len(known) < len(values):
            return None
        return [value.reshape(len(value), -1) for value in known]


def statistic(key: str) -> Statistic:
    """How a metric comes of the sums of its rows. METEOR is the mean of its captions' scores, unlike the corpus score
    in metrics.json: pooled statistics cannot be drawn by image.
    """
    return _bleu4 if key == "bleu@4" else mean


def _bleu4(sums: np.ndarray, images: np.ndarray) -> np.ndarray:
    return bleu(sums)[..., 3]


@dataclass
class Ablation:
    """Several systems, each trained with several seeds."""

    systems: list[System]
    """in the order of systems.json; those without any run are left out"""
    seeds: tuple[int, ...]
    images: dict[int, int]
    """seed -> images of its test split"""
    crossed: bool
    """whether these are the same for all seeds"""
    missing: list[str]
    """what is not there: a system, or its seeds"""
    _bootstraps: dict[tuple[int, ...], Bootstrap] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> System | None:
        return next((system for system in self.systems if system.name == name), None)

    def bootstrap(self, seeds: tuple[int, ...]) -> Bootstrap:
        """The draws of these seeds, the same for all systems that have them."""
        if seeds not in self._bootstraps:
            self._bootstraps[seeds] = Bootstrap([self.images[seed] for seed in seeds], crossed=self.crossed)
        return self._bootstraps[seeds]

    def estimate(self, system: System, key: str) -> Estimate | None:
        """A system's metric with its interval; None where a run did not measure it."""
        rows = system.rows(key, system.seeds)
        return self.bootstrap(system.seeds).estimate(rows, statistic(key)) if rows else None

    def difference(self, name: str, base: str, key: str) -> Estimate | None:
        """A system's metric less another's, over the seeds that both have; None where there is none."""
        system, other = self[name], self[base]
        if system is None or other is None:
            return None
        seeds = tuple(seed for seed in system.seeds if seed in other.seeds)
        ours, others = system.rows(key, seeds), other.rows(key, seeds)
        return self.bootstrap(seeds).difference(ours, others, statistic(key)) if ours and others else None


def load_ablation(folder: Path, keys: Iterable[str]) -> Ablation:
    """Read FOLDER/systems.json and FOLDER/seed-S/SYSTEM, and estimate these metrics of each system."""
    if not (folder / "systems.json").exists():
        raise UserError(
            f"{folder} holds no systems.json, so it is no ablation's folder; make one with `make ablation`."
        )
    recipes = read_json(folder / "systems.json")
    if not isinstance(recipes, list) or not all(isinstance(r, dict) and "name" in r for r in recipes):
        raise UserError(f"{folder}/systems.json should be a list of systems, each with a name; found {recipes!r:.80}.")
    seeds = sorted(int(m[1]) for path in folder.iterdir() if (m := re.fullmatch(r"seed-(\d+)", path.name)))
    families = [family for family in dict.fromkeys(recipe.get("family", "") for recipe in recipes) if family]
    colors = {family: PALETTE[i % len(PALETTE)] for i, family in enumerate(families)}
    ids: dict[int, list[int]] = {}
    truths: dict[int, Any] = {}
    systems, missing = [], []
    for recipe in recipes:
        title, paper, command, family = (str(recipe.get(key, "")) for key in ("title", "paper", "command", "family"))
        color = colors.get(family, COLORS[BASELINE if recipe["name"] == BASELINE else OURS])
        system = System(recipe["name"], color, title=title, paper=paper, command=command, family=family)
        spread: dict[str, list[float]] = {}
        for seed in seeds:
            run = folder / f"seed-{seed}" / system.name
            if not (run / "metrics.json").exists() or not (run / "scores_test.json").exists():
                continue
            _read_run(run, system, seed, ids, spread)
            truths.setdefault(
                seed, {i: r["ground_truth"] for i, r in read_captions(run / "captions_test.json").items()}
            )
        absent = [str(seed) for seed in seeds if seed not in system.seeds]
        if not system.seeds:
            missing.append(f"{system.name}: no run")
            continue
        if absent:
            missing.append(f"{system.name}: no run of seed {', '.join(absent)}")
        for key, values in spread.items():
            system.metrics[key] = fmean(values)
            system.intervals[key] = (min(values), max(values))
        systems.append(system)
    if not systems:
        raise UserError(
            f"{folder} holds no evaluated run of the {len(recipes)} systems of systems.json: each should be in "
            f"{folder}/seed-0/SYSTEM with metrics.json and scores_test.json. Train them with `make ablation`."
        )
    found = tuple(seed for seed in seeds if seed in ids)
    # Benchmarks painted with other seeds number their images alike, so the numbers alone do not tell.
    crossed = len(found) > 1 and bool(truths[found[0]]) and all(truths[seed] == truths[found[0]] for seed in found)
    ablation = Ablation(systems, found, {seed: len(ids[seed]) for seed in found}, crossed, missing)
    for system in systems:
        for key in keys:
            if key not in SPREAD and (estimate := ablation.estimate(system, key)):
                system.metrics[key] = estimate.mean
                system.intervals[key] = (estimate.low, estimate.high)
    return ablation


def _read_run(run: Path, system: System, seed: int, ids: dict[int, list[int]], spread: dict[str, list[float]]) -> None:
    """Add what one run left to its system."""
    table = read_scores(run / "scores_test.json")
    images = table["image_ids"]
    scores = {key: np.array(values, dtype=float) for key, values in table["scores"].items()}
    if ids.setdefault(seed, images) != images:
        raise UserError(
            f"{run} was tested on {len(images)} images that are not the {len(ids[seed])} of the other systems of seed "
            f"{seed}: they can't be compared. Test it again on the same data, or move it away."
        )
    system.seeds += (seed,)
    for key, values in scores.items():
        system.scores.setdefault(key, {})[seed] = values
    measured = read_metrics(run / "metrics.json").get("test", {})
    if math.isfinite(measured.get("vocabulary", math.nan)):
        spread.setdefault("vocabulary", []).append(measured["vocabulary"])
    seconds = read_json(run / "seconds.json") if (run / "seconds.json").exists() else {}
    if isinstance(seconds, dict) and isinstance(seconds.get("train"), int | float):
        spread.setdefault(SECONDS, []).append(seconds["train"] / 60)
