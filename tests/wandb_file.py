"""Reads what W&B wrote offline: the records of a .wandb file, which is a LevelDB log of protocol buffers."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, LAST = 1, 4
"""Kinds of a piece; the others, 2 and 3, are the first and the middle ones of a record."""


def records(file: Path) -> Iterator[Any]:
    """The records, in the order in which they were written."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, piece = file.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:  # the rest of a block is padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        piece += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(piece)
            piece = b""


class OfflineRun:
    """What an offline run holds.

    Args:
        folder: the run's, in which W&B made its own.
    """

    def __init__(self, folder: Path) -> None:
        [self.folder] = (folder / "wandb").glob("offline-run-*")
        [file] = self.folder.glob("*.wandb")
        self.records = list(records(file))

    def of(self, kind: str) -> list[Any]:
        """The records of a kind: config, history, summary, metric, alert, artifact."""
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    def items(self, kind: str) -> list[dict[str, Any]]:
        """Of each record the values that it sets; nested keys are joined by dots."""
        rows = []
        for record in self.of(kind):
            items = record.item if kind == "history" else record.update
            rows.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        return rows

    def merged(self, kind: str) -> dict[str, Any]:
        """The values after the last record."""
        return {key: value for row in self.items(kind) for key, value in row.items()}
