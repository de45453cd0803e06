"""Paints a scene of the embedded benchmark: two or three patterned shapes on a small landscape."""

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 128
"""Pixels of a finished picture's side."""
_SCALE = 2
_CANVAS = SIDE * _SCALE

COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 136, 32),
    "yellow": (250, 214, 64),
    "green": (46, 158, 80),
    "blue": (44, 106, 222),
    "purple": (136, 72, 178),
    "pink": (246, 140, 186),
    "white": (248, 248, 246),
}
PATTERNS = ("plain", "striped", "dotted")
SIZES = ("large", "small")
KINDS = ("heart", "star", "circle", "square", "triangle", "moon", "flower", "cross")
BACKGROUNDS = ("night", "meadow", "beach", "snow", "sunset", "sea")

_RADII = {"large": 25, "small": 14}
_LAYOUTS = {
    2: (((36, 64), (92, 64)), ((38, 44), (90, 86)), ((38, 86), (90, 44))),
    3: (((34, 38), (94, 38), (64, 92)), ((34, 90), (94, 90), (64, 36)), ((36, 36), (36, 92), (94, 64))),
}
_JITTER = 6


@dataclass(frozen=True)
class Shape:
    """One object of a scene."""

    kind: str
    colour: str
    pattern: str
    size: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Two scenes with the same `pose` are laid out alike, so that only what differs is seen."""

    background: str
    shapes: tuple[Shape, ...]
    pose: int = 0

    @property
    def content(self) -> tuple:
        """What can be said of the scene, whatever the layout: two pictures of one content cannot be told apart."""
        return self.background, tuple(sorted((s.kind, s.colour, s.pattern, s.size) for s in self.shapes))


def random_scene(rng: random.Random) -> Scene:
    """A scene of two or three shapes of different kinds."""
    kinds = rng.sample(KINDS, rng.choice((2, 2, 3)))
    shapes = tuple(Shape(kind, rng.choice(list(COLOURS)), rng.choice(PATTERNS), rng.choice(SIZES)) for kind in kinds)
    return Scene(rng.choice(BACKGROUNDS), shapes, rng.randrange(2**32))


def vary(scene: Scene, rng: random.Random) -> Scene:
    """A look-alike: the same scene but for one attribute of one shape, or the background."""
    values = {"kind": KINDS, "colour": tuple(COLOURS), "pattern": PATTERNS, "size": SIZES}
    attribute = rng.choice([*values, "background"])
    if attribute == "background":
        return replace(scene, background=rng.choice([b for b in BACKGROUNDS if b != scene.background]))
    position = rng.randrange(len(scene.shapes))
    shape = scene.shapes[position]
    taken = {s.kind for s in scene.shapes} if attribute == "kind" else {getattr(shape, attribute)}
    changed = replace(shape, **{attribute: rng.choice([v for v in values[attribute] if v not in taken])})
    return replace(scene, shapes=(*scene.shapes[:position], changed, *scene.shapes[position + 1 :]))


def paint(scene: Scene) -> Image.Image:
    """A SIDE x SIDE RGB picture of the scene, the same at every call."""
    rng = random.Random(scene.pose)
    canvas = _background(scene.background).copy()
    layout = rng.choice(_LAYOUTS[len(scene.shapes)])
    for shape, (x, y) in zip(scene.shapes, layout, strict=True):
        centre = (x + rng.uniform(-_JITTER, _JITTER), y + rng.uniform(-_JITTER, _JITTER))
        _paint_shape(canvas, shape, centre, tilt=rng.uniform(-14, 14))
    return canvas.resize((SIDE, SIDE), Image.Resampling.BOX)


def _paint_shape(canvas: Image.Image, shape: Shape, centre: tuple[float, float], tilt: float) -> None:
    radius = _RADII[shape.size] * _SCALE
    box = int(radius * 2.6)
    mask = _outline(shape.kind, radius, box).rotate(tilt, Image.Resampling.BICUBIC)
    corner = (int(centre[0] * _SCALE - box / 2), int(centre[1] * _SCALE - box / 2))
    shadow = mask.filter(ImageFilter.GaussianBlur(2 * _SCALE)).point(lambda v: v * 2 // 5)
    canvas.paste((10, 14, 30), (corner[0] + _SCALE, corner[1] + 2 * _SCALE), shadow)
    rim = mask.filter(ImageFilter.MaxFilter(2 * _SCALE // 2 * 2 + 1))
    canvas.paste((38, 34, 48), corner, rim)
    canvas.paste(_fill(shape, box), corner, mask)


def _fill(shape: Shape, box: int) -> Image.Image:
    """The colour of a shape with its pattern in a contrasting shade."""
    colour = COLOURS[shape.colour]
    dark = sum(colour) > 520
    ink = tuple(int(c * 0.45) if dark else int(c + (255 - c) * 0.75) for c in colour)
    fill = Image.new("RGB", (box, box), colour)
    draw = ImageDraw.Draw(fill)
    step = 10 * _SCALE
    if shape.pattern == "striped":
        for x in range(-box, box, step):
            draw.line([(x, 0), (x + box, box)], fill=ink, width=4 * _SCALE)
    elif shape.pattern == "dotted":
        for row, y in enumerate(range(step // 2, box, step)):
            for x in range(step // 2 * (1 + row % 2) - step, box + step, step):
                r = 2.7 * _SCALE
                draw.ellipse([x - r, y - r, x + r, y + r], fill=ink)
    return fill


def _outline(kind: str, radius: float, box: int) -> Image.Image:
    """The shape as an (L) mask of `box` pixels, its centre in the middle."""
    mask = Image.new("L", (box, box), 0)
    draw = ImageDraw.Draw(mask)
    c = box / 2

    def disc(x: float, y: float, r: float, value: int = 255) -> None:
        draw.ellipse([c + x - r, c + y - r, c + x + r, c + y + r], fill=value)

    def polygon(points: list[tuple[float, float]]) -> None:
        draw.polygon([(c + x * radius, c + y * radius) for x, y in points], fill=255)

    if kind == "circle":
        disc(0, 0, radius * 0.95)
    elif kind == "square":
        polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    elif kind == "triangle":
        polygon([(0, -1), (1.02, 0.82), (-1.02, 0.82)])
    elif kind == "star":
        turns = [(math.pi * k / 5, 1.1 if k % 2 == 0 else 0.46) for k in range(10)]
        polygon([(r * math.sin(a), -r * math.cos(a)) for a, r in turns])
    elif kind == "moon":
        disc(0, 0, radius)
        disc(radius * 0.5, -radius * 0.2, radius * 0.82, 0)
    elif kind == "flower":
        for k in range(5):
            a = 2 * math.pi * k / 5
            disc(radius * 0.56 * math.sin(a), -radius * 0.56 * math.cos(a), radius * 0.47)
        disc(0, 0, radius * 0.45)
    elif kind == "cross":
        polygon([(-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1)])
        polygon([(-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32)])
    else:  # heart
        disc(-radius * 0.46, -radius * 0.32, radius * 0.54)
        disc(radius * 0.46, -radius * 0.32, radius * 0.54)
        polygon([(-0.95, -0.12), (0.95, -0.12), (0, 1)])
    return mask


@lru_cache
def _background(name: str) -> Image.Image:
    """One landscape a name: a background never gives its picture away by more than its kind."""
    rng = random.Random(name)
    side = _CANVAS

    def gradient(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
        ramp = Image.linear_gradient("L").resize((side, side))
        return Image.composite(Image.new("RGB", (side, side), bottom), Image.new("RGB", (side, side), top), ramp)

    def hills(image: Image.Image, colour: tuple[int, int, int], height: float, swell: float) -> None:
        phase = rng.uniform(0, 6)
        line = [(x, side * (height + swell * math.sin(phase + x / side * 5))) for x in range(0, side + 4, 4)]
        ImageDraw.Draw(image).polygon([(0, side), *line, (side, side)], fill=colour)

    if name == "night":
        image = gradient((12, 16, 48), (44, 42, 100))
        draw = ImageDraw.Draw(image)
        for _ in range(60):
            x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.5, 1.4) * _SCALE / 1.5
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(236, 236, 210))
        return image
    if name == "meadow":
        image = gradient((150, 210, 250), (214, 240, 252))
        hills(image, (132, 196, 104), 0.42, 0.05)
        hills(image, (96, 172, 84), 0.62, 0.04)
        return image
    if name == "beach":
        image = gradient((120, 206, 240), (190, 236, 246))
        hills(image, (40, 160, 190), 0.4, 0.004)
        hills(image, (238, 214, 160), 0.58, 0.03)
        return image
    if name == "snow":
        image = gradient((176, 196, 220), (222, 230, 240))
        hills(image, (208, 220, 234), 0.45, 0.07)
        hills(image, (240, 244, 250), 0.64, 0.05)
        return image
    if name == "sunset":
        image = gradient((112, 56, 110), (250, 150, 84))
        ImageDraw.Draw(image).ellipse([side * 0.36, side * 0.5, side * 0.64, side * 0.78], fill=(255, 214, 130))
        hills(image, (84, 40, 72), 0.78, 0.03)
        return image
    image = gradient((30, 140, 170), (8, 60, 110))  # sea
    bubbles = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(bubbles)
    for _ in range(26):
        x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(1, 4) * _SCALE
        draw.ellipse([x - r, y - r, x + r, y + r], outline=150, width=_SCALE)
    return ImageChops.add(image, Image.merge("RGB", [bubbles.point(lambda v: v // 2)] * 3))
