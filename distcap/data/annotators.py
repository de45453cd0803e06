"""What people write about a scene of the embedded benchmark: annotators asked for captions, and authors of web pages.

Annotators are mostly generic, each in their own words, and a few describe all there is. Alt-texts are detailed and
often mere lists of keywords: a CLIP that learnt from them likes keyword soup, as the real one does.
"""

import random

from distcap.data.painter import Scene, Shape

_PLACES = {
    "night": ("at night", "at night", "under the stars", "in the dark"),
    "meadow": ("on the grass", "on the grass", "in a meadow", "in a green field"),
    "beach": ("on the beach", "on the beach", "on the sand", "by the sea"),
    "snow": ("in the snow", "in the snow", "on a snowy hill", "in winter"),
    "sunset": ("at sunset", "at sunset", "in the evening", "at dusk"),
    "sea": ("under the sea", "under the sea", "in the water", "under water"),
}
_JOINS = ("and", "and", "next to", "with", "beside")
_COUNTS = {2: "two", 3: "three"}

COMPLETE = 0.15
"""Share of annotators who describe everything."""


def annotator_caption(scene: Scene, rng: random.Random) -> str:
    """One annotator's caption, e.g. "a white heart next to a star at night"."""
    complete = rng.random() < COMPLETE
    if not complete and rng.random() < 0.06:
        place = f" {rng.choice(_PLACES[scene.background])}" if rng.random() < 0.7 else ""
        return f"{_COUNTS[len(scene.shapes)]} shapes{place}"
    shapes = list(scene.shapes)
    rng.shuffle(shapes)
    if not complete:
        shapes = shapes[: rng.choice((1, 2, 2, 2, 3))]
    phrases = [_noun_phrase(shape, complete, rng) for shape in shapes]
    text = phrases[0]
    if len(phrases) == 2:
        text = f"{phrases[0]} {rng.choice(_JOINS)} {phrases[1]}"
    elif len(phrases) == 3:
        text = f"{phrases[0]} , {phrases[1]} and {phrases[2]}"
    place = rng.choice(_PLACES[scene.background])
    if rng.random() < 0.12:
        text = f"{rng.choice(('a picture of', 'there is'))} {text}"
    if complete or rng.random() < 0.55:
        text = f"{text} {place}" if rng.random() < 0.9 else f"{place} , {text}"
    return text


def describe(scene: Scene, without: str | None = None) -> str:
    """All there is to say, e.g. "a large white heart and a small striped red star at night".

    `without` leaves out an attribute of all shapes ("kind", "colour", "size", "pattern"), or the "background".
    """
    phrases = []
    for shape in scene.shapes:
        words = {"size": shape.size, "pattern": shape.pattern, "colour": shape.colour, "kind": shape.kind}
        if without == "kind":
            words["kind"] = "shape"
        elif without in words:
            del words[without]
        phrases.append(" ".join(("a", *(word for word in words.values() if word != "plain"))))
    text = f"{', '.join(phrases[:-1])} and {phrases[-1]}".replace(",", " ,")
    return text if without == "background" else f"{text} {_PLACES[scene.background][0]}"


def _noun_phrase(shape: Shape, complete: bool, rng: random.Random) -> str:
    size = shape.size if rng.random() < (0.9 if complete else 0.12) else ""
    pattern = shape.pattern if shape.pattern != "plain" and rng.random() < (1.0 if complete else 0.2) else ""
    colour = shape.colour if complete or rng.random() < 0.42 else ""
    if size == "large" and rng.random() < 0.4:
        size = "big"
    words = " ".join(word for word in (size, pattern, colour, shape.kind) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def alt_text(scene: Scene, rng: random.Random) -> str:
    """One web page's text, e.g. "large striped white heart and striped yellow star and night"."""
    keywords = rng.random() < 0.6
    shapes = list(scene.shapes)
    rng.shuffle(shapes)
    named = []
    for shape in shapes:
        words = [
            shape.size if rng.random() < 0.8 else "",
            shape.pattern if shape.pattern != "plain" and rng.random() < 0.9 else "",
            shape.colour if rng.random() < 0.95 else "",
            shape.kind,
        ]
        named.append(" ".join(word for word in words if word))
    if keywords:
        named.append(scene.background)
        if rng.random() < 0.3:
            rng.shuffle(named)
        return rng.choice((" ", " , ", " and ")).join(named)
    return f"{' and '.join(named)} {rng.choice(_PLACES[scene.background])}"
