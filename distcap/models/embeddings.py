"""The memory-mapped store of embeddings: what a frozen encoder has seen once it need not see again."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm


class EmbeddingStore:
    """Embeddings by key, in two files that only grow: `values.f32`, and `index.jsonl` which names its rows.

    A line of the index is written after its rows, so that an interrupted build has lost one batch at most.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, int] = {}
        self.versions: dict[str, str] = {}
        self._index_size = 0
        count, width = 0, 1
        if (index := folder / "index.jsonl").exists():
            for line in index.read_text().splitlines(keepends=True):
                if not line.endswith("\n"):  # interrupted while it was written
                    break
                batch = json.loads(line)
                self._index_size += len(line)
                width = batch["width"]
                self._rows.update({key: count + row for row, key in enumerate(batch["versions"])})
                self.versions.update(batch["versions"])
                count += len(batch["versions"])
        shape = (count, width)
        self._values = np.memmap(folder / "values.f32", np.float32, "r", shape=shape) if count else np.zeros(shape)

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
            todo = [key for key, version in versions.items() if store.versions.get(key) != version]
            if not todo:
                return store
            values, index = folder / "values.f32", folder / "index.jsonl"
            with values.open("ab") as rows, index.open("a") as lines, tqdm(total=len(todo), desc=title) as bar:
                rows.truncate(store._values.size * 4 if store._rows else 0)
                lines.truncate(store._index_size)
                for start in range(0, len(todo), batch_size):
                    keys = todo[start : start + batch_size]
                    batch = embed(keys).cpu().float().numpy()
                    rows.write(np.ascontiguousarray(batch).tobytes())
                    rows.flush()
                    line = {"width": batch.shape[1], "versions": {key: versions[key] for key in keys}}
                    lines.write(json.dumps(line) + "\n")
                    lines.flush()
                    bar.update(len(keys))
        return cls(folder)
