"""The store of embeddings: what was embedded once is not embedded again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distcap.models import EmbeddingStore


class Encoder:
    """Embeds a key as [its length, how many keys came before it], and remembers what it was asked."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.fail_after = fail_after

    def __call__(self, keys: list[str]) -> Tensor:
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        start = len(self.asked)
        self.asked += keys
        return torch.tensor([[float(len(key)), float(start + i)] for i, key in enumerate(keys)])


def build(folder: Path, keys: list[str], encoder: Encoder, version: str = "") -> EmbeddingStore:
    return EmbeddingStore.build(folder, dict.fromkeys(keys, version), encoder, batch_size=2, title="test")


KEYS = ["a", "bb", "ccc", "dddd", "eeeee"]


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    store = build(tmp_path, KEYS, Encoder())
    assert len(store) == 5
    assert store[["dddd", "a", "dddd"]].tolist() == [[4, 3], [1, 0], [4, 3]]


def test_integer_keys_are_their_digits(tmp_path: Path) -> None:
    assert build(tmp_path, ["7", "12"], Encoder())[[12, 7]][:, 0].tolist() == [2, 1]


def test_a_key_that_was_not_stored_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="zebra"):
        build(tmp_path, KEYS, Encoder())[["a", "zebra"]]


def test_what_is_stored_is_not_embedded_again(tmp_path: Path) -> None:
    first, second = Encoder(), Encoder()
    build(tmp_path, KEYS[:3], first)
    store = build(tmp_path, KEYS, second)
    assert first.asked == KEYS[:3]
    assert second.asked == KEYS[3:]
    assert store[KEYS][:, 0].tolist() == [1, 2, 3, 4, 5]


def test_what_changed_is_embedded_again(tmp_path: Path) -> None:
    build(tmp_path, KEYS, Encoder(), version="old")
    encoder = Encoder()
    versions = {**dict.fromkeys(KEYS, "old"), "bb": "new"}
    store = EmbeddingStore.build(tmp_path, versions, encoder, batch_size=2, title="test")
    assert encoder.asked == ["bb"]
    assert store[["a", "bb", "ccc"]].tolist() == [[1, 0], [2, 0], [3, 2]]


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, KEYS, Encoder(fail_after=2))
    encoder = Encoder()
    store = build(tmp_path, KEYS, encoder)
    assert encoder.asked == KEYS[2:]
    assert store[KEYS][:, 0].tolist() == [1, 2, 3, 4, 5]


def test_rows_that_were_written_without_their_index_do_not_shift_later_ones(tmp_path: Path) -> None:
    """Killed between the two writes."""
    build(tmp_path, KEYS[:2], Encoder())
    with (tmp_path / "values.f32").open("ab") as file:
        file.write(b"half a row")
    assert build(tmp_path, KEYS, Encoder())[KEYS][:, 0].tolist() == [1, 2, 3, 4, 5]


def test_half_a_line_of_the_index_is_forgotten(tmp_path: Path) -> None:
    """Killed while the index was written."""
    build(tmp_path, KEYS[:4], Encoder())
    index = tmp_path / "index.jsonl"
    index.write_text(index.read_text()[:-20])
    encoder = Encoder()
    store = build(tmp_path, KEYS, encoder)
    assert encoder.asked == KEYS[2:]
    assert store[KEYS][:, 0].tolist() == [1, 2, 3, 4, 5]
    assert EmbeddingStore(tmp_path)[KEYS][:, 0].tolist() == [1, 2, 3, 4, 5]


def test_keys_may_hold_any_character(tmp_path: Path) -> None:
    keys = ['a "quoted" dog', "two\nlines", "ein Hündchen", "\u2028", ""]
    build(tmp_path, keys, Encoder())
    assert EmbeddingStore(tmp_path)[keys][:, 0].tolist() == [len(key) for key in keys]


# Disks forget, and files are copied in part: no vector is wrong, and none is lost for ever.


def rebuilt(folder: Path) -> list[str]:
    """The keys that are embedded anew of a store that was damaged, whose rows are right then."""
    encoder = Encoder()
    with pytest.warns(UserWarning, match=r"the embeddings in .* are damaged from number \d+ on") as told:
        store = build(folder, KEYS, encoder)
    assert len(told) == 1
    for once_more in (store, EmbeddingStore(folder)):
        assert once_more[KEYS][:, 0].tolist() == [1, 2, 3, 4, 5]
    return encoder.asked


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """In the values, and in the index that says whose they are; the batches before it stay."""
    build(tmp_path / "whole", KEYS, Encoder())
    for name in ("values.f32", "index.jsonl"):
        whole = (tmp_path / "whole" / name).read_bytes()
        for place in range(0, len(whole), 7):
            shutil.copytree(tmp_path / "whole", folder := tmp_path / f"{name}-{place}")
            bad = bytearray(whole)
            bad[place] ^= 1
            (folder / name).write_bytes(bad)
            batch = place // 16 if name == "values.f32" else whole[:place].count(b"\n")
            assert rebuilt(folder) == KEYS[2 * batch :]


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda values, index: values.unlink(), 0),
        (lambda values, index: values.write_bytes(b""), 0),
        (lambda values, index: values.write_bytes(values.read_bytes()[:27]), 2),
        (lambda values, index: index.write_bytes(index.read_bytes().replace(b'"width": 2', b'"width": 3')), 0),
        (lambda values, index: index.write_bytes(b"\xff\x00\n" + index.read_bytes()), 0),
        (lambda values, index: index.write_bytes(b'{"width": 1' + b"0" * 30 + b', "versions": {"a": ""}}\n'), 0),
        (lambda values, index: index.write_bytes(b"[" * 100_000 + b"\n"), 0),
        (lambda values, index: index.write_bytes(b'{"width": 2, "versions": {"a": "", "bb": ""}}\n'), 0),
        (lambda values, index: index.write_bytes(b'7\n"a"\nnull\n[]\n'), 0),
    ],
    ids=["absent", "empty", "cut", "width", "no text", "huge width", "nested", "without a checksum", "no objects"],
)
def test_a_damaged_store_is_computed_anew_from_there(
    tmp_path: Path, damage: Callable[[Path, Path], object], again: int
) -> None:
    build(tmp_path, KEYS, Encoder())
    damage(tmp_path / "values.f32", tmp_path / "index.jsonl")
    assert rebuilt(tmp_path) == KEYS[again:]


def test_damage_to_what_nobody_asks_for_is_cut_off(tmp_path: Path) -> None:
    """Else a later key would be written behind it."""
    build(tmp_path, KEYS, Encoder())
    (tmp_path / "values.f32").write_bytes((tmp_path / "values.f32").read_bytes()[:-4])
    with pytest.warns(UserWarning, match="damaged from number 5 on"):
        build(tmp_path, KEYS[:2], Encoder())
    assert build(tmp_path, KEYS, Encoder())[KEYS][:, 0].tolist() == [1, 2, 3, 4, 5]
