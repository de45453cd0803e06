"""Transfers that break off, servers that misbehave, and files that are not what they should be."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, served

from distcap.data import download as module
from distcap.data.download import Absent, download
from distcap.types import UserError

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    """Serves file.zip, which is CONTENT."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "file.zip").write_bytes(CONTENT)
    with served(tmp_path / "server") as server:
        yield server


def test_a_file_arrives_under_its_name_alone(server: Served, tmp_path: Path) -> None:
    file = download(f"{server.address}/file.zip", tmp_path / "new" / "file.zip", sha256=SHA256)
    assert file.read_bytes() == CONTENT
    assert list((tmp_path / "new").iterdir()) == [file]


def test_a_file_that_is_there_is_not_asked_for(server: Served, tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(b"mine")
    assert download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256).read_bytes() == b"mine"
    assert server.asked == []


def test_a_transfer_that_breaks_off_goes_on_from_there(server: Served, tmp_path: Path) -> None:
    server.cuts = [131_072, 65_536]
    file = download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256)
    assert file.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=131072-", "bytes=196608-"]


def test_a_transfer_that_was_given_up_goes_on_in_the_next_call(server: Served, tmp_path: Path) -> None:
    server.cuts = [131_072]
    with pytest.raises(UserError, match=r"file\.zip cannot be fetched .* it goes on from here"):
        download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256, attempts=1)
    assert not (tmp_path / "file.zip").exists()
    assert download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked[-1][1] == "bytes=131072-"


def test_an_interruption_loses_nothing(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(module.tqdm):
        def update(self, n: float | None = 1) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "tqdm", Impatient)
        with pytest.raises(KeyboardInterrupt):
            download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256)
    assert download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked[-1][1] == f"bytes={module.CHUNK}-"


def test_a_transfer_that_was_interrupted_when_it_was_whole_is_whole(server: Served, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    assert download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256).read_bytes() == CONTENT
    assert server.asked == [("/file.zip", f"bytes={len(CONTENT)}-")]


def test_a_server_without_ranges_sends_everything_anew(server: Served, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [131_072]
    assert download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_without_a_checksum_no_halves_are_put_together(server: Served, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(b"of another version")
    server.cuts = [131_072]
    assert download(f"{server.address}/file.zip", tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.asked == [("/file.zip", None)] * 2


def test_a_wrong_checksum_is_one_error_and_the_file_is_put_aside(server: Served, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256="0" * 64)
    assert f"its SHA-256 is {SHA256}, expected {'0' * 64}" in str(error.value)
    assert str(tmp_path / "file.zip.bad") in str(error.value)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["file.zip.bad"]


def test_after_a_wrong_checksum_the_file_is_fetched_whole(server: Served, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(bytes(1_000))
    with pytest.raises(UserError, match="put aside"):
        download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256)
    assert download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256).read_bytes() == CONTENT
    assert not (tmp_path / "file.zip.bad").exists()


def test_a_file_that_the_server_does_not_have_is_asked_for_once(server: Served, tmp_path: Path) -> None:
    with pytest.raises(Absent, match=r"none\.zip cannot be fetched: the server answers 404 Not Found"):
        download(f"{server.address}/none.zip", tmp_path / "none.zip", sha256=SHA256)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(server: Served, tmp_path: Path, status: int) -> None:
    server.statuses["/file.zip"] = [status, status]
    assert download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256).read_bytes() == CONTENT


def test_what_a_check_refuses_is_put_aside(server: Served, tmp_path: Path) -> None:
    def refuse(file: Path) -> None:
        raise UserError(f"{file.name} smells")

    with pytest.raises(UserError, match=r"file\.zip\.part smells; it is put aside"):
        download(f"{server.address}/file.zip", tmp_path / "file.zip", check=refuse)
    assert not (tmp_path / "file.zip").exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/file.zip", "/etc/passwd"])
def test_only_http_is_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="no http address"):
        download(url, tmp_path / "file")


def test_a_full_disk_is_told_before_the_transfer(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000}))
    with pytest.raises(UserError, match=r"needs 300,000 bytes, and .* has only 1,000 left"):
        download(f"{server.address}/file.zip", tmp_path / "file.zip", sha256=SHA256)
