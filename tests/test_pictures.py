"""Whoever looks at an image file sees the same upright picture on white, however the file stores it."""

import base64
import io
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import ExifTags, Image, ImageDraw

from distcap.data.images import decode
from distcap.models import FrozenClip
from distcap.report.page import Pictures
from distcap.types import UserError

SIDE = 32


def shapes() -> Image.Image:
    """Black and grey on white, of a size that neither a captioner nor a CLIP scales; different from every side."""
    image = Image.new("L", (SIDE, SIDE), 255)
    draw = ImageDraw.Draw(image)
    draw.rectangle((2, 2, 9, 26), fill=0)
    draw.rectangle((12, 4, 29, 10), fill=96)
    draw.rectangle((20, 20, 26, 29), fill=160)
    return image


GREY = np.array(shapes())
LAID = {
    1: GREY,
    2: GREY[:, ::-1],
    3: GREY[::-1, ::-1],
    4: GREY[::-1],
    5: GREY.T,
    6: np.rot90(GREY),
    7: np.rot90(GREY.T, 2),
    8: np.rot90(GREY, -1),
}
"""EXIF's orientation -> the pixels as the camera stored them."""


def saved(image: Image.Image | np.ndarray, form: str = "PNG", **options: object) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(data := io.BytesIO(), form, **options)
    return data.getvalue()


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    """EXIF with these tags as they are, right or wrong: tag, type, count, and value or offset."""
    rows = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + rows + bytes(4)


def oriented(number: int) -> tuple[int, int, int, bytes]:
    return (0x112, 3, 1, struct.pack("<HH", number, 0))


def phone(number: int, *tags: tuple[int, int, int, bytes]) -> bytes:
    """A JPEG of a phone that was held otherwise."""
    return saved(LAID[number], "JPEG", quality=100, exif=exif(oriented(number), *tags))


def tiff(pixels: np.ndarray, kind: str, *, photometric: int = 1, **tags: int) -> bytes:
    """An uncompressed grey TIFF of any type, written by hand: Pillow writes few."""
    order, bits = kind[0], pixels.astype(kind).itemsize * 8
    sample = {"u": 1, "i": 2, "f": 3}[kind[1]]
    body = pixels.astype(kind).tobytes()
    height, width = pixels.shape
    rows = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 339: sample}
    rows |= {279: len(body), **{int(tag[1:]): value for tag, value in tags.items()}}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, rows[tag]) for tag in sorted(rows))
    head = b"II*\0" if order == "<" else b"MM\0*"
    return (
        head + struct.pack(f"{order}I", 8 + len(body)) + body + struct.pack(f"{order}H", len(rows)) + entries + bytes(4)
    )


def alpha() -> np.ndarray:
    """White is told by transparency alone: the colour below it is black."""
    return np.dstack([np.minimum(GREY, 254)] * 3 + [255 - np.where(GREY == 255, 255, 0)]).astype(np.uint8)


def laid_on_black() -> np.ndarray:
    image = alpha()
    image[image[..., 3] == 0] = 0
    return image


def palette() -> Image.Image:
    """White is a colour of the palette that is black, and transparent."""
    indexed = Image.new("P", (SIDE, SIDE))
    indexed.putdata(GREY.flatten().tolist())
    indexed.putpalette([level for value in range(255) for level in (value,) * 3] + [0, 0, 0])
    return indexed


def moving(form: str) -> bytes:
    black = Image.new("L", (SIDE, SIDE))
    options = {"lossless": True} if form == "WEBP" else {}
    first = shapes().convert("RGB") if form == "WEBP" else shapes()
    return saved(first, form, save_all=True, append_images=[black.convert(first.mode)], duration=100, **options)


def sixteen(kind: str = "<u2") -> np.ndarray:
    return (GREY.astype(np.uint16) * 257).astype(kind)


def transparent_sixteen() -> bytes:
    grey = sixteen()
    grey[GREY == 255] = 300  # nearly black, and transparent
    return saved(grey, transparency=300)


FILES: dict[str, bytes] = {
    "plain.png": saved(GREY),
    "colour.png": saved(shapes().convert("RGB")),
    **{f"held-{number}.jpg": phone(number) for number in LAID},
    "held-6.png": saved(LAID[6], exif=exif(oriented(6))[6:]),
    "held-6.webp": saved(Image.fromarray(LAID[6]).convert("RGB"), "WEBP", lossless=True, exif=exif(oriented(6))[6:]),
    "held-6.tif": tiff(LAID[6], "<u1", t274=6),
    "held-8-grey16.tif": tiff(LAID[8].astype(np.uint16) * 257, ">u2", t274=8),
    "resolution-is-text.jpg": phone(6, (0x11A, 2, 4, b"abc\0")),
    "position-is-negative.jpg": phone(6, (0x213, 8, 1, struct.pack("<hh", -1, 0))),
    "resolution-is-text.tif": tiff(LAID[6], "<u1", t274=6, t531=2**32 - 1),
    "alpha.png": saved(laid_on_black()),
    "alpha.webp": saved(laid_on_black(), "WEBP", lossless=True, exact=True),
    "grey-alpha.png": saved(Image.fromarray(laid_on_black()).convert("LA")),
    "palette.png": saved(palette(), transparency=255),
    "palette.gif": saved(palette(), "GIF", transparency=255),
    "grey16.png": saved(sixteen()),
    "grey16-transparent.png": transparent_sixteen(),
    "grey16-little.tif": tiff(sixteen(), "<u2"),
    "grey16-big.tif": tiff(sixteen(), ">u2"),
    "grey16-white-is-zero.tif": tiff(65535 - sixteen(), "<u2", photometric=0),
    "grey16.pgm": b"P5 32 32 65535\n" + sixteen(">u2").tobytes(),
    "signed16.tif": tiff(GREY.astype(np.int16) * 8 - 1000, "<i2"),
    "integer32.tif": tiff(GREY.astype(np.int32) * 1000 - 7, "<i4"),
    "integer32-big.tif": tiff(GREY.astype(np.int32) * 1000 - 7, ">i4"),
    "float.tif": tiff(GREY / 255, "<f4"),
    "float-big.tif": tiff(GREY * 40.0 - 3000, ">f4"),
    "cmyk.jpg": saved(shapes().convert("CMYK"), "JPEG", quality=100),
    "cmyk.tif": saved(shapes().convert("CMYK"), "TIFF"),
    "lab.tif": saved(shapes().convert("RGB").convert("LAB"), "TIFF"),
    "progressive.jpg": saved(GREY, "JPEG", quality=100, progressive=True),
    "several.mpo": saved(shapes().convert("RGB"), "MPO", quality=100, save_all=True, append_images=[shapes()]),
    "moving.gif": moving("GIF"),
    "moving.png": moving("PNG"),
    "moving.webp": moving("WEBP"),
    "plain.bmp": saved(GREY, "BMP"),
}
"""File name -> what is in it: `shapes`, as every viewer shows it."""
INEXACT = 6
"""Of 255, for JPEG, and for LAB in 8 bits."""


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    path.write_bytes(FILES[request.param])
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> FrozenClip:
    """Of 32 pixels, so that it does not scale either."""
    return FrozenClip(str(tiny.write_clip(tmp_path_factory.mktemp("clip"))))


def as_the_captioner(file: Path, clip: FrozenClip) -> np.ndarray:
    return decode(file, SIDE).numpy()


def as_a_clip(file: Path, clip: FrozenClip) -> np.ndarray:
    seen: list[torch.Tensor] = []
    encode = clip.net.encode_image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip.net, "encode_image", lambda pixels, **kw: seen.append(pixels) or encode(pixels, **kw))
        clip.embed_images([file])
    return (seen[0][0].numpy() * 0.25 + 0.5) * 255  # CLIP_CONFIG's mean and deviation


def as_the_page(file: Path, clip: FrozenClip) -> np.ndarray:
    """The report's and the demo page's pictures."""
    picture = Pictures()(str(file))
    assert picture is not None
    data = base64.b64decode(picture["uri"].partition(",")[2])
    return np.array(Image.open(io.BytesIO(data))).transpose(2, 0, 1)


@pytest.mark.parametrize("look", [as_the_captioner, as_a_clip, as_the_page], ids=lambda look: look.__name__)
def test_whoever_looks_sees_the_same_upright_picture_on_white(
    file: Path, look: Callable[[Path, FrozenClip], np.ndarray], clip: FrozenClip
) -> None:
    off = np.abs(look(file, clip) - GREY[None].astype(float)).max()
    assert off <= (INEXACT if file.suffix in (".jpg", ".mpo") or file.stem == "lab" else 0.01)


def test_of_plain_files_the_pixels_are_those_of_pillow_to_the_bit(tmp_path: Path, clip: FrozenClip) -> None:
    """What was trained and measured before there was one way to open an image stays as it was."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    for form in ("PNG", "JPEG"):
        (path := tmp_path / f"a.{form}").write_bytes(saved(noise, form))
        plain = Image.open(path).convert("RGB")
        small = plain.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        assert (decode(path, SIDE).numpy() == np.array(small).transpose(2, 0, 1)).all()
        with torch.no_grad():
            expected = clip.net.encode_image(clip.preprocess(plain)[None], normalize=True)
        assert torch.equal(clip.embed_images([path]), expected)


BROKEN: dict[str, bytes] = {
    "empty.png": b"",
    "page.jpg": b"<html>404</html>",
    "cut.jpg": FILES["held-6.jpg"][:400],
    "cut.png": FILES["colour.png"][:60],
    "cut.tif": FILES["grey16-big.tif"][:90],
    "start.jpg": b"\xff\xd8\xff",
    "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_picture_is_one_line_and_named_whoever_looks(tmp_path: Path, name: str, clip: FrozenClip) -> None:
    (path := tmp_path / name).write_bytes(BROKEN[name])
    for look in (lambda: decode(path, SIDE), lambda: clip.embed_images([path])):
        with pytest.raises(UserError, match=f"cannot read the image .*{name}") as error:
            look()
        assert "\n" not in str(error.value)
    pictures = Pictures()
    assert pictures(str(path)) is None
    assert pictures.missing == [str(path)]


def test_what_would_wait_for_ever_is_not_opened(tmp_path: Path, clip: FrozenClip) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        for name, kind in {"pipe.jpg": "FIFO", "folder.jpg": "folder", "socket.jpg": "socket"}.items():
            with pytest.raises(UserError, match=rf"{name}: it is a {kind}, and no file"):
                decode(tmp_path / name, SIDE)
            with pytest.raises(UserError, match=kind):
                clip.embed_images([tmp_path / name])
            assert Pictures()(str(tmp_path / name)) is None
    with pytest.raises(UserError, match="it is a device"):
        decode("/dev/zero", SIDE)


def claim(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds nothing of it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 20_000), (13_000, 13_000), (10_000, 9_000)])
def test_a_picture_of_too_many_pixels_is_refused_at_once_in_one_line_with_its_size(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    (path := tmp_path / "bomb.png").write_bytes(claim(*size))
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        decode(path, SIDE)
    assert time.monotonic() - start < 1
    assert "\n" not in str(error.value)
    assert f"{size[0] * size[1]} pixels" in str(error.value).replace(",", "")


def test_a_jpeg_of_more_pixels_is_decoded_at_half_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered, for 90 megapixels would take their time."""
    from distcap import pictures

    monkeypatch.setattr(pictures, "LARGEST", 1000)
    large = shapes().resize((63, 63))  # 3,969 pixels
    (tmp_path / "large.jpg").write_bytes(saved(large, "JPEG", quality=100))
    (tmp_path / "large.png").write_bytes(saved(large))
    assert pictures.open_picture(tmp_path / "large.jpg").size == (32, 32)
    with pytest.raises(UserError, match="63 x 63 are 3,969 pixels, more than 1,000"):
        pictures.open_picture(tmp_path / "large.png")


def test_embeddings_of_another_way_to_open_images_are_not_taken_for_todays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny.write_clip(tmp_path / "clip"))
    before = FrozenClip(folder).fingerprint
    monkeypatch.setattr("distcap.pictures.VERSION", 10**6)
    assert FrozenClip(folder).fingerprint != before


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_malformed_tag_costs_no_photo(tmp_path: Path) -> None:
    """Any tag, of any type, with any value, after the orientation."""
    chance = np.random.default_rng(0)
    known = sorted(set(ExifTags.TAGS) - {0x112})
    for number in range(300):
        tag, kind, count = (
            int(chance.choice(known)),
            int(chance.integers(14)),
            int(chance.integers(2**15)) % (2**15 if number % 2 else 4),
        )
        path = tmp_path / "photo.jpg"
        path.write_bytes(phone(6, (tag, kind, count, chance.bytes(4))))
        off = np.abs(decode(path, SIDE).numpy().astype(float) - GREY[None]).max()
        assert off <= INEXACT, (tag, kind, count)
