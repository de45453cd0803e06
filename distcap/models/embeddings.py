"""The memory-mapped store of embeddings: what a frozen encoder has seen once it need not see again."""

import json
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

WIDEST = 2**20
"""Numbers of an embedding. More are none."""


class EmbeddingStore:
    """Embeddings by key, in two files that only grow: `values.f32`, and `index.jsonl` which names its rows.

    A line of the index is written after its rows, so that an interrupted build has lost one batch at most. It has a
    checksum of both: when a store is opened, it counts as far as they agree, and `build` computes the rest anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, int] = {}
        self.versions: dict[str, str] = {}
        self._index_size = 0
        self.damaged = False
        """Whether what follows is not a batch that was interrupted, but something else."""
        values, index = folder / "values.f32", folder / "index.jsonl"
        size = values.stat().st_size // 4 if values.is_file() else 0
        found = np.memmap(values, np.float32, "r", shape=(size,)) if size else np.zeros(0, np.float32)
        count, width = 0, 0
        for line in index.read_bytes().splitlines(keepends=True) if index.is_file() else []:
            if not line.endswith(b"\n"):  # interrupted while it was written
                break
            batch = _batch(line)
            width = width or (batch["width"] if batch else 0)
            if batch is None or not _agrees(batch, found[count * width :], width):
                self.damaged = True
                break
            self._index_size += len(line)
            self._rows.update({key: count + row for row, key in enumerate(batch["versions"])})
            self.versions.update(batch["versions"])
            count += len(batch["versions"])
        self._values = found[: count * width].reshape(count, width)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, keys: Sequence[object]) -> Tensor:
        """K keys -> (K, D) float32 on the CPU. Raises KeyError for one that was not stored."""
        return torch.from_numpy(np.asarray(self._values[[self._rows[str(key)] for key in keys]]))

    @classmethod
    def build(
        cls,
        folder: Path,
        versions: Mapping[str, str],
        embed: Callable[[list[str]], Tensor],
        *,
        batch_size: int,
        title: str,
    ) -> "EmbeddingStore":
        """Embed what the folder does not hold yet, with a progress bar; interrupted, it goes on where it stopped.

        Args:
            folder: where the store is; its name should tell the encoder's fingerprint.
            versions: key -> anything that changes when what is behind the key does.
            embed: K keys -> (K, D).
            batch_size: keys in one call of `embed`.
            title: of the progress bar.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # the processes of one run: the first works, the others find it done
            store = cls(folder)
            if store.damaged:
                warnings.warn(
                    f"the embeddings in {folder} are damaged from number {len(store._values) + 1} on: they are "
                    "computed anew from there",
                    stacklevel=2,
                )
            todo = [key for key, version in versions.items() if store.versions.get(key) != version]
            if not todo and not store.damaged:
                return store
            values, index = folder / "values.f32", folder / "index.jsonl"
            with values.open("ab") as rows, index.open("a") as lines, tqdm(total=len(todo), desc=title) as bar:
                rows.truncate(store._values.size * 4)
                lines.truncate(store._index_size)
                for start in range(0, len(todo), batch_size):
                    keys = todo[start : start + batch_size]
                    batch = embed(keys).cpu().float().numpy()
                    rows.write(data := np.ascontiguousarray(batch).tobytes())
                    rows.flush()
                    named = {key: versions[key] for key in keys}
                    line = {"checksum": _checksum(data, named), "width": batch.shape[1], "versions": named}
                    lines.write(json.dumps(line) + "\n")
                    lines.flush()
                    bar.update(len(keys))
        return cls(folder)


def _batch(line: bytes) -> dict[str, Any] | None:
    """What a line of the index says; None for one that makes no sense."""
    try:
        batch = json.loads(line)
        sound = 0 < batch["width"] <= WIDEST and isinstance(batch["width"], int) and batch["versions"].items()
        return batch if sound else None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _agrees(batch: dict[str, Any], values: np.ndarray, width: int) -> bool:
    rows = values[: len(batch["versions"]) * width]
    whole = batch["width"] == width and len(rows) == len(batch["versions"]) * width
    return whole and batch.get("checksum") == _checksum(rows, batch["versions"])


def _checksum(data: Any, versions: Mapping[str, str]) -> int:
    """Of some rows' bytes, and of the keys that they belong to."""
    return zlib.crc32(json.dumps(versions).encode(), zlib.crc32(data))
