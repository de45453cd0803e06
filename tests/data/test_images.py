"""Every kind of image file becomes RGB pixels, and none that does not ends in anything but a UserError."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcap.data.images import decode
from distcap.types import UserError


def colour(path: Path) -> list[int]:
    """The RGB of a file of one colour."""
    pixels = decode(path, 2)
    assert pixels.shape == (3, 2, 2)
    return pixels[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("mode", "fill", "expected"),
    [
        ("RGB", (10, 20, 30), [10, 20, 30]),
        ("L", 200, [200, 200, 200]),
        ("1", 1, [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("LA", (10, 0), [255, 255, 255]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
    ],
)
def test_every_mode_becomes_rgb_on_white(tmp_path, mode, fill, expected):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (6, 4), fill).save(path)
    assert colour(path) == expected


def test_palette_becomes_rgb_and_its_transparent_colour_white(tmp_path):
    image = Image.new("P", (6, 4))
    image.putpalette([10, 20, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "transparent.png", transparency=0)
    assert colour(tmp_path / "opaque.png") == [10, 20, 30]
    assert colour(tmp_path / "transparent.png") == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 6), 128 * 256, dtype=np.uint16)).save(tmp_path / "a.png")
    assert colour(tmp_path / "a.png") == [128, 128, 128]


def test_rotated_photo_stands_upright(tmp_path):
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))  # left half white; "rotate 90 clockwise to view" puts it on top
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    pixels = decode(tmp_path / "a.png", 8)
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, -1] == 0).all()


def test_image_is_squashed_with_antialiasing(tmp_path):
    stripes = np.zeros((64, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # columns white, black, white, ...: grey from afar, all white to a resize that drops columns
    Image.fromarray(stripes).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", 8).float()
    assert pixels.shape == (3, 8, 8)
    assert (pixels - 127.5).abs().max() < 8


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "webp", "bmp", "tif"])
def test_damaged_file_is_read_or_is_one_line(tmp_path, extension):
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{extension}"
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(path)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    errors = []
    for _ in range(60):
        damaged = whole[: rng.integers(1, len(whole))].copy()
        damaged[rng.integers(len(damaged), size=3)] = rng.integers(256)
        path.write_bytes(damaged.tobytes())
        try:
            decode(path, 4)
        except UserError as error:
            errors.append(str(error))
    assert errors
    assert all(error.startswith(f"cannot read the image {path} (") and "\n" not in error for error in errors)


def test_message_is_one_line_whatever_the_file_is_called(tmp_path):
    (tmp_path / "two\nlines.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"two lines\.png"):
        decode(tmp_path / "two\nlines.png", 4)
