"""The embedded benchmark: reproducible, without leaks, and a real data set on disk."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distcap.data import CocoCaptions, Scenes
from distcap.data.annotators import alt_text, annotator_caption, describe
from distcap.data.painter import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    PATTERNS,
    SIDE,
    SIZES,
    Scene,
    Shape,
    paint,
    random_scene,
    vary,
)
from distcap.data.scenes import GROUP, draw_scenes, paint_benchmark
from distcap.types import UserError

RECIPE: dict[str, Any] = {"train": 16, "val": 4, "test": 8, "lookalikes": 0.5}

SCENE = Scene("night", (Shape("heart", "white", "striped", "large"), Shape("star", "yellow", "plain", "small")), pose=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    paint_benchmark(folder, **RECIPE)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def drawn(train: int = 400, val: int = 40, test: int = 80, seed: int = 0) -> list[tuple[str, Scene]]:
    return list(draw_scenes({"train": train, "val": val, "test": test}, 0.5, random.Random(seed)))


def differences(one: Scene, other: Scene) -> int:
    """The number of attributes in which two scenes of one layout differ."""
    assert (one.pose, len(one.shapes)) == (other.pose, len(other.shapes))
    pairs = zip(one.shapes, other.shapes, strict=True)
    return (one.background != other.background) + sum(
        getattr(a, name) != getattr(b, name) for a, b in pairs for name in ("kind", "colour", "pattern", "size")
    )


def test_the_same_seed_paints_the_same_benchmark_to_the_byte(root: Path, tmp_path: Path) -> None:
    paint_benchmark(tmp_path, **RECIPE)
    assert contents(tmp_path) == contents(root)


def test_another_seed_paints_another_benchmark(root: Path, tmp_path: Path) -> None:
    paint_benchmark(tmp_path, **RECIPE, seed=1)
    assert (tmp_path / "annotators.json").read_bytes() != (root / "annotators.json").read_bytes()


def test_pictures_are_png_files_of_the_painters_size(root: Path) -> None:
    files = sorted((root / "images").rglob("*.png"))
    assert len(files) == 28
    for file in files:
        with Image.open(file) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (SIDE, SIDE))


def test_no_two_pictures_show_the_same(root: Path) -> None:
    scenes = [scene.content for _, scene in drawn()]
    assert len(set(scenes)) == 520
    assert len({file.read_bytes() for file in (root / "images").rglob("*.png")}) == 28


def test_every_split_has_the_size_asked_for() -> None:
    assert Counter(split for split, _ in drawn(13, 5, 7)) == {"train": 13, "val": 5, "test": 7}


def test_look_alikes_differ_from_the_first_of_their_group_in_one_attribute_and_share_its_split() -> None:
    rows = drawn()
    start = 0
    for size in (400, 40, 80):
        for group in range(start, start + size // 2, GROUP):
            splits, scenes = zip(*rows[group : group + GROUP], strict=True)
            assert len(set(splits)) == 1
            assert [differences(scenes[0], other) for other in scenes[1:]] == [1, 1, 1]
        start += size


def test_pictures_outside_the_groups_are_laid_out_on_their_own() -> None:
    """All but the look-alikes have a pose of their own; the odds of two alike by chance are below 1 in 10,000."""
    poses = Counter(scene.pose for _, scene in drawn())
    assert Counter(poses.values()) == {GROUP: 260 // GROUP, 1: 260}


def test_coco_captions_reads_the_benchmark(root: Path) -> None:
    data = CocoCaptions(
        annotations=str(root / "annotators.json"),
        images=str(root / "images"),
        image_size=32,
        batch_size=4,
        num_workers=0,
    )
    data.setup("fit")
    assert {split: len(data.entries(split)) for split in ("train", "val", "test")} == {"train": 16, "val": 4, "test": 8}
    assert all(len(captions) == 5 for captions in data.references("train").values())
    assert next(iter(data.train_dataloader())).images.shape == (4, 3, 32, 32)


def test_web_texts_are_the_annotators_captions_and_two_alt_texts(root: Path) -> None:
    human, web = (json.loads((root / f"{name}.json").read_text())["images"] for name in ("annotators", "web"))
    for one, other in zip(human, web, strict=True):
        assert other["sentences"][:5] == one["sentences"]
        assert len(other["sentences"]) == 7


def test_scenes_paints_on_first_use_and_not_again(tmp_path: Path) -> None:
    data = Scenes(str(tmp_path / "new"), train=4, val=2, test=2, image_size=16, batch_size=2)
    data.prepare_data()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    data.prepare_data()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")} == before
    data.setup("fit")
    assert len(before) == 8
    assert len(list(data.train_dataloader())) == 2


@pytest.mark.parametrize("change", [{"train": 17}, {"seed": 1}, {"lookalikes": 0.0}])
def test_another_recipe_in_the_same_folder_is_one_error_that_tells_the_way_out(root: Path, change: dict) -> None:
    with pytest.raises(UserError, match=r"of another recipe .* name another folder with --data\.root"):
        paint_benchmark(root, **{**RECIPE, **change})


def test_an_interrupted_painting_is_begun_anew(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(scene: Scene) -> Image.Image:
        calls.append(scene)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return paint(scene)

    with monkeypatch.context() as patch:
        patch.setattr("distcap.data.scenes.paint", failing)
        with pytest.raises(KeyboardInterrupt):
            paint_benchmark(tmp_path, **RECIPE)
    paint_benchmark(tmp_path, **RECIPE)
    assert contents(tmp_path) == contents(root)


def test_a_picture_is_painted_the_same_at_every_call() -> None:
    assert paint(SCENE).tobytes() == paint(SCENE).tobytes()


@pytest.mark.parametrize(
    ("attribute", "values"), [("kind", KINDS), ("colour", tuple(COLOURS)), ("pattern", PATTERNS), ("size", SIZES)]
)
def test_every_value_of_an_attribute_is_painted_differently(attribute: str, values: tuple[str, ...]) -> None:
    shape = {"kind": "heart", "colour": "red", "pattern": "plain", "size": "large"}
    other = Shape("circle", "blue", "plain", "small")
    pictures = {paint(Scene("sea", (Shape(**{**shape, attribute: v}), other), 5)).tobytes() for v in values}
    assert len(pictures) == len(values)


def test_every_background_is_painted_differently() -> None:
    assert len({paint(Scene(name, SCENE.shapes, 5)).tobytes() for name in BACKGROUNDS}) == len(BACKGROUNDS)


def test_content_does_not_depend_on_layout_or_order() -> None:
    assert Scene("night", SCENE.shapes[::-1], pose=9).content == SCENE.content
    assert Scene("sea", SCENE.shapes, pose=3).content != SCENE.content


def test_shapes_of_a_scene_are_of_different_kinds_also_after_a_change() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = random_scene(rng)
        for one in (scene, vary(scene, rng)):
            assert len({shape.kind for shape in one.shapes}) == len(one.shapes)


def test_changes_reach_every_attribute() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(200):
        other = vary(SCENE, rng)
        seen |= {"background"} if other.background != SCENE.background else set()
        seen |= {
            name
            for a, b in zip(SCENE.shapes, other.shapes, strict=True)
            for name in ("kind", "colour", "pattern", "size")
            if getattr(a, name) != getattr(b, name)
        }
    assert seen == {"background", "kind", "colour", "pattern", "size"}


def test_no_text_claims_what_the_picture_does_not_show() -> None:
    """Nothing but the attributes of the scene's own shapes, whatever the phrasing."""
    rng = random.Random(0)
    shown = {"heart", "star", "white", "yellow", "striped", "large", "small", "plain"}
    attributes = {*KINDS, *COLOURS, *PATTERNS, *SIZES} - shown
    for _ in range(300):
        for text in (annotator_caption(SCENE, rng), alt_text(SCENE, rng)):
            assert not attributes & set(text.split()), text


def test_annotators_vary_their_phrasing_and_are_mostly_generic() -> None:
    """A caption that names every attribute of both shapes is the exception: 2 standard errors of 500 draws are 0.04."""
    rng = random.Random(0)
    captions = [annotator_caption(SCENE, rng) for _ in range(500)]
    details = {"striped", "white", "yellow", "heart", "star"}
    assert 0.1 < sum(details <= set(caption.split()) for caption in captions) / 500 < 0.3
    assert len(set(captions)) > 150


def test_alt_texts_tell_more_than_annotators() -> None:
    rng = random.Random(0)
    details = {"large", "small", "striped", "white", "yellow", "heart", "star"}
    told = [
        sum(len(details & set(text(SCENE, rng).split())) for _ in range(300)) / 300
        for text in (annotator_caption, alt_text)
    ]
    assert told[1] > told[0] + 1


def test_a_description_tells_all_or_leaves_one_thing_out() -> None:
    scene = Scene("night", (Shape("heart", "white", "plain", "large"), Shape("star", "red", "striped", "small")))
    assert describe(scene) == "a large white heart and a small striped red star at night"
    assert describe(scene, "kind") == "a large white shape and a small striped red shape at night"
    assert describe(scene, "size") == "a white heart and a striped red star at night"
    assert describe(scene, "pattern") == "a large white heart and a small red star at night"
    assert describe(scene, "colour") == "a large heart and a small striped star at night"
    assert describe(scene, "background") == "a large white heart and a small striped red star"
    three = replace(scene, shapes=(*scene.shapes, Shape("moon", "blue", "dotted", "small")))
    assert describe(three, "size") == "a white heart , a striped red star and a dotted blue moon at night"
