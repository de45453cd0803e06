"""One config chooses where curves go: W&B, TensorBoard, a CSV file, nowhere."""

import contextlib
import csv
from pathlib import Path

import pytest
import tiny

from distcap import lightning_cli
from distcap.cli import main


def fit(workshop: Path, name: str, *logger: str) -> Path:
    """Two steps of the mle stage, whose own config logs to W&B."""
    args = ("--data=scenes.yaml", "--data.image_size=64", "--trainer.max_steps=2", "--trainer.log_every_n_steps=1")
    small = ("--trainer.callbacks=[]", "--test_after_fit=false", "--model.captioner.init_from=@mle")
    cpu = ("--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_epochs=1")
    tiny.run(workshop, "fit", "--config", "mle.yaml", *logger, f"--run=demo/{name}", *args, *small, *cpu)
    return workshop / "runs" / "demo" / name


def test_a_csv_file_lies_in_the_runs_folder(workshop: Path) -> None:
    run = fit(workshop, "to-csv", "--config", "logger/csv.yaml")
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["0", "1"]


def test_tensorboard_finds_the_curves_in_the_runs_folder(workshop: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(fit(workshop, "to-tensorboard", "--config", "logger/tensorboard.yaml")))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1]


def test_off_is_off(workshop: Path) -> None:
    run = fit(workshop, "to-nowhere", "--trainer.logger=false")
    assert {file.name for file in run.iterdir()} == {".lock", "config.yaml", "checkpoints", "captioner"}


def test_tensorboard_that_is_not_installed_is_one_line(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lightning_cli, "find_spec", lambda name: None)
    capsys.readouterr()
    configs = ("--config", "demo/mle.yaml", "--config", "logger/tensorboard.yaml", "--data=scenes.yaml")
    with contextlib.chdir(workshop), pytest.raises(SystemExit) as stop:
        main(["fit", *configs])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("distcap: TensorBoard isn't installed: pip install")
