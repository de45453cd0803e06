"""Collections in WebDataset shards, too large for one disk or for millions of files: streamed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning import LightningDataModule

from distcap.checks import at_least
from distcap.data.annotations import Entry
from distcap.data.base import SPLITS, check_loader
from distcap.data.cache import usable
from distcap.data.coco import CocoCaptions
from distcap.data.images import IMAGE_SIZE, ImageLoader, OnError, seen
from distcap.data.readable_shards import ReadableShards
from distcap.data.shard_index import Member, References, ShardIndex
from distcap.data.shard_stream import ShardStream, entry
from distcap.data.training import TrainingLoader
from distcap.types import UserError


class ShardLoader(TrainingLoader):
    """Of a stream, which makes its batches itself."""

    dataset: ShardStream  # type: ignore[assignment]

    def __len__(self) -> int:
        return self.dataset.batches


class Shards(LightningDataModule):
    """Training images and captions from tar files in WebDataset's layout, streamed; evaluation on another data set.

    Pixels are made as `CocoCaptions` makes them. The shards' headers are read once, for an index on disk: which keys
    there are, where, with which captions. It is what lets the samples be dealt out evenly, each once, whatever the
    number of shards, processes and workers, and lets a run go on within an epoch. Nothing is unpacked.

    Teacher forcing keeps nothing of the collection in memory. RL and the discriminator do keep captions and the rows
    of CLIP embeddings, about 2 kB an image: for collections of many millions, give them some of the shards.

    Args:
        shards: paths or URLs that fsspec opens (https, s3, hf, ...; not pipes), with braces: "data/{00000..00331}.tar".
        evaluation: the data set of val, test and predict, in files.
        cache_dir: where index and embeddings are kept; by default `.distcap`, next to local shards.
        image_size: height and width of the pixels; by default what the captioner, or the CLIP that learns, sees.
        batch_size: images of a training batch, in each process.
        num_workers: processes that read and decode.
        seed: of the order of shards and samples.
        buffer: samples that a worker shuffles among each other, undecoded: 2,000 of 100 kB are 200 MB in each worker.
        on_error: what to do with an image that cannot be decoded: stop with one line, or leave it out and say how many
            there are. To find those, every image of the shards is read before training; the result is kept with the
            embeddings, and a shard is read again if it changes.
        group_size: must be 1: a stream cannot put look-alikes together.
    """

    neighbours_needed = 0

    def __init__(
        self,
        shards: str | list[str],
        evaluation: CocoCaptions,
        cache_dir: str | None = None,
        image_size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 4,
        seed: int = 0,
        buffer: int = 2000,
        on_error: OnError = "raise",
        group_size: int = 1,
    ) -> None:
        super().__init__()
        if group_size != 1:
            raise UserError(
                f"--data.group_size is {group_size}, but shards are streamed, and look-alikes are where they are; "
                "leave it at 1, or unpack the images and use CocoCaptions"
            )
        check_loader(batch_size=batch_size, num_workers=num_workers, image_size=image_size, buffer=buffer)
        at_least("--data.seed", seed, 0)
        self.evaluation = evaluation
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.buffer = buffer
        self.on_error: OnError = on_error
        urls = expand(shards)
        if cache_dir is None and "://" in urls[0]:
            raise UserError(
                f"{urls[0]} is no place to keep an index and embeddings; name a folder with --data.cache_dir"
            )
        self._cache_dir = Path(cache_dir) if cache_dir else Path(urls[0]).parent / ".distcap"
        self.index = ShardIndex(urls, self._cache_dir / "shards.sqlite")
        if on_error == "skip":
            self.index = ReadableShards(self.index, self._cache_dir)

    @property
    def cache_dir(self) -> Path:
        """Where index and embeddings are stored. Raises UserError if nothing can be written there."""
        return usable(self._cache_dir)

    def see(self, side: int) -> None:
        """See ImageData.see."""
        self.image_size = seen(self.image_size, side)
        self.evaluation.see(side)

    def prepare_data(self) -> None:
        self.evaluation.prepare_data()
        usable(self._cache_dir)
        self.index.build()

    def setup(self, stage: str) -> None:
        """Find the images of the evaluation, and those of training that can be read, before anything long starts."""
        if stage == "fit":
            self.index.counts()
        for split in SPLITS[stage]:
            if split != "train":
                found = self.index.known([one.image_id for one in self.evaluation.entries(split)])
                if found:
                    raise UserError(f"image id {found[0]} is in the shards and in {split}; give one of them another")

    def entries(self, split: str) -> list[Entry]:
        """The images of a split; those of train made when asked for, and not kept."""
        return [entry(sample) for sample in self.index] if split == "train" else self.evaluation.entries(split)

    def references(self, split: str) -> Mapping[int, list[str]]:
        """Image id -> its ground-truth captions; those of train on disk."""
        return References(self.index) if split == "train" else self.evaluation.references(split)

    def path(self, entry: Entry) -> Path | Member:
        """The image of an entry: a file, or a part of a shard that is read like one."""
        return self.index.member(entry.image_id) if entry.split == "train" else self.evaluation.path(entry)

    def train_dataloader(self) -> ShardLoader:
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        stream = ShardStream(
            self.index,
            self.image_size or IMAGE_SIZE,
            self.batch_size,
            self.seed,
            self.buffer,
            self.on_error,
            rank,
            processes,
        )
        if not stream.batches:
            raise UserError(
                f"the shards have {sum(stream.counts.values())} samples, too few for one batch of {self.batch_size} in "
                f"each of {processes} process(es); lower --data.batch_size"
            )
        stream.order |= {"the number of workers": self.num_workers}
        # Workers live for one epoch, for they are told at its beginning which it is.
        found = ShardLoader(stream, batch_size=None, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())
        found.course, found.trainer = stream, self.trainer
        return found

    def val_dataloader(self) -> ImageLoader:
        return self.evaluation.val_dataloader()

    def test_dataloader(self) -> ImageLoader:
        return self.evaluation.test_dataloader()

    def predict_dataloader(self) -> ImageLoader:
        return self.evaluation.predict_dataloader()


def expand(shards: str | list[str]) -> list[str]:
    """Braces and lists -> shards. Raises UserError if there are none, or one comes twice."""
    from braceexpand import braceexpand

    found = [url for pattern in ([shards] if isinstance(shards, str) else shards) for url in braceexpand(pattern)]
    if not found or len(set(found)) < len(found):
        raise UserError(f"--data.shards {shards} names {'no shard' if not found else 'a shard twice'}; name each once")
    return found
