"""Collections in tar files: every sample is dealt once, in an order that an interruption does not change."""

import gzip
import io
import json
import sqlite3
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from distcap.cli import main
from distcap.data import CocoCaptions, Shards
from distcap.data.shard_index import ShardIndex, image_id
from distcap.data.shard_stream import ShardStream
from distcap.types import Batch, UserError


def picture(grey: int = 0) -> bytes:
    Image.new("RGB", (4, 4), (grey,) * 3).save(data := io.BytesIO(), "PNG")
    return data.getvalue()


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            (member := tarfile.TarInfo(name)).size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def sample(number: int) -> dict[str, bytes]:
    return {f"k{number:02}.png": picture(number), f"k{number:02}.txt": f"number {number}".encode()}


SIZES = (7, 2, 9, 8)
"""26 samples in four shards: for two processes, twice three batches of four and two samples that fill none."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder, numbers, shards = tmp_path_factory.mktemp("shards"), iter(range(sum(SIZES))), []
    for name, size in enumerate(SIZES):
        members = {k: v for _ in range(size) for k, v in sample(next(numbers)).items()}
        shards.append(str(write_tar(folder / f"{name}.tar", members)))
    index = ShardIndex(shards, folder / "index.sqlite")
    index.build()
    return index


def stream(index: ShardIndex, rank: int = 0, processes: int = 2, seed: int = 0, **kwargs: Any) -> ShardStream:
    made = ShardStream(index, 4, 4, seed, 5, "raise", rank, processes)
    for name, value in kwargs.items():
        setattr(made, name, value)
    return made


def batches(made: ShardStream, workers: int = 2, monkeypatch: Any = None) -> list[list[str]]:
    """The captions of an epoch's batches, as a DataLoader takes them from its workers by turns."""

    class Worker:
        def __init__(self, number: int) -> None:
            self.info = SimpleNamespace(id=number, num_workers=workers)

    turns = []
    for number in range(workers):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("distcap.data.shard_stream.get_worker_info", lambda n=number: Worker(n).info)
            turns.append(list(made))
    found = []
    for turn in range(max(map(len, turns))):
        for worker in turns:
            if turn < len(worker):
                batch, errors = worker[turn]
                assert isinstance(batch, Batch)
                assert not errors
                assert torch.equal(batch.images[:, 0, 0, 0] * 255, torch.tensor(_numbers(batch)).float())
                assert batch.image_ids == [image_id(f"k{number:02}") for number in _numbers(batch)]
                found.append([caption for captions in batch.captions for caption in captions])
    return found


def _numbers(batch: Batch) -> list[int]:
    return [int(captions[0].removeprefix("number ")) for captions in batch.captions]


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_two_processes_with_some_workers_see_each_sample_once_in_as_many_batches(
    index: ShardIndex, workers: int, epoch: int
) -> None:
    first, second = (batches(stream(index, rank, epoch=epoch), workers) for rank in range(2))
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [4, 4, 4]
    assert set(Counter(caption for batch in first + second for caption in batch).values()) == {1}


def test_what_fills_no_batch_is_another_sample_in_another_epoch(index: ShardIndex) -> None:
    everything = {f"number {number}" for number in range(sum(SIZES))}
    left_out = [
        everything
        - {caption for rank in range(2) for batch in batches(stream(index, rank, epoch=epoch)) for caption in batch}
        for epoch in range(4)
    ]
    assert [len(captions) for captions in left_out] == [2] * 4
    assert len(set().union(*left_out)) > 2


def test_the_order_is_that_of_seed_and_epoch(index: ShardIndex) -> None:
    first = batches(stream(index))
    assert batches(stream(index)) == first
    others = [batches(stream(index, epoch=1)), batches(stream(index, seed=1)), batches(stream(index, rank=1))]
    assert all(other != first for other in others)


def test_samples_of_a_shard_do_not_come_in_its_order(index: ShardIndex) -> None:
    order = [int(caption.split()[1]) for batch in batches(stream(index), 1) for caption in batch]
    assert sum(b == a + 1 for a, b in pairwise(order)) < len(order) / 2


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("done", [1, 2, 3, 5, 6])
def test_an_interrupted_epoch_goes_on_with_the_next_batch_and_reads_nothing_again(
    index: ShardIndex, done: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = batches(stream(index, processes=1), workers)
    assert len(whole) == 6
    decoded: list[str] = []
    decode = ShardStream._decode

    def count(self: ShardStream, sample: Any, data: bytes) -> Any:
        decoded.extend(sample.captions)
        return decode(self, sample, data)

    monkeypatch.setattr(ShardStream, "_decode", count)
    assert batches(stream(index, processes=1, done=done), workers) == whole[done:]
    assert sorted(decoded) == sorted(caption for batch in whole[done:] for caption in batch)


def test_webdataset_reads_the_same_samples(index: ShardIndex) -> None:
    """The independent reader of the format."""
    webdataset = pytest.importorskip("webdataset")
    theirs = webdataset.WebDataset(index.shards, shardshuffle=False, empty_check=False)
    found = [(one["__key__"], one["txt"].decode(), one["png"]) for one in theirs]
    ours = [(one.member.key, one.captions[0], one.member.open().read()) for one in index]
    assert ours == found


def test_shards_are_read_by_url(index: ShardIndex, tmp_path: Path) -> None:
    """Of fsspec's, all of which are read alike; this one is memory."""
    import fsspec

    urls = [f"memory://test_shards/{number}.tar" for number in range(len(SIZES))]
    for url, file in zip(urls, index.shards, strict=True):
        fsspec.filesystem("memory").pipe_file(url, Path(file).read_bytes())
    remote = ShardIndex(urls, tmp_path / "index.sqlite")
    remote.build()
    assert [one[::2] for one in remote] == [one[::2] for one in index]
    assert Counter(c for batch in batches(stream(remote, processes=1)) for c in batch).total() == 24


# The index.


def indexed(folder: Path, members: dict[str, bytes]) -> ShardIndex:
    index = ShardIndex([str(write_tar(folder / "0.tar", members))], folder / "index.sqlite")
    index.build()
    return index


def test_captions_are_lines_of_a_text_or_strings_of_json(tmp_path: Path) -> None:
    texts = {
        "a.txt": b"a dog\n\n two  dogs \n",
        "b.json": b'{"caption": "a cat", "url": "x"}',
        "c.json": b'{"captions": ["a", "b"]}',
        "folder/d.JSON": b'["one"]',
    }
    images = {f"{name.split('.')[0]}.jpg": b"never read" for name in texts}
    found = indexed(tmp_path, {**texts, **images})
    expected = {"a": ["a dog", "two dogs"], "b": ["a cat"], "c": ["a", "b"], "folder/d": ["one"]}
    assert {one.member.key: one.captions for one in found} == expected


def test_what_img2dataset_writes_is_a_caption_in_a_text_and_metadata_in_json(tmp_path: Path) -> None:
    """Of a caption that was null, it writes an empty text and a null; and what it says of an image may be anything."""
    members = {
        **{"a.jpg": b"1", "a.txt": b"a dog", "a.json": b'{"caption": "A DOG", "status": "success", "exif": "{}"}'},
        **{"b.jpg": b"1", "b.json": b'{"caption": "not this", "url": null}', "b.txt": b"\xef\xbb\xbfa cat\n\na puss"},
        **{"c.jpg": b"1", "c.txt": b"", "c.json": b'{"caption": null}'},
        **{"d.jpg": b"1", "d.json": b"{ no json", "d.txt": b"a cow"},
        **{"e.jpg": b"1", "e.json": b'{"caption": null, "key": "e"}'},
        **{"f.jpg": b"1", "f.json": b'\xef\xbb\xbf{"captions": ["a", null]}'},
    }
    with pytest.warns(UserWarning, match="2 images without a caption, the first: ") as told:
        found = {one.member.key: one.captions for one in indexed(tmp_path, members)}
    assert found == {"a": ["a dog"], "b": ["a cat", "a puss"], "d": ["a cow"], "f": ["a"]}
    assert "1 captions that are empty or null, the first: " in str(told[0].message)


def test_what_cannot_be_used_is_counted_and_named_whenever_the_index_is_opened(tmp_path: Path) -> None:
    members = {
        **{"a.jpg": b"", "b.txt": b"no image", "c.jpg": b"", "c.txt": b" ", "d.png": b"", "d.txt": b"whole"},
        **{"d.pkl": b"code", "d.pyd": b"code", "e": b"", "f.gif": b"", "f.txt": b"moves", "d.jpg": b"twice"},
    }
    index = ShardIndex([str(write_tar(tmp_path / "0.tar", members))], tmp_path / "index.sqlite")
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out of ") as told:
            index.build()
        assert len(told) == 1
        line = str(told[0].message)
        assert "1 images of other kinds than jpg, jpeg, png, webp, the first: " in line
        assert f"2 images without a caption, the first: {tmp_path}/0.tar/a" in line
        assert f"1 captions without an image, the first: {tmp_path}/0.tar/b" in line
        assert f"1 second images of a key, the first: {tmp_path}/0.tar: d.jpg" in line
        assert [one.member.key for one in index] == ["d"]


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(indexed(tmp_path, sample(1)))) == 1


def header(size: bytes, kind: bytes = b"0", name: bytes = b"b.jpg") -> bytes:
    """A tar header by hand, with any size."""
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" * 3 + size.ljust(12, b"\0") + b"0" * 11 + b"\0")
    block += b" " * 8 + kind + bytes(100) + b"ustar\x0000" + bytes(247)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" * 9 + b"\xff\xfe\x00"
HUGE = b"\x80" + (2**40).to_bytes(11, "big")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (header(NEGATIVE), "a size of -512 bytes"),
        (header(NEGATIVE, b"x"), "a size of -512 bytes"),
        (header(HUGE, b"x"), "a size of 1,099,511,627,776 bytes"),
        (header(HUGE, b"g"), "a size of 1,099,511,627,776 bytes"),
        (header(HUGE, b"L"), "a size of 1,099,511,627,776 bytes"),
        (header(HUGE), "has 1,099,511,627,776 bytes, more than images may have"),
        (header(b"00000000014", b"x") + b"12 size=-512\n".ljust(512, b"\0") + header(b"0"), "shard"),
        (b"no header at all".ljust(1024), "the header at byte 1,024 is damaged"),
        (header(b"00000000000", b"x") * 3000, "cannot read the shard"),
    ],
)
def test_a_malicious_header_ends_in_one_line_and_no_time(tmp_path: Path, more: bytes, message: str) -> None:
    (tmp_path / "0.tar").write_bytes(write_tar(tmp_path / "w.tar", {"a.txt": b"a dog"}).read_bytes()[:1024] + more)
    with pytest.raises(UserError, match=message) as error:
        ShardIndex([str(tmp_path / "0.tar")], tmp_path / "index.sqlite").build()
    assert "\n" not in str(error.value)


def test_a_compressed_shard_is_one_line(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "plain.tar", sample(1)).read_bytes()
    (tmp_path / "0.tar").write_bytes(gzip.compress(plain))
    with pytest.raises(UserError, match="it is compressed with gzip"):
        ShardIndex([str(tmp_path / "0.tar")], tmp_path / "index.sqlite").build()


@pytest.mark.parametrize("damage", ["text", "cut", "layout"])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str) -> None:
    index = indexed(tmp_path, {key: data for number in range(50) for key, data in sample(number).items()})
    whole = [one[0] for one in index]
    if damage == "layout":
        with closing(sqlite3.connect(index.file)) as database:
            database.executescript("pragma user_version = 0; drop table shards; create table shards (name text)")
    else:
        data = index.file.read_bytes()
        index.file.write_bytes(b"nothing of the kind" * 99 if damage == "text" else data[: len(data) // 2])
    with pytest.warns(UserWarning, match="is damaged, or of another version: it is made again"):
        index.build()
    assert [one[0] for one in index] == whole


def test_an_index_that_is_damaged_later_is_one_line(tmp_path: Path) -> None:
    index = indexed(tmp_path, sample(1))
    index.file.write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(UserError, match=r"index\.sqlite cannot be used \(.*\); delete the file"):
        index.counts()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"1", "a.txt": b"x" * (2**20 + 1)}, r"a\.txt has 1,048,577 bytes, more than texts may have"),
        ({"a.json": b'{"caption": 3}'}, r"a\.json: expected"),
        ({"a.json": b"{"}, r"a\.json is not JSON"),
        ({"a.txt": b"\xff"}, r"a\.txt is not UTF-8"),
    ],
)
def test_a_shard_with_something_wrong_is_one_error(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        indexed(tmp_path, members)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 99, None])
def test_what_is_no_tar_file_or_not_there_is_one_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the shard .*0\.tar"):
        ShardIndex([str(tmp_path / "0.tar")], tmp_path / "index.sqlite").build()


def test_a_shard_that_was_cut_short_is_one_error(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "0.tar", {"a.txt": b"a dog", "a.jpg": b"x" * 5000})
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"ends within a\.jpg|cannot read the shard"):
        ShardIndex([str(file)], tmp_path / "index.sqlite").build()


def test_two_shards_with_one_key_are_one_error(tmp_path: Path) -> None:
    shards = [str(write_tar(tmp_path / f"{i}.tar", sample(1))) for i in range(2)]
    with pytest.raises(UserError, match=r"the key k01 of .*1\.tar is that of a sample of .*0\.tar"):
        ShardIndex(shards, tmp_path / "index.sqlite").build()


def test_an_interrupted_index_goes_on_and_a_changed_shard_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distcap.data import shard_index

    shards = [str(write_tar(tmp_path / f"{i}.tar", sample(i))) for i in range(3)]
    read: list[str] = []
    samples = shard_index._samples

    def interrupted(shard: str, *args: Any) -> Any:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(Path(shard).name)
        return samples(shard, *args)

    index = ShardIndex(shards, tmp_path / "index.sqlite")
    monkeypatch.setattr(shard_index, "_samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.build()
    monkeypatch.setattr(
        shard_index, "_samples", lambda shard, *args: read.append(Path(shard).name) or samples(shard, *args)
    )
    index.build()
    assert read == ["0.tar", "1.tar", "2.tar"]
    write_tar(Path(shards[1]), {**sample(1), **sample(7)})
    index.build()
    assert read[3:] == ["1.tar"]
    assert [one.captions for one in index] == [["number 0"], ["number 1"], ["number 7"], ["number 2"]]


# The writer and the data module.


@pytest.fixture
def coco(tmp_path: Path, karpathy: dict[str, Any], write_json: Any) -> dict[str, str]:
    """The arguments of a CocoCaptions of 14 training images."""
    return {"annotations": write_json("karpathy.json", karpathy), "images": str(tmp_path / "images")}


def prepare(coco: dict[str, str], output: Path, *args: str) -> list[str]:
    main(
        [
            *("prepare", "shards", coco["annotations"], coco["images"]),
            *("--output", str(output), "--per_shard", "5", *args),
        ]
    )
    return [str(file) for file in sorted(output.glob("*.tar"))]


def test_what_is_packed_is_read_again(coco: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shards = prepare(coco, tmp_path / "shards")
    assert f"3 shards: {tmp_path}/shards/{{00000..00002}}.tar" in capsys.readouterr().out
    data = Shards(f"{tmp_path}/shards/{{00000..00002}}.tar", CocoCaptions(**coco))
    assert data.index.shards == shards
    data.prepare_data()
    data.setup("fit")
    original = CocoCaptions(**coco)
    assert list(data.references("train").values()) == list(original.references("train").values())
    for ours, theirs in zip(data.entries("train"), original.entries("train"), strict=True):
        assert data.path(ours).open("rb").read() == original.path(theirs).read_bytes()
        assert data.references("train")[ours.image_id] == list(theirs.captions)
    assert data.references("val") == original.references("val")


def test_packing_goes_on_where_it_was_interrupted(coco: dict[str, str], tmp_path: Path) -> None:
    shards = [Path(shard) for shard in prepare(coco, tmp_path / "shards")]
    whole = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    shards[1].with_suffix(".part").write_bytes(b"half")
    before = shards[0].stat().st_mtime_ns
    prepare(coco, tmp_path / "shards")
    assert [shard.read_bytes() for shard in shards] == whole
    assert shards[0].stat().st_mtime_ns == before


def test_packing_other_data_into_the_same_folder_is_refused(
    coco: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare(coco, tmp_path / "shards")
    with pytest.raises(SystemExit):
        prepare(coco, tmp_path / "shards", "--split", "val")
    assert "name another folder" in capsys.readouterr().err


def test_real_workers_deal_what_one_process_would_and_all_see_the_epoch(coco: dict[str, str], tmp_path: Path) -> None:
    prepare(coco, tmp_path / "shards")
    data = Shards(f"{tmp_path}/shards/{{00000..00002}}.tar", CocoCaptions(**coco), batch_size=3, num_workers=2)
    data.prepare_data()
    loader = data.train_dataloader()
    progress = SimpleNamespace(current=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    loader.trainer = SimpleNamespace(current_epoch=0, fit_loop=loop, training=True)  # type: ignore[assignment]
    assert len(loader) == 4
    first = [batch.image_ids for batch in loader]
    assert [len(ids) for ids in first] == [3] * 4
    assert len({i for ids in first for i in ids}) == 12
    progress.current.ready = 3
    assert [batch.image_ids for batch in loader] == first[3:]
    loader.trainer.current_epoch, progress.current.ready = 1, 0  # type: ignore[union-attr, misc]
    assert [batch.image_ids for batch in loader] != first


@pytest.fixture
def broken(coco: dict[str, str], tmp_path: Path) -> Callable[..., Shards]:
    """Four samples, the second of them no picture, with one image in a batch."""
    prepare(coco, tmp_path / "shards")
    members = {**sample(1), "bad.png": b"no picture", "bad.txt": b"a dog", **sample(2), **sample(3)}
    write_tar(tmp_path / "shards" / "00003.tar", members)

    def build(**kwargs: Any) -> Shards:
        args = {"batch_size": 1, "num_workers": 0} | kwargs
        data = Shards(f"{tmp_path}/shards/00003.tar", CocoCaptions(**coco), **args)
        data.prepare_data()
        return data

    return build


def test_a_broken_image_stops_the_run(broken: Callable[..., Shards]) -> None:
    with pytest.raises(UserError, match=r"00003\.tar/bad.*--data\.on_error skip"):
        list(broken().train_dataloader())


def test_a_broken_image_is_left_out_of_batches_entries_and_references_on_request(
    broken: Callable[..., Shards],
) -> None:
    data = broken(on_error="skip")
    with pytest.warns(UserWarning, match=r"1 of 4 images of the shards cannot be read, the first: .*00003\.tar/bad"):
        data.setup("fit")
    batches = list(data.train_dataloader())
    assert sorted(batch.captions[0][0] for batch in batches) == ["number 1", "number 2", "number 3"]
    assert sorted(entry.captions[0] for entry in data.entries("train")) == ["number 1", "number 2", "number 3"]
    assert len(data.references("train")) == len(list(data.references("train").items())) == 3
    assert [len(batch) for batch in broken(on_error="skip", batch_size=3).train_dataloader()] == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 4}, r"group_size is 4, but shards are streamed"),
        ({"shards": "https://host/{0..3}.tar"}, r"https://host/0\.tar is no place .*cache_dir"),
        ({"shards": ["a.tar", "a.tar"]}, "a shard twice"),
        ({"shards": []}, "no shard"),
    ],
)
def test_arguments_that_cannot_be_are_one_error(coco: dict[str, str], change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Shards(**{"shards": "a.tar", "evaluation": CocoCaptions(**coco), **change})


def test_a_collection_too_small_for_a_batch_is_one_error(coco: dict[str, str], tmp_path: Path) -> None:
    prepare(coco, tmp_path / "shards")
    data = Shards(f"{tmp_path}/shards/{{00000..00002}}.tar", CocoCaptions(**coco), batch_size=15)
    data.prepare_data()
    with pytest.raises(UserError, match=r"14 samples, too few for one batch of 15 .*--data\.batch_size"):
        data.train_dataloader()


def test_ids_are_hashes_of_keys_that_other_data_sets_do_not_use() -> None:
    assert image_id("000000000042") == image_id("000000000042") != image_id("42")
    assert all(2**40 < image_id(str(number)) < 2**63 for number in range(1000))


def test_recipes_do_not_hinder_json(coco: dict[str, str], tmp_path: Path) -> None:
    prepare(coco, tmp_path / "shards")
    assert json.loads((tmp_path / "shards" / "recipe.json").read_text())["samples"] == 14
