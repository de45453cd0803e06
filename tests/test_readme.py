"""What the documentation says is so: its commands, configs, files and code are real."""

import contextlib
import io
import re
import shlex
import tomllib
from itertools import chain
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from distcap import cli
from distcap.types import Rollout

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CONFIGS = sorted(
    path for path in (ROOT / "configs").rglob("*.yaml") if "class_path: distcap.stages" in path.read_text()
)

WORK = (
    "distcap.caption.caption_images",
    "distcap.demo.serve",
    "distcap.quickstart.run_quickstart",
    "distcap.data.scenes.paint_benchmark",
    "distcap.data.prepare.prepare_coco",
    "distcap.data.prepare.prepare_flickr30k",
    "distcap.data.prepare.prepare_nocaps",
    "distcap.data.shard_writer.write_shards",
    "distcap.metrics.java.install_spice",
    "distcap.reproduce.run_reproduction",
    "distcap.report.report",
    "distcap.export.export_run",
)
"""What the plain commands do once they are understood."""


def fenced(text: str, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in blocks if name == language]


def commands(text: str, program: str) -> list[str]:
    """The commands of a program in a document's shell blocks and inline code, each once; placeholders are left out."""
    lines = [line.partition("#")[0].strip() for block in fenced(text, "sh") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return sorted({line for line in lines if line.startswith(f"{program} ") and "..." not in line})


def head(config: Path) -> str:
    """The lines of comment that a config begins with."""
    return re.match(r"(#.*\n)*", config.read_text()).group()


def parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails unless the command line takes the command; nothing is trained and nothing is written."""
    program, *args = shlex.split(command)
    assert program == "distcap"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if args[0] in cli.STAGE_COMMANDS:
            helps = any(argument.endswith("help") for argument in args)
            with pytest.raises(SystemExit) as end:
                cli.main(args if helps else [*args, "--print_config"])
            assert end.value.code in (0, None), command
        else:
            for work in WORK:
                monkeypatch.setattr(work, MagicMock())
            cli.main(args)


@pytest.mark.parametrize("command", commands(README, "distcap"))
def test_a_command_of_the_readme_parses(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parses(command, monkeypatch)
    assert not list(tmp_path.iterdir())


def test_the_readme_has_the_commands_of_all_stages():
    text = "\n".join(commands(README, "distcap"))
    for words in (
        "fit --config mle.yaml",
        "fit --config rl.yaml",
        "predict",
        "test",
        "report runs/demo",
        "prepare spice",
    ):
        assert f"distcap {words}" in text


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_the_command_in_a_configs_head_parses_and_names_that_config(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"^#   (distcap .*)$", head(config), re.MULTILINE)
    assert found, f"{config} has no command in its head"
    assert f"--config {config.relative_to(ROOT / 'configs').as_posix()}" in found[0]
    for command in found:
        parses(command, monkeypatch)


def test_a_command_that_is_wrong_would_be_noticed(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for command in ("distcap fit --config rl.yaml --model.weight 1", "distcap report", "distcap train"):
        with pytest.raises((SystemExit, AssertionError)) as end:
            parses(command, monkeypatch)
        assert end.type is AssertionError or end.value.code == 2, command


def test_every_config_that_is_named_exists():
    named = re.findall(r"(?:--config |`)((?:\w+/)*\w+\.yaml)", README)
    assert named
    for name in named:
        assert (ROOT / "configs" / name).is_file(), name


def test_every_experiment_is_in_the_readmes_table():
    for config in (ROOT / "configs" / "experiments").glob("*.yaml"):
        assert f"`experiments/{config.name}`" in README, config


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_every_make_target_that_is_named_exists(text):
    makefile = (ROOT / "Makefile").read_text()
    targets = {command.split()[1] for command in commands(text, "make")}
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_every_link_and_picture_in_the_readme_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_the_file_tree_is_the_real_one():
    """Every name in the tree exists, and every module and folder of the package is in the tree."""
    [tree] = [block for block in fenced(README, "") if block.startswith("configs/")]
    named, folder = set(), ""
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(" ")
        if not line.startswith(" "):
            [folder] = names
        paths = [folder if not line.startswith(" ") else folder + name for name in names]
        for path in paths:
            assert (ROOT / path).exists(), path
            assert (ROOT / path).is_dir() == path.endswith("/"), path
        named.update(path.rstrip("/") for path in paths)
    for path in (ROOT / "distcap").iterdir():
        if path.suffix == ".py" or path.is_dir():
            assert path.name.startswith("__") or path.name == "configs" or f"distcap/{path.name}" in named, path


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_the_example_of_a_reward_is_a_reward(text):
    [code] = [block for block in fenced(text, "python") if "(Reward)" in block]
    scope: dict = {}
    exec(code, scope)
    tokens = torch.zeros(2, 3, dtype=torch.long)
    rollout = Rollout(["a dog", "a dog on a porch"], tokens, tokens == 0, tokens.float(), torch.tensor([0, 1]))
    torch.testing.assert_close(scope["Brevity"](weight=0.1)(rollout, None), torch.tensor([0.8, 0.5]))


def test_every_dependency_has_a_tested_version_that_suits_it():
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    assert len(versions) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], *chain.from_iterable(extras)]
    for requirement in map(Requirement, wanted):
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(version, prereleases=True), requirement
