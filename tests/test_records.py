"""What is kept of an ablation."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from distcap.records import pack, unpack
from distcap.types import UserError


def write_run(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Of a captioner's run, one that is not done, and one without captions."""
    runs = tmp_path / "runs"
    write_run(runs / "full", seconds={"train": 1}, metrics={"test": {}}, scores_test={}, captions_test=["a dog"])
    (runs / "full" / "model.safetensors").write_bytes(b"weights")
    write_run(runs / "half", scores_test={})
    write_run(runs / "clip", seconds={"train": 2})
    pack(runs, tmp_path / "kept" / "seed-0.tar.xz")
    return tmp_path / "kept" / "seed-0.tar.xz"


def test_captions_and_scores_of_finished_runs_are_kept_and_no_weights(archive: Path, tmp_path: Path) -> None:
    unpack(archive, tmp_path / "again")
    found = sorted(str(file.relative_to(tmp_path / "again")) for file in (tmp_path / "again").rglob("*.*"))
    assert found == [f"full/{name}.json" for name in ("captions_test", "metrics", "scores_test", "seconds")]
    assert json.loads((tmp_path / "again" / "full" / "captions_test.json").read_text()) == ["a dog"]


def test_a_run_that_is_there_is_left_as_it_is(archive: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "again" / "full", seconds={"train": 3})
    unpack(archive, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "full" / "seconds.json").read_text()) == {"train": 3}
    assert not (tmp_path / "again" / "full" / "metrics.json").exists()


def test_the_same_runs_make_the_same_archive(archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    unpack(archive, tmp_path / "again")
    pack(tmp_path / "again", archive)
    assert archive.read_bytes() == before


def test_nothing_is_written_of_no_runs(tmp_path: Path) -> None:
    pack(tmp_path, tmp_path / "kept.tar.xz")
    assert not (tmp_path / "kept.tar.xz").exists()


@pytest.mark.parametrize(
    "name", ["../evil/seconds.json", "/full/seconds.json", "full/run.py", "seconds.json", "../seconds.json"]
)
def test_an_archive_with_anything_else_is_refused(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match="is no part of a run"):
        unpack(tmp_path / "bad.tar.xz", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.tar.xz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"bad\.tar\.xz is no archive of runs"):
        unpack(tmp_path / "bad.tar.xz", tmp_path / "again")
