"""From image files to batches of pixels, as all data modules here do it."""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from distcap.data.annotations import Entry
from distcap.pictures import open_picture
from distcap.types import Batch, UserError

OnError = Literal["raise", "skip"]
IMAGE_SIZE = 224
"""Of pixels that no model looks at, or one of any size."""
REMEDY = "replace the file, or leave such images out with --data.on_error skip"


Collated = tuple[Batch | None, dict[int, str]]
"""The batch of what could be read, and by image id the message about what could not."""


def decode(path: str | Path, size: int, data: bytes | None = None) -> Tensor:
    """(3, size, size) uint8 RGB of an image file, see `open_picture`, squashed to a square and antialiased.

    Args:
        path: The file.
        size: Height and width.
        data: What is in it, if it was read already.

    Raises:
        UserError: The file cannot be read as an image.
    """
    image = open_picture(path, data).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def seen(told: int | None, side: int) -> int:
    """The side of the images that data and model agree on. Raises UserError if the data were told another."""
    if told not in (None, side):
        raise UserError(
            f"the model sees images of {side} pixels, got {told}; set --data.image_size={side}, or leave it out"
        )
    return side


class ImageDataset(Dataset):
    """Entries with the pixels of their files, (3, size, size) uint8.

    An image that cannot be read becomes an item too, the message that says so: only the main process can stop the run
    with one line, or count what it skips.
    """

    def __init__(self, entries: Sequence[Entry], paths: Sequence[Path], size: int, on_error: OnError) -> None:
        self.entries = list(entries)
        self.paths = list(paths)
        self.size = size
        self.on_error = on_error
        self.skipped: dict[int, str] = {}
        """Image id -> message, for what the main process has met so far."""
        self._memory: list[Tensor | str] = []

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Entry, Tensor | str]:
        return self.entries[index], self._memory[index] if self._memory else self._read(index)

    def _read(self, index: int) -> Tensor | str:
        try:
            return decode(self.paths[index], self.size)
        except UserError as error:
            return str(error)

    def keep_in_memory(self, threads: int, description: str) -> None:
        """Decode every image now, once: N x 3 x size x size bytes."""
        if not self._memory:
            with ThreadPoolExecutor(max(threads, 1)) as pool:
                pixels = pool.map(self._read, range(len(self)))
                self._memory = list(tqdm(pixels, description, total=len(self), unit="image", leave=False))


def collate(items: list[tuple[Entry, Tensor | str]]) -> Collated:
    """A batch of entries with their pixels, or the message why there are none."""
    errors = {entry.image_id: pixels for entry, pixels in items if isinstance(pixels, str)}
    good = [(entry, pixels) for entry, pixels in items if isinstance(pixels, Tensor)]
    if not good:
        return None, errors
    images = torch.stack([pixels for _, pixels in good]).float().div_(255)
    captions = [list(entry.captions) for entry, _ in good]
    return Batch(images, captions, [entry.image_id for entry, _ in good]), errors


class ImageLoader(DataLoader):
    """A DataLoader of an ImageDataset that yields `Batch`: (B, 3, size, size) pixels in [0, 1], captions, image ids.

    Raises the UserError of the first image that cannot be read; or, where the data set skips, yields the batch without
    it and reports how many there were when the epoch is over.
    """

    dataset: ImageDataset

    @property
    def remedy(self) -> str | None:
        """What to do about an image that cannot be read; None where it is left out."""
        return REMEDY if self.dataset.on_error == "raise" else None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        skipped = self.dataset.skipped
        before, fatal = len(skipped), None
        try:
            for batch, errors in super().__iter__():
                if errors and self.remedy:
                    fatal = f"{_first(errors)}; {self.remedy}"
                    break
                skipped.update(errors)
                if batch is not None:
                    yield batch
        finally:  # also where the consumer knows the number of batches and does not come back after the last
            if len(skipped) > before:
                told = f"images left out, for they could not be read: {len(skipped)}; the first: {_first(skipped)}"
                warnings.warn(told, stacklevel=2)
        if fatal:
            self._iterator = None  # ends the workers; the traceback would keep them, and make the process wait for them
            raise UserError(fatal)


def _first(errors: dict[int, str]) -> str:
    image_id, message = next(iter(errors.items()))
    return f"image id {image_id}: {message}"


Loader = TypeVar("Loader", bound=ImageLoader)


def loader(dataset: ImageDataset, kind: type[Loader], *, batch_size: int, num_workers: int, **kwargs: Any) -> Loader:
    """A loader with pinned memory where there is a GPU, and workers that live as long as the loader."""
    return kind(
        dataset,
        collate_fn=collate,
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        **kwargs,
    )
