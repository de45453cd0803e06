"""metrics.csv of a training that goes on: what it logged before stays."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from distcap.files import write_whole


class Curves(ExperimentWriter):
    """Lightning's writer, but that it keeps the rows of the steps before the one that the training goes on from.

    The file is touched when the first row is written, and not before.

    Args:
        log_dir: the folder of metrics.csv.
        step: where the training goes on; 0 for one that begins.
    """

    def __init__(self, log_dir: str, step: int) -> None:
        super().__init__(log_dir)
        self._step: int | None = step

    def _check_log_dir_exists(self) -> None:
        """Lightning would delete the file here."""

    def save(self) -> None:
        if self.metrics and self._step is not None:
            kept = [row for row in _rows(Path(self.metrics_file_path)) if _step(row) < self._step]
            self.metrics_keys = sorted({key for row in kept for key in row})
            self._write(self.metrics_keys, kept)
            self._step = None
        super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(fieldnames, _rows(Path(self.metrics_file_path)))

    def _write(self, keys: list[str], rows: list[dict[str, Any]]) -> None:
        table = io.StringIO()
        writer = csv.DictWriter(table, keys)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(Path(self.metrics_file_path), table.getvalue())


def _rows(file: Path) -> list[dict[str, Any]]:
    """Those that were written to their ends."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        found = list(csv.DictReader(lines))
    return [row for row in found if None not in row and None not in row.values()]


def _step(row: dict[str, Any]) -> float:
    try:
        return float(row["step"])
    except (KeyError, ValueError):
        return float("inf")
