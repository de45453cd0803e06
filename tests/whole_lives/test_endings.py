"""How runs end that do not end well: by signals, by errors in one of two processes; and that they go on as if not."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import families
import pytest
import torch
from lives import CUT, EPOCHS, STEPS, Life, assert_equal, shell

pytestmark = pytest.mark.slow
TWO = {"devices": 2, "strategy": "ddp_find_unused_parameters_true"}
PATIENCE = 150
"""Seconds after which a run that should have ended is said to hang; a start alone takes up to thirty."""


def broken(life: Life, run: str, by: str, rank: int = 0, **trainer: Any) -> CompletedProcess[str]:
    """A run in which something happens before step CUT."""
    callback = {"class_path": "lives.Break", "init_args": {"step": CUT, "by": by, "rank": rank}}
    config = life.config("mle", [callback], **trainer)
    return shell(life.yard, "fit", "--config", config, "--run", f"{life.name}/{run}", seconds=PATIENCE)


@pytest.fixture(scope="module")
def whole(yard: Path) -> Life:
    life = Life(yard, "vision_encoder_decoder", name="ended")
    assert life.mle
    return life


@pytest.mark.parametrize(
    ("by", "codes"),
    [("SIGTERM", {143, -15}), ("SIGINT", {130}), ("SIGKILL", {-9}), ("SIGHUP", {129, -1}), ("RuntimeError", {1})],
)
def test_a_run_that_is_ended_says_so_and_goes_on_as_if_it_had_not_been(by: str, codes: set[int], whole: Life) -> None:
    found = broken(whole, by, by)
    assert found.returncode in codes, found.stdout[-2000:]
    assert not (whole.folder(by) / "captioner").exists()
    whole.fit(by, "mle", "--ckpt_path", "last")
    assert_equal(whole.weights(by), whole.weights("mle"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("by", ["SIGTERM", "SIGKILL", "RuntimeError"])
def test_two_processes_end_together(by: str, rank: int, yard: Path) -> None:
    """And go on together, if there is something to go on from."""
    life = Life(yard, "vision_encoder_decoder", name=f"together-{by}-{rank}".lower())
    found = broken(life, "run", by, rank, **TWO)
    assert "still there" not in found.stdout
    assert found.returncode != 0
    if by == "RuntimeError":
        assert "the power is gone" in found.stdout
    assert not (life.folder("run") / "captioner").exists()
    resumed = shell(
        yard, "fit", "--config", life.config("mle", **TWO), "--run", f"{life.name}/run", "--ckpt_path", "last"
    )
    assert resumed.returncode == 0, resumed.stdout[-2000:]
    assert (life.folder("run") / "captioner").is_dir()


@pytest.mark.parametrize("family", families.WRITERS)
def test_two_processes_train_what_one_with_the_whole_batch_does(family: str, yard: Path) -> None:
    """Without dropout, which each process draws for itself. They see the same images in each step."""
    way = "lora" if family in ("qwen_vl", "git") else "freeze" if family in ("blip2", "smolvlm") else "plain"
    life = Life(yard, family, way, dropout=0.0, name=f"two-{family}".replace("_", "-"))
    assert life.mle
    config = life.config("mle", **TWO)
    found = shell(yard, "fit", "--config", config, "--run", f"{life.name}/both", seconds=PATIENCE)
    assert found.returncode == 0, found.stdout[-2000:]
    for rank in range(2):
        assert len(life.trace("both", rank)) == EPOCHS * STEPS
    ours, theirs = ([row["images"] for row in life.trace("both", rank)] for rank in range(2))
    whole = [set(row["images"]) for row in life.trace("mle")]
    assert [{*mine, *yours} for mine, yours in zip(ours, theirs, strict=True)] == whole


def test_steps_of_two_processes_move_the_weights_as_those_of_one_do(yard: Path) -> None:
    """In the first steps, where Adam's is the gradient's sign: whatever is averaged wrongly turns some signs over.

    Captions have unlike lengths, so that a mean over each process's own tokens would show.
    """
    life = Life(yard, "vision_encoder_decoder", dropout=0.0, name="steps")
    base = dict(families.load(life.family, life.base).named_parameters())
    moves = []
    for run, trainer in (("one", {}), ("two", TWO)):
        config = life.config("mle", max_steps=3, **trainer)
        command = ("fit", "--config", config, "--run", f"{life.name}/{run}", "--model.captions_per_image", "0")
        found = shell(yard, *command)
        assert found.returncode == 0, found.stdout[-2000:]
        after = dict(life.load(run).named_parameters())
        moves.append(torch.cat([(after[name] - base[name]).flatten() for name in base]).detach())
    assert (moves[0] - moves[1]).norm() < 1e-3 * moves[0].norm()


def test_a_cut_run_of_two_processes_sees_every_photo_once(yard: Path) -> None:
    life = Life(yard, "vision_encoder_decoder", name="cut-two")
    callback = {"class_path": "lives.Break", "init_args": {"step": CUT, "rank": 1}}
    for name, callbacks, more in (("whole", [], ()), ("cut", [callback], ()), ("cut", [], ("--ckpt_path", "last"))):
        config = life.config("mle", callbacks, **TWO)
        found = shell(yard, "fit", "--config", config, "--run", f"{life.name}/{name}", *more, seconds=PATIENCE)
        assert (found.returncode == 0) == (not callbacks), found.stdout[-2000:]
    for rank in range(2):
        whole = {row["step"]: row["images"] for row in life.trace("whole", rank)}
        assert {row["step"]: row["images"] for row in life.trace("cut", rank)} == whole
    assert_equal(life.weights("cut"), life.weights("whole"))


def test_two_processes_measure_what_one_does(yard: Path) -> None:
    """With three test images, of which one process has one and the other two."""
    life = Life(yard, "vision_encoder_decoder", name="measured")
    assert life.mle
    said = life.said_by_test("mle")
    metrics = json.loads((life.folder("mle") / "metrics.json").read_text())["test"]
    command = ("test", "--config", life.config("mle", **TWO), "--run", f"{life.name}/mle", "--ckpt_path", "last")
    found = shell(yard, *command, seconds=PATIENCE)
    assert found.returncode == 0, found.stdout[-2000:]
    assert life.said_by_test("mle") == said
    assert json.loads((life.folder("mle") / "metrics.json").read_text())["test"] == pytest.approx(metrics)


def test_rl_of_two_processes_skips_a_broken_photo_on_both(yard: Path) -> None:
    life = Life(yard, "vision_encoder_decoder", name="skipping")
    assert life.mle
    config = life.config("rl", max_epochs=1, check_val_every_n_epoch=1, **TWO)
    found = shell(yard, "fit", "--config", config, "--run", f"{life.name}/rl", seconds=PATIENCE)
    assert found.returncode == 0, found.stdout[-2000:]
    assert [len(life.trace("rl", rank)) for rank in range(2)] == [STEPS, STEPS]
