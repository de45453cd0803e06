"""What cannot be written is said before the work that it is to hold, by every command that writes something new."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from distcap.cli import main
from distcap.types import UserError
from distcap.writable import require_writable

PHOTO = "photo.png"


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the superuser, who may run this test, cannot write to either."""
    (folder := tmp_path / "locked").mkdir()
    make = tempfile.TemporaryFile

    def refuse(*args: Any, dir: Path, **kwargs: Any) -> Any:
        if Path(dir).absolute() == folder:
            raise PermissionError(13, "Permission denied")
        return make(*args, dir=dir, **kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.chdir(tmp_path)
    return folder


def test_what_can_be_written_is_not_made(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b" / "c.jsonl")
    (tmp_path / "there.jsonl").touch()
    require_writable(tmp_path / "there.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["there.jsonl"]


@pytest.mark.parametrize(
    "name", ["locked/out.jsonl", "locked/new/out.jsonl", "file/out.jsonl", "x" * 250, "a\0b"], ids=lambda name: name[:9]
)
def test_what_cannot_be_written_is_one_line(locked: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(.*; name another with --output") as error:
        require_writable(tmp_path / name)
    assert "\n" not in str(error.value)


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the work has begun")


@pytest.mark.parametrize(
    ("command", "work"),
    [
        (["caption", "photos", "--run=runs/rl", "--output=locked/out.jsonl"], "distcap.caption.command.load_captioner"),
        (
            ["caption", "photos", "--run=runs/rl", "--format=txt", "--output=locked/texts"],
            "distcap.caption.command._clip",
        ),
        (["report", "runs", "--output=locked/page.html"], "distcap.report.page.render"),
        (["export", "runs/rl", "--output=locked/mine"], "distcap.export.trained.TrainedRun.load"),
        (["prepare", "scenes", "--root=locked/scenes"], "distcap.data.scenes.draw_scenes"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_every_command_says_so_before_its_work(
    locked: Path, command: list[str], work: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_run(Path("runs/rl"))
    Path("runs/rl/metrics.json").write_text('{"test": {"cider": 1.0}}')
    Path("photos").mkdir()
    (Path("photos") / PHOTO).touch()
    monkeypatch.setattr(work, never)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "locked: Permission denied)" in line


@pytest.mark.parametrize(
    "use",
    [
        lambda: main(["report", "runs", "--output=locked"]),
        lambda: main(["prepare", "scenes", "--root=scenes"]),
    ],
    ids=["a folder for a page", "a damaged recipe"],
)
def test_what_is_in_the_way_is_one_line(
    locked: Path, use: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_run(Path("runs/rl"))
    Path("runs/rl/metrics.json").write_text('{"test": {"cider": 1.0}}')
    Path("scenes").mkdir()
    Path("scenes/recipe.json").touch()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        use()
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
