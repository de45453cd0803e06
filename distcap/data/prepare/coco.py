"""COCO with Karpathy's split."""

from pathlib import Path

from distcap.data.annotations import read_karpathy
from distcap.data.archives import unpack
from distcap.data.prepare.images import absent, link, require_images, tell
from distcap.data.prepare.karpathy import karpathy_split
from distcap.data.prepare.published import Published
from distcap.types import UserError

# SHA-256 from tensorflow_datasets/url_checksums/coco_captions.txt in tensorflow/datasets; 13,510,573,713 and
# 6,645,013,297 bytes.
IMAGES = (
    Published(
        "http://images.cocodataset.org/zips/train2014.zip",
        "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    ),
    Published(
        "http://images.cocodataset.org/zips/val2014.zip",
        "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    ),
)
EXPECTED = {"train": 113_287, "val": 5_000, "test": 5_000}


def prepare_coco(root: Path, archives: str | None = None, images: str | None = None) -> None:
    """Make ROOT/dataset_coco.json, ROOT/train2014/ and ROOT/val2014/, as configs/data/coco.yaml reads them.

    What is there already is left alone; an interrupted call can be given again.

    Args:
        root: The folder of the data set. Archives are downloaded into ROOT/archives, and needed only to be unpacked.
        archives: A folder, or an http address, with train2014.zip, val2014.zip and caption_datasets.zip; by default the
            authors' own.
        images: A folder that holds train2014/ and val2014/ unpacked; they stay there, and links lead to them.

    Raises:
        UserError: An archive is not what it should be, or an image of the annotation file is missing.
    """
    annotations = karpathy_split("dataset_coco.json", root, archives)
    entries = read_karpathy(annotations)
    for archive in IMAGES:
        name = archive.name.removesuffix(".zip")
        if images is not None:
            link(root / name, Path(images, name))
            continue
        needed = [entry for entry in entries if entry.file.parts[0] == name]
        if not (lacking := absent(needed, root)):
            continue
        if (root / name).is_symlink():
            raise UserError(
                f"{root / name} is a link to {(root / name).resolve()}, where {len(lacking):,} images are missing, the "
                f"first: {lacking[0].file}; complete that folder, or remove the link"
            )
        unpack(archive.obtain(root / "archives", archives), root, [entry.file.as_posix() for entry in needed])
    require_images(entries, root, annotations, "complete the folder, or leave --images out to fetch COCO's archives")
    tell("COCO", root, entries, EXPECTED)
    if (root / "archives").is_dir():
        print(f"{root / 'archives'} is not needed any more")
