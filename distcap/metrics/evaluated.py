"""Metrics of runs that were evaluated without them, read from what the evaluation wrote."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from distcap.metrics import java
from distcap.metrics.java import Texts
from distcap.run_files import AGAIN, read_captions, read_json, read_metrics, read_scores
from distcap.types import UserError


def score_runs(files: Sequence[Path]) -> None:
    """Add METEOR and SPICE to runs that were evaluated without them: to RUN/scores_SPLIT.json and RUN/metrics.json.

    All runs share one Java program a metric: starting SPICE takes longer than scoring a run, and what several runs say
    of an image is parsed once. A run that has a metric is not scored again. What cannot be computed is left out, with
    one warning for all runs and both metrics.

    Args:
        files: RUN/scores_SPLIT.json, next to metrics.json and captions_SPLIT.json, as Evaluation writes them.
    """
    troubles = []
    for name, metric in java.METRICS.items():
        lacking = [file for file in files if not _has(file, name)]
        try:
            found = metric([_read_texts(_captions(file)) for file in lacking]) if lacking else []
        except (UserError, OSError) as error:
            troubles.append(f"{name.upper()} is left out: {error}")
            continue
        for file, score in zip(lacking, found, strict=True):
            metrics, scores = read_json(file.with_name("metrics.json")), read_scores(file)
            metrics[_split(file)][name] = score.corpus
            scores["scores"][name] = score.each
            file.write_text(json.dumps(scores))
            file.with_name("metrics.json").write_text(json.dumps(metrics, indent=2))
    if troubles:
        warnings.warn("; ".join(troubles), stacklevel=2)


def _split(file: Path) -> str:
    return file.stem.removeprefix("scores_")


def _captions(file: Path) -> Path:
    return file.with_name(f"captions_{_split(file)}.json")


def _has(file: Path, metric: str) -> bool:
    metrics = read_metrics(file.with_name("metrics.json"))
    if _split(file) not in metrics:
        raise UserError(
            f"{file.with_name('metrics.json')} says nothing of {_split(file)}, which {file.name} does; {AGAIN}"
        )
    return metric in metrics[_split(file)] and metric in read_scores(file)["scores"]


def _read_texts(file: Path) -> Texts:
    rows = read_captions(file, ("image_id", "caption", "ground_truth")).values()
    return Texts.of({r["image_id"]: r["caption"] for r in rows}, {r["image_id"]: r["ground_truth"] for r in rows})
