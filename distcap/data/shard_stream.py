"""One epoch of a collection's shards, as one worker of one process streams it."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from distcap.data.annotations import Entry
from distcap.data.images import Collated, OnError, collate, decode
from distcap.data.shard_index import Sample, ShardIndex
from distcap.types import UserError


class ShardStream(IterableDataset):
    """Batches of an epoch. Every sample is dealt to one worker of one process, but for what fills no batch of all.

    Shards are shuffled by seed and epoch, and laid end to end; each worker streams an equal stretch of them, in which a
    buffer of samples shuffles what it reads. So a stretch need not be whole shards, all processes have as many batches,
    and nothing is dealt twice. The order is a function of seed, epoch and the numbers of processes and workers.

    Args:
        index: of the shards.
        image_size: height and width of the pixels.
        batch_size: images of a batch, in each process.
        seed: of the order.
        buffer: samples that are shuffled among each other, undecoded.
        on_error: see `ImageLoader`.
        rank: of this process.
        processes: how many there are.
    """

    def __init__(
        self,
        index: ShardIndex,
        image_size: int,
        batch_size: int,
        seed: int,
        buffer: int,
        on_error: OnError,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.index = index
        self.image_size = image_size
        self.batch_size = batch_size
        self.seed = seed
        self.buffer = buffer
        self.on_error: OnError = on_error
        self.rank = rank
        self.processes = processes
        self.counts = index.counts()
        self.batches = sum(self.counts.values()) // (batch_size * processes)
        """Of an epoch, in each process."""
        self.skipped: dict[int, str] = {}
        self.epoch = 0
        self.done = 0
        digest = hashlib.sha256(" ".join(f"{shard} {count}" for shard, count in self.counts.items()).encode())
        self.order: dict[str, Any] = {
            "training images": f"{sum(self.counts.values())} ({digest.hexdigest()[:8]})",
            "--data.batch_size": batch_size,
            "--data.seed": seed,
            "--data.buffer": buffer,
            "the number of processes": processes,
        }

    def begin(self, epoch: int, done: int) -> None:
        """Stream the rest of an epoch, after the batches that this process has had before."""
        self.epoch, self.done = epoch, done

    def __iter__(self) -> Iterator[Collated]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # A loader begins with worker 0, whoever's turn it was when the run was interrupted.
        worker = (worker + self.done) % workers
        shares = [(self.batches + workers - 1 - w) // workers for w in range(workers)]
        first = (self.rank * self.batches + sum(shares[:worker])) * self.batch_size
        had = (self.done + workers - 1 - worker) // workers
        chance = random.Random(f"{self.seed} {self.epoch} {self.rank} {worker}")
        order = shuffled(shares[worker] * self.batch_size, self.buffer, chance)[had * self.batch_size :]
        samples = self._read(first, order)
        while batch := list(islice(samples, self.batch_size)):
            yield collate([(entry(sample), self._decode(sample, data)) for sample, data in batch])

    def _read(self, first: int, order: list[int]) -> Iterator[tuple[Sample, bytes]]:
        """The samples at these places of a stretch that begins at `first`; read in the stretch's order."""
        import fsspec

        wanted, held = set(order), dict[int, tuple[Sample, bytes]]()
        stretch = self._stretch(first, max(order, default=-1) + 1)
        shard = ""
        with ExitStack() as files:
            for place in order:
                while place not in held:
                    here, sample = next(stretch)
                    if here not in wanted:  # the run that was interrupted had it
                        continue
                    if sample.member.shard != shard:
                        files.close()
                        shard = sample.member.shard
                        file = files.enter_context(fsspec.open(shard, "rb"))
                    held[here] = sample, sample.member.read(file)
                yield held.pop(place)

    def _stretch(self, first: int, count: int) -> Iterator[tuple[int, Sample]]:
        """Samples number `first` and on of the epoch's shards laid end to end, with their places in the stretch."""
        shards = list(self.counts)
        random.Random(f"{self.seed} {self.epoch}").shuffle(shards)
        begin = place = 0
        for shard in shards:
            size = self.counts[shard]
            skip = max(first - begin, 0)
            if skip < size and place < count:
                for sample in self.index.slice(shard, skip, count - place):
                    yield place, sample
                    place += 1
            begin += size

    def _decode(self, sample: Sample, data: bytes) -> Tensor | str:
        try:
            return decode(str(sample.member), self.image_size, data)
        except UserError as error:
            return str(error)


def entry(sample: Sample) -> Entry:
    """As other data sets have it."""
    return Entry(sample.image_id, Path(sample.member.key), tuple(sample.captions), "train")


def shuffled(count: int, buffer: int, chance: random.Random) -> list[int]:
    """The numbers below `count`, as a buffer gives them out that is full before it gives any: none comes early."""
    order, held = [], []
    for number in range(count):
        held.append(number)
        if len(held) >= buffer:
            other = chance.randrange(len(held))
            held[other], held[-1] = held[-1], held[other]
            order.append(held.pop())
    chance.shuffle(held)
    return order + held
