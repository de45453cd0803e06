"""The images of a folder, and what else was found there: listed in one way for all commands."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distcap.data.left_out import LeftOut

EXTENSIONS = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class Found(NamedTuple):
    """A file or a folder in a tree."""

    path: Path
    """As it was reached."""
    real: str
    """The same whatever links it was reached by; of a link that leads nowhere the link itself."""
    linked: bool
    """Whether a link led there."""
    is_dir: bool


class PassedOver(LeftOut):
    """What was found in folders and not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()
        """Extension -> files that are no images by it."""

    def __bool__(self) -> bool:
        return bool(self.kinds) or super().__bool__()

    def __str__(self) -> str:
        """For instance: 3 files of other kinds (.heic 2, .txt 1), the first: a.heic."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.most_common())
        others = f"{self.kinds.total()} files of other kinds ({kinds}), the first: {self.first.get('')}"
        return "; ".join(filter(None, (others if self.kinds else "", super().__str__())))

    def other(self, path: Path) -> None:
        """Tell of a file that is no image by its extension."""
        self.kinds[path.suffix.lower() or "no extension"] += 1
        self.first.setdefault("", str(path))

    def twin(self, path: Path, of: Path) -> None:
        """Tell of another name of what is listed already."""
        self.add("second names of what is listed already", f"{path} of {of}")


def images_in(folder: Path, passed_over: PassedOver, known: frozenset[Path] = frozenset()) -> list[Found]:
    """The images of a folder and of the folders in it, as their extensions tell, in the order of their relative paths.

    Links are followed, each file is listed once, and rather by a name that needs no link. A link that leads nowhere is
    listed, for whoever opens it to say so. What a dot hides is not there.

    Args:
        folder: where to look.
        passed_over: is told of all that is not listed.
        known: files of other kinds that need not be told.
    """
    images: list[Found] = []
    for one in tree(folder, passed_over):
        if one.is_dir or one.path in known:
            continue
        if one.path.suffix.lower() in EXTENSIONS:
            images.append(one)
        else:
            passed_over.other(one.path)
    return sorted(once(images, passed_over), key=lambda one: one.path.relative_to(folder).as_posix())


def once(files: list[Found], passed_over: PassedOver) -> Iterator[Found]:
    """Each file by one of its names: the first that needs no link, or else the first."""
    names: dict[str, Found] = {}
    for one in files:
        if one.real not in names or names[one.real].linked > one.linked:
            names[one.real] = one
    for one in files:
        if (named := names[one.real]) is one:
            yield one
        elif os.path.abspath(named.path) != os.path.abspath(one.path):
            passed_over.twin(one.path, named.path)


def tree(folder: Path, passed_over: PassedOver) -> Iterator[Found]:
    """All files and folders below a folder but for hidden ones, each folder once, whatever loops its links make.

    A folder is entered by its own name, if it has one in the tree, and only else by a link.
    """
    seen: dict[str, Path] = {}
    by_name, by_link = deque([found(folder)]), deque[Found]()
    while by_name or by_link:
        here = (by_name or by_link).popleft()
        if here.real in seen:
            passed_over.twin(here.path, seen[here.real])
            continue
        seen[here.real] = here.path
        try:
            entries = sorted(os.scandir(here.path), key=lambda entry: entry.name)
        except OSError as error:
            passed_over.add("folders that cannot be read", f"{here.path} ({error.strerror})")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = here.path / entry.name
            if entry.is_symlink():
                one = found(path, linked=True)
            else:
                one = Found(path, os.path.join(here.real, entry.name), here.linked, entry.is_dir(follow_symlinks=False))
            if one.is_dir:
                (by_link if one.linked else by_name).append(one)
            yield one


def found(path: Path, linked: bool = False) -> Found:
    """A file or a folder by its path."""
    there = os.path.exists(path)
    return Found(path, os.path.realpath(path) if there else os.path.abspath(path), linked, os.path.isdir(path))
