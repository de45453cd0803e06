"""nocaps: novel objects in images of Open Images (Agrawal et al. 2019), the validation set."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from distcap.data.annotations import Entry, read_addresses, read_coco
from distcap.data.download import download
from distcap.data.prepare.images import absent, link, require_images, tell
from distcap.data.prepare.published import Published
from distcap.pictures import open_picture
from distcap.types import UserError

# Linked from https://nocaps.org/download. No checksum of it is published: its syntax and its counts are checked.
CAPTIONS = Published("https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json", None)
EXPECTED = {"test": 4_500}
CONNECTIONS = 8
HOPELESS = 20
"""Images that cannot be fetched, none having arrived before, after which the rest is not tried."""


def prepare_nocaps(root: Path, archives: str | None = None, images: str | None = None) -> None:
    """Make ROOT/nocaps_val_4500_captions.json and ROOT/images, as configs/data/nocaps.yaml reads them.

    Images come one by one from the addresses in that file. What is there already is left alone; an interrupted call can
    be given again.

    Args:
        root: The folder of the data set.
        archives: A folder, or an http address, with nocaps_val_4500_captions.json; by default the authors' own.
        images: A folder that holds the images; they stay there, and a link leads to them.

    Raises:
        UserError: The annotation file is not what it should be, or an image is missing.
    """
    annotations = root / CAPTIONS.name
    if not annotations.is_file():
        found = CAPTIONS.obtain(root, archives)
        if found != annotations:
            root.mkdir(parents=True, exist_ok=True)
            annotations.write_bytes(found.read_bytes())
    entries = read_coco(annotations, "test")
    folder = root / "images"
    remedy = "give the same command again, or name a folder that has them with --images"
    if images is not None:
        link(folder, Path(images))
    elif lacking := absent(entries, folder):
        addresses = read_addresses(annotations)
        broken = fetch_images(lacking, folder, addresses)
        if broken:  # A server's bad minute may be over.
            broken = fetch_images([entry for entry in lacking if entry in broken], folder, addresses)
        if broken:
            first = next(iter(broken.values()))
            remedy = f"the first cannot be had: {first}; {remedy}"
    require_images(entries, folder, annotations, remedy)
    tell("nocaps", root, entries, EXPECTED)
    domains = Counter(entry.domain for entry in entries)
    print(", ".join(f"{count:,} {domain or 'of no domain'}" for domain, count in sorted(domains.items(), key=str)))


def fetch_images(entries: Sequence[Entry], folder: Path, addresses: dict[Path, str]) -> dict[Entry, str]:
    """Download images, several at a time; returns what is wrong with those that could not be had.

    Raises UserError if nothing seems to work at all.
    """
    broken: dict[Entry, str] = {}
    pool = ThreadPoolExecutor(CONNECTIONS)
    try:
        jobs = {
            pool.submit(download, addresses[e.file], folder / e.file, check=require_image, attempts=3, quiet=True): e
            for e in entries
        }
        for number, job in enumerate(tqdm(as_completed(jobs), "images", total=len(jobs), unit="image")):
            try:
                job.result()
            except UserError as error:
                broken[jobs[job]] = str(error)
                if number + 1 == len(broken) == HOPELESS:
                    raise UserError(f"of {HOPELESS} images none can be fetched, for instance: {error}") from error
    finally:  # also when interrupted: what has begun ends, and the rest is for the next time
        pool.shutdown(cancel_futures=True)
    return broken


def require_image(file: Path) -> None:
    """Raise a UserError if a file is no image, as where a server sends a page of excuses."""
    open_picture(file)
