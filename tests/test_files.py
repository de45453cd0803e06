"""What is written is there whole or not at all, and what is damaged is told from what is not there."""

import os
from pathlib import Path

import pytest

from distcap.data.annotations import read_karpathy
from distcap.data.archives import unpack
from distcap.data.captions import read_captions
from distcap.files import read_json, whole_file, whole_folder, write_whole
from distcap.types import UserError


def test_a_kill_while_a_file_is_written_leaves_the_one_that_there_was(tmp_path: Path) -> None:
    write_whole(file := tmp_path / "deep" / "a.json", "before")

    def killed() -> None:
        with whole_file(file) as part:
            part.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert [(left.name, left.read_text()) for left in file.parent.iterdir()] == [("a.json", "before")]


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    write_whole(file := tmp_path / "a.txt", "before")
    with whole_file(file) as part:
        part.write_text("after")
        assert file.read_text() == "before"
    assert file.read_text() == "after"


def test_a_folder_is_replaced_at_once_with_all_that_was_in_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    (tmp_path / "a.new").mkdir()
    (tmp_path / "a.new" / "half").touch()  # of a process that was killed
    with whole_folder(tmp_path / "a") as part:
        (part / "new").touch()
        assert [file.name for file in (tmp_path / "a").iterdir()] == ["old"]
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")) == ["a", "a/new"]


def test_a_folder_that_could_not_be_written_to_its_end_is_not_there(tmp_path: Path) -> None:
    def fails() -> None:
        with whole_folder(tmp_path / "a") as part:
            (part / "half").touch()
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fails()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b"\xff\xfe{", b"null", b"[" * 100_000, bytes(100)])
def test_damaged_json_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json", lambda found: isinstance(found, dict)) is None
    assert read_json(tmp_path / "none.json", lambda found: True) is None


def test_json_that_is_right_is_read(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", '{"a": 1}')
    assert read_json(tmp_path / "a.json", lambda found: isinstance(found, dict)) == {"a": 1}


def test_a_pipe_where_a_file_should_be_is_one_line_and_no_one_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    os.mkfifo(tmp_path / "a.csv")
    os.mkfifo(tmp_path / "a.zip")
    for read in (
        lambda: read_karpathy(tmp_path / "a.json"),
        lambda: list(read_captions(tmp_path / "a.csv")),
        lambda: unpack(tmp_path / "a.zip", tmp_path / "out", ["a"]),
    ):
        with pytest.raises(UserError, match="is no file"):
            read()
