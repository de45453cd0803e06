"""What a run left, read as data: anybody's files, of which a damaged or hostile one is one line within milliseconds."""

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from distcap.types import UserError

LARGEST = 1 << 20
"""Bytes of a YAML file. A run's config has some ten thousand."""
PARTS = 100_000
"""Of a YAML document, its repetitions written out."""
DEPTH = 100
"""Of lists within lists."""
AGAIN = "evaluate the run again (`distcap test`), or move the file away"


def check_yaml(text: str) -> None:
    """Look at a YAML document before it is loaded. Aliases of aliases would make a few lines grow without bounds.

    Raises:
        UserError: it is too large, nested too deeply, or an alias has no anchor before it.
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    sizes: dict[str, int] = {}
    open_: list[list[Any]] = [[None, 0]]  # an anchor and a size each
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        size, anchor = 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append([anchor, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise UserError(f"a YAML in which the alias *{anchor} has no anchor before it, or stands within it")
            size, anchor = sizes[anchor], None
        if anchor and size:
            sizes[anchor] = size
        open_[-1][1] += size
        if len(open_) > DEPTH:
            raise UserError(f"a YAML that is nested more than {DEPTH} levels deep; write it flatter")
        if open_[-1][1] > PARTS:
            raise UserError(f"a YAML of more than {PARTS} parts, its aliases written out; make it smaller")


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, as data.

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read, or is anything else.
    """
    import yaml

    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file}: not a run's config, it has more than {LARGEST} bytes")
        text = file.read_text(encoding="utf-8")
        check_yaml(text)
        found = yaml.safe_load(text)
    except UserError as error:
        raise error if str(error).startswith(str(file)) else UserError(f"{file}: {error}") from error
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not a run's config ({' '.join(str(error).split())[:300]})") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a run's config, it holds a {type(found).__name__}")
    return found


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises UserError, which names the file, where that cannot be read."""
    try:
        if file.exists() and not file.is_file():  # a device may be read for ever
            raise OSError("it is no file")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read as JSON ({' '.join(str(error).split())[:200]}); {AGAIN}") from error


def read_metrics(file: Path) -> dict[str, dict[str, float]]:
    """metrics.json: split -> metric -> value, those that are finite numbers.

    Raises:
        UserError: it is anything else.
    """
    metrics = read_json(file)
    splits = metrics.values() if isinstance(metrics, dict) else [None]
    if not all(isinstance(split, dict) and all(map(_may_be_number, split.values())) for split in splits):
        raise UserError(f"{file} should map each split to its metrics, as in {{'test': {{'cider': 1.2}}}}; {AGAIN}")
    if odd := [name for name in metrics if not re.fullmatch(r"\w+", name)]:
        raise UserError(f"{file} has metrics of a split {odd[0]!r:.40}, which is no name of one; {AGAIN}")
    return {
        split: {name: value for name, value in values.items() if value is not None and _is_finite(value)}
        for split, values in metrics.items()
    }


def read_scores(file: Path) -> dict[str, Any]:
    """scores_SPLIT.json: image_ids, scores (metric -> a value an image) and, of a newer distcap, a signature.

    Raises:
        UserError: it is anything else.
    """
    table = read_json(file)
    if not isinstance(table, dict):
        raise UserError(f"{file} should have image_ids and scores, and holds a {type(table).__name__}; {AGAIN}")
    images, scores = table.get("image_ids"), table.get("scores")
    if not isinstance(images, list) or not isinstance(scores, dict) or not images:
        raise UserError(f"{file} should have image_ids and scores, a value an image; {AGAIN}")
    for name, values in scores.items():
        rows = values if isinstance(values, list) else []
        if len(rows) != len(images) or not _are_numbers(rows):
            raise UserError(f"{file} has {len(images)} images, and not as many values of {name}; {AGAIN}")
    signature = table.get("signature", {})
    strings = isinstance(signature, dict) and all(isinstance(value, str) for value in signature.values())
    if not strings or ("signature" in table and "decoder" not in signature):
        raise UserError(f"{file} has a signature that is none; {AGAIN}")
    return table


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_lookalike(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _is_id(value.get("image_id")) and _is_text(value.get("file")))


KINDS: dict[str, Callable[[Any], bool]] = {
    "image_id": _is_id,
    "file": _is_text,
    "caption": _is_text,
    "rank": lambda value: value is not None and _may_be_number(value) and _is_finite(value),
    "ground_truth": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "lookalike": _is_lookalike,
}
"""What a row of captions_SPLIT.json has."""


def read_captions(file: Path, keys: Iterable[str] = tuple(KINDS)) -> dict[int, dict[str, Any]]:
    """captions_SPLIT.json: image id -> row, which has these keys; empty where there is no such file.

    Raises:
        UserError: it is anything else.
    """
    if not file.exists():
        return {}
    rows = read_json(file)
    if not isinstance(rows, list):
        raise UserError(f"{file} should be a list with one row an image; found {rows!r:.80}; {AGAIN}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not set(keys) <= row.keys():
            raise UserError(
                f"{file}: row {number} should have the keys {', '.join(sorted(keys))}; found {row!r:.120}; {AGAIN}"
            )
        for key in keys:
            if not KINDS[key](row[key]):
                raise UserError(f"{file}: row {number} has a {key} that is none: {row[key]!r:.80}; {AGAIN}")
    return {row["image_id"]: row for row in rows}


def read_warnings(file: Path) -> list[dict[str, Any]] | None:
    """health.json: what HackingWatch said, each warning with a sentence; None where there is no such file.

    Raises:
        UserError: it is anything else.
    """
    if not file.exists():
        return None
    rows = read_json(file)
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("sentence"), str) for row in rows
    ):
        raise UserError(
            f"{file} should be a list of warnings, each with a sentence; found {rows!r:.80}. Move the file away"
        )
    return rows


def _are_numbers(rows: list[Any]) -> bool:
    """Numbers, or lists of numbers of one length, as n-gram counts are."""
    if any(isinstance(row, list) for row in rows):
        lengths = {len(row) if isinstance(row, list) else -1 for row in rows}
        return len(lengths) == 1 and all(_may_be_number(value) for row in rows for value in row)
    return all(map(_may_be_number, rows))


def _may_be_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer larger than any float
        return False
