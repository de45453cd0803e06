"""One way to open an image, for all who look at it: captioner, CLIPs, report and page must see the same picture."""

import os
import stat
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from distcap.types import UserError

VERSION = 1
"""To be raised when some file comes to be seen otherwise: what was computed of pictures before then counts no more."""

LARGEST = 89_478_485
"""Pixels of a picture, those above which Pillow warns of a bomb: a quarter of a GiB in RGB."""
LARGEST_JPEG = 4 * LARGEST
"""JPEG alone can be decoded at half its size, and phones make some of 200 megapixels."""

ORIENTATION = 0x112
"""The one EXIF tag that is read: whatever else a camera wrote there, right or wrong, costs no photo."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.init()
# A picture in that zone is refused here, in one line of our own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Picture(Protocol):
    """An image file, as a Path is one, or part of a larger file."""

    def open(self, mode: Literal["rb"]) -> Any: ...
    def stat(self) -> Any: ...


def open_picture(file: Picture | str, data: bytes | None = None) -> Image.Image:
    """An image file as RGB of 8 bits: upright, on white where it is transparent, the first frame if it moves.

    - Turned as the EXIF orientation says; other tags are not read, and one that cannot be read turns nothing.
    - Grey of 16 bits is scaled by the range of its type: white is 65,535, or 4,095 where 12 bits are used. Floats
      within [0, 1] are taken as they are. Other floats, integers of 32 bits, and signed ones have no known range: the
      least value of the image is black and its greatest is white.
    - More than 89 megapixels are refused before they are decoded; a JPEG of up to 357 is decoded at half its size,
      because what a network sees has far fewer.

    Args:
        file: the file.
        data: what is in it, if it was read already.

    Raises:
        UserError: it is not there, no regular file, too large, or cannot be read as an image.
    """
    source = Path(file) if isinstance(file, str) else file
    try:
        if data is not None:
            return _picture(BytesIO(data))
        if isinstance(source, Path):
            _require_regular(source)
        with source.open("rb") as opened:
            return _picture(opened)
    except UserError as error:
        raise UserError(f"cannot read the image {file}: {error}".replace("\n", " ")) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on corrupt bytes
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read the image {file} ({why})".replace("\n", " ")) from error


def _require_regular(path: Path) -> None:
    """Opening a FIFO would wait for whoever writes into it, and reading a device may never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "FIFO", stat.S_ISSOCK: "socket"}
        raise UserError(f"it is a {next((kind for test, kind in kinds.items() if test(mode)), 'device')}, and no file")


def _picture(file: IO[bytes]) -> Image.Image:
    with _opened(file) as image:
        _require_size(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # It would turn the pixels by writing all of the metadata anew, and fail where that is malformed.
            image.load_end = lambda: None  # type: ignore[method-assign]
        image.load()
        tags = _tags(image)
        turn = TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(turn)
        if image.mode in ("F", "I") or image.mode.startswith("I;16"):
            upright = _eight_bits(upright, image.format, tags)
        return _rgb(upright)


def _opened(file: IO[bytes]) -> Image.Image:
    start = file.read(3)
    file.seek(0)
    if start == b"\xff\xd8\xff":
        # Image.open would also look for further pictures behind the first, and fail where their list is malformed.
        return JpegImagePlugin.JpegImageFile(file)
    # Pillow hands Encapsulated PostScript to Ghostscript, which runs it as a program.
    return Image.open(file, formats=[kind for kind in Image.ID if kind != "EPS"])


def _require_size(image: Image.Image) -> None:
    width, height = image.size
    largest = LARGEST_JPEG if isinstance(image, JpegImagePlugin.JpegImageFile) else LARGEST
    if width * height > largest:
        raise UserError(f"{width} x {height} are {width * height:,} pixels, more than {largest:,}; make it smaller")
    if width * height > LARGEST:
        image.draft(image.mode, (width // 2, height // 2))  # type: ignore[attr-defined]


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Of a TIFF its own tags."""
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _orientation(image: Image.Image) -> Any:
    try:
        return (_tags(image) or image.getexif()).get(ORIENTATION)
    except Exception:  # as many kinds as there are ways to be malformed
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, form: str | None, tags: Mapping[int, Any]) -> Image.Image:
    """Grey of any range -> L, on white; convert() would clip it to 256 values."""
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and form in ("PNG", "PPM")):
        bits = 12 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 16
        grey = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    else:
        grey = _stretched(values.astype(np.float64), known=image.mode == "F")
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero, which Pillow minds in 8 bits alone
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # which convert() does not know of 16 bits
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey)


def _stretched(values: np.ndarray, known: bool) -> np.ndarray:
    """Values of [0, 1] if that is what they are, else from the least to the greatest; what is no number is black."""
    finite = np.isfinite(values)
    least, greatest = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    if known and least >= 0 and greatest <= 1:
        least, greatest = 0.0, 1.0
    scaled = (np.where(finite, values, least) - least) / ((greatest - least) or 1.0)
    return (scaled * 255).round().astype(np.uint8)
