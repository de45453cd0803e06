"""Archives that are whole, and archives that mean harm."""

import stat
import zipfile
from pathlib import Path

import pytest

from distcap.data import archives as module
from distcap.data.archives import unpack
from distcap.types import UserError

FILES = {"images/a.jpg": b"a" * 20, "images/b.jpg": b"b" * 30, "readme.txt": b"read me"}
IMAGES = ["images/a.jpg", "images/b.jpg"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(tmp_path / "archive.zip", FILES)


def write(file: Path, members: dict[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
    return file


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def refusal(archive: Path, folder: Path, wanted: list[str] = IMAGES) -> str:
    """What is said of an archive, of which nothing is unpacked."""
    with pytest.raises(UserError) as error:
        unpack(archive, folder, wanted)
    assert not folder.exists() or not files(folder)
    return str(error.value)


def test_what_is_wanted_is_unpacked_and_nothing_else(archive: Path, tmp_path: Path) -> None:
    unpack(archive, tmp_path / "out", IMAGES)
    assert files(tmp_path / "out") == {name: FILES[name] for name in IMAGES}


def test_a_file_that_is_there_with_the_right_size_is_left_alone(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "a.jpg").write_bytes(b"A" * 20)
    (tmp_path / "out" / "images" / "b.jpg").write_bytes(b"cut short")
    unpack(archive, tmp_path / "out", IMAGES)
    assert files(tmp_path / "out") == {"images/a.jpg": b"A" * 20, "images/b.jpg": b"b" * 30}


def test_an_interruption_leaves_no_file_by_halves(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: object, out: object) -> None:
        out.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unpack(archive, tmp_path / "out", IMAGES)
    assert not (tmp_path / "out" / "images" / "a.jpg").exists()
    unpack(archive, tmp_path / "out", IMAGES)
    assert files(tmp_path / "out") == {name: FILES[name] for name in IMAGES}


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "images/../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = write(tmp_path / "evil.zip", {**FILES, name: b"evil"})
    assert f"would write outside its folder, to {name!r}" in refusal(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("evil.jpg"))


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("images/c.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = write(tmp_path / "link.zip", {**FILES, link: b"/etc"})
    assert "holds a link, 'images/c.jpg'" in refusal(archive, tmp_path / "out")


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    archive = write(tmp_path / "bomb.zip", {**FILES, "bomb.jpg": bytes(10_000_000)})
    assert archive.stat().st_size < 20_000
    assert "would unpack to 10,000,057 bytes, more than 100 times its size" in refusal(archive, tmp_path / "out")


def test_a_file_that_is_larger_than_it_says_is_damaged(tmp_path: Path) -> None:
    archive = write(tmp_path / "liar.zip", {"images/a.jpg": bytes(range(200)) * 50})
    # The directory at the end states 100 bytes instead of 10,000.
    archive.write_bytes(archive.read_bytes().replace((10_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(UserError, match="is damaged, or cut short"):
        unpack(archive, tmp_path / "out", ["images/a.jpg"])
    assert max(len(content) for content in files(tmp_path / "out").values()) <= 100
    assert not (tmp_path / "out" / "images" / "a.jpg").exists()


def test_an_archive_that_was_cut_short_is_refused(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-40])
    assert "archive.zip is damaged, or cut short" in refusal(archive, tmp_path / "out")


def test_a_damaged_file_does_not_get_its_name(tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as stored:
        stored.writestr("images/a.jpg", b"hello")
    archive.write_bytes(archive.read_bytes().replace(b"hello", b"jello"))
    with pytest.raises(UserError, match="is damaged, or cut short"):
        unpack(archive, tmp_path / "out", ["images/a.jpg"])
    assert not (tmp_path / "out" / "images" / "a.jpg").exists()


def test_an_encrypted_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 8] |= 1
    archive.write_bytes(content)
    assert "is encrypted" in refusal(archive, tmp_path / "out")


def test_what_the_archive_lacks_is_named_before_anything_is_written(archive: Path, tmp_path: Path) -> None:
    said = refusal(archive, tmp_path / "out", [*IMAGES, "images/c.jpg", "images/d.jpg"])
    assert "lacks 2 of the 4 files that are needed, the first: images/c.jpg" in said


def test_a_full_disk_is_told_before_anything_is_written(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 49}))
    assert "unpacks to 50 bytes" in refusal(archive, tmp_path / "out")
