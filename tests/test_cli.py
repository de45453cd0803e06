"""The command line: it answers at once, finds its configs, and ends in one line when the user errs."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distcap.cli import STAGE_COMMANDS, main
from distcap.commands import COMMANDS, PREPARE
from distcap.shipped import configs_folder, find_configs
from distcap.types import UserError

HEAVY = ("torch", "lightning", "transformers", "open_clip", "wandb", "matplotlib", "numpy", "jsonargparse")


def fails(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> str:
    """The one line that a mistake ends in."""
    capsys.readouterr()
    with contextlib.chdir(folder), pytest.raises(SystemExit) as stop:
        main(args)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("INFO")]
    assert stop.value.code == 2
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("distcap: ")
    return lines[0]


@pytest.mark.parametrize("option", ["--help", "-h", "help", "--version"])
def test_help_imports_nothing_heavy(option: str) -> None:
    code = f"import sys; from distcap.cli import main; main([{option!r}]); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("distcap " if option == "--version" else "usage: distcap COMMAND")
    assert not set(HEAVY) & set(out.splitlines()[-1].split())


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    first_words = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert {*STAGE_COMMANDS, *COMMANDS} <= first_words


def test_a_mistake_ends_in_one_line_and_exit_code_2_in_a_shell_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distcap.cli", "fit", "--config", "nothing.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("distcap: nothing.yaml: no such config")


def test_an_interruption_ends_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "configs", work)
    with pytest.raises(SystemExit) as stop:
        main(["configs"])
    assert (stop.value.code, capsys.readouterr().err) == (130, "distcap: interrupted\n")


def test_an_unknown_command_is_told_the_known_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = fails(capsys, tmp_path, "train")
    assert "unknown command 'train'" in line
    assert all(command in line for command in (*STAGE_COMMANDS, *COMMANDS))


@pytest.mark.parametrize(
    "option", ["--modle.learning_rate=1", "--model.learning_rat=1", "--trainer.max_steps=many", "--data.batch_size=x"]
)
def test_an_unknown_option_or_value_is_named(capsys: pytest.CaptureFixture[str], workshop: Path, option: str) -> None:
    name = option.partition("=")[0].rsplit(".", 1)[1]
    assert name in fails(capsys, workshop, "fit", "--config", "demo/mle.yaml", option)


@pytest.mark.parametrize("args", [(), ("--run", "demo", "--seed", "0"), ("--run=demo",), ("--size", "0.1")])
def test_the_old_spelling_of_quickstart_is_told_the_new_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, args: tuple[str, ...]
) -> None:
    line = fails(capsys, tmp_path, "demo", *args)
    assert "demo needs a trained run" in line
    assert "`distcap quickstart`" in line


def test_a_list_of_words_needs_no_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def name(words: list[str], loud: bool = False) -> None:
        calls.append((words, loud))

    monkeypatch.setitem(COMMANDS, "configs", name)
    main(["configs", "one", "--loud", "true"])
    main(["configs", "[2]", "3", "null"])
    assert calls == [(["one"], True), (["[2]", "3", "null"], False)]


def test_a_stage_without_arguments_is_told_of_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "test needs a config, e.g. --config demo/mle.yaml" in fails(capsys, tmp_path, "test")


def test_fit_without_a_config_says_what_it_lacks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "model" in fails(capsys, tmp_path, "fit", "--run=x")


@pytest.mark.parametrize("args", [("--config", "nothing.yaml"), ("--config=nothing.yaml",), ("-c", "nothing.yaml")])
def test_a_missing_config_is_named_with_the_way_to_find_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, args: tuple[str, ...]
) -> None:
    line = fails(capsys, tmp_path, "fit", *args)
    assert "nothing.yaml: no such config" in line
    assert "`distcap configs`" in line


def test_a_config_that_is_no_yaml_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: [")
    assert "line 2, column 1" in fails(capsys, tmp_path, "fit", "--config", "bad.yaml")


def test_a_missing_checkpoint_is_named(capsys: pytest.CaptureFixture[str], workshop: Path) -> None:
    line = fails(capsys, workshop, "fit", "--config", "demo/mle.yaml", "--ckpt_path", "nowhere.ckpt")
    assert "nowhere.ckpt: no such checkpoint" in line


def test_the_last_checkpoint_of_a_run_that_has_none_is_named(
    capsys: pytest.CaptureFixture[str], workshop: Path
) -> None:
    args = ("test", "--config", "demo/mle.yaml", "--run", "new", "--ckpt_path", "last")
    assert "runs/new/checkpoints/last.ckpt: no such checkpoint" in fails(capsys, workshop, *args)


@pytest.mark.parametrize("name", ["mle.yaml", "rl.yaml"])
def test_without_coco_one_line_says_what_is_missing_how_to_get_it_and_how_to_do_without(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """Before any model is looked for: nothing is downloaded for a run that cannot start."""
    line = fails(capsys, tmp_path, "fit", "--config", name)
    assert "there is no annotation file data/coco/dataset_coco.json" in line
    assert "https://cocodataset.org/#download" in line
    assert "distcap fit --config demo/mle.yaml" in line


def test_a_stage_whose_predecessor_was_not_run_says_so(capsys: pytest.CaptureFixture[str], workshop: Path) -> None:
    args = ("--data=scenes.yaml", "--model.captioner.init_from=runs/none", "--run=new")
    line = fails(capsys, workshop, "fit", "--config", "demo/discriminator.yaml", *args)
    assert "runs/none: no captioner there; train it first" in line


def test_images_of_the_wrong_size_end_in_one_line(capsys: pytest.CaptureFixture[str], workshop: Path) -> None:
    args = ("--data=scenes.yaml", "--data.image_size=48", "--run=new", "--trainer.callbacks=[]")
    capsys.readouterr()
    with contextlib.chdir(workshop), pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "demo/mle.yaml", *args, "--trainer.enable_progress_bar=false"])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "distcap: the model sees images of 64 pixels, got 48; set --data.image_size=64, or leave it out"


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_untrained_captioner_is_not_evaluated(
    capsys: pytest.CaptureFixture[str], workshop: Path, command: str
) -> None:
    capsys.readouterr()
    args = ("--config", "demo/mle.yaml", "--data=scenes.yaml", "--run=new", "--trainer.callbacks=[]")
    with contextlib.chdir(workshop), pytest.raises(SystemExit) as stop:
        main([command, *args, "--trainer.enable_progress_bar=false"])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"distcap: {command} needs a trained captioner; name its checkpoint, e.g. --ckpt_path last")


def test_a_config_is_a_path_first_and_a_shipped_one_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = configs_folder() / "mle.yaml"
    assert find_configs(["fit", "--config", "mle.yaml"]) == ["fit", "--config", str(shipped)]
    assert find_configs(["fit", "--config=mle.yaml"]) == ["fit", f"--config={shipped}"]
    (tmp_path / "mle.yaml").write_text("run: mine")
    assert find_configs(["fit", "-c", "mle.yaml"]) == ["fit", "-c", "mle.yaml"]


def test_a_piece_of_a_config_may_be_a_shipped_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("class_path: distcap.data.Scenes")
    shipped = str(configs_folder() / "data" / "nocaps.yaml")
    assert find_configs(["test", "--data", "data/nocaps.yaml"]) == ["test", "--data", shipped]
    assert find_configs(["test", "--data=data/nocaps.yaml"]) == ["test", f"--data={shipped}"]
    assert find_configs(["test", "--flag", "--data=data/nocaps.yaml"])[1:] == ["--flag", f"--data={shipped}"]
    assert find_configs(["test", "--data", "data/mine.yaml"]) == ["test", "--data", "data/mine.yaml"]
    with pytest.raises(UserError, match=r"data/none\.yaml: no such config"):
        find_configs(["test", "--data", "data/none.yaml"])


@pytest.mark.parametrize("option", ["--data", "--model.corpus"])
def test_a_piece_of_a_config_is_a_path_first_and_a_shipped_one_otherwise(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = configs_folder() / "data" / "folder.yaml"
    assert find_configs(["fit", option, "data/folder.yaml"]) == ["fit", option, str(shipped)]
    assert find_configs(["fit", f"{option}=data/folder.yaml"]) == ["fit", f"{option}={shipped}"]
    mapping = '{"a": "' + "b" * 5000 + '"}'  # longer than any file's name
    assert find_configs(["fit", option, mapping]) == ["fit", option, mapping]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "folder.yaml").touch()
    assert find_configs(["fit", option, "data/folder.yaml"]) == ["fit", option, "data/folder.yaml"]


def test_every_config_of_a_command_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        find_configs(["fit", "--config", "mle.yaml", "--config", "mine.yaml"])


def test_configs_lists_every_shipped_file_with_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    names = [str(file.relative_to(configs_folder())) for file in sorted(configs_folder().rglob("*.yaml"))]
    assert [line.split()[0] for line in lines] == names
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("configs", "too", "many"), "configs: "),
        (("prepare",), "prepare: "),
        (("prepare", "mars"), "choose from 'coco', 'flickr30k', 'nocaps', 'scenes', 'shards', 'spice'"),
        (("prepare", "scenes", "--seed", "x"), "seed"),
        (("prepare", "scenes", "--colour", "red"), "--colour"),
        (("report",), "report: "),
        (("report", "nowhere"), "nowhere"),
        (("report", ".", "--images", "many"), "images"),
    ],
)
def test_a_wrong_argument_of_a_plain_command_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    assert said in fails(capsys, tmp_path, *args)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_plain_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: distcap {command}" in capsys.readouterr().out


def test_stage_help_names_the_run_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    assert "--run" in capsys.readouterr().out


def test_prepare_paints_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("distcap.data.scenes.paint_benchmark", lambda root, seed: calls.append((root, seed)))
    main(["prepare", "scenes", "--root", str(tmp_path), "--seed", "3"])
    assert calls == [(tmp_path, 3)]


@pytest.mark.parametrize("what", PREPARE)
def test_all_that_can_be_prepared_has_help(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prepare", what, "--help"])
    assert stop.value.code == 0
    assert "Args:" not in capsys.readouterr().out


def test_an_error_is_one_line_whatever_a_file_is_called() -> None:
    """A line break in a name would make two of it, and an escape sequence would be a command to the terminal."""
    assert str(UserError("photos/two\nlines\x1b[2J.png: no é")) == "photos/two\\nlines\\x1b[2J.png: no é"


def test_a_config_that_is_no_utf8_is_one_line_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("run: é", encoding="utf-16")
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(tmp_path / "mine.yaml")])
    assert re.search(r"distcap: .*mine\.yaml: a config that can't be read as text in UTF-8", capsys.readouterr().err)
