"""COCO captions, or any data set in one of COCO's formats."""

from pathlib import Path
from typing import ClassVar

from distcap.data.annotations import Entry, Restval, read_coco, read_karpathy
from distcap.data.base import ImageData
from distcap.data.images import OnError
from distcap.types import UserError


class CocoCaptions(ImageData):
    """Images with several human captions each, as batches of pixels and strings.

    Pixels are RGB in [0, 1], squashed to a square; each model normalises them as it was trained to. Training batches
    are shuffled by `seed` and epoch alone: neither the number of workers nor an interruption changes them, and two
    processes with half the batch size each see together what one sees.

    Args:
        annotations: A Karpathy split file (`dataset_coco.json`), or official COCO captions files by split:
            {train: captions_train2017.json, val: captions_val2017.json, test: ...}.
        images: The folder that file names are relative to, or one folder for each split.
        restval: Karpathy's "restval" images belong to train, or are dropped.
        image_size: Height and width of the pixels; by default what the captioner, or the CLIP that learns, sees.
        batch_size: Images of a training batch, in each process.
        eval_batch_size: Images of a validation, test or prediction batch; by default batch_size.
        num_workers: Processes that decode images, for each split.
        seed: Of the order of training images.
        on_error: What to do with an image that is absent, corrupt, or has no captions where others of its split have
            some: stop with one line, or leave it out and say how many there are. To find the corrupt ones, every image
            is read before training; the result is kept with the embeddings, and an image is read again if it changes.
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
    captions_hint: ClassVar[str] = 'add them to the annotation file, as "sentences" or "annotations"'

    def __init__(
        self,
        annotations: str | dict[str, str],
        images: str | dict[str, str],
        restval: Restval = "train",
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
        sources = annotations if isinstance(annotations, dict) else {"": annotations}
        if not sources or set(sources) - {"", "train", "val", "test"}:
            raise UserError(f"--data.annotations has splits {list(sources)}; name one file each for train, val, test")
        file = Path(next(iter(sources.values())))
        super().__init__(
            str(annotations),
            # Image ids are unique in one data set only, and one folder may hold several.
            Path(cache_dir) if cache_dir else file.parent / ".distcap" / file.stem,
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
        self.annotations = annotations
        self.images = images
        self.restval: Restval = restval
        self._sources = sources

    def _read(self) -> list[Entry]:
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
        return entries

    def _folder(self, split: str) -> Path:
        if isinstance(self.images, str):
            return Path(self.images)
        if split not in self.images:
            raise UserError(f"--data.images has folders for {list(self.images)}, but none for {split}; name it")
        return Path(self.images[split])
