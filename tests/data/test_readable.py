"""Every image is read once for all runs, and none that cannot be read gets into a batch."""

import json
import os
from pathlib import Path

import pytest
import torch

from distcap.data import readable
from distcap.data.readable import unreadable
from distcap.types import UserError


class Reader:
    """Of images called good and bad; remembers which it read."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, name: str) -> torch.Tensor:
        self.asked.append(name)
        if name.startswith("bad"):
            raise UserError(f"cannot read {name}")
        return torch.zeros(3, 1, 1)


def look(folder: Path, **versions: str) -> tuple[dict[str, str], list[str]]:
    read = Reader()
    return unreadable(versions, read, folder, "looking"), sorted(read.asked)


def test_an_image_is_read_again_only_if_it_changes(tmp_path: Path) -> None:
    assert look(tmp_path, good="1", bad="1") == ({"bad": "cannot read bad"}, ["bad", "good"])
    assert look(tmp_path, good="1", bad="1") == ({"bad": "cannot read bad"}, [])
    assert look(tmp_path, good="1", bad="2", more="1") == ({"bad": "cannot read bad"}, ["bad", "more"])
    assert look(tmp_path, good="2") == ({}, ["good"])
    assert look(tmp_path, good="2") == ({}, [])


def test_an_interrupted_look_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readable, "AT_ONCE", 2)
    versions = {f"good{i}": "1" for i in range(6)}

    def stops(name: str) -> torch.Tensor:
        if name == "good4":
            raise KeyboardInterrupt
        return torch.zeros(1)

    with pytest.raises(KeyboardInterrupt):
        unreadable(versions, stops, tmp_path, "looking")
    assert look(tmp_path, **versions)[1] == ["good4", "good5"]


@pytest.mark.parametrize("rest", ["", "{", "[1]", '{"good": 1}', "\udcff"])
def test_a_damaged_line_counts_for_nothing(rest: str, tmp_path: Path) -> None:
    file = tmp_path / "readable.jsonl"
    file.write_bytes(os.fsencode(json.dumps({"bad": ["1", "no"]}) + "\n" + rest + "\n"))
    assert look(tmp_path, good="1", bad="1") == ({"bad": "no"}, ["good"])


def test_what_is_added_after_a_cut_line_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "readable.jsonl").write_text('{"good": ["1"')
    look(tmp_path, good="1")
    assert look(tmp_path, good="1")[1] == []
