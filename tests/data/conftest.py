"""A tiny data set on disk, in both of COCO's formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[str, Any], str]:
    """Writes a document under tmp_path and returns its path."""

    def write(name: str, document: Any) -> str:
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(path)

    return write


@pytest.fixture
def karpathy(tmp_path: Path) -> dict[str, Any]:
    """A Karpathy document of 12 train, 2 restval, 3 val and 3 test images of 6x4 pixels, two captions each.

    Image number i has id 100 + i, the file images/val2014/i.png, and is grey: every pixel is 10 * i.
    """
    (tmp_path / "images" / "val2014").mkdir(parents=True)
    images = []
    for number, split in enumerate(["train"] * 12 + ["restval"] * 2 + ["val"] * 3 + ["test"] * 3):
        Image.new("RGB", (6, 4), (10 * number,) * 3).save(tmp_path / "images" / "val2014" / f"{number}.png")
        sentences = [{"raw": f"A dog, number {number}."}, {"raw": f"dog {number} on a porch"}]
        images.append(
            {
                "cocoid": 100 + number,
                "filepath": "val2014",
                "filename": f"{number}.png",
                "split": split,
                "sentences": sentences,
            }
        )
    return {"dataset": "tiny", "images": images}
