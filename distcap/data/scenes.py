"""The embedded benchmark: a small COCO made of painted scenes, for laptops, tests and the demo."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from distcap.checks import at_least, share
from distcap.data.annotators import alt_text, annotator_caption
from distcap.data.coco import CocoCaptions
from distcap.data.painter import Scene, paint, random_scene, vary
from distcap.types import UserError
from distcap.writable import require_writable

GROUP = 4
"""Pictures in a group of look-alikes: one, and three that differ from it in one attribute."""


class Scenes(CocoCaptions):
    """CocoCaptions on the embedded benchmark, which is painted into `root` on first use.

    Deterministic in `seed`. A share of the pictures comes in groups of four look-alikes, all in the same split, and no
    content occurs twice in the whole benchmark.

    Args:
        root: the folder of the benchmark; made if it is not there.
        texts: the ground truth to read. "annotators": five captions a picture, mostly generic. "web": the same and two
            detailed alt-texts, what a CLIP learns from.
        train: number of training pictures.
        val: number of validation pictures.
        test: number of test pictures.
        lookalikes: share of the pictures that come in groups of look-alikes.
        image_size: side of the square pixels; by default what the captioner, or the CLIP that learns, sees.
        batch_size: pictures in a training batch.
        seed: paints the benchmark and shuffles the training batches.
        num_workers: loader processes; none is fastest for a benchmark that is kept in memory.
        limit: only the first so many pictures of each split.
        group_size: pictures of a group that a CLIP finds alike, which are in one training batch; 1 for no groups.
    """

    fallback = 64  # as they are painted

    def __init__(
        self,
        root: str = "data/scenes",
        texts: Literal["annotators", "web"] = "annotators",
        train: int = 4000,
        val: int = 200,
        test: int = 500,
        lookalikes: float = 0.5,
        image_size: int | None = None,
        batch_size: int = 100,
        seed: int = 0,
        num_workers: int = 0,
        limit: int | None = None,
        group_size: int = 1,
    ) -> None:
        for name, value in (("train", train), ("val", val), ("test", test)):
            at_least(f"--data.{name}", value, 0)
        share("--data.lookalikes", lookalikes)
        super().__init__(
            annotations=str(Path(root) / f"{texts}.json"),
            images=str(Path(root) / "images"),
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            cache=True,
            limit=limit,
            group_size=group_size,
        )
        self.root = Path(root)
        self.recipe: dict[str, Any] = {"train": train, "val": val, "test": test, "lookalikes": lookalikes, "seed": seed}

    def prepare_data(self) -> None:
        paint_benchmark(self.root, **self.recipe)


def paint_benchmark(
    root: Path, *, train: int = 4000, val: int = 200, test: int = 500, lookalikes: float = 0.5, seed: int = 0
) -> None:
    """Write the benchmark: images/SPLIT/*.png, annotators.json and web.json in Karpathy's format, recipe.json.

    Raises UserError when the folder holds a benchmark of another recipe. An interrupted call is begun anew.
    """
    recipe = {"train": train, "val": val, "test": test, "lookalikes": lookalikes, "seed": seed}
    done = root / "recipe.json"
    if done.exists():
        try:
            found = json.loads(done.read_text())
        except ValueError:
            found = "which is damaged"
        if found != recipe:
            raise UserError(
                f"{root} holds an embedded benchmark of another recipe ({found}) than asked for ({recipe}): "
                "name another folder with --data.root, or delete this one"
            )
        return
    require_writable(root, "name another folder with --root or --data.root")
    rng = random.Random(seed)
    annotators: list[dict] = []
    web: list[dict] = []
    scenes = list(draw_scenes({"train": train, "val": val, "test": test}, lookalikes, rng))
    for number, (split, scene) in enumerate(tqdm(scenes, desc=f"painting {root}", unit="picture")):
        folder = root / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{number:06d}.png"
        paint(scene).save(folder / name)
        captions = [annotator_caption(scene, rng) for _ in range(5)]
        alt_texts = [alt_text(scene, rng) for _ in range(2)]
        for rows, sentences in ((annotators, captions), (web, captions + alt_texts)):
            rows.append(_karpathy(number, split, name, sentences))
    for file, rows in (("annotators.json", annotators), ("web.json", web)):
        (root / file).write_text(json.dumps({"dataset": "scenes", "images": rows}))
    done.write_text(json.dumps(recipe))


def _karpathy(number: int, split: str, name: str, sentences: list[str]) -> dict[str, Any]:
    return {
        "cocoid": number,
        "split": split,
        "filepath": split,
        "filename": name,
        "sentences": [{"raw": sentence, "tokens": sentence.split()} for sentence in sentences],
    }


def draw_scenes(sizes: dict[str, int], lookalikes: float, rng: random.Random) -> Iterator[tuple[str, Scene]]:
    """Every picture of the benchmark with its split; groups never cross a split, contents never repeat."""
    seen: set[tuple] = set()

    def fresh(make: Any) -> Scene:
        while (scene := make()).content in seen:
            pass
        seen.add(scene.content)
        return scene

    for split, size in sizes.items():
        groups = int(size * lookalikes) // GROUP
        for _ in range(groups):
            first = fresh(lambda: random_scene(rng))
            yield split, first
            for _ in range(GROUP - 1):
                yield split, fresh(lambda scene=first: vary(scene, rng))
        for _ in range(size - groups * GROUP):
            yield split, fresh(lambda: random_scene(rng))
