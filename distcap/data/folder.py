"""Your own images, to be captioned."""

from pathlib import Path

from lightning import LightningDataModule

from distcap.data.annotations import Entry
from distcap.data.images import ImageDataset, ImageLoader, OnError, loader
from distcap.types import UserError

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class ImageFolder(LightningDataModule):
    """The images of a folder and of the folders in it, without captions: for `distcap predict`.

    An image's id is its place among the sorted relative paths. Pixels are made as `CocoCaptions` makes them.

    Args:
        folder: Where the images are. Hidden files and files of other kinds are passed over.
        image_size: Height and width of the pixels that the captioner sees.
        batch_size: Images of a batch.
        num_workers: Processes that decode images.
        on_error: What to do with an image that cannot be read: stop with one line, or leave it out and say at the end
            how many there were.
    """

    def __init__(
        self,
        folder: str,
        image_size: int = 224,
        batch_size: int = 32,
        num_workers: int = 4,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.on_error: OnError = on_error
        self._dataset: ImageDataset | None = None

    def setup(self, stage: str) -> None:
        """List the folder, before anything long starts."""
        if stage != "predict":
            raise UserError(f"ImageFolder has no captions, so `distcap {stage}` cannot use it; use `distcap predict`")
        self.dataset()

    def entries(self, split: str = "predict") -> list[Entry]:
        """The images in the order of their relative paths."""
        return self.dataset().entries

    def path(self, entry: Entry) -> Path:
        """The image file of an entry."""
        return self.folder / entry.file

    def dataset(self) -> ImageDataset:
        """The images, listed once."""
        if self._dataset is None:
            entries = [Entry(number, file, (), "predict") for number, file in enumerate(self._find())]
            paths = [self.path(entry) for entry in entries]
            self._dataset = ImageDataset(entries, paths, self.image_size, self.on_error)
        return self._dataset

    def predict_dataloader(self) -> ImageLoader:
        return loader(self.dataset(), batch_size=self.batch_size, num_workers=self.num_workers)

    def _find(self) -> list[Path]:
        if not self.folder.is_dir():
            raise UserError(f"there is no folder {self.folder}; name the folder of your images with --data.folder")
        files = [file.relative_to(self.folder) for file in self.folder.rglob("*") if file.suffix.lower() in EXTENSIONS]
        files = [file for file in files if not any(part.startswith(".") for part in file.parts)]
        if not files:
            raise UserError(f"{self.folder} holds no images; looked for {', '.join(sorted(EXTENSIONS))}")
        return sorted(files, key=lambda file: file.as_posix())
