"""Which images can be read: found out before training, and once for all runs."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from distcap.types import UserError

AT_ONCE = 512
"""Images between two lines of the file; an interrupted look has lost as many at most."""


def unreadable(versions: Mapping[str, str], read: Callable[[str], Tensor], folder: Path, title: str) -> dict[str, str]:
    """Read every image that was not read before.

    Args:
        versions: name of an image -> anything that changes when it does.
        read: decodes the image of that name, or raises a UserError.
        folder: where what was found is kept, in `readable.jsonl`.
        title: of the progress bar, which is there if it takes long.

    Returns:
        Name -> message, of those that cannot be read.
    """
    with FileLock(folder / "readable.lock"):  # the processes of one run: the first reads, the others find it done
        file = folder / "readable.jsonl"
        known = _known(file)
        todo = [name for name, version in versions.items() if known.get(name, ("", ""))[0] != version]
        with (
            ThreadPoolExecutor() as pool,
            file.open("a") as lines,
            tqdm(desc=title, total=len(todo), unit="image", delay=2, leave=False) as bar,
        ):
            for start in range(0, len(todo), AT_ONCE):
                names = todo[start : start + AT_ONCE]
                messages = list(pool.map(lambda name: _message(read, name), names))
                found = {name: (versions[name], message) for name, message in zip(names, messages, strict=True)}
                lines.write("\n" + json.dumps(found))  # the line before may have been cut
                lines.flush()
                known |= found
                bar.update(len(names))
    return {name: known[name][1] for name in versions if known[name][1]}


def _message(read: Callable[[str], Tensor], name: str) -> str:
    try:
        read(name)
    except UserError as error:
        return str(error)
    return ""


def _known(file: Path) -> dict[str, tuple[str, str]]:
    """Name -> version and message; a line that was cut, or that cannot be understood, is as if it were not there."""
    known: dict[str, tuple[str, str]] = {}
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            known |= {name: (version, message) for name, (version, message) in json.loads(line).items()}
        except (ValueError, TypeError, AttributeError):
            continue
    return known
