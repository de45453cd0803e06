"""The images that were named on a command line: files, folders and patterns."""

import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from distcap.data.listing import EXTENSIONS, Found, PassedOver, found, images_in, once, tree
from distcap.types import UserError


def given_images(sources: Sequence[str]) -> tuple[list[Path], PassedOver]:
    """The images behind the sources, each once, and what was passed over.

    A file that is named itself is taken whatever it is called: what it holds will show. Of a folder see `images_in`.

    Args:
        sources: files, folders, and patterns as the shell has them; ** matches folders in folders.

    Raises:
        UserError: a source leads nowhere, or all of them together to no image.
    """
    images: list[Found] = []
    passed_over = PassedOver()
    for source in sources:
        # A file may be called what looks like a pattern.
        named = [Path(source)] if os.path.lexists(source) else _matching(source)
        if not named:
            raise UserError(f"{source}: there is no such file or folder, nor anything that matches it as a pattern")
        for path in named:
            images += images_in(path, passed_over) if path.is_dir() else [found(path)]
    if not images:
        others = f"; passed over {passed_over}" if passed_over else ""
        raise UserError(f"no images in {', '.join(sources)}{others}; looked for {', '.join(sorted(EXTENSIONS))}")
    return [one.path for one in once(images, passed_over)], passed_over


def _matching(pattern: str) -> list[Path]:
    """What matches a pattern, in the order of paths."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return [Path(path) for path in sorted(glob.glob(pattern))]
    # glob would go round in circles where links do, and double what it finds with each of them.
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    top = Path(*parts[:fixed])
    below = [one.path for one in tree(top, PassedOver())]
    return sorted(path for path in below if _matches(path.relative_to(top).parts, parts[fixed:]))


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_matches(names[start:], parts[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])
