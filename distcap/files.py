"""Files and folders that are there whole, or not at all: a kill while they are written leaves what was there before."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distcap.types import UserError

UNFINISHED = ".new"
"""Ends the name of what is being written."""


def require_regular(path: Path) -> None:
    """Raise a UserError for what is there and is no file: opening a pipe would wait, and a device may never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file, but a folder, a pipe or a device; name a file")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside the path to write to; it takes the path's place at the end, and goes away where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + UNFINISHED)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # else a machine that goes down may keep the new name and lose what it stands for
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file. What the encoding cannot say, as odd bytes of file names, is escaped as JSON reads it back."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside the path to write into; at the end it takes the path's place, and what was there goes."""
    part, old = path.with_name(path.name + UNFINISHED), path.with_name(path.name + ".old")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if path.exists():
            path.replace(old)
        part.replace(path)
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def read_json(path: Path, is_right: Callable[[Any], bool]) -> Any:
    """What a JSON file holds; None where there is no such file, it is damaged, or holds anything but what is right."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if is_right(found) else None
