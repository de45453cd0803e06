"""Captions files: one's own captions in JSONL or CSV, one image or one caption a row.

They come from anywhere, so nothing in them is trusted: every row is checked when it is read, and a file name that
leaves the image folder is refused.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcap.data.annotations import NotUtf8, decoded, field, relative, split_named, texts
from distcap.data.left_out import LeftOut
from distcap.files import require_regular
from distcap.types import UserError

NAMES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
"""What a captions file is called that need not be named; the last two are those of Hugging Face's imagefolder."""
TEXTS = ("text", "caption", "captions")


@dataclass(frozen=True)
class Row:
    """What a row tells of an image."""

    at: str
    """The file and the line."""
    file: Path
    """Relative to the image folder."""
    captions: tuple[str, ...]
    split: str | None
    """train, val or test; None where the row does not say."""


def find_captions(folder: Path) -> Path | None:
    """The captions file of an image folder; None if there is none.

    Raises:
        UserError: There are several.
    """
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(
            f"{folder} holds {' and '.join(file.name for file in found)}; name the one to read with --data.captions"
        )
    return found[0] if found else None


def read_captions(path: Path) -> Iterator[Row]:
    """The rows of a captions file, in its order.

    A row has a "file_name"; a caption, or in JSONL a list of them, as "text", "caption" or "captions"; and possibly a
    "split". What else it has is passed over. Captions that are empty or null are left out, and counted.

    Args:
        path: NAME.jsonl, a JSON object a line, or NAME.csv, with a header.

    Raises:
        UserError: The file cannot be read, or a row holds something else; it names the line.
    """
    if path.suffix not in (".jsonl", ".csv"):
        raise UserError(f"{path} is no captions file; it should be called .jsonl or .csv")
    left_out = LeftOut()
    for at, record in _jsonl(path) if path.suffix == ".jsonl" else _csv(path):
        captions: list[Any] = []
        for key in TEXTS:
            found = record.get(key, [])
            captions += found if isinstance(found, list) else [found and field(record, key, str, at)]
        told = record.get("split")
        split = split_named(told) if isinstance(told, str) else None
        if told is not None and split is None:
            raise UserError(f'{at}: "split" is {str(told)[:40]!r}; it should be one of train, val, validation, test')
        file = relative(Path(field(record, "file_name", str, at)), at)
        yield Row(at, file, texts(captions, at, left_out), split)
    left_out.warn(path)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Where a line stands, and the line."""
    require_regular(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                at = f"{path}, line {number}"
                try:
                    yield at, decoded(line)
                except NotUtf8 as error:
                    raise UserError(f"{at}: not text in UTF-8, but {error}; save the file in that encoding") from error
    except OSError as error:
        raise UserError(f"cannot read the captions file {path}: {error.strerror}") from error


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for at, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise UserError(f"{at}: not JSON ({reason}); each line should be a JSON object") from error
        if not isinstance(record, dict):
            raise UserError(f'{at}: expected a JSON object with "file_name", found a {type(record).__name__}')
        yield at, record


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    try:
        for row in rows:
            at = f"{path}, line {rows.line_num}"
            if not row:
                continue
            if not header:
                header = [name.strip() for name in row]
                if "file_name" not in header or len(set(header)) < len(header):
                    raise UserError(f'{at}: expected a header with "file_name", each column once, found {header[:10]}')
            elif len(row) != len(header):
                raise UserError(
                    f"{at}: {len(row)} values for {len(header)} columns; a caption with a comma in it wants quotes"
                )
            else:
                # An empty cell says nothing.
                yield at, {name: value for name, value in zip(header, row, strict=True) if value.strip()}
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: not CSV ({error}); quotes come in pairs") from error
