"""docs/adding-a-reward.md does what it says: its files are written, tested and trained with."""

import csv
import importlib
import math
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from test_readme import commands, parses
from words import Data, Policy, Stage, embed, make_batch, make_rollout

from distcap.baselines import LeaveOneOut
from distcap.experience import Experience
from distcap.models import Sampler, Sight
from distcap.objectives import PolicyGradient

DOCUMENT = (Path(__file__).parents[1] / "docs" / "adding-a-reward.md").read_text()
FILES = {
    code.split("\n")[0].removeprefix("# "): code
    for code in re.findall(r"^```(?:python|yaml)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
}
TRAINING = next(command for command in commands(DOCUMENT, "distcap") if "colours.yaml" in command)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the document's files, where Python looks for modules."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def load(name: str) -> ModuleType:
    return importlib.import_module(Path(name).stem)


def test_every_block_of_code_is_a_file() -> None:
    assert len(FILES) == len(re.findall(r"^```(?:python|yaml)$", DOCUMENT, re.MULTILINE))
    assert set(FILES) == {
        *("my_rewards.py", "test_my_rewards.py", "colours.yaml"),
        *("unlike.py", "rare.py", "probe.py"),
    }


def test_the_documents_own_test_passes(desk: Path) -> None:
    tests = [value for name, value in vars(load("test_my_rewards.py")).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


@pytest.mark.parametrize("command", commands(DOCUMENT, "distcap"))
def test_its_commands_parse_and_leave_nothing_behind(command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    parses(command, monkeypatch)
    assert {path.name for path in desk.iterdir()} == set(FILES)


def test_the_config_trains_and_logs_the_reward_by_its_name(desk: Path, workshop: Path) -> None:
    (desk / "runs" / "demo").mkdir(parents=True)
    for run in ("clip", "judge", "mle"):
        (desk / "runs" / "demo" / run).symlink_to(workshop / "runs" / "demo" / run)
    program, *args = shlex.split(TRAINING)
    assert program == "distcap"
    steps = (
        "--trainer.max_steps=2",
        "--trainer.log_every_n_steps=1",
        "--model.health_every=1",
        "--test_after_fit=false",
    )
    cli = tiny.run(desk, *args, f"--data={workshop / 'scenes.yaml'}", *steps, "--trainer.callbacks=[]")
    assert cli.trainer.global_step == 2
    assert cli.model.rewards["colours"].weight == 0.5
    with (desk / "runs" / "demo" / "colours" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for source in ("sampled", "ground_truth"):
        means = [float(row[f"reward/{source}/colours"]) for row in rows]
        assert len(means) == 2
        assert all(0 <= mean <= 1 for mean in means)
    assert rows[0]["reward/greedy/colours"]
    assert max(float(row["reward/ground_truth/colours"]) for row in rows) > 0


def experience(image_ids: range, **kwargs: Any) -> Experience:
    made = Experience(
        make_batch(image_ids), Policy().double(), sampler=Sampler(samples=2), greedy=None, rewards={}, **kwargs
    )
    made.batch.captions = [captions[:1] for captions in made.batch.captions]
    return made


def test_a_reward_that_gathers_is_that_of_the_global_batch(desk: Path) -> None:
    reward = load("unlike.py").Unlike()
    clips: Any = {None: Sight(type("Clip", (), {"embed_captions": staticmethod(embed)})(), images=None)}
    whole = experience(range(6), clips=clips)
    expected = reward(whole.sampled, whole)
    everybody = embed(whole.sampled.captions)
    for first in (0, 3):
        half = experience(range(first, first + 3), clips=clips, gather=lambda own, first=first: (everybody, 2 * first))
        torch.testing.assert_close(reward(half.sampled, half), expected[2 * first : 2 * first + 6])
        alone = experience(range(first, first + 3), clips=clips)
        assert not torch.allclose(reward(alone.sampled, alone), expected[2 * first : 2 * first + 6])


def test_a_reward_that_is_prepared_knows_the_training_captions(desk: Path) -> None:
    reward = load("rare.py").RareWords()
    reward.prepare({1: ["a dog", "a red dog"], 2: ["a cat"]})
    policy = Policy().double()
    rollout = make_rollout(policy, policy.encode(make_batch(range(4)).images), ["a", "dog", "a cat", ""])
    # Of two images, "a" is in both and every other word in one.
    assert reward(rollout, experience(range(4))).tolist() == pytest.approx([0, math.log(2), math.log(2) / 2, 0])


def test_a_reward_that_learns_does_so_at_its_own_rate_and_logs_its_loss(desk: Path) -> None:
    from lightning import Trainer

    probe = load("probe.py").Probe(width=8, learning_rate=0.1)
    sampling = {"sampler": Sampler(samples=2), "decoder": Sampler(method="greedy")}
    stage = Stage({"probe": probe}, LeaveOneOut(), {"policy_gradient": PolicyGradient()}, **sampling)
    before = probe.logit.weight.detach().clone()
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(accelerator="cpu", max_epochs=1, **dict.fromkeys(quiet, False))  # type: ignore[arg-type]
    trainer.fit(stage, datamodule=Data(8, 8))
    # The first step of AdamW is as long as the learning rate, in every parameter that has a gradient.
    torch.testing.assert_close((probe.logit.weight - before).abs(), torch.full_like(before, 0.1), rtol=1e-3, atol=0)
    assert stage.logged["loss/probe"] > 0
