"""`distcap prepare` with the archives of COCO, Flickr30k and nocaps in miniature."""

import contextlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from miniature import write_checksums, write_coco, write_flickr30k, write_nocaps
from served import Served, served

from distcap.cli import main
from distcap.data import CocoCaptions
from distcap.data import download as download_module
from distcap.data.prepare import nocaps, prepare_coco, prepare_flickr30k, prepare_nocaps
from distcap.data.prepare.coco import IMAGES
from distcap.data.prepare.published import read_checksums
from distcap.shipped import configs_folder
from distcap.types import UserError


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "PAUSE", 0)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("painted"))


@pytest.fixture
def coco(painted: Path, tmp_path: Path) -> Path:
    """COCO's archives, of 8 images and of 12."""
    return shutil.copytree(painted, tmp_path / "archives")


@pytest.fixture
def server(coco: Path) -> Iterator[Served]:
    with served(coco) as server:
        yield server


def refusal(prepare: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        prepare(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def times(folder: Path) -> dict[Path, int]:
    """When each file was written."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def shipped(name: str, **kwargs: Any) -> CocoCaptions:
    """The data module of configs/data/NAME.yaml."""
    arguments = yaml.safe_load((configs_folder() / "data" / f"{name}.yaml").read_text())["init_args"]
    return CocoCaptions(**{**arguments, "image_size": 16, "batch_size": 2, "num_workers": 0, **kwargs})


def captions_of(data: CocoCaptions, stage: str) -> list[int]:
    """How many captions each image of a stage's first split has, all images decoded."""
    data.setup(stage)
    loader = data.test_dataloader() if stage == "test" else data.val_dataloader()
    return [len(texts) for batch in loader for texts in batch.captions]


@pytest.mark.parametrize("by", ["folder", "address"])
def test_coco_is_made_ready_for_its_config(
    server: Served, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["prepare", "coco", "--archives", str(server.folder) if by == "folder" else server.address])
    said = capsys.readouterr().out
    assert "data/coco is ready: 12 train, 4 val, 4 test images" in said
    assert "the usual one of COCO, which has 113,287 train, 5,000 val, 5,000 test images" in said
    assert len(list(Path("data/coco/train2014").glob("COCO_train2014_*.jpg"))) == 8
    assert len(list(Path("data/coco/val2014").glob("COCO_val2014_*.jpg"))) == 12
    assert captions_of(shipped("coco"), "test") == [5] * 4
    assert [e.split for e in shipped("coco", restval="drop").entries("train")] == ["train"] * 8


def test_the_miniature_has_coco_s_own_layout(coco: Path) -> None:
    with zipfile.ZipFile(coco / "val2014.zip") as archive:
        assert archive.namelist()[0] == "val2014/"
        assert archive.namelist()[1].startswith("val2014/COCO_val2014_0000000")
    with zipfile.ZipFile(coco / "caption_datasets.zip") as archive:
        image = json.loads(archive.read("dataset_coco.json"))["images"][8]
    assert image["split"] == "restval"
    assert image["filename"] == f"COCO_val2014_{image['cocoid']:012d}.jpg"
    assert set(image) == {"filepath", "sentids", "filename", "imgid", "split", "sentences", "cocoid"}
    assert set(image["sentences"][0]) == {"tokens", "raw", "imgid", "sentid"}


def test_a_second_call_reads_no_archive_and_writes_nothing(server: Served, tmp_path: Path) -> None:
    prepare_coco(tmp_path / "coco", server.address)
    before, asked = times(tmp_path / "coco"), len(server.asked)
    prepare_coco(tmp_path / "coco", server.address)
    assert times(tmp_path / "coco") == before
    assert len(server.asked) == asked


def test_a_lost_image_is_unpacked_again_and_no_other(coco: Path, tmp_path: Path) -> None:
    prepare_coco(tmp_path / "coco", str(coco))
    before = times(tmp_path / "coco")
    lost = sorted((tmp_path / "coco" / "val2014").iterdir())[3]
    lost.unlink()
    prepare_coco(tmp_path / "coco", str(coco))
    after = times(tmp_path / "coco")
    assert {file for file in before if before[file] != after[file]} == {lost, lost.parent}


def test_an_interrupted_download_goes_on_in_the_next_call(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "CHUNK", 1_000)
    server.cuts = [100_000] * 3 + [5_000] + [0] * 7  # after the captions and their checksums, train2014.zip, in vain
    assert "it goes on from here" in refusal(prepare_coco, tmp_path / "coco", server.address)
    (tmp_path / "coco" / "dataset_coco.json").stat()
    server.asked.clear()
    server.cuts = []
    prepare_coco(tmp_path / "coco", server.address)
    assert ("/train2014.zip", "bytes=5000-") in server.asked
    assert "/caption_datasets.zip" not in server.paths


@pytest.mark.parametrize("by", ["folder", "address"])
def test_another_archive_of_the_same_name_is_refused(server: Served, by: str, tmp_path: Path) -> None:
    (server.folder / "SHA256SUMS").unlink()
    source = str(server.folder) if by == "folder" else server.address
    said = refusal(prepare_coco, tmp_path / "coco", source)
    assert "caption_datasets.zip" in said
    assert "expected 4cfd70132527b809" in said
    assert (server.folder / "caption_datasets.zip").is_file()  # a user's own file stays where it is
    assert (tmp_path / "coco" / "archives" / "caption_datasets.zip.bad").exists() == (by == "address")


def test_an_archive_that_was_left_by_another_mirror_is_refused(server: Served, tmp_path: Path) -> None:
    (tmp_path / "coco" / "archives").mkdir(parents=True)
    (tmp_path / "coco" / "archives" / "caption_datasets.zip").write_bytes(b"of another mirror")
    assert "remove it, and the same command fetches it anew" in refusal(prepare_coco, tmp_path / "coco", server.address)


def test_an_archive_that_is_not_there_is_named_with_its_address(coco: Path, tmp_path: Path) -> None:
    (coco / "val2014.zip").unlink()
    said = refusal(prepare_coco, tmp_path / "coco", str(coco))
    assert f"there is no {coco / 'val2014.zip'}; it is at http://images.cocodataset.org/zips/val2014.zip" in said


def test_a_truncated_archive_is_one_line(coco: Path, tmp_path: Path) -> None:
    (coco / "val2014.zip").write_bytes((coco / "val2014.zip").read_bytes()[:-100])
    write_checksums(coco)
    assert "val2014.zip is damaged, or cut short" in refusal(prepare_coco, tmp_path / "coco", str(coco))


def test_unpacked_images_stay_where_they_are(coco: Path, tmp_path: Path) -> None:
    for name in ("train2014", "val2014"):
        zipfile.ZipFile(coco / f"{name}.zip").extractall(tmp_path / "mine")
        (coco / f"{name}.zip").unlink()
    for _ in range(2):
        prepare_coco(tmp_path / "coco", str(coco), str(tmp_path / "mine"))
        assert (tmp_path / "coco" / "train2014").readlink() == tmp_path / "mine" / "train2014"


def test_missing_and_empty_images_are_counted_and_named(coco: Path, tmp_path: Path) -> None:
    for name in ("train2014", "val2014"):
        zipfile.ZipFile(coco / f"{name}.zip").extractall(tmp_path / "mine")
    first, *_ = sorted((tmp_path / "mine" / "train2014").iterdir())
    *_, last = sorted((tmp_path / "mine" / "val2014").iterdir())
    first.unlink()
    last.write_bytes(b"")
    said = refusal(prepare_coco, tmp_path / "coco", str(coco), str(tmp_path / "mine"))
    assert "2 of the 20 images" in said
    assert "(1 of train, 1 of test)" in said
    assert f"train2014/{first.name}, val2014/{last.name};" in said


def test_nothing_is_unpacked_into_a_folder_that_is_elsewhere(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "train2014").symlink_to(tmp_path / "mine")
    assert "where 8 images are missing" in refusal(prepare_coco, tmp_path / "coco", str(coco))
    assert not list((tmp_path / "mine").iterdir())


def test_a_folder_of_images_is_not_replaced_by_a_link(coco: Path, tmp_path: Path) -> None:
    prepare_coco(tmp_path / "coco", str(coco))
    (tmp_path / "mine" / "train2014").mkdir(parents=True)
    said = refusal(prepare_coco, tmp_path / "coco", str(coco), str(tmp_path / "mine"))
    assert "train2014 is there already" in said


def test_the_published_checksums_are_those_of_sha256() -> None:
    assert all(len(bytes.fromhex(archive.sha256 or "")) == 32 for archive in IMAGES)


@pytest.mark.parametrize("text", ["<html>", "abc  train2014.zip", "0" * 64])
def test_a_list_of_checksums_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(text)
    assert "as sha256sum writes them" in refusal(read_checksums, tmp_path / "SHA256SUMS")


def test_flickr30k_is_made_ready_for_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_flickr30k(Path("archives"))
    main(["prepare", "flickr30k", "--archives", "archives", "--images", "archives/flickr30k-images"])
    assert "data/flickr30k is ready: 6 train, 3 val, 3 test images" in capsys.readouterr().out
    assert captions_of(shipped("flickr30k"), "test") == [5] * 3
    assert len(shipped("flickr30k").entries("train")) == 6


def test_without_flickr30k_s_images_one_line_says_how_to_get_them(tmp_path: Path) -> None:
    write_flickr30k(tmp_path / "archives")
    said = refusal(prepare_flickr30k, tmp_path / "flickr30k", str(tmp_path / "archives"))
    assert "the form at https://shannon.cs.illinois.edu/DenotationGraph/" in said
    assert "distcap prepare flickr30k --images FOLDER" in said


@pytest.fixture
def open_images(tmp_path: Path) -> Iterator[Served]:
    """Serves nocaps: the annotation file, and six images of three domains."""
    (tmp_path / "open").mkdir()
    with served(tmp_path / "open") as server:
        write_nocaps(server.folder, server.address)
        yield server


def test_nocaps_is_made_ready_for_its_config(
    open_images: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["prepare", "nocaps", "--archives", open_images.address])
    said = capsys.readouterr().out
    assert "data/nocaps is ready: 6 test images" in said
    assert "2 in-domain, 2 near-domain, 2 out-domain" in said
    assert captions_of(shipped("nocaps"), "test") == [10] * 6
    domains = [entry.domain for entry in shipped("nocaps").entries("test")]
    assert domains == ["in-domain", "near-domain", "out-domain"] * 2


def test_only_missing_images_of_nocaps_are_fetched(open_images: Served, tmp_path: Path) -> None:
    prepare_nocaps(tmp_path / "nocaps", open_images.address)
    lost = sorted((tmp_path / "nocaps" / "images").iterdir())[2]
    lost.unlink()
    open_images.asked.clear()
    prepare_nocaps(tmp_path / "nocaps", open_images.address)
    assert open_images.paths == [f"/val/{lost.name}"]


def test_an_image_that_comes_broken_is_fetched_again(open_images: Served, tmp_path: Path) -> None:
    path = "/val/0013ea2087020901.jpg"
    open_images.statuses[path] = [404]
    prepare_nocaps(tmp_path / "nocaps", open_images.address)
    assert open_images.paths.count(path) == 2


def test_images_of_nocaps_that_cannot_be_had_are_named_and_the_others_are_kept(
    open_images: Served, tmp_path: Path
) -> None:
    (open_images.folder / "val" / "0013ea2087020901.jpg").write_text("<html>Please log in</html>")
    (open_images.folder / "val" / "0013ea2087020903.jpg").unlink()
    said = refusal(prepare_nocaps, tmp_path / "nocaps", open_images.address)
    assert "2 of the 6 images" in said
    assert "0013ea2087020901.jpg, 0013ea2087020903.jpg; the first cannot be had: " in said
    assert len(list((tmp_path / "nocaps" / "images").glob("*.jpg"))) == 4


def test_an_interruption_keeps_the_images_that_arrived(
    open_images: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(jobs: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield next(iter(jobs))
        raise KeyboardInterrupt

    monkeypatch.setattr(nocaps, "CONNECTIONS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(nocaps, "tqdm", impatient)
        with pytest.raises(KeyboardInterrupt):
            prepare_nocaps(tmp_path / "nocaps", open_images.address)
    arrived = list((tmp_path / "nocaps" / "images").iterdir())
    assert arrived
    open_images.asked.clear()
    prepare_nocaps(tmp_path / "nocaps", open_images.address)
    assert len(open_images.asked) == 6 - len(arrived)


def test_where_nothing_can_be_fetched_the_rest_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nocaps, "HOPELESS", 3)
    write_nocaps(tmp_path / "open", "file:///etc", images=40)
    said = refusal(prepare_nocaps, tmp_path / "nocaps", str(tmp_path / "open"))
    assert said.startswith("of 3 images none can be fetched, for instance: file:///etc/val/")


def test_images_of_nocaps_on_disk_need_no_address(tmp_path: Path) -> None:
    write_nocaps(tmp_path / "open", "http://127.0.0.1:9")
    prepare_nocaps(tmp_path / "nocaps", str(tmp_path / "open"), str(tmp_path / "open" / "val"))
    assert (tmp_path / "nocaps" / "images").readlink() == tmp_path / "open" / "val"


def test_a_mistake_of_prepare_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.chdir(tmp_path), pytest.raises(SystemExit) as stop:
        main(["prepare", "coco", "--archives", "nowhere"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("distcap: there is no nowhere/caption_datasets.zip")


def test_a_disk_that_refuses_is_one_line(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "coco", "--root", str(tmp_path / "taken" / "coco"), "--archives", str(coco)])
    assert stop.value.code == 2
    assert f"distcap: {tmp_path / 'taken' / 'coco'}: Not a directory" in capsys.readouterr().err
