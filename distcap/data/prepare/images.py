"""Are all images of a data set there?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from distcap.data.annotations import Entry
from distcap.types import UserError


def absent(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """The entries whose image is not in the folder, or empty there."""
    return [entry for entry in tqdm(entries, f"looking into {folder}", leave=False) if _size(folder / entry.file) == 0]


def link(place: Path, folder: Path) -> None:
    """Let images stay where they are: a link at `place`, where configs look for them, to the folder that has them."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the one that holds the images with --images")
    if place.exists() and place.samefile(folder):
        return
    if place.is_symlink():
        place.unlink()
    if place.exists():
        raise UserError(f"{place} is there already; leave --images out to use it, or move it away")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder.resolve(), target_is_directory=True)


def require_images(entries: Sequence[Entry], folder: Path, annotations: Path, remedy: str) -> None:
    """Raise a UserError that names what is missing, unless every image of the annotation file is there."""
    if lacking := absent(entries, folder):
        splits = ", ".join(f"{count:,} of {split}" for split, count in Counter(e.split for e in lacking).items())
        names = ", ".join(str(entry.file) for entry in lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        raise UserError(
            f"{len(lacking):,} of the {len(entries):,} images of {annotations} are missing or empty in {folder} "
            f"({splits}): {names}; {remedy}"
        )


def tell(name: str, root: Path, entries: Sequence[Entry], expected: Mapping[str, int]) -> None:
    """Say how many images each split has, and if that is not what it should be."""
    found = Counter(entry.split for entry in entries)
    print(f"{root} is ready: {_listed(found)} images")
    if found != expected:
        print(f"this is another split than the usual one of {name}, which has {_listed(expected)} images")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[split]:,} {split}" for split in ("train", "val", "test") if split in counts)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
