"""COCO captions, or any data set in one of COCO's formats."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from distcap.data.annotations import Entry, Restval, read_coco, read_karpathy
from distcap.data.images import ImageDataset, ImageLoader, OnError, loader
from distcap.data.lookalikes import lookalike_order
from distcap.types import UserError

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


NEIGHBOURS_PER_PLACE = 16
"""Neighbours to know for each other place in a group.

Late in an epoch an image's nearest are taken. With 16, 97 to 98% of the embedded benchmark's images (seed 1) come with
neighbours alone, in groups of 2, 4 or 8 (means of ten epochs); with 1, 65% of them do in groups of 4 (of five epochs).
"""


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


class CocoCaptions(LightningDataModule):
    """Images with several human captions each, as batches of pixels and strings.

    Pixels are RGB in [0, 1], squashed to a square; each model normalises them as it was trained to. Training batches
    are shuffled by `seed` and epoch alone: neither the number of workers nor an interruption between two epochs changes
    them, and two processes with half the batch size each see together what one sees.

    Args:
        annotations: A Karpathy split file (`dataset_coco.json`), or official COCO captions files by split:
            {train: captions_train2017.json, val: captions_val2017.json, test: ...}.
        images: The folder that file names are relative to, or one folder for each split.
        restval: Karpathy's "restval" images belong to train, or are dropped.
        image_size: Height and width of the pixels that the captioner sees.
        batch_size: Images of a training batch, in each process.
        eval_batch_size: Images of a validation, test or prediction batch; by default batch_size.
        num_workers: Processes that decode images, for each split.
        seed: Of the order of training images.
        on_error: What to do with an image that is absent, corrupt or has no captions: stop with one line, or leave it
            out and say at the end how many there were. A corrupt image left out makes its batch smaller; several
            processes need batches of one size, so replace the file there.
        cache: Decode every image once and keep 3 x image_size x image_size bytes of each: for small data sets.
        cache_dir: Where embeddings of this data set are stored; by default in `.distcap`, next to the annotations.
        limit: Take only the first so many images of each split, for a quick look.
        group_size: Images of a group of look-alikes, which are in one training batch (the global one, if there are
            several processes): an image drawn at random, and its nearest by the stage's CLIP that the epoch has not
            used yet. 1 shuffles all images alike.
    """

    hint: ClassVar[str] = (
        "`distcap prepare coco` gets COCO (20 GB, https://cocodataset.org/#download) with Karpathy's split, `distcap "
        "prepare flickr30k` and `distcap prepare nocaps` get those; or point --data.images and --data.annotations "
        "at what you have. The same on the embedded benchmark, with nothing to download: "
        "distcap fit --config demo/mle.yaml"
    )
    """How to get the data, for whoever does not have it."""

    def __init__(
        self,
        annotations: str | dict[str, str],
        images: str | dict[str, str],
        restval: Restval = "train",
        image_size: int = 224,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
        on_error: OnError = "raise",
        cache: bool = False,
        cache_dir: str | None = None,
        limit: int | None = None,
        group_size: int = 1,
    ) -> None:
        super().__init__()
        if group_size < 1:
            raise UserError(f"--data.group_size is {group_size}; it takes 1, for no groups of look-alikes, or more")
        self.annotations = annotations
        self.images = images
        self.restval: Restval = restval
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.on_error: OnError = on_error
        self.cache = cache
        sources = annotations if isinstance(annotations, dict) else {"": annotations}
        if not sources or set(sources) - {"", "train", "val", "test"}:
            raise UserError(f"--data.annotations has splits {list(sources)}; name one file each for train, val, test")
        self._sources = sources
        file = Path(next(iter(sources.values())))
        # Image ids are unique in one data set only, and one folder may hold several.
        self.cache_dir = Path(cache_dir) if cache_dir else file.parent / ".distcap" / file.stem
        self.limit = limit
        self.group_size = group_size
        self._neighbours: Tensor | None = None
        self._entries: list[Entry] = []
        self._datasets: dict[str, ImageDataset] = {}

    def setup(self, stage: str) -> None:
        """Read the annotations and find every image of the stage's splits, before anything long starts."""
        for split in SPLITS[stage]:
            self.dataset(split)

    def entries(self, split: str) -> list[Entry]:
        """The images of train, val, test or predict (which is test, captions or not), in the file's order."""
        return self.dataset(split).entries

    def references(self, split: str) -> dict[int, list[str]]:
        """Image id -> its ground-truth captions."""
        return {entry.image_id: list(entry.captions) for entry in self.entries(split)}

    def path(self, entry: Entry) -> Path:
        """The image file of an entry."""
        return self._folder(entry.split) / entry.file

    def dataset(self, split: str) -> ImageDataset:
        """The images of a split, found on disk once."""
        if split not in self._datasets:
            entries = self._find(split)
            paths = [self.path(entry) for entry in entries]
            self._datasets[split] = ImageDataset(entries, paths, self.image_size, self.on_error)
        return self._datasets[split]

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

    def train_dataloader(self) -> ImageLoader:
        dataset = self.dataset("train")
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if len(dataset) < self.batch_size * processes:
            raise UserError(
                f"train has {len(dataset)} images, too few for one batch of {self.batch_size} in each of {processes} "
                "process(es); lower --data.batch_size"
            )
        # A DistributedSampler even for one process: Lightning tells it the epoch and leaves its seed alone. It draws
        # from seed + epoch, hence the factor: without it, seed 1 would replay seed 0 one epoch ahead.
        sampler = EpochSampler(dataset, processes, rank, shuffle=True, seed=self.seed * 1_000_003, drop_last=True)
        sampler.trainer = self.trainer
        if self.group_size > 1:
            sampler.neighbours, sampler.group_size = self._known_neighbours(processes), self.group_size
        return self._loader("train", self.batch_size, sampler=sampler, drop_last=True)

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

    def _loader(self, split: str, batch_size: int, **kwargs: object) -> ImageLoader:
        dataset = self.dataset(split)
        if self.cache:
            dataset.keep_in_memory(self.num_workers, f"decoding {split}")
        # From memory, a batch costs less than its way from a worker.
        return loader(dataset, batch_size=batch_size, num_workers=0 if self.cache else self.num_workers, **kwargs)

    def _find(self, split: str) -> list[Entry]:
        """The entries of a split whose files are there, with captions unless they are only to be captioned."""
        name = "test" if split == "predict" else split
        everything = self._read()
        entries = [entry for entry in everything if entry.split == name][: self.limit]
        if not entries:
            found = dict(Counter(entry.split for entry in everything))
            raise UserError(
                f"{self.annotations} has no images of split {name}, found {found}; add some, this stage reads them"
            )
        if not self._folder(name).is_dir():
            raise UserError(f"there is no image folder {self._folder(name)}. {self.hint}")
        if split != "predict":
            entries = self._without(entries, [entry for entry in entries if not entry.captions], "have no captions")
        return self._without(entries, [entry for entry in entries if not self.path(entry).is_file()], "are not there")

    def _without(self, entries: list[Entry], bad: list[Entry], what: str) -> list[Entry]:
        if not bad:
            return entries
        found = (
            f"{len(bad)} of {len(entries)} images of {bad[0].split} {what}, "
            f"the first: image id {bad[0].image_id}, {self.path(bad[0])}"
        )
        if self.on_error == "raise" or len(bad) == len(entries):
            raise UserError(f"{found}; mend the data, or leave such images out with --data.on_error skip")
        rank_zero_warn(f"skipped: {found}")
        absent = set(bad)
        return [entry for entry in entries if entry not in absent]

    def _read(self) -> list[Entry]:
        """The entries of every split, read once."""
        if self._entries:
            return self._entries
        for file in self._sources.values():
            if not Path(file).exists():
                raise UserError(f"there is no annotation file {file}. {self.hint}")
        entries = [
            entry
            for split, file in self._sources.items()
            for entry in (read_coco(file, split) if split else read_karpathy(file, self.restval))
        ]
        # One file may serve as val and as test, but embeddings and results know an image by its id alone.
        files: dict[int, Path] = {}
        for entry in entries:
            path = self.path(entry)
            if files.setdefault(entry.image_id, path) != path:
                raise UserError(
                    f"image id {entry.image_id} is {files[entry.image_id]} in one annotation file, {path} in another; "
                    "give every image an id of its own"
                )
        self._entries = entries
        return entries

    def _folder(self, split: str) -> Path:
        if isinstance(self.images, str):
            return Path(self.images)
        if split not in self.images:
            raise UserError(f"--data.images has folders for {list(self.images)}, but none for {split}; name it")
        return Path(self.images[split])
