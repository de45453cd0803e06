"""Shards without the images in them that cannot be read."""

from functools import cached_property
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from distcap.data.images import decode
from distcap.data.readable import unreadable
from distcap.data.shard_index import Sample, ShardIndex


class ReadableShards(ShardIndex):
    """An index that knows no image that cannot be read: it is in no batch, and no CLIP is asked to look at it.

    Args:
        index: of all samples.
        folder: where it is kept which of them can be read.
    """

    def __init__(self, index: ShardIndex, folder: Path) -> None:
        super().__init__(index.shards, index.file)
        self.folder = folder

    @cached_property
    def _bad(self) -> dict[str, set[int]]:
        """Shard -> image ids. Every image is read for it, once for all runs."""
        versions = dict(self._ask("select name, version from shards"))
        samples = {str(sample.member): sample for shard in self.shards for sample in self._all(shard)}
        told = {
            name: f"{versions[one.member.shard]}-{one.member.start}-{one.member.size}" for name, one in samples.items()
        }

        def read(name: str) -> Tensor:
            with samples[name].member.open() as file:
                return decode(name, 1, file.read())

        bad = unreadable(told, read, self.folder, "looking at the shards")
        if bad:
            first = next(iter(bad.values()))
            rank_zero_warn(
                f"skipped: {len(bad)} of {len(samples)} images of the shards cannot be read, the first: {first}"
            )
        found: dict[str, set[int]] = {}
        for name in bad:
            found.setdefault(samples[name].member.shard, set()).add(samples[name].image_id)
        return found

    def _all(self, shard: str) -> list[Sample]:
        return super().slice(shard, 0, -1)

    def counts(self) -> dict[str, int]:
        return {shard: count - len(self._bad.get(shard, ())) for shard, count in super().counts().items()}

    def slice(self, shard: str, first: int, count: int) -> list[Sample]:
        if not (bad := self._bad.get(shard)):
            return super().slice(shard, first, count)
        return [sample for sample in self._all(shard) if sample.image_id not in bad][first : first + count]
