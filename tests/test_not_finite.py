"""What is infinite or not a number ends a training before it spoils its weights, and what was good stays."""

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_run_folder import MLE, RL, step_of
from torch import nn

from distcap.cli import main
from distcap.stages import MLE as Stage
from distcap.stages.base import SKIPPED
from distcap.types import NotFinite, UserError


def ends(workshop: Path, capsys: pytest.CaptureFixture[str], run: str, *args: str, steps: int = 6) -> str:
    """The last line of a training that ends badly."""
    capsys.readouterr()
    with contextlib.chdir(workshop), pytest.raises(SystemExit) as stop:
        main(["fit", *args, f"--run=demo/{run}", f"--trainer.max_steps={steps}", "--trainer.enable_progress_bar=false"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def is_whole(file: Path) -> bool:
    state = torch.load(file, weights_only=True)["state_dict"]
    return all(value.isfinite().all() for value in state.values() if value.is_floating_point())


def spoilt(calls: int) -> str:
    return json.dumps({"spoilt": {"class_path": "spoilt.Spoilt", "init_args": {"calls": calls}}})


def objective(term: str) -> str:
    return f"--model.objective={json.dumps({'term': {'class_path': f'distcap.objectives.{term}'}})}"


def test_a_reward_that_is_no_number_is_named_with_its_step_and_spoils_nothing(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = (
        "--model.sampler.samples=2",
        "--model.objective",
        '{"gradient": {"class_path": "distcap.objectives.PolicyGradient"}}',
    )
    line = ends(workshop, capsys, "nan-reward", *RL, f"--model.rewards={spoilt(4)}", *mix)
    last = workshop / "runs" / "demo" / "nan-reward" / "checkpoints" / "last.ckpt"
    assert "step 5 of the training: the reward spoilt of '" in line
    assert "is nan" in line
    assert "the last good checkpoint is runs/demo/nan-reward/checkpoints/last.ckpt" in line
    assert "--ckpt_path last" in line
    assert step_of(last) == 3  # of the last epoch that went well
    assert is_whole(last)


def test_a_reward_that_no_gradient_would_tell_of_is_noticed_too(
    workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = (
        "--model.sampler.samples=2",
        "--model.objective",
        '{"teacher": {"class_path": "distcap.objectives.TeacherForcing"}}',
    )
    line = ends(workshop, capsys, "nan-unread", *RL, f"--model.rewards={spoilt(0)}", *mix)
    assert "step 1 of the training: the reward spoilt of '" in line
    assert "there is no checkpoint yet" in line


@pytest.mark.parametrize(("rate", "clip"), [(1e6, 1.0), (1e30, 0.0)])
def test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing(
    rate: float, clip: float, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"loss-{rate}-{clip}"
    args = (f"--model.learning_rate={rate}", "--model.warmup_steps=0", f"--model.clip_gradient={clip}")
    line = ends(workshop, capsys, run, *MLE, *args, steps=60)
    assert "of the training: train/loss is " in line or "the weight captioner." in line
    folder = workshop / "runs" / "demo" / run
    assert not (folder / "captioner").exists()
    assert all(map(is_whole, folder.glob("checkpoints/*.ckpt")))


def test_weights_that_the_last_step_spoilt_are_neither_saved_nor_handed_over(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def spoil(self: Stage, *args: Any) -> None:
        if self.trainer.global_step == 3:
            next(self.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Stage, "on_train_batch_end", spoil)
    line = ends(workshop, capsys, "spoilt-end", *MLE, steps=3)
    assert "the weight captioner." in line
    folder = workshop / "runs" / "demo" / "spoilt-end"
    assert not list(folder.glob("checkpoints/*")) + list(folder.glob("captioner*"))


class Precision(Stage):
    """A stage without a captioner, of a trainer with a precision."""

    def __init__(self, precision: str) -> None:
        nn.Module.__init__(self)
        self.clip_gradient, self._skipped = 1.0, 0
        self.parameter = nn.Parameter(torch.ones(2))
        self.told = SimpleNamespace(precision=precision, callback_metrics={"train/loss": torch.tensor(math.inf)})

    trainer: Any = property(lambda self: self.told)
    device: Any = torch.device("cpu")

    def clip(self, gradient: float) -> None:
        self.parameter.grad = torch.full((2,), gradient)
        self.configure_gradient_clipping(torch.optim.SGD([self.parameter], 0.1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused_at_once(bad: float) -> None:
    with pytest.raises(NotFinite, match="train/loss is inf"):
        Precision("32-true").clip(bad)


def test_float16_may_skip_steps_until_it_has_found_its_scale_but_not_for_ever() -> None:
    stage = Precision("16-mixed")
    for _ in range(SKIPPED):
        stage.clip(math.inf)
    stage.clip(1.0)
    for _ in range(SKIPPED):
        stage.clip(math.inf)
    with pytest.raises(UserError):
        stage.clip(math.inf)


def test_without_a_limit_gradients_are_left_as_they_are() -> None:
    stage = Precision("32-true")
    stage.clip_gradient = 0.0
    stage.clip(1e10)
    assert stage.parameter.grad is not None
    assert stage.parameter.grad.tolist() == [1e10, 1e10]
