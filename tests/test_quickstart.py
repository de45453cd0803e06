"""The quickstart's steps, with a `distcap fit` that only pretends to train."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from distcap.quickstart import CAPTIONERS, KEYS, run_quickstart, steps
from distcap.shipped import find_configs
from distcap.types import UserError

SCORES = dict.fromkeys(KEYS, 0.5)


class Fit:
    """Remembers the commands; writes what the summary and the report read; has no disk left at the step `fails`."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fails = ""
        self.returns = ""
        """A step that returns and leaves nothing, as one does that is ended from outside."""

    def __call__(self, command: list[str]) -> None:
        self.commands.append(command)
        folder = Path("runs") / self.option("--run")
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        if folder.name == self.fails:
            raise OSError("no space left")
        if folder.name == self.returns:
            return
        (folder / "captioner").mkdir()
        if folder.name in CAPTIONERS:
            (folder / "metrics.json").write_text(json.dumps({"test": SCORES | {"meteor": 0.3, "distinct@1": 0.1}}))

    def option(self, name: str, step: int = -1) -> str:
        """The value of an option in one of the commands."""
        command = [part for argument in self.commands[step] for part in argument.split("=", 1)]
        return command[command.index(name) + 1]

    @property
    def steps(self) -> list[str]:
        return [Path(self.option("--run", step)).name for step in range(len(self.commands))]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distcap.lightning_cli.run", fit := Fit())
    return fit


def test_the_summary_has_the_promised_keys_and_the_time_of_every_step(fit: Fit) -> None:
    run_quickstart("demo", seed=0, size=1.0)
    summary = json.loads(Path("runs/demo/summary.json").read_text())
    assert fit.steps == [step.name for step in steps()]
    assert {name: set(scores) for name, scores in summary["runs"].items()} == {
        name: {*KEYS, "meteor"} for name in CAPTIONERS
    }
    assert summary["seconds"].keys() == {*fit.steps, "report"}
    assert Path("runs/demo/report.html").is_file()


@pytest.mark.parametrize(("seed", "root"), [(0, "data/scenes"), (1500, "data/scenes-1500")])
def test_the_judge_differs_by_its_seed_and_sees_the_same_pictures(fit: Fit, seed: int, root: str) -> None:
    run_quickstart("demo", seed=seed, size=1.0)
    seeds = {name: int(fit.option("--seed_everything", step)) for step, name in enumerate(fit.steps)}
    assert seeds.pop("judge") not in seeds.values()
    assert set(seeds.values()) == {seed}
    assert {fit.option("--data.root", step) for step in range(len(fit.commands))} == {root}
    assert {fit.option("--data.seed", step) for step in range(len(fit.commands))} == {str(seed)}


def test_a_demo_that_failed_goes_on_with_the_checkpoint_of_its_last_step(
    fit: Fit, capsys: pytest.CaptureFixture
) -> None:
    fit.fails = "mle"
    with pytest.raises(OSError, match="no space left"):
        run_quickstart("demo", seed=0, size=1.0)
    assert "Stopped in step mle; the same command goes on from here" in capsys.readouterr().err
    fit.fails, fit.commands = "", []
    run_quickstart("demo", seed=0, size=1.0)
    assert fit.steps == ["mle", "clip_only", "distcap"]
    assert fit.option("--ckpt_path", 0) == "last"
    assert "--ckpt_path" not in fit.commands[1]


def test_a_demo_that_is_done_is_not_done_again(fit: Fit) -> None:
    run_quickstart("demo", seed=0, size=1.0)
    fit.commands = []
    run_quickstart("demo", seed=0, size=1.0)
    assert fit.commands == []


def test_a_demo_of_another_seed_is_not_overwritten(fit: Fit) -> None:
    run_quickstart("demo", seed=0, size=1.0)
    with pytest.raises(UserError, match="name another with --run"):
        run_quickstart("demo", seed=1, size=1.0)


def test_a_step_that_leaves_nothing_is_not_done(fit: Fit) -> None:
    fit.returns = "mle"
    with pytest.raises(UserError, match=r"runs/demo/mle was ended from outside.*the same command goes on"):
        run_quickstart("demo", seed=0, size=1.0)
    assert list(json.loads(Path("runs/demo/seconds.json").read_text())) == ["clip", "judge"]


@pytest.mark.parametrize("content", ["", '{"clip": 1', "[]", '{"clip": "long"}', "\0\0"])
def test_a_file_of_seconds_that_is_damaged_says_of_no_step_that_it_is_done(fit: Fit, content: str) -> None:
    run_quickstart("demo", seed=0, size=1.0)
    fit.commands = []
    Path("runs/demo/seconds.json").write_text(content)
    shutil.rmtree("runs/demo/clip/clip", ignore_errors=True)
    for folder in Path("runs/demo").glob("*/captioner"):
        folder.rmdir()
    run_quickstart("demo", seed=0, size=1.0)
    assert fit.steps == [step.name for step in steps()]
    assert all("--ckpt_path" in command for command in fit.commands)  # what is trained already is not trained again


@pytest.mark.parametrize("content", ["", "{", "[]", "\0"])
def test_a_recipe_that_is_damaged_is_one_line_that_says_what_to_do(fit: Fit, content: str) -> None:
    run_quickstart("demo", seed=0, size=1.0)
    Path("runs/demo/demo.json").write_text(content)
    with pytest.raises(UserError, match=r'runs/demo/demo\.json is damaged.*"seed": 0.*delete that file'):
        run_quickstart("demo", seed=0, size=1.0)


def test_size_scales_the_steps_of_every_config(fit: Fit) -> None:
    run_quickstart("demo", seed=0, size=0.5)
    for step, command in enumerate(fit.commands):
        found = find_configs(command)
        configs = [yaml.safe_load(Path(found[i + 1]).read_text()) for i, part in enumerate(found) if part == "--config"]
        steps = [config["trainer"]["max_steps"] for config in configs if "max_steps" in config.get("trainer", {})]
        assert int(fit.option("--trainer.max_steps", step)) == steps[-1] / 2


@pytest.mark.parametrize(("seed", "size"), [(0, 0.0), (0, -1.0), (-1, 1.0)])
def test_a_demo_of_nothing_is_refused_before_it_begins(fit: Fit, seed: int, size: float) -> None:
    with pytest.raises(UserError, match="a seed is 0 or more, a size more than 0"):
        run_quickstart("demo", seed=seed, size=size)
    assert not Path("runs").exists()


def test_the_steps_of_another_run_are_written_beside_each_other(fit: Fit) -> None:
    run_quickstart("mine", seed=0, size=1.0)
    assert {fit.option("--run", step) for step in range(len(fit.commands))} == {f"mine/{name}" for name in fit.steps}
