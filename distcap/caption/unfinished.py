"""What an interrupted `distcap caption` leaves behind, and goes on from."""

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distcap.files import read_json, write_whole
from distcap.types import UserError


class Unfinished:
    """A folder OUTPUT.part: what was asked for, what the captioner said so far, and what CLIP saw and read so far.

    Captions are appended a batch at a time, one line an image; a line that was not written to its end, or that its
    checksum says is damaged, does not count.

    Args:
        folder: which.
        recipe: all that decides what the captioner says of an image, as JSON.

    Raises:
        UserError: the folder holds what another recipe made.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.folder = folder
        self._lines = folder / "captions.jsonl"
        file = folder / "recipe.json"
        if file.exists() and (before := read_json(file, lambda found: isinstance(found, dict))) != recipe:
            if before is None:
                raise UserError(f"{file} is damaged: what was begun there is not known; delete the folder {folder}")
            differ = ", ".join(f"{key}: {before.get(key)!r}" for key in recipe if before.get(key) != recipe[key])
            raise UserError(
                f"{folder} was begun otherwise ({differ}); repeat that command to go on with it, or delete the folder"
            )
        write_whole(file, json.dumps(recipe))
        self.damaged = 0
        """Lines that do not count."""
        self._said = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._lines.exists():
            return {}
        whole = self._lines.read_bytes().rpartition(b"\n")
        with self._lines.open("r+b") as file:
            file.truncate(len(whole[0] + whole[1]))
        rows = list(map(_row, whole[0].split(b"\n") if whole[0] else []))
        self.damaged = rows.count(None)
        return {row["file"]: row for row in rows if row}

    def knows(self, files: Sequence[Path]) -> bool:
        """Whether all of a batch was captioned, or found broken, as its files are now."""
        return all((row := self._said.get(str(file))) and row["version"] == version(file) for file in files)

    def add(self, captions: dict[Path, list[str]], broken: dict[Path, str]) -> None:
        """Remember a batch."""
        rows: list[dict[str, Any]] = [
            {"file": str(f), "version": version(f), "captions": c} for f, c in captions.items()
        ]
        rows += [{"file": str(f), "version": version(f), "error": error} for f, error in broken.items()]
        with self._lines.open("a") as lines:
            lines.write("".join(f"{zlib.crc32(text.encode()):08x} {text}\n" for text in map(json.dumps, rows)))
        self._said.update({row["file"]: row for row in rows})

    def captions(self, files: Sequence[Path]) -> dict[Path, list[str]]:
        """File -> what was said of it, of those that could be read."""
        return {file: row["captions"] for file in files if "captions" in (row := self._said[str(file)])}

    def broken(self, files: Sequence[Path]) -> dict[Path, str]:
        """File -> why it could not be read."""
        return {file: row["error"] for file in files if "error" in (row := self._said[str(file)])}

    def count(self, files: Sequence[Path]) -> int:
        """How many of the files are known."""
        return sum(str(file) in self._said for file in files)

    def remove(self) -> None:
        """All is done."""
        shutil.rmtree(self.folder)


def _row(line: bytes) -> dict[str, Any] | None:
    """What a line says; None for one that is damaged."""
    checksum, _, text = line.partition(b" ")
    return json.loads(text) if checksum == b"%08x" % zlib.crc32(text) else None


def version(file: Path) -> str:
    """Changes when the file does."""
    try:
        stat = os.stat(file)
    except OSError:
        return "gone"
    return f"{stat.st_size}-{stat.st_mtime_ns}"
