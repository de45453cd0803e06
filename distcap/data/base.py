"""What the data modules share: images found on disk, with human captions or without, dealt in batches."""

from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import ClassVar

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from distcap.checks import at_least
from distcap.data.annotations import Entry
from distcap.data.cache import usable
from distcap.data.images import IMAGE_SIZE, ImageDataset, ImageLoader, Loader, OnError, decode, loader, seen
from distcap.data.readable import unreadable
from distcap.data.sampler import EpochSampler
from distcap.data.training import TrainingLoader
from distcap.types import UserError

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}

NEIGHBOURS_PER_PLACE = 16
"""Neighbours to know for each other place in a group.

Late in an epoch an image's nearest are taken. With 16, 97 to 98% of the embedded benchmark's images (seed 1) come with
neighbours alone, in groups of 2, 4 or 8 (means of ten epochs); with 1, 65% of them do in groups of 4 (of five epochs).
"""


def check_loader(*, num_workers: int, **sizes: int | None) -> None:
    """Raises UserError if a number is none that batches can be made of. None leaves it to somebody else."""
    at_least("--data.num_workers", num_workers, 0)
    for name, value in sizes.items():
        if value is not None:
            at_least(f"--data.{name}", value, 1)


class ImageData(LightningDataModule, ABC):
    """Images with several human captions each, or with none at all, as batches of pixels and strings.

    Pixels are RGB in [0, 1], squashed to a square; each model normalises them as it was trained to. Training batches
    are shuffled by `seed` and epoch alone: neither the number of workers nor an interruption changes them, and two
    processes with half the batch size each see together what one sees.

    A subclass says which images there are (`_read`), where (`_folder`), and how to get them (`hint`). Its arguments
    beyond those are the ones below.

    Args:
        name: What messages call the data set.
        cache_dir: Where embeddings of this data set are stored.
        image_size: Height and width of the pixels; by default what the captioner, or the CLIP that learns, sees.
        batch_size: Images of a training batch, in each process.
        eval_batch_size: Images of a validation, test or prediction batch; by default batch_size.
        num_workers: Processes that decode images, for each split.
        seed: Of the order of training images.
        on_error: What to do with an image that is absent, corrupt, or has no captions where others of its split have
            some: stop with one line, or leave it out and say how many there are. To find the corrupt ones, every image
            is read before training; the result is kept with the embeddings, and an image is read again if it changes.
        cache: Decode every image once and keep 3 x image_size x image_size bytes of each.
        limit: Take only the first so many images of each split.
        group_size: Images of a group of look-alikes, which are in one training batch.
    """

    fallback: ClassVar[int] = IMAGE_SIZE
    """Height and width of the pixels where neither a model nor the user says."""
    hint: ClassVar[str]
    """How to get the data, for whoever does not have it."""
    split_hint: ClassVar[str] = "add some, this stage reads them"
    """What to do about a split without images."""
    captions_hint: ClassVar[str]
    """How to add human captions, for whoever has none."""

    def __init__(
        self,
        name: str,
        cache_dir: Path,
        *,
        image_size: int | None,
        batch_size: int,
        eval_batch_size: int | None,
        num_workers: int,
        seed: int,
        on_error: OnError,
        cache: bool,
        limit: int | None,
        group_size: int,
    ) -> None:
        super().__init__()
        check_loader(batch_size=batch_size, num_workers=num_workers, image_size=image_size, group_size=group_size)
        for argument, value in (("eval_batch_size", eval_batch_size), ("limit", limit)):
            if value is not None:
                at_least(f"--data.{argument}", value, 1)
        at_least("--data.seed", seed, 0)
        self.name: str = name
        self._cache_dir = cache_dir
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.on_error: OnError = on_error
        self.cache = cache
        self.limit = limit
        self.group_size = group_size
        self._neighbours: Tensor | None = None
        self._entries: list[Entry] = []
        self._datasets: dict[str, ImageDataset] = {}

    @property
    def cache_dir(self) -> Path:
        """Where embeddings are stored. Raises UserError if nothing can be written there."""
        return usable(self._cache_dir)

    @abstractmethod
    def _read(self) -> list[Entry]:
        """The entries of every split; asked for once."""

    @abstractmethod
    def _folder(self, split: str) -> Path:
        """What the file names of a split are relative to."""

    def setup(self, stage: str) -> None:
        """Read the annotations and find every image of the stage's splits, before anything long starts."""
        for split in SPLITS[stage]:
            self.dataset(split)

    def entries(self, split: str) -> list[Entry]:
        """The images of train, val, test or predict, in the order in which they are told."""
        return self.dataset(split).entries

    def references(self, split: str) -> dict[int, list[str]]:
        """Image id -> its ground-truth captions: some of every image, or none of any."""
        return {entry.image_id: list(entry.captions) for entry in self.entries(split)}

    def path(self, entry: Entry) -> Path:
        """The image file of an entry."""
        return self._folder(entry.split) / entry.file

    def dataset(self, split: str) -> ImageDataset:
        """The images of a split, found on disk once."""
        if split not in self._datasets:
            entries = self._find(split)
            paths = [self.path(entry) for entry in entries]
            self._datasets[split] = ImageDataset(entries, paths, self.image_size or self.fallback, self.on_error)
        return self._datasets[split]

    def see(self, side: int) -> None:
        """Make the pixels that a model of images of this side sees.

        Raises:
            UserError: image_size says otherwise.
        """
        self.image_size = seen(self.image_size, side)

    @property
    def neighbours_needed(self) -> int:
        """How many nearest images of each training image `group_by` is to be given; 0 if it need not be called."""
        return min(NEIGHBOURS_PER_PLACE * (self.group_size - 1), len(self.dataset("train")) - 1)

    def group_by(self, neighbours: Tensor) -> None:
        """Tell which images look alike, before the training loader is made. Every process must be told the same.

        Args:
            neighbours: (N, K) image ids of the nearest training images of each entry of `entries("train")`, nearest
                first, itself excluded; K is `neighbours_needed` or more.

        Raises:
            ValueError: there is a row too few or too many, too few neighbours, or one that is no training image.
        """
        ids, rows = torch.tensor([entry.image_id for entry in self.entries("train")]).sort()
        if len(neighbours) != len(ids) or neighbours.shape[1] < self.neighbours_needed:
            raise ValueError(
                f"neighbours of shape {tuple(neighbours.shape)} for {len(ids)} training images that need "
                f"{self.neighbours_needed} each"
            )
        places = torch.searchsorted(ids, neighbours.contiguous()).clamp_(max=len(ids) - 1)
        if (strangers := neighbours[ids[places] != neighbours]).numel():
            raise ValueError(f"image id {int(strangers[0])} is a neighbour, but no training image")
        self._neighbours = rows[places]

    def train_dataloader(self) -> TrainingLoader:
        dataset = self.dataset("train")
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if len(dataset) < self.batch_size * processes:
            raise UserError(
                f"train has {len(dataset)} images, too few for one batch of {self.batch_size} in each of {processes} "
                "process(es); lower --data.batch_size"
            )
        neighbours = self._known_neighbours(processes) if self.group_size > 1 else None
        ids = [entry.image_id for entry in dataset.entries]
        sampler = EpochSampler(ids, self.batch_size, processes, rank, self.seed, neighbours, self.group_size)
        found = self._loader("train", self.batch_size, TrainingLoader, sampler=sampler, drop_last=True)
        found.course, found.trainer = sampler, self.trainer
        return found

    def val_dataloader(self) -> ImageLoader:
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> ImageLoader:
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> ImageLoader:
        return self._loader("predict", self.eval_batch_size)

    def _known_neighbours(self, processes: int) -> Tensor:
        """(N, K) what `group_by` was told, if batches can be made of groups."""
        if self.batch_size * processes % self.group_size:
            raise UserError(
                f"batches of {self.batch_size} images in each of {processes} process(es) do not divide into groups of "
                f"{self.group_size} look-alikes; make --data.batch_size a multiple of --data.group_size"
            )
        if self._neighbours is None:
            raise UserError(
                f"--data.group_size is {self.group_size}, but this stage has no CLIP to find look-alikes with; "
                "give it one, or leave --data.group_size at 1"
            )
        return self._neighbours

    def _loader(self, split: str, batch_size: int, kind: type[Loader] = ImageLoader, **kwargs: object) -> Loader:  # type: ignore[assignment]
        dataset = self.dataset(split)
        dataset.size = self.image_size or self.fallback
        if self.cache:
            dataset.keep_in_memory(self.num_workers, f"decoding {split}")
        # From memory, a batch costs less than its way from a worker.
        return loader(dataset, kind, batch_size=batch_size, num_workers=0 if self.cache else self.num_workers, **kwargs)

    def _find(self, split: str) -> list[Entry]:
        """The entries of a split whose files are there, with captions where others of them have some."""
        entries = self._of(split)[: self.limit]
        if not entries:
            found = dict(Counter(entry.split for entry in self._everything()))
            name = "test" if split == "predict" else split
            raise UserError(f"{self.name} has no images of split {name}, found {found}; {self.split_hint}")
        if not (folder := self._folder(entries[0].split)).is_dir():
            raise UserError(f"there is no image folder {folder}. {self.hint}")
        if split != "predict" and any(entry.captions for entry in entries):
            entries = self._without(entries, [entry for entry in entries if not entry.captions], "have no captions")
        entries = self._without(entries, [one for one in entries if not self.path(one).is_file()], "are not there")
        if self.on_error == "raise":
            return entries
        # Found now, for batches have one size in all processes, and a CLIP reads every image of a split.
        paths = {str(self.path(entry)): self.path(entry) for entry in entries}
        stats = {name: path.stat() for name, path in paths.items()}
        versions = {name: f"{stat.st_size}-{stat.st_mtime_ns}" for name, stat in stats.items()}
        bad = unreadable(versions, lambda name: decode(paths[name], 1), self.cache_dir, f"looking at {split}")
        return self._without(entries, [one for one in entries if str(self.path(one)) in bad], "cannot be read")

    def _of(self, split: str) -> list[Entry]:
        """All that is told of a split; predict is test, captions or not."""
        name = "test" if split == "predict" else split
        return [entry for entry in self._everything() if entry.split == name]

    def _everything(self) -> list[Entry]:
        if not self._entries:
            self._entries = self._read()
        return self._entries

    def _without(self, entries: list[Entry], bad: list[Entry], what: str) -> list[Entry]:
        if not bad:
            return entries
        found = (
            f"{len(bad)} of {len(entries)} images of {bad[0].split} {what}, "
            f"the first: {bad[0].at or f'image id {bad[0].image_id}'}, {self.path(bad[0])}"
        )
        if self.on_error == "raise" or len(bad) == len(entries):
            raise UserError(f"{found}; mend the data, or leave such images out with --data.on_error skip")
        rank_zero_warn(f"skipped: {found}")
        absent = set(bad)
        return [entry for entry in entries if entry not in absent]
