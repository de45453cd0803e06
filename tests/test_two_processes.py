"""Two processes end together, whatever happens to one of them, and go on together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resume import coco, fit, folder  # noqa: F401 - a fixture
from two_processes import STEP

HERE = Path(__file__).parent
PATIENCE = 300
"""Seconds for all that a run does. One that waits for another process waits for half an hour."""


def start(data: Path, run: Path, *args: str) -> subprocess.Popen:
    run.mkdir(exist_ok=True)
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, HERE / "two_processes.py", data, run, *args], env=environment)


def seen(run: Path) -> list[set[int]]:
    """The images of each step, in both processes together."""
    parts = [json.loads((run / f"seen-{rank}.json").read_text()) for rank in range(2)]
    return [{*first, *second} for first, second in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:  # noqa: F811
    """The folder of a run that was told to end and of one that failed, with their exit codes."""
    runs = tmp_path_factory.mktemp("runs")
    begun = {what: start(folder, runs / what, what) for what in ("signal", "error")}
    return runs, {what: process.wait(PATIENCE) for what, process in begun.items()}


def test_both_end_before_the_same_step_when_one_is_told_to(runs: tuple[Path, dict[str, int]]) -> None:
    assert runs[1]["signal"] == 143
    assert len(seen(runs[0] / "signal")) == STEP


def test_what_is_left_of_the_epoch_is_gone_on_with(
    runs: tuple[Path, dict[str, int]],
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Also by one process with the whole batch, which sees what two see together."""
    whole = fit(coco(folder), tmp_path / "whole", schedule="constant")
    last = runs[0] / "signal" / "last.ckpt"
    resumed = fit(coco(folder), tmp_path / "resumed", ckpt_path=last, schedule="constant")
    found = seen(runs[0] / "signal") + [set(batch) for batch in resumed.seen]
    assert found == [set(batch) for batch in whole.seen]


def test_one_that_fails_leaves_no_other_waiting_and_a_checkpoint(runs: tuple[Path, dict[str, int]]) -> None:
    assert runs[1]["error"] == 1
    assert torch.load(runs[0] / "error" / "last.ckpt", weights_only=True)["global_step"] == STEP
