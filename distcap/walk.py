"""Steps one after the other, each done once: what is done is remembered in a file."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcap.files import read_json, write_whole
from distcap.types import UserError


@dataclass(frozen=True)
class Stride:
    """One step: its name, what it is for people, and the work."""

    name: str
    what: str
    work: Callable[[], None]


def claim(folder: Path, recipe: dict[str, Any], name: str) -> None:
    """Make the folder of a family of runs, or see that it was begun in the same way.

    Args:
        folder: of the runs.
        recipe: all that decides what they become, as JSON; kept in FOLDER/NAME.json.
        name: of the recipe.

    Raises:
        UserError: the folder holds what another recipe began.
    """
    file = folder / f"{name}.json"
    if file.exists() and (found := read_json(file, lambda found: isinstance(found, dict))) != recipe:
        if found is None:
            raise UserError(
                f"{file} is damaged: what {folder} was begun with is not known; name another with --run, or, if it was "
                f"{json.dumps(recipe)}, delete that file"
            )
        raise UserError(f"{folder} holds a {name} of {json.dumps(found)}; name another with --run, or delete it")
    write_whole(file, json.dumps(recipe))


def walk(strides: Sequence[Stride], file: Path) -> dict[str, float]:
    """Do the steps that the file does not know yet; interrupted, the same call goes on.

    Args:
        strides: in order.
        file: JSON, step -> seconds that it took; written after each.

    Returns:
        What the file says in the end.
    """
    # Damaged, it says of no step that it is done: each is done again, which is quick where a run is trained already.
    seconds: dict[str, float] = read_json(file, _are_seconds) or {}
    for number, stride in enumerate(strides, 1):
        title = f"[{number}/{len(strides)}] {stride.name}: {stride.what}"
        if stride.name in seconds:
            print(f"{title} - done before")
            continue
        print(f"\n{title}", flush=True)
        begin = time.perf_counter()
        try:
            stride.work()
        except BaseException:  # Ctrl-C, too
            print(f"\nStopped in step {stride.name}; the same command goes on from here.", file=sys.stderr)
            raise
        seconds[stride.name] = round(time.perf_counter() - begin, 1)
        write_whole(file, json.dumps(seconds))
    return seconds


def _are_seconds(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(value, int | float) for value in found.values())
