"""Flickr30k with Karpathy's split."""

from pathlib import Path

from distcap.data.annotations import read_karpathy
from distcap.data.prepare.images import link, require_images, tell
from distcap.data.prepare.karpathy import karpathy_split
from distcap.types import UserError

EXPECTED = {"train": 29_000, "val": 1_014, "test": 1_000}
REMEDY = (
    "Flickr30k's images are sent to whoever asks for them, by the form at "
    "https://shannon.cs.illinois.edu/DenotationGraph/; unpack flickr30k-images.tar.gz, and name the folder with the "
    ".jpg files: distcap prepare flickr30k --images FOLDER"
)


def prepare_flickr30k(root: Path, archives: str | None = None, images: str | None = None) -> None:
    """Make ROOT/dataset_flickr30k.json and ROOT/images, as configs/data/flickr30k.yaml reads them.

    Args:
        root: The folder of the data set.
        archives: A folder, or an http address, with caption_datasets.zip; by default Karpathy's own.
        images: The folder that holds the images; they stay there, and a link leads to them.

    Raises:
        UserError: There are no images yet, or some of the annotation file are missing.
    """
    annotations = karpathy_split("dataset_flickr30k.json", root, archives)
    entries = read_karpathy(annotations)
    folder = root / "images"
    if images is not None:
        link(folder, Path(images))
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}. {REMEDY}")
    require_images(entries, folder, annotations, REMEDY)
    tell("Flickr30k", root, entries, EXPECTED)
