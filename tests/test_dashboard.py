"""What an offline W&B run holds, read back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from wandb_file import OfflineRun

from distcap.callbacks import HackingWatch

GROUPS = {"train", "loss", "reward", "policy", "val", "test"}


class Alarm(HackingWatch):
    """Finds something at the second step, whatever is logged, and nothing else."""

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 2:
            self._warn(trainer, iter([("length", "samples are long")]))

    def on_validation_end(self, *args: Any) -> None:
        pass


def apart(folder: Path, *args: str) -> None:
    """The command line in a process of its own, which knows nothing of a W&B run that another test began."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_S")}  # service, silence
    env |= {"WANDB_DATA_DIR": str(folder / "wandb-data"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "distcap.cli", *args, "--trainer.enable_progress_bar=false"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(workshop: Path) -> Path:
    """Two epochs of three steps of the rl stage, an alarm in the first, then a test."""
    callbacks = [{"class_path": "test_dashboard.Alarm"}, tiny.EVALUATION]
    apart(
        workshop,
        *("fit", "--config", "demo/rl.yaml", "--config", "experiments/full.yaml"),
        *("--config", "logger/wandb.yaml", "--run=demo/dashboard"),
        *("--data=scenes.yaml", "--trainer.max_steps=6", "--trainer.check_val_every_n_epoch=1"),
        *("--trainer.log_every_n_steps=1", f"--trainer.callbacks={json.dumps(callbacks)}"),
    )
    return workshop / "runs" / "demo" / "dashboard"


@pytest.fixture(scope="module")
def run(folder: Path) -> OfflineRun:
    return OfflineRun(folder)


def test_the_config_is_the_resolved_yaml(folder: Path, run: OfflineRun) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    found = run.merged("config")
    assert {key: found[key] for key in config} == config


def test_the_run_has_the_name_of_its_folder(run: OfflineRun) -> None:
    assert run.of("run")[0].display_name == "demo/dashboard"


def test_curves_of_all_groups_are_drawn_over_the_global_step(run: OfflineRun) -> None:
    rows = run.items("history")
    keys = {key for row in rows for key in row}
    assert {key.split("/")[0] for key in keys} >= GROUPS
    axes = [metric for metric in run.of("metric") if metric.glob_name == "*"]
    assert [metric.step_metric for metric in axes] == ["trainer/global_step"]
    losses = [(row["trainer/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert [step for step, _ in losses] == list(range(6))
    assert all("trainer/global_step" in row for row in rows)


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_caption_table_has_the_images(split: str, folder: Path, run: OfflineRun) -> None:
    tables = [one for one in run.of("artifact") if f"-{split}captions-" in one.name]
    files = {content.path: Path(content.local_path) for content in tables[-1].manifest.contents}
    table = json.loads(files[f"{split}/captions.table.json"].read_text())
    assert table["columns"] == ["image", "ground truth", "caption", "rank"]
    captions = json.loads((folder / f"captions_{split}.json").read_text())
    assert [row[2] for row in table["data"]] == [row["caption"] for row in captions]
    for row, shown in zip(table["data"], captions, strict=True):
        assert files[row[0]["path"]].read_bytes() == Path(shown["file"]).read_bytes()


def test_the_trade_off_gains_a_point_with_each_validation(run: OfflineRun) -> None:
    rows = run.items("history")
    paths = [row["val/tradeoff_table.path"] for row in rows if "val/tradeoff_table.path" in row]
    points = [json.loads((run.folder / "files" / path).read_text())["data"] for path in paths]
    measured = [row for row in rows if "val/cider" in row]
    expected = [
        [step, row["val/cider"], row["val/judge_t2i_recall@1"]] for step, row in zip((3, 6), measured, strict=True)
    ]
    assert [len(table) for table in points] == [1, 2]
    for point, row in zip(points[-1], expected, strict=True):
        assert point == pytest.approx(row)
    chart = run.merged("config")["_wandb.visualize.val/tradeoff"]["panel_config"]
    assert (chart["panelDefId"], chart["fieldSettings"]) == ("wandb/scatter/v0", {"x": "CIDEr", "y": "R@1"})


def test_the_summary_has_the_best_and_the_last_of_each_validation_metric(run: OfflineRun) -> None:
    history, summary = run.items("history"), run.merged("summary")
    for key in ("val/cider", "val/judge_t2i_recall@1", "val/judge_gap", "val/length"):
        values = [row[key] for row in history if key in row]
        assert len(values) == 2
        assert summary[f"best/{key}"] == pytest.approx(min(values) if key == "val/judge_gap" else max(values))
        assert summary[key] == pytest.approx(values[-1])


def test_a_warning_is_an_alert_and_in_the_summary(run: OfflineRun) -> None:
    [alert] = run.of("alert")
    assert (alert.title, alert.text, alert.level) == ("demo/dashboard: length", "Step 2: samples are long.", "WARN")
    assert run.merged("summary")["health/length"] == "Step 2: samples are long."


def test_what_was_trained_is_an_artifact(folder: Path, run: OfflineRun) -> None:
    [artifact] = [one for one in run.of("artifact") if one.type == "model"]
    assert artifact.name == "demo-dashboard"
    size = (folder / "captioner" / "model.safetensors").stat().st_size
    files = {content.path: content.size for content in artifact.manifest.contents}
    assert files["captioner/model.safetensors"] == size
    assert set(files) == {f"captioner/{file.name}" for file in (folder / "captioner").iterdir()}
