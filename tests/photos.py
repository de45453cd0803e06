"""One picture as phones, scanners and programs store it, and files that are no picture at all."""

import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFile

ORIENTATION = 0x112
UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF's orientation -> how an upright picture is laid down, for a viewer to turn it up again."""


def picture(place: int = 0) -> Image.Image:
    """Grey shapes on white that look different from every side, the darkest of them where `place` says."""
    image = Image.new("RGB", (64, 48), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((2, 2, 30, 10), fill=(96, 96, 96))
    draw.ellipse((44, 28, 60, 44), fill=(160, 160, 160))
    left = 4 + 7 * (place % 8)
    draw.rectangle((left, 14, left + 5, 40), fill=(0, 0, 0))
    return image


def orientation(number: int) -> tuple[int, int, int, bytes]:
    """EXIF's tag, type, count, and value or offset."""
    return (ORIENTATION, 3, 1, struct.pack("<HH", number, 0))


def jpeg(image: Image.Image, *tags: tuple[int, int, int, bytes], **options: object) -> bytes:
    """A JPEG file with these EXIF tags written as they are, right or wrong."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, **options)
    data = file.getvalue()
    if not tags:
        return data
    rows = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + rows + bytes(4)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def turned(number: int, *more: tuple[int, int, int, bytes]) -> Callable[[int], bytes]:
    """A phone that was held otherwise."""

    def write(place: int) -> bytes:
        undo = UNDO[number]
        image = picture(place) if undo is None else picture(place).transpose(undo)
        return jpeg(image, orientation(number), *more)

    return write


def saved(form: str, change: Callable[[Image.Image], Image.Image] = lambda image: image, **options: object) -> Callable:
    def write(place: int) -> bytes:
        file = io.BytesIO()
        change(picture(place)).save(file, form, **options)
        return file.getvalue()

    return write


def _transparent(image: Image.Image) -> Image.Image:
    """White is told by transparency alone: the colour below it is black."""
    grey = np.array(image.convert("L"))
    return Image.fromarray(np.dstack([np.zeros_like(grey)] * 3 + [255 - grey]))


def _palette(image: Image.Image) -> Image.Image:
    """White is a colour of the palette that is black, and transparent."""
    indexed = Image.new("P", image.size)
    indexed.putdata(list(image.convert("L").tobytes()))
    indexed.putpalette([value for level in range(255) for value in (level,) * 3] + [0, 0, 0])
    indexed.info["transparency"] = 255
    return indexed


def _sixteen(kind: str) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        return Image.fromarray((np.array(image.convert("L")).astype(np.uint16) * 257).astype(kind))

    return change


def _animated(form: str) -> Callable[[int], bytes]:
    def write(place: int) -> bytes:
        file = io.BytesIO()
        black = Image.new("RGB", (64, 48), "black")
        picture(place).save(file, form, save_all=True, append_images=[black, black], duration=100, **LOSSLESS[form])
        return file.getvalue()

    return write


LOSSLESS: dict[str, dict[str, object]] = {"GIF": {}, "WEBP": {"lossless": True}}
NO_NUMBER = (0x11A, 2, 4, b"abc\0")
NEGATIVE = (0x213, 8, 1, struct.pack("<hh", -1, 0))

READABLE: dict[str, Callable[[int], bytes]] = {
    **{f"held-{number}.jpg": turned(number) for number in UNDO},
    "bad-resolution.jpg": turned(6, NO_NUMBER),
    "bad-position.jpg": turned(6, NEGATIVE),
    "alpha.png": saved("PNG", _transparent),
    "palette.png": saved("PNG", _palette, transparency=255),
    "palette.gif": saved("GIF", _palette, transparency=255),
    "grey16.png": saved("PNG", _sixteen("<u2")),
    "grey16-little.tif": saved("TIFF", _sixteen("<u2")),
    "grey16-big.tif": saved("TIFF", _sixteen(">u2")),
    "cmyk.jpg": lambda place: jpeg(picture(place).convert("CMYK")),
    "progressive.jpg": lambda place: jpeg(picture(place), progressive=True),
    "grey.jpg": lambda place: jpeg(picture(place).convert("L")),
    "animated.gif": _animated("GIF"),
    "animated.webp": _animated("WEBP"),
    "été \u7ea2.JPG": turned(1),
    "two\nlines.png": saved("PNG"),
    "plain.bmp": saved("BMP"),
}
"""File name -> what is in it: `picture(place)`, as every viewer shows it upright and on white."""

BROKEN: dict[str, Callable[[int], bytes]] = {
    "cut.jpg": lambda place: turned(6)(place)[:400],
    "empty.png": lambda place: b"",
    "text.jpg": lambda place: b"<html>404</html>",
}
"""File name -> what no viewer shows."""

assert not ImageFile.LOAD_TRUNCATED_IMAGES
