"""Which image has which captions: the two JSON formats of COCO captions, read into one list of entries.

Annotation files come from anywhere, so nothing in them is trusted: every field is checked when it is read, and a file
name that leaves the image folder is refused.
"""

import codecs
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from distcap.data.left_out import LeftOut
from distcap.files import require_regular
from distcap.types import UserError

Restval = Literal["train", "drop"]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Entry:
    """One image and what people wrote about it."""

    image_id: int
    """Names the image in the whole data set."""
    file: Path
    """Relative to the image folder."""
    captions: tuple[str, ...]
    """Ground truth, in the file's order, white space normalised; empty where an image is only to be captioned."""
    split: str
    """train, val, test or predict."""
    domain: str | None = None
    """The part of the split that it belongs to, where the data set tells: nocaps has in-, near- and out-domain."""
    at: str = ""
    """The file and the line that tell of the image, where that says more than its id."""


def read_karpathy(path: str | Path, restval: Restval = "train") -> list[Entry]:
    """The entries of a Karpathy split file, such as `dataset_coco.json`, in the file's order.

        {"images": [{"cocoid" or "imgid", "filepath" (optional), "filename", "split", "sentences": [{"raw"}],
                     "domain" (optional)}]}

    Args:
        path: The JSON file.
        restval: What becomes of the images of COCO's validation set that are in neither Karpathy's val nor his test:
            part of train, as nearly every paper has it, or dropped.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    document = _load(path)
    if "annotations" in document:
        raise UserError(
            f"{path} is an official COCO captions file, which holds one split: "
            f"name the split, as in annotations: {{train: {path}}}"
        )
    entries = []
    left_out = LeftOut()
    for position, image in enumerate(field(document, "images", list, path)):
        at = f"{path}, image number {position}"
        image_id = _id(image, "cocoid" if isinstance(image, dict) and "cocoid" in image else "imgid", at)
        at = f"{path}, image id {image_id}"
        told = field(image, "split", str, at)
        if told == "restval" and restval == "drop":
            continue
        split = "train" if told == "restval" else split_named(told)
        if split is None:
            left_out.add(f"images of the split {told[:40]!r}, which is none of train, val and test", at)
        folder = field(image, "filepath", str, at) if "filepath" in image else ""
        captions = [_caption(sentence, "raw", at) for sentence in field(image, "sentences", list, at)]
        entries.append(
            Entry(
                image_id,
                relative(Path(folder, field(image, "filename", str, at)), at),
                texts(captions, at, left_out),
                split or told,
                _domain(image, at),
            )
        )
    _require_unique_ids(entries, path)
    left_out.warn(path)
    return entries


def read_coco(path: str | Path, split: str) -> list[Entry]:
    """The entries of an official COCO captions file, such as `captions_train2017.json`, in the file's order.

        {"images": [{"id", "file_name", "domain" (optional)}], "annotations": [{"image_id", "caption"}]}

    A file without "annotations", such as `image_info_test2014.json`, holds images that are only to be captioned.

    Args:
        path: The JSON file.
        split: The split that its images form.

    Raises:
        UserError: The file cannot be read, holds something else, or has a caption of an image that is not in it.
    """
    document = _load(path)
    images = []
    for position, image in enumerate(field(document, "images", list, path)):
        if isinstance(image, dict) and "sentences" in image:
            raise UserError(f"{path} is a Karpathy split file, which holds every split: give it as annotations: {path}")
        image_id = _id(image, "id", f"{path}, image number {position}")
        at = f"{path}, image id {image_id}"
        images.append((image_id, relative(Path(field(image, "file_name", str, at)), at), _domain(image, at)))

    captions: dict[int, list[str | None]] = {image_id: [] for image_id, _, _ in images}
    annotations = field(document, "annotations", list, path) if "annotations" in document else []
    for position, annotation in enumerate(annotations):
        at = f"{path}, annotation number {position}"
        image_id = field(annotation, "image_id", int, at)
        if image_id not in captions:
            raise UserError(f'{at}: its image id {image_id} is not among "images"; remove it or add the image')
        captions[image_id].append(_caption(annotation, "caption", at))

    left_out = LeftOut()
    entries = [
        Entry(image_id, file, texts(captions[image_id], f"{path}, image id {image_id}", left_out), split, domain)
        for image_id, file, domain in images
    ]
    _require_unique_ids(entries, path)
    left_out.warn(path)
    return entries


def read_addresses(path: str | Path) -> dict[Path, str]:
    """File name -> where the image is to be had, of an official COCO captions file whose images have a "coco_url".

    Raises:
        UserError: The file cannot be read, or an image has no address.
    """
    addresses = {}
    for position, image in enumerate(field(_load(path), "images", list, path)):
        at = f"{path}, image number {position}"
        addresses[relative(Path(field(image, "file_name", str, at)), at)] = field(image, "coco_url", str, at)
    return addresses


def _load(path: str | Path) -> dict[str, Any]:
    require_regular(Path(path))
    try:
        document = json.loads(decoded(Path(path).read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read the annotation file {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "download it again if it was cut short"
        ) from error
    except NotUtf8 as error:
        raise UserError(f"{path} is not a JSON file in UTF-8, but {error}; is it still zipped?") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON that makes sense ({' '.join(str(error).split())[:100]})") from error
    if isinstance(document, list):
        raise UserError(
            f'{path}: expected a JSON object with "images", found a list, as BLIP\'s coco_karpathy_train.json is one; '
            "name Karpathy's dataset_coco.json, or COCO's captions files"
        )
    if not isinstance(document, dict):
        raise UserError(f'{path}: expected a JSON object with "images", found a {type(document).__name__}')
    return document


def field(record: Any, key: str, kind: type[Kind], at: str | Path) -> Kind:
    """record[key], certainly of that kind; `at` says where in the file it stands."""
    if not isinstance(record, dict):
        raise UserError(f'{at}: expected a JSON object with "{key}", found a {type(record).__name__}')
    if key not in record:
        keys = ", ".join(map(repr, list(record)[:10])) or "no keys at all"
        raise UserError(f'{at}: "{key}" is missing; found {keys}')
    value = record[key]
    # JSON's true is an int to Python, and no id.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f'{at}: "{key}" should be of type {kind.__name__}, found {str(value)[:40]!r}')
    return value


def _id(image: Any, key: str, at: str) -> int:
    number = field(image, key, int, at)
    if not -(2**63) <= number < 2**63:
        raise UserError(f'{at}: "{key}" is {str(number)[:40]}, too long a number; give the image another')
    return number


def _caption(record: Any, key: str, at: str) -> str | None:
    """None where a caption is null."""
    return None if isinstance(record, dict) and record.get(key, "") is None else field(record, key, str, at)


def _domain(image: Any, at: str) -> str | None:
    return field(image, "domain", str, at) if "domain" in image else None


class NotUtf8(ValueError):
    """Says what a text is encoded in instead."""


def decoded(data: bytes) -> str:
    """Text in UTF-8, without the byte order mark that some programs begin it with.

    Raises:
        NotUtf8: it is in another encoding, or no text.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NotUtf8("text in UTF-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotUtf8(f"something else from byte {error.start:,} on") from error


def split_named(name: str) -> str | None:
    """train, val or test, as data sets spell them ("validation", "val2014"); None for another split."""
    match = re.fullmatch(r"(train|val|test)(20\d\d)?|(validation|valid)", name.strip().lower())
    return match and (match[1] or "val")


def texts(found: list[Any], at: str, left_out: LeftOut) -> tuple[str, ...]:
    """Texts with their white space normalised (some of COCO's contain line breaks), without the empty ones.

    A null counts as empty, and a byte order mark as nothing, wherever a program that joins files left it.
    """
    kept = []
    for text in found:
        if text is not None and not isinstance(text, str):
            raise UserError(f"{at}: a caption should be a string, found {str(text)[:40]!r}")
        if text and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"{at}: half a character in the caption {text[:40]!r}; write it anew")
        if words := (text or "").replace("\ufeff", "").split():
            kept.append(" ".join(words))
        else:
            left_out.add("captions that are empty or null", at)
    return tuple(kept)


def relative(file: Path, at: str) -> Path:
    """The same path, certainly inside whatever folder it is joined to."""
    if file.is_absolute() or file.drive or ".." in file.parts or not file.parts or "\0" in str(file):
        raise UserError(
            f"{at}: the file name {str(file)!r} leads out of the image folder; make it relative to the folder"
        )
    return file


def _require_unique_ids(entries: list[Entry], path: str | Path) -> None:
    for image_id, count in Counter(entry.image_id for entry in entries).most_common(1):
        if count > 1:
            raise UserError(f"{path}: image id {image_id} is used by {count} images; give every image an id of its own")
