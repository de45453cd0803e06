"""The images that were named on a command line: files, folders and patterns."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from distcap.data.folder import EXTENSIONS
from distcap.types import UserError


def given_images(sources: Sequence[str]) -> tuple[list[Path], Counter[str]]:
    """The images behind the sources, each once, and the extensions of the files that were passed over.

    A file that is named itself is taken whatever it is called: what it holds will show. Of a folder, and of the folders
    in it, those are taken that an image's extension tells, in the order of their paths; hidden ones are not.

    Args:
        sources: files, folders, and patterns as the shell has them; ** matches folders in folders.

    Raises:
        UserError: a source leads nowhere, or all of them together to no image.
    """
    found: list[Path] = []
    passed_over: Counter[str] = Counter()
    for source in sources:
        # A file may be called what looks like a pattern.
        named = [source] if os.path.lexists(source) else sorted(glob.glob(source, recursive=True))
        if not named:
            raise UserError(f"{source}: there is no such file or folder, nor anything that matches it as a pattern")
        for path in map(Path, named):
            if not path.is_dir():
                found.append(path)
                continue
            for file in sorted(path.rglob("*"), key=lambda file: file.as_posix()):
                if file.is_dir() or any(part.startswith(".") for part in file.relative_to(path).parts):
                    continue
                if file.suffix.lower() in EXTENSIONS:
                    found.append(file)
                else:
                    passed_over[file.suffix.lower() or "no extension"] += 1
    if not found:
        others = f"; passed over {told(passed_over)}" if passed_over else ""
        raise UserError(f"no images in {', '.join(sources)}{others}; looked for {', '.join(sorted(EXTENSIONS))}")
    # Of one file under two spellings, the first counts.
    unique = {os.path.abspath(path): path for path in reversed(found)}
    return [path for path in found if unique.pop(os.path.abspath(path), None)], passed_over


def told(passed_over: Counter[str]) -> str:
    """ "3 files of other kinds (.heic 2, .txt 1)"."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in passed_over.most_common())
    return f"{passed_over.total()} files of other kinds ({kinds})"
