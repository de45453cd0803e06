"""A run's folder: one training, one owner, and last.ckpt is its last state."""

import contextlib
import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from test_cli import fails

from distcap import run_folder
from distcap.callbacks import Checkpoints, checkpoints
from distcap.callbacks.evaluation import _update_json
from distcap.lightning_cli import writes_the_run
from distcap.models import VisionEncoderDecoder
from distcap.run_folder import RunFolder
from distcap.types import UserError

QUIET = ("--trainer.callbacks=[]", "--test_after_fit=false", "--trainer.log_every_n_steps=1")
MLE = ("--config", "demo/mle.yaml", "--data=scenes.yaml", *QUIET)
RL = ("--config", "demo/rl.yaml", "--data=scenes.yaml", *QUIET)


def fit(workshop: Path, run: str, *args: str, steps: int = 3, config: tuple[str, ...] = MLE) -> Path:
    """A training of three steps an epoch; the folder of its run."""
    tiny.run(workshop, "fit", *config, f"--run=demo/{run}", f"--trainer.max_steps={steps}", *args)
    return workshop / "runs" / "demo" / run


def interrupted(workshop: Path, run: str, step: int, *args: str) -> Path:
    """A training of six steps that stops before one of them."""
    stop = {"class_path": "tiny.InterruptStep", "init_args": {"step": step}}
    with pytest.raises(RuntimeError, match="the power is gone"):
        fit(workshop, run, f"--trainer.callbacks={json.dumps([stop])}", *args, steps=6)
    return workshop / "runs" / "demo" / run


def step_of(file: Path) -> int:
    return torch.load(file, weights_only=True)["global_step"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "captioner" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(second[name], value) for name, value in first.items())


def names(run: Path) -> list[str]:
    return sorted(file.name for file in (run / "checkpoints").iterdir())


def refused(capsys: pytest.CaptureFixture[str], workshop: Path, run: str, *args: str, command: str = "fit") -> str:
    """The one line that a command ends in."""
    config = () if "--config" in args else MLE
    return fails(capsys, workshop, command, *config, f"--run=demo/{run}", *args)


@pytest.fixture(scope="module")
def done(workshop: Path) -> Path:
    """A finished training, which no test changes."""
    return fit(workshop, "done", "--test_after_fit=true", f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}")


@pytest.fixture
def copy(done: Path) -> Iterator[Path]:
    """The finished training, moved to a folder of another name."""
    shutil.copytree(done, folder := done.parent / "copy")
    yield folder
    shutil.rmtree(folder)


def test_a_finished_training_is_not_begun_anew_unasked(
    workshop: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = step_of(done / "checkpoints" / "last.ckpt"), weights(done)
    line = refused(capsys, workshop, "done")
    assert "runs/demo/done holds a finished training; name another --run" in line
    assert "--ckpt_path last" in line
    assert "--overwrite true" in line
    assert step_of(done / "checkpoints" / "last.ckpt") == before[0]
    assert same(before[1], weights(done))


def test_an_interrupted_training_is_not_begun_anew_unasked(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = interrupted(workshop, "half", 4)
    assert "runs/demo/half holds an interrupted training" in refused(capsys, workshop, "half")
    assert step_of(run / "checkpoints" / "last.ckpt") == 4


def test_a_checkpoint_of_another_run_is_not_gone_on_with_over_a_finished_training(
    workshop: Path, done: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, workshop, "copy", "--ckpt_path=runs/demo/done/checkpoints/last.ckpt")
    assert "runs/demo/copy holds a finished training" in line


def test_overwriting_leaves_nothing_of_the_former_training_but_what_is_not_its_own(workshop: Path, copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    before = weights(copy)
    fit(workshop, "copy", "--overwrite=true", "--seed_everything=1", steps=2)
    assert names(copy) == ["epoch=0-step=2.ckpt", "last.ckpt"]
    assert step_of(copy / "checkpoints" / "last.ckpt") == 2
    assert not same(before, weights(copy))
    assert not [name for name in ("metrics.json", "scores_test.json", "captions_val.json") if (copy / name).exists()]
    assert (copy / "notes.txt").read_text() == "mine"


def test_overwriting_takes_nothing_away_before_the_new_training_is_ready(
    workshop: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(file.name for file in copy.rglob("*"))
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        fit(workshop, "copy", "--overwrite=true", "--data.batch_size=1000", "--model.captioner.init_from=runs/none")
    assert "no captioner there" in capsys.readouterr().err
    assert sorted(file.name for file in copy.rglob("*")) == before


def test_resuming_and_overwriting_contradict_each_other(
    workshop: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, workshop, "done", "--ckpt_path=last", "--overwrite=true")
    assert "leave one out" in line


def test_a_config_that_a_run_left_begins_a_training_and_overwrites_none(workshop: Path) -> None:
    run = interrupted(workshop, "config", 4)
    fit(workshop, "config", "--ckpt_path=last", steps=6)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["ckpt_path"], config["overwrite"]) == (None, False)


def test_a_rehearsal_leaves_a_finished_training_as_it_is(workshop: Path, done: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in done.rglob("*") if file.is_file()}
    fit(workshop, "done", "--trainer.fast_dev_run=true")
    assert {file: file.stat().st_mtime_ns for file in done.rglob("*") if file.is_file()} == before


def test_a_training_that_never_saved_anything_is_begun_anew(workshop: Path) -> None:
    run = interrupted(workshop, "nothing", 0)
    assert not (run / "checkpoints").exists()
    fit(workshop, "nothing")
    assert step_of(run / "checkpoints" / "last.ckpt") == 3


def test_last_is_the_newest_state_of_a_training_that_was_stopped_and_begun_anew(workshop: Path) -> None:
    run = interrupted(workshop, "anew", 5)
    interrupted(workshop, "anew", 4, "--overwrite=true", "--seed_everything=1")
    assert names(run) == ["epoch=0-step=3.ckpt", "last.ckpt"]
    assert step_of(run / "checkpoints" / "last.ckpt") == 4


def test_last_is_the_newest_state_of_a_training_whose_folder_was_moved(workshop: Path) -> None:
    run = interrupted(workshop, "here", 4)
    there = run.with_name("there")
    shutil.rmtree(there, ignore_errors=True)
    run.rename(there)
    fit(workshop, "there", "--ckpt_path=last", steps=6)
    assert names(there) == ["epoch=1-step=6.ckpt", "last.ckpt"]
    assert step_of(there / "checkpoints" / "last.ckpt") == 6


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_last_means_the_runs_own_last_checkpoint_to_every_command(
    command: str, workshop: Path, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(copy / "checkpoints" / "last.ckpt", copy / "checkpoints" / "epoch=9-step=30.ckpt")  # newer
    args = (*MLE, "--run=demo/copy", "--ckpt_path=last", "--trainer.max_steps=3")
    cli = tiny.run(workshop, command, *args)
    assert cli.config[command].ckpt_path == "runs/demo/copy/checkpoints/last.ckpt"


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_last_checkpoint_that_is_not_there_is_one_line(
    command: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, workshop, "nowhere", "--ckpt_path=last", command=command)
    assert "runs/demo/nowhere/checkpoints/last.ckpt: no such checkpoint" in line
    assert not (workshop / "runs" / "demo" / "nowhere").exists()


def test_of_two_last_checkpoints_that_an_older_distcap_left_none_is_taken_unasked(
    workshop: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(copy / "checkpoints" / "last.ckpt", copy / "checkpoints" / "last-v1.ckpt")
    line = refused(capsys, workshop, "copy", "--ckpt_path=last", command="test")
    assert "last.ckpt and last-v1.ckpt" in line
    assert "the newest is runs/demo/copy/checkpoints/last-v1.ckpt" in line


def test_a_training_that_was_killed_before_its_first_last_checkpoint_goes_on_from_the_one_that_it_has(
    workshop: Path,
) -> None:
    run = interrupted(workshop, "first", 4)
    (run / "checkpoints" / "last.ckpt").unlink()
    fit(workshop, "first", "--ckpt_path=last", steps=6)
    assert step_of(run / "checkpoints" / "last.ckpt") == 6


def test_a_job_that_slurm_begins_again_goes_on_though_its_command_says_overwrite(
    workshop: Path, monkeypatch: Any
) -> None:
    run = interrupted(workshop, "requeued", 4)
    (run / "checkpoints" / "last.ckpt").rename(run / "hpc_ckpt_1.ckpt")
    monkeypatch.setattr("distcap.lightning_cli.SLURMEnvironment", SimpleNamespace(detect=lambda: True))
    fit(workshop, "requeued", "--overwrite=true", steps=6)
    assert [int(row["step"]) for row in rows(run)] == list(range(6))


def test_the_best_checkpoint_is_that_of_the_monitored_metric(workshop: Path) -> None:
    monitor = ("--checkpoint.monitor=train/loss", "--checkpoint.mode=max")
    run = fit(workshop, "best", *monitor, "--model.learning_rate=0.01", steps=6)
    cli = tiny.run(workshop, "validate", *MLE, "--run=demo/best", "--ckpt_path=best")
    assert cli.config["validate"].ckpt_path == "runs/demo/best/checkpoints/epoch=0-step=3.ckpt"
    assert step_of(run / "checkpoints" / "last.ckpt") == 6  # though it was not the best


@pytest.mark.parametrize("command", ["fit", "test"])
def test_the_best_checkpoint_of_a_run_that_kept_none_is_one_line(
    command: str, workshop: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, workshop, "done", "--ckpt_path=best", command=command)
    assert "--ckpt_path best: runs/demo/done kept no best checkpoint" in line


def test_the_version_counter_is_refused(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, workshop, "counted", "--checkpoint.enable_version_counter=true")
    assert "last.ckpt is not the last one" in line


def test_what_is_saved_within_an_epoch_is_last_and_changes_nothing(workshop: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(checkpoints, "ASKED_EVERY", 1)
    saved: list[int] = []

    def save(self: Any, trainer: Any, *args: Any) -> None:
        saved.append(trainer.global_step)
        original(self, trainer, *args)

    original = Checkpoints._save_last_checkpoint
    monkeypatch.setattr(Checkpoints, "_save_last_checkpoint", save)
    often = fit(workshop, "often", "--checkpoint.minutes=1e-9", steps=5)
    assert saved == [1, 2, 3, 4, 5]  # the third and the fifth at the end of an epoch
    saved.clear()
    rarely = fit(workshop, "rarely", steps=5)
    assert saved == [3, 5]
    assert names(often) == names(rarely) == ["epoch=1-step=5.ckpt", "last.ckpt"]
    assert same(weights(often), weights(rarely))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("step", [3, 4])
def test_the_curves_of_a_resumed_training_are_those_of_one_that_was_not_interrupted(workshop: Path, step: int) -> None:
    whole = fit(workshop, f"whole-{step}", steps=6)
    run = interrupted(workshop, f"resumed-{step}", step)
    with (run / "metrics.csv").open("a") as file:
        file.write("0.5,1")  # cut in the middle of a row
    fit(workshop, f"resumed-{step}", "--ckpt_path=last", steps=6)
    steps = [int(row["step"]) for row in rows(whole) if row["train/loss"]]
    assert [int(row["step"]) for row in rows(run) if row["train/loss"]] == steps == list(range(6))


def test_resuming_what_was_done_keeps_the_curves(workshop: Path, copy: Path) -> None:
    before = rows(copy)
    evaluated = ("--test_after_fit=true", f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}")
    fit(workshop, "copy", "--ckpt_path=last", *evaluated)
    assert [{**row, "epoch": ""} for row in rows(copy)] == [{**row, "epoch": ""} for row in before]


@pytest.mark.parametrize("damage", ["gone", "half"])
def test_a_training_that_was_killed_before_it_had_handed_over_is_finished_by_resuming(
    damage: str, workshop: Path, copy: Path
) -> None:
    before = weights(copy)
    (copy / "metrics.json").unlink()
    if damage == "half":
        (copy / "captioner").rename(copy / "captioner.new")
        (copy / "captioner.new" / "config.json").write_text("{")
    else:
        shutil.rmtree(copy / "captioner")
    evaluated = ("--test_after_fit=true", f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}")
    fit(workshop, "copy", "--ckpt_path=last", *evaluated)
    assert same(before, weights(copy))
    assert "test" in json.loads((copy / "metrics.json").read_text())
    assert not list(copy.rglob("*.new"))


def test_a_kill_while_the_captioner_is_written_leaves_none_and_not_a_half(workshop: Path, monkeypatch: Any) -> None:

    def killed(self: Any, folder: Path) -> None:
        (folder / "model.safetensors").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VisionEncoderDecoder, "save_pretrained", killed)
        with pytest.raises(SystemExit):
            fit(workshop, "killed")
    run = workshop / "runs" / "demo" / "killed"
    assert not (run / "captioner").exists()
    fit(workshop, "killed", "--ckpt_path=last")
    assert (run / "captioner" / "config.json").is_file()


def test_a_second_owner_is_refused_in_one_line_that_names_the_folder(
    workshop: Path, done: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "WAIT", 0.0)
    with RunFolder(done).owned():
        for command in ("fit", "test", "predict"):
            line = refused(capsys, workshop, "done", "--ckpt_path=last", command=command)
            assert "runs/demo/done is in use" in line
            assert "name another --run" in line
    with RunFolder(done).owned():
        pass


def test_a_process_that_others_of_its_run_wait_for_takes_no_lock(
    monkeypatch: Any,
) -> None:
    """The children of a run on two processes repeat its command line, and rank 0 owns the folder."""
    monkeypatch.setattr("distcap.lightning_cli.rank_zero_only.rank", 1)
    assert not writes_the_run()
    monkeypatch.setattr("distcap.lightning_cli.rank_zero_only.rank", 0)
    assert writes_the_run()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not writes_the_run()


OWNER = """
import os, sys, time
from distcap.run_folder import RunFolder
with RunFolder(sys.argv[1]).owned():
    if os.fork() == 0:
        time.sleep(30)  # a loader's worker outlives its parent for a while
    print("mine", flush=True)
    time.sleep(30)
"""


def test_the_lock_of_a_killed_owner_is_free_though_its_file_stays(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(run_folder, "WAIT", 0.0)
    command = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(UserError, match="is in use"), RunFolder(tmp_path / "run").owned():
            pass
        owner.kill()
        owner.wait()
        monkeypatch.setattr(run_folder, "WAIT", 5.0)
        with RunFolder(tmp_path / "run").owned():
            assert (tmp_path / "run" / ".lock").is_file()
        os.killpg(owner.pid, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_one_line_before_training(
    capsys: pytest.CaptureFixture[str], workshop: Path
) -> None:
    (workshop / "runs" / "demo" / "file").touch()
    line = refused(capsys, workshop, "file/run")
    assert "runs/demo/file/run cannot be written to" in line


def test_time_is_not_wasted_on_a_free_folder(tmp_path: Path) -> None:
    begin = time.monotonic()
    with RunFolder(tmp_path / "run").owned():
        assert time.monotonic() - begin < 1


def test_the_advice_for_a_run_without_a_captioner_finishes_it_wherever_it_was_moved(
    workshop: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "captioner")
    line = fails(capsys, workshop, "export", "runs/demo/copy")
    command = line.split("`")[1].split()
    assert command == [
        *("distcap", "fit", "--config", "runs/demo/copy/config.yaml", "--run", "demo/copy", "--ckpt_path", "last")
    ]
    tiny.run(workshop, *command[1:])
    assert (copy / "captioner" / "model.safetensors").is_file()


def test_a_disk_that_becomes_full_is_one_line(
    workshop: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("distcap.curves.write_whole", full)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        fit(workshop, "full-disk")
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith(
        "distcap: runs/demo/full-disk/metrics.csv: No space left on device; what was"
    )


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_metrics_are_written_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(content)
    _update_json(tmp_path / "metrics.json", "test", {"cider": 1.0})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"test": {"cider": 1.0}}
    _update_json(tmp_path / "metrics.json", "val", {"cider": 2.0})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"test": {"cider": 1.0}, "val": {"cider": 2.0}}


@pytest.mark.parametrize(
    "command",
    [
        ("quickstart", "--run", "file/demo"),
        ("ablation", "--run", "file/ablation"),
        ("reproduce", "--run", "file/coco"),
    ],
)
def test_a_plain_command_that_cannot_write_its_folder_is_one_line(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").touch()
    assert "runs/file" in fails(capsys, tmp_path, *command)
