"""Captions written down: JSON lines, CSV, or a text file beside each image."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from distcap.files import write_whole
from distcap.types import UserError
from distcap.writable import require_writable

Format = Literal["jsonl", "csv", "txt"]


class Output:
    """Where the captions go.

    Args:
        form: jsonl and csv are one file with a row for each caption; txt is a text file for each image, a line for each
            of its captions.
        path: the file. For txt a folder, in which the text files stand as the images do in theirs; None: beside the
            images.
        overwrite: what is there already.

    Raises:
        UserError: something would be overwritten or cannot be written, or two images would have one text file.
    """

    def __init__(self, form: Format, path: str | None, files: Sequence[Path], overwrite: bool) -> None:
        self.form = form
        self.path = Path(path or ("captions" if form == "txt" else f"captions.{form}"))
        self.beside = form == "txt" and path is None
        self.texts = self._texts(files) if form == "txt" else {}
        for place in (self.unfinished, *{text.parent: text for text in self.texts.values()}.values()):
            require_writable(place)
        if form != "txt" and self.path.is_dir():
            raise UserError(f"{self.path} is a folder; --output names a file for {form}")
        there = [file for file in (self.texts.values() if form == "txt" else [self.path]) if file.exists()]
        if there and not overwrite:
            also = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
            raise UserError(f"{there[0]}{also} is there already; name another --output, or say --overwrite true")

    @property
    def unfinished(self) -> Path:
        """The folder of what is not done yet."""
        return self.path.with_name(f"{self.path.name}.part")

    def __str__(self) -> str:
        return "text files beside the images" if self.beside else str(self.path)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows of file, caption and what else there is of them; a file is there whole, or not at all."""
        if self.form == "txt":
            texts: dict[Path, str] = {}
            for row in rows:
                text = self.texts[Path(row["file"])]
                texts[text] = texts.get(text, "") + " ".join(row["caption"].split()) + "\n"
            for text, lines in texts.items():
                _replace(text, lines)
        elif self.form == "csv":
            table = io.StringIO()
            writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            _replace(self.path, table.getvalue())
        else:
            _replace(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _texts(self, files: Sequence[Path]) -> dict[Path, Path]:
        """Image file -> its text file."""
        top = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
        texts = {
            file: (file if self.beside else self.path / os.path.relpath(os.path.abspath(file), top)).with_suffix(".txt")
            for file in files
        }
        owner: dict[Path, Path] = {}
        for file, text in texts.items():
            if text in owner:
                raise UserError(f"{owner[text]} and {file} would share {text}; use --format jsonl or csv for them")
            owner[text] = file
        if own := next((text for text in texts.values() if text in texts), None):
            raise UserError(f"{own} is among the images, and would be overwritten by a caption")
        return texts


def _replace(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); mend that, and the same command goes on") from error
