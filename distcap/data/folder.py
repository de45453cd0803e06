"""A folder of one's own images, with captions or without."""

import hashlib
from pathlib import Path
from typing import ClassVar

from lightning.pytorch.utilities import rank_zero_warn

from distcap.checks import share
from distcap.data.annotations import Entry
from distcap.data.base import ImageData
from distcap.data.captions import NAMES, Row, find_captions, read_captions
from distcap.data.images import OnError
from distcap.data.listing import EXTENSIONS, PassedOver, images_in
from distcap.types import UserError


class ImageFolder(ImageData):
    """The images of a folder and of the folders in it, and what a captions file there says of them, if there is one.

    `distcap predict` captions every image of the folder. The other commands read the images that the captions file
    names, or all of them if there is none: then there are no human captions, and only what needs none can be trained or
    measured. An image keeps its id, a hash of its relative path, and its split, whatever is added to the folder.

    Args:
        folder: Where the images are. Links are followed, and each image is taken once. Hidden files are passed over;
            so are files of other kinds, which are counted.
        captions: The captions file; by default the folder's captions.jsonl, captions.csv, metadata.jsonl or
            metadata.csv. Its rows have a "file_name", relative to the folder, a caption as "text", "caption" or
            "captions" (in JSONL a list of them, too; several rows of an image are added up), and possibly a "split":
            train, val or test.
        val: Share of the images that form val, where the captions file tells no splits: a hash of the relative path and
            the seed decides.
        test: Share of the images that form test, likewise.
        image_size: Height and width of the pixels; by default what the captioner, or the CLIP that learns, sees.
        batch_size: Images of a training batch, in each process.
        eval_batch_size: Images of a validation, test or prediction batch; by default batch_size.
        num_workers: Processes that decode images, for each split.
        seed: Of the splits, if they are not told, and of the order of training images. All stages need the same.
        on_error: What to do with an image that is absent, corrupt, or has no captions where others of its split have
            some: stop with one line, or leave it out and say how many there are. To find the corrupt ones, every image
            is read before training; the result is kept with the embeddings, and an image is read again if it changes.
        cache: Decode every image once and keep 3 x image_size x image_size bytes of each: for small folders.
        cache_dir: Where embeddings of these images are stored; by default in `.distcap`, in the folder.
        limit: Take only the first so many images of each split, for a quick look.
        group_size: Images of a group of look-alikes, which are in one training batch (the global one, if there are
            several processes): an image drawn at random, and its nearest by the stage's CLIP that the epoch has not
            used yet. 1 shuffles all images alike.
    """

    hint: ClassVar[str] = "Name the folder of your images with --data.folder"
    split_hint: ClassVar[str] = (
        'add images, raise --data.val and --data.test, or tell the split of each in a "split" of the captions file'
    )
    captions_hint: ClassVar[str] = f"write them to {', '.join(NAMES[:-1])} or {NAMES[-1]} in that folder"

    def __init__(
        self,
        folder: str,
        captions: str | None = None,
        val: float = 0.1,
        test: float = 0.1,
        image_size: int | None = None,
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
        super().__init__(
            folder,
            Path(cache_dir) if cache_dir else Path(folder) / ".distcap",
            image_size=image_size,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            on_error=on_error,
            cache=cache,
            limit=limit,
            group_size=group_size,
        )
        for name, value in (("val", val), ("test", test)):
            share(f"--data.{name}", value)
        if val + test >= 1:
            raise UserError(f"--data.val is {val} and --data.test {test}; they are shares, and train needs the rest")
        self.folder = Path(folder)
        self.captions = captions
        self.val, self.test = val, test
        self._listed: list[Path] = []

    def _folder(self, split: str) -> Path:
        return self.folder

    def _read(self) -> list[Entry]:
        listed = self._list()
        file = Path(self.captions) if self.captions else find_captions(self.folder)
        if file is None:
            return self._unique([Entry(_image_id(one), one, (), self._split(one)) for one in listed])
        told: dict[Path, list[Row]] = {}
        for row in read_captions(file):
            told.setdefault(row.file, []).append(row)
        if not told:
            raise UserError(f"{file} has no rows; {self.captions_hint}, or take it away")
        if untold := [one for one in listed if one not in told]:
            rank_zero_warn(f"left out: {file} says nothing of {len(untold)} images, the first: {untold[0]}")
        return self._unique(self._entries_of(told))

    def _of(self, split: str) -> list[Entry]:
        if split == "predict":
            return self._unique([Entry(_image_id(one), one, (), "predict") for one in self._list()])
        return super()._of(split)

    def _entries_of(self, told: dict[Path, list[Row]]) -> list[Entry]:
        """An entry an image; all of them say their split, or none does."""
        rows = [row for of_image in told.values() for row in of_image]
        tells = any(row.split for row in rows)
        entries = []
        for file, of_image in told.items():
            first = of_image[0]
            for row in of_image:
                if tells and row.split is None:
                    raise UserError(f'{row.at}: no "split", where other rows have one; give every row one, or none')
                if row.split != first.split:
                    raise UserError(
                        f"{row.at}: {file} belongs to {row.split} here, and to {first.split} in {first.at}; "
                        "an image has one split"
                    )
            captions = tuple(caption for row in of_image for caption in row.captions)
            entries.append(Entry(_image_id(file), file, captions, first.split or self._split(file), at=first.at))
        return entries

    def _split(self, file: Path) -> str:
        """By the name and the seed alone."""
        place = _hash(f"{self.seed} {file.as_posix()}") / 2**64
        return "test" if place < self.test else "val" if place < self.test + self.val else "train"

    def _list(self) -> list[Path]:
        """The images in the order of their relative paths."""
        if self._listed:
            return self._listed
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder}. {self.hint}")
        passed_over = PassedOver()
        told = frozenset(self.folder / name for name in NAMES) | {Path(self.captions or "")}
        self._listed = [one.path.relative_to(self.folder) for one in images_in(self.folder, passed_over, told)]
        if not self._listed:
            others = f"; passed over {passed_over}" if passed_over else ""
            raise UserError(f"{self.folder} holds no images{others}; looked for {', '.join(sorted(EXTENSIONS))}")
        if passed_over:
            rank_zero_warn(f"passed over in {self.folder}: {passed_over}")
        return self._listed

    def _unique(self, entries: list[Entry]) -> list[Entry]:
        files: dict[int, Path] = {}
        for entry in entries:
            if (other := files.setdefault(entry.image_id, entry.file)) != entry.file:
                raise UserError(f"{self.folder}: {other} and {entry.file} have one hash, by chance; rename one of them")
        return entries


def _hash(name: str) -> int:
    """Of 64 bits."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest())


def _image_id(file: Path) -> int:
    """Of 53 bits, which every reader of JSON keeps whole: one in 18,000 folders of a million images has a collision."""
    return _hash(file.as_posix()) >> 11
