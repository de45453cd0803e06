"""Which training images a step sees: shuffled by seed and epoch alone."""

from collections.abc import Iterator

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from distcap.data.lookalikes import lookalike_order


class EpochSampler(DistributedSampler):
    """Shuffles by seed and the trainer's epoch, groups of look-alikes if it is given `neighbours`.

    Lightning tells a sampler its epoch, too, but counts one too many when a run is resumed (2.6).
    """

    trainer: Trainer | None = None
    neighbours: Tensor | None = None
    """(N, K) rows of the data set that are the nearest of each, nearest first."""
    group_size: int = 1

    def __iter__(self) -> Iterator[int]:
        if self.trainer is not None and self.trainer.training:
            self.set_epoch(self.trainer.current_epoch)
        if self.neighbours is None:
            return super().__iter__()
        seed = self.seed + self.epoch
        order = torch.randperm(len(self.neighbours), generator=torch.Generator().manual_seed(seed))
        order = lookalike_order(order, self.neighbours, self.group_size, seed)
        # Dealt as the base class deals: a global batch is a run of positions, and groups are whole in it.
        return iter(order[self.rank : self.total_size : self.num_replicas].tolist())
