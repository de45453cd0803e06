"""Photos as phones, scanners and programs leave them: all look at the same picture, and nothing is left out unsaid."""

import json
import shutil
from pathlib import Path
from typing import Any

import lives
import numpy as np
import photos
import pytest
import tiny
import torch
from PIL import Image

from distcap.data import ImageFolder
from distcap.models import FrozenClip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a CLIP, and photos/ with captions."""
    folder = tmp_path_factory.mktemp("desk")
    lives.lay_yard(folder)
    tiny.write_run(folder / "runs" / "demo" / "mle", clip={"class_path": "distcap.models.FrozenClip",
                   "init_args": {"model": "runs/demo/clip"}})  # fmt: skip
    return folder


@pytest.mark.parametrize("name", photos.READABLE)
def test_captioner_and_clip_see_the_upright_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to what JPEG and an unlike resizing change; a turned, inverted or clipped one is ten times further away."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_bytes(photos.READABLE[name](3))
    seen: list[Image.Image] = []

    def preprocess(image: Image.Image) -> Any:
        seen.append(image)
        return torch.zeros(3, 32, 32)

    clip = FrozenClip(str(tiny.write_clip(tmp_path / "clip")))
    monkeypatch.setattr(FrozenClip, "preprocess", property(lambda self: preprocess))
    data = ImageFolder(str(tmp_path / "photos"), image_size=32)
    _, pixels = data.dataset("predict")[0]
    clip.embed_images([data.path(data.entries("predict")[0])])
    size = (32, 32)
    upright = np.asarray(photos.picture(3).resize(size, Image.Resampling.BICUBIC)).astype(float)
    assert isinstance(pixels, torch.Tensor), pixels
    assert np.abs(pixels.permute(1, 2, 0).numpy() - upright).mean() < 2
    [image] = seen
    assert image.size == (64, 48)
    assert np.abs(np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) - upright).mean() < 2


def test_black_icons_on_transparency_are_told_apart_by_clip(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "icons").mkdir()
    for place in range(4):
        (tmp_path / "icons" / f"{place}.png").write_bytes(photos.READABLE["alpha.png"](2 * place))
    output = tmp_path / "icons.jsonl"
    tiny.run(desk, "caption", str(tmp_path / "icons"), "--run=runs/demo/mle", f"--output={output}", "--num_workers=0")
    assert [json.loads(line)["ties"] for line in output.read_text().splitlines()] == [0] * 4


def test_every_photo_has_a_caption_and_every_other_file_is_named(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those behind a link, too."""
    output = tmp_path / "captions.jsonl"
    capsys.readouterr()
    tiny.run(desk, "caption", "photos", "--run=runs/demo/mle", f"--output={output}", "--num_workers=0", "--clip=none")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(Path(row["file"]).name for row in rows) == sorted(photos.READABLE)
    said = capsys.readouterr().err
    assert f"{len(photos.BROKEN)} of {len(rows) + len(photos.BROKEN)} images" in said
    assert all(name in said for name in photos.BROKEN)


def test_predict_and_caption_read_the_same_photos(desk: Path) -> None:
    config = lives.Life(desk, "vision_encoder_decoder").config("mle")
    own = ("--model.captioner.init_from", "runs/demo/mle")
    tiny.run(desk, "predict", "--config", config, "--run", "predicted", *own, "--trainer.callbacks", "[]")
    rows = json.loads((desk / "runs" / "predicted" / "predictions.json").read_text())
    assert sorted(Path(row["file"]).name for row in rows) == sorted(photos.READABLE)


def test_a_byte_order_mark_is_no_part_of_a_captions_file(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(desk / "photos", tmp_path / "photos", ignore=shutil.ignore_patterns(".distcap"))
    data = ImageFolder(str(tmp_path / "photos"), image_size=32, on_error="skip")
    names = {entry.file.name: entry.captions for split in ("train", "val", "test") for entry in data.entries(split)}
    assert set(names) == set(photos.READABLE)
    assert {caption for captions in names.values() for caption in captions} == set(tiny.CAPTIONS)
