"""Images and captions in files -> WebDataset shards."""

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distcap.data.coco import CocoCaptions
from distcap.data.shard_index import IMAGES
from distcap.pictures import open_picture
from distcap.types import UserError
from distcap.writable import require_writable


def write_shards(data: CocoCaptions, split: str, output: Path, per_shard: int = 1000) -> list[Path]:
    """Write a split as output/00000.tar, ...: members ID.jpg (or png, webp) as the file is, and ID.json.

    Interrupted, it goes on with the shard that it was at. Images of other kinds are written as PNG.

    Args:
        data: with the images and captions.
        split: train, val or test.
        output: a folder; made if it is not there.
        per_shard: samples of a shard.

    Returns:
        The shards.

    Raises:
        UserError: an image cannot be read, or the folder holds shards of other data.
    """
    entries = data.entries(split)
    source = {"annotations": data.annotations, "images": data.images, "split": split}
    recipe = {**source, "samples": len(entries), "per_shard": per_shard}
    require_writable(output)
    output.mkdir(parents=True, exist_ok=True)
    done = output / "recipe.json"
    if done.exists() and (found := _recipe(done)) != recipe:
        raise UserError(f"{output} holds shards of {found}, not of {recipe}; name another folder, or delete this one")
    done.write_text(json.dumps(recipe))
    starts = range(0, len(entries), per_shard)
    digits = max(5, len(str(len(starts))))
    shards = [output / f"{number:0{digits}}.tar" for number in range(len(starts))]
    with tqdm(total=len(entries), desc=f"writing {output}", unit="image") as bar:
        for start, shard in zip(starts, shards, strict=True):
            chosen = entries[start : start + per_shard]
            if not shard.exists():
                part = shard.with_suffix(".part")
                with tarfile.open(part, "w") as tar:
                    for entry in chosen:
                        extension, image = _image(data.path(entry))
                        _add(tar, f"{entry.image_id:012}.{extension}", image)
                        text = json.dumps({"image_id": entry.image_id, "captions": entry.captions})
                        _add(tar, f"{entry.image_id:012}.json", text.encode())
                part.rename(shard)
            bar.update(len(chosen))
    return shards


def _recipe(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError:
        return f"a recipe that is damaged, {file.name}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def _image(path: Path) -> tuple[str, bytes]:
    """Extension and bytes of an image."""
    extension = path.suffix.lower().removeprefix(".")
    if extension in IMAGES:
        try:
            return extension, path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the image {path} ({error.strerror}); mend that, or take it out") from error
    open_picture(path).save(found := BytesIO(), "PNG")
    return "png", found.getvalue()
