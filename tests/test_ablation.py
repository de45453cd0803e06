"""The ablation's runner, with commands that only pretend to train."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distcap import ablation
from distcap.ablation import run_ablation
from distcap.steps import Step, digest
from distcap.types import UserError

BASE = ["clip", "judge", "mle"]


class Commands:
    """Remembers what was run; a run named in `fails` ends badly."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.fails = ""
        self.terminated = ""
        """A run that is told to end, which Lightning does with exit code 0."""
        self.says = "a cat"
        """What the captioner of teacher forcing says."""

    def __call__(self, command: list[str], **kwargs: Any) -> Any:
        self.lines.append(command)
        run = Path("runs") / self.option(command, "--run")
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        if self.name(command) == self.terminated:
            return SimpleNamespace(returncode=0)
        if run.name in ("clip", "second", "sharp", "judge", "discriminator", "grammar"):
            (run / ("discriminator" if run.name in ("discriminator", "grammar") else "clip")).mkdir(exist_ok=True)
        else:
            (run / "metrics.json").write_text(json.dumps({"test": {}}))
            caption = self.says if run.name == "mle" else "a dog"
            (run / "captions_test.json").write_text(json.dumps([{"caption": caption}]))
            (run / "scores_test.json").write_text("{}")
        return SimpleNamespace(returncode=int(self.name(command) == self.fails))

    @staticmethod
    def option(command: list[str], name: str) -> str:
        parts = [part for argument in command for part in argument.split("=", 1)]
        return parts[parts.index(name) + 1]

    def name(self, command: list[str]) -> str:
        return self.option(command, "--run").removeprefix("ablation/")

    @property
    def runs(self) -> list[str]:
        return [self.name(line) for line in self.lines]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", found := Commands())
    monkeypatch.setattr(ablation, "_write", lambda *args: None)
    return found


def go(
    systems: tuple[str, ...] = ("scst", "full"),
    seeds: tuple[int, ...] = (0,),
    workers: int = 1,
    docs: str | None = None,
) -> None:
    run_ablation("ablation", seeds, systems, workers, docs)


def test_every_system_of_every_seed_is_run_after_what_it_starts_from(commands: Commands) -> None:
    go(seeds=(0, 2))
    names = (*BASE, "scst", "discriminator", "full")
    assert commands.runs == [f"seed-{seed}/{name}" for seed in (0, 2) for name in names]


def test_two_workers_never_begin_a_run_before_what_it_needs_is_done(commands: Commands) -> None:
    go(systems=("clip_s_grammar", "scst", "full"), seeds=(0, 1, 2), workers=2)
    for seed in range(3):
        order = [run.split("/")[1] for run in commands.runs if run.startswith(f"seed-{seed}/")]
        assert sorted(order) == sorted([*BASE, "grammar", "discriminator", "clip_s_grammar", "scst", "full"])
        place = {name: order.index(name) for name in order}
        assert max(place["clip"], place["judge"]) < place["mle"] < place["discriminator"] < place["full"]
        assert place["clip"] < place["grammar"] < place["clip_s_grammar"]


def test_a_second_clip_is_trained_for_the_system_that_reads_it_and_for_no_other(commands: Commands) -> None:
    go(systems=("scst", "distcap", "guidance"))
    assert commands.runs == [f"seed-0/{name}" for name in (*BASE, "scst", "distcap", "guidance")]
    go(systems=("two_clips",))
    assert commands.runs[len(BASE) + 3 :] == ["seed-0/second", "seed-0/two_clips"]
    go(systems=("sharp_clip",))
    assert commands.runs[len(BASE) + 5 :] == ["seed-0/sharp", "seed-0/sharp_clip"]


def test_what_is_done_is_skipped(commands: Commands) -> None:
    go()
    commands.lines = []
    go(systems=("scst", "full", "kl"))
    assert commands.runs == ["seed-0/kl"]


def test_what_the_records_hold_is_not_made_again_and_what_it_built_on_is_not_either(commands: Commands) -> None:
    go(docs="docs")
    shutil.rmtree("runs")
    commands.lines = []
    go(docs="docs")
    assert not commands.runs
    assert json.loads(Path("runs/ablation/seed-0/full/captions_test.json").read_text()) == [{"caption": "a dog"}]


def test_a_new_system_beside_the_records_is_given_what_it_builds_on_and_no_more(commands: Commands) -> None:
    go(docs="docs")
    shutil.rmtree("runs")
    commands.lines = []
    go(systems=("scst", "full", "kl"), docs="docs")
    assert commands.runs == [f"seed-0/{name}" for name in (*BASE, "kl")]


def test_what_began_from_another_captioner_than_the_one_made_now_is_made_again(
    commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another machine's rounding may make another captioner: its systems cannot stand in one row with the records'."""
    go(docs="docs", seeds=(0, 1))
    shutil.rmtree("runs")
    commands.lines, commands.says = [], "a cat on a mat"
    go(systems=("scst", "full", "kl"), docs="docs")
    assert commands.runs == [f"seed-0/{name}" for name in (*BASE, "scst", "discriminator", "full", "kl")]
    assert "begun from another captioner, hence made again: runs/ablation/seed-0/scst" in capsys.readouterr().err


def test_a_failure_stops_what_builds_on_it_and_nothing_else_and_is_tried_again(commands: Commands) -> None:
    commands.fails = "seed-0/mle"
    with pytest.raises(UserError, match=r"1 runs failed.*seed-0/mle.*log\.txt.*tries them again"):
        go(seeds=(0, 1))
    assert [run for run in commands.runs if run.startswith("seed-0")] == ["seed-0/clip", "seed-0/judge", "seed-0/mle"]
    assert "seed-1/full" in commands.runs
    commands.lines, commands.fails = [], ""
    go(seeds=(0, 1))
    assert commands.runs == [f"seed-0/{name}" for name in ("mle", "scst", "discriminator", "full")]


@pytest.mark.parametrize("name", ["discriminator", "full"])
def test_a_run_that_was_ended_from_outside_is_not_done(name: str, commands: Commands) -> None:
    commands.terminated = f"seed-0/{name}"
    with pytest.raises(UserError, match=f"seed-0/{name} was ended from outside; the same command goes on with it"):
        go()
    commands.lines, commands.terminated = [], ""
    go()
    assert commands.runs == [f"seed-0/{left}" for left in dict.fromkeys((name, "full"))]


def test_a_run_of_another_config_than_todays_is_not_passed_off_as_done(commands: Commands) -> None:
    go()
    marker = Path("runs/ablation/seed-0/scst/seconds.json")
    marker.write_text(json.dumps({"train": 1.0, "made_by": "another"}))
    with pytest.raises(UserError, match=r"seed-0/scst was made by other configs"):
        go()


@pytest.mark.parametrize("content", ["", '{"train": 1', "[]"])
def test_a_run_whose_marker_is_damaged_is_gone_on_with(content: str, commands: Commands) -> None:
    go()
    commands.lines = []
    Path("runs/ablation/seed-0/scst/seconds.json").write_text(content)
    go()
    assert commands.runs == ["seed-0/scst"]


def test_captions_that_are_damaged_are_one_line(commands: Commands) -> None:
    go()
    Path("runs/ablation/seed-0/mle/captions_test.json").write_text("[{")
    Path("runs/ablation/seed-0/scst/seconds.json").unlink()
    with pytest.raises(UserError, match=r"mle/captions_test\.json is damaged; delete"):
        go()


def test_a_half_done_run_goes_on_from_its_checkpoint(commands: Commands) -> None:
    last = Path("runs/ablation/seed-0/full/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    last.touch()
    go()
    found = {Commands.option(line, "--run"): "--ckpt_path" in line for line in commands.lines}
    assert found["ablation/seed-0/full"]
    assert not found["ablation/seed-0/scst"]


def test_seeds_differ_in_pictures_and_chance_and_the_judge_in_chance_alone(commands: Commands) -> None:
    go(seeds=(0, 1))
    seeds = {run: Commands.option(line, "--seed_everything") for run, line in zip(commands.runs, commands.lines)}  # noqa: B905
    roots = {run: Commands.option(line, "--data.root") for run, line in zip(commands.runs, commands.lines)}  # noqa: B905
    assert (seeds["seed-1/clip"], seeds["seed-1/judge"], seeds["seed-1/full"]) == ("1", "1001", "1")
    assert (roots["seed-0/full"], roots["seed-1/full"], roots["seed-1/judge"]) == (
        "data/scenes",
        "data/scenes-1",
        "data/scenes-1",
    )


def test_systems_without_training_are_tested_and_the_prompt_is_left_off(commands: Commands) -> None:
    go(systems=("best_of_n", "clip_s", "full"))
    lines = dict(zip(commands.runs, commands.lines, strict=True))
    assert lines["seed-0/best_of_n"][3] == "test"
    assert Commands.option(lines["seed-0/clip_s"], "--model.clip.prompt") == ""
    assert "--model.clip.prompt" not in lines["seed-0/full"]


def test_the_table_is_told_each_systems_title_paper_and_command(commands: Commands) -> None:
    go()
    rows = json.loads(Path("runs/ablation/systems.json").read_text())
    assert [row["name"] for row in rows] == ["mle", "scst", "full"]
    assert rows[1]["paper"].startswith("Rennie et al. 2017")
    assert rows[1]["command"] == ("distcap fit --config demo/rl.yaml --config experiments/scst.yaml --run demo/scst")


@pytest.mark.parametrize(
    ("systems", "seeds", "workers"), [(("scst",), (), 1), (("scst",), (-1,), 1), (("scst",), (0,), 0)]
)
def test_an_ablation_of_nothing_is_refused(systems: Any, seeds: Any, workers: int, commands: Commands) -> None:
    with pytest.raises(UserError, match="one worker and one seed"):
        go(systems, seeds, workers)


def test_an_unknown_system_is_named_with_those_that_there_are(commands: Commands) -> None:
    with pytest.raises(UserError, match="no such system: sct; there are best_of_n, clip_only"):
        go(("sct",))


def test_a_digest_changes_with_a_setting_and_not_with_a_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for text in ("run: a\n", "# new\nrun: a  # the same\n", "run: b\n"):
        Path("mine.yaml").write_text(text)
        found.append(digest([Step("mine", ("mine.yaml",), "a config of one's own")]))
    assert found[0] == found[1] != found[2]


def test_a_digest_does_not_change_with_what_a_later_config_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mix.yaml").write_text("model: {rewards: {clip: 1}, sampler: {samples: 4}}\n")
    found = []
    for base in (
        "model: {rewards: {cider: 1}, sampler: {samples: 1, beams: 5}, rate: 1}",
        "model: {rewards: {other: 2}, sampler: {samples: 2, beams: 5}, rate: 1}",
        "model: {rewards: {other: 2}, sampler: {samples: 2, beams: 3}, rate: 1}",
        "model: {rewards: {other: 2}, sampler: {samples: 2, beams: 5}, rate: 2}",
    ):
        Path("base.yaml").write_text(base)
        found.append(digest([Step("mine", ("base.yaml", "mix.yaml"), "two configs")]))
    assert found[0] == found[1]
    assert len(set(found)) == 3
