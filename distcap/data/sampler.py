"""Which training images a step sees: shuffled by seed and epoch alone."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from distcap.data.lookalikes import lookalike_order


class EpochSampler(DistributedSampler):
    """Shuffles by seed and epoch, groups of look-alikes if it is given `neighbours`.

    A DistributedSampler even for one process: Lightning leaves its seed alone.

    Args:
        ids: of the images, in the data set's order.
        batch_size: images of a batch, in each process.
        processes: how many there are.
        rank: of this one.
        seed: of the order.
        neighbours: (N, K) rows of the data set that are the nearest of each, nearest first.
        group_size: images of a group of look-alikes.
    """

    def __init__(
        self,
        ids: Sequence[int],
        batch_size: int,
        processes: int,
        rank: int,
        seed: int,
        neighbours: Tensor | None = None,
        group_size: int = 1,
    ) -> None:
        # It draws from seed + epoch, hence the factor: without it, seed 1 would replay seed 0 one epoch ahead.
        super().__init__(ids, processes, rank, shuffle=True, seed=seed * 1_000_003, drop_last=True)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.neighbours = neighbours
        self.group_size = group_size
        self._done = 0
        digest = hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:8]
        self.order: dict[str, Any] = {
            "training images": f"{len(ids)} ({digest})",
            "--data.batch_size times the number of processes": batch_size * processes,
            "--data.seed": seed,
            "--data.group_size": group_size,
        }

    def begin(self, epoch: int, done: int) -> None:
        """Deal the rest of an epoch, after the batches that this process has had before."""
        self.set_epoch(epoch)
        self._done = done * self.batch_size

    def __iter__(self) -> Iterator[int]:
        return iter(self._deal()[self._done :])

    def _deal(self) -> list[int]:
        if self.neighbours is None:
            return list(super().__iter__())
        seed = self.seed + self.epoch
        order = torch.randperm(len(self.neighbours), generator=torch.Generator().manual_seed(seed))
        order = lookalike_order(order, self.neighbours, self.group_size, seed)
        # Dealt as the base class deals: a global batch is a run of positions, and groups are whole in it.
        return order[self.rank : self.total_size : self.num_replicas].tolist()
