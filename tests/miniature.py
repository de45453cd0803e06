"""Real data sets in miniature: the archives, names and annotation files of COCO, Flickr30k and nocaps, painted."""

import hashlib
import io
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distcap.data.annotators import annotator_caption
from distcap.data.painter import Scene, paint, random_scene

DOMAINS = ("in-domain", "near-domain", "out-domain")


def write_coco(folder: Path, *, train: int = 8, restval: int = 4, val: int = 4, test: int = 4, seed: int = 0) -> Path:
    """COCO's archives as its authors offer them: train2014.zip, val2014.zip, and Karpathy's caption_datasets.zip.

    And SHA256SUMS, for these are not the archives whose checksums are published. To be used like those:
    `distcap prepare coco --archives FOLDER`, or the address at which FOLDER is served.

    Args:
        folder: where they go; made if it is not there.
        train: images of train2014.zip.
        restval: images of val2014.zip that are in neither Karpathy's val nor his test.
        val: images of val2014.zip.
        test: images of val2014.zip.
        seed: of the pictures and what people wrote about them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    pictures: dict[str, dict[str, bytes]] = {"train2014": {}, "val2014": {}}
    splits = ["train"] * train + ["restval"] * restval + ["val"] * val + ["test"] * test
    for number, (split, (scene, captions)) in enumerate(zip(splits, _pictures(seed), strict=False)):
        year = "train2014" if split == "train" else "val2014"
        cocoid = 42 + 31 * number
        name = f"COCO_{year}_{cocoid:012d}.jpg"
        pictures[year][f"{year}/{name}"] = jpeg(scene)
        rows.append({"filepath": year, **_karpathy(number, name, split, captions), "cocoid": cocoid})
    for year, files in pictures.items():
        _zip(folder / f"{year}.zip", {f"{year}/": b"", **files})
    _zip(folder / "caption_datasets.zip", {"dataset_coco.json": _json({"images": rows, "dataset": "coco"})})
    write_checksums(folder)
    return folder


def write_flickr30k(folder: Path, *, train: int = 6, val: int = 3, test: int = 3, seed: int = 0) -> Path:
    """Karpathy's caption_datasets.zip with Flickr30k's split, SHA256SUMS, and the images in flickr30k-images/.

    To be used as `distcap prepare flickr30k --archives FOLDER --images FOLDER/flickr30k-images`.
    """
    (folder / "flickr30k-images").mkdir(parents=True)
    rows = []
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    for number, (split, (scene, captions)) in enumerate(zip(splits, _pictures(seed), strict=False)):
        name = f"{1000092795 + 17 * number}.jpg"
        (folder / "flickr30k-images" / name).write_bytes(jpeg(scene))
        rows.append(_karpathy(number, name, split, captions))
    _zip(folder / "caption_datasets.zip", {"dataset_flickr30k.json": _json({"images": rows, "dataset": "flickr30k"})})
    write_checksums(folder)
    return folder


def write_nocaps(folder: Path, address: str, *, images: int = 6, captions: int = 10, seed: int = 0) -> Path:
    """nocaps_val_4500_captions.json, and the images in val/, which are said to be at ADDRESS/val/.

    Domains take turns. To be used as `distcap prepare nocaps --archives FOLDER` while FOLDER is served at the address.
    """
    (folder / "val").mkdir(parents=True)
    document: dict[str, list[dict[str, Any]]] = {"licenses": [], "images": [], "annotations": []}
    for number, (scene, texts) in zip(range(images), _pictures(seed, captions), strict=False):
        name = f"{0x0013EA2087020901 + number:016x}.jpg"
        (folder / "val" / name).write_bytes(jpeg(scene))
        document["images"].append(
            {
                "id": number,
                "open_images_id": name.removesuffix(".jpg"),
                "height": 64,
                "width": 64,
                "coco_url": f"{address}/val/{name}",
                "file_name": name,
                "license": 0,
                "date_captured": "2018-11-06 11:04:33",
                "domain": DOMAINS[number % 3],
            }
        )
        for text in texts:
            document["annotations"].append({"image_id": number, "id": len(document["annotations"]), "caption": text})
    (folder / "nocaps_val_4500_captions.json").write_bytes(_json(document))
    return folder


def write_checksums(folder: Path) -> None:
    """SHA256SUMS of the archives that are there, as `sha256sum *.zip` writes it."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.glob("*.zip"))]
    (folder / "SHA256SUMS").write_text("".join(lines))


def jpeg(scene: Scene) -> bytes:
    """The picture of a scene as a JPEG file."""
    file = io.BytesIO()
    paint(scene).save(file, "JPEG", quality=90)
    return file.getvalue()


def _pictures(seed: int, captions: int = 5) -> Iterator[tuple[Scene, list[str]]]:
    """Scenes without end, and what people wrote about each, as people write: with a capital letter and a full stop."""
    rng = random.Random(seed)
    while True:
        scene = random_scene(rng)
        texts = [annotator_caption(scene, rng) for _ in range(captions)]
        yield scene, [f"{text[0].upper()}{text[1:]}." for text in texts]


def _karpathy(number: int, name: str, split: str, captions: list[str]) -> dict[str, Any]:
    """An image as Karpathy's files have it."""
    ids = list(range(len(captions) * number, len(captions) * (number + 1)))
    sentences = [
        {"tokens": text.lower().rstrip(".").split(), "raw": text, "imgid": number, "sentid": sentid}
        for text, sentid in zip(captions, ids, strict=True)
    ]
    return {"sentids": ids, "filename": name, "imgid": number, "split": split, "sentences": sentences}


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _zip(file: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            # A fixed date, so that the same seed gives the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (2014, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
