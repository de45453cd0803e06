"""Karpathy's splits of COCO and Flickr30k."""

from pathlib import Path

from distcap.data.archives import unpack
from distcap.data.prepare.published import Published

# SHA-256 from tensorflow_datasets/url_checksums/coco_captions.txt in tensorflow/datasets; 36,745,453 bytes.
CAPTIONS = Published(
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
)


def karpathy_split(name: str, root: Path, archives: str | None) -> Path:
    """ROOT/NAME, such as dataset_coco.json, taken out of Karpathy's archive if it is not there."""
    file = root / name
    if not file.is_file():
        unpack(CAPTIONS.obtain(root / "archives", archives), root, [name])
    return file
