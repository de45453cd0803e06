"""What CLIPs see of the embedded benchmark, by complete, true descriptions of its test pictures.

    python benchmarks/eyes.py runs/demo/clip runs/demo/judge

First, how many pictures do the descriptions find, and how many with an attribute left out of all of them? What can be
left out without loss is not seen. No captioner can be told from a better one by a CLIP that does not see where they
differ.

Then, how often does a CLIP like the description of a picture better than the same with an attribute of one shape wrong,
and better than the same without the attribute? A reward by a CLIP that prefers to hear nothing teaches to say nothing.
"""

import json
import random
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distcap.data.annotators import describe
from distcap.data.painter import COLOURS, KINDS, PATTERNS, SIZES, Scene
from distcap.data.scenes import draw_scenes
from distcap.metrics.retrieval import RetrievalRecall
from distcap.models import FrozenClip

VALUES = {"kind": KINDS, "colour": tuple(COLOURS), "size": SIZES, "pattern": PATTERNS}


def main(clips: list[str], root: str = "data/scenes") -> None:
    """Print a table of R@1, caption to image, and one of preferences, both in percent.

    Args:
        clips: run folders of dual encoders.
        root: folder of the embedded benchmark.
    """
    recipe = json.loads((Path(root) / "recipe.json").read_text())
    sizes = {split: recipe[split] for split in ("train", "val", "test")}
    drawn = list(draw_scenes(sizes, recipe["lookalikes"], random.Random(recipe["seed"])))
    test = {number: scene for number, (split, scene) in enumerate(drawn) if split == "test"}
    files = [Path(root) / "images" / "test" / f"{number:06d}.png" for number in test]
    seen = {name: FrozenClip(name).embed_images(files) for name in clips}
    true = [describe(scene) for scene in test.values()]
    found = {"everything": true}
    preferred = {}
    for attribute in (*VALUES, "background"):
        found[f"all but the {attribute}"] = [describe(scene, attribute) for scene in test.values()]
    for attribute in VALUES:
        rng = random.Random(0)
        preferred[f"a wrong {attribute}"] = [describe(_wrong(scene, attribute, rng)) for scene in test.values()]
        preferred[f"no {attribute}"] = found[f"all but the {attribute}"]
    _print(
        "said",
        clips,
        {said: [_recall(seen[c], _embed(c, texts), list(test)) for c in clips] for said, texts in found.items()},
    )
    similarity = {c: (seen[c] * _embed(c, true)).sum(1) for c in clips}
    shares = {
        other: [100 * (similarity[c] > (seen[c] * _embed(c, texts)).sum(1)).double().mean().item() for c in clips]
        for other, texts in preferred.items()
    }
    _print("the truth is preferred to", clips, shares)


def _wrong(scene: Scene, attribute: str, rng: random.Random) -> Scene:
    """The scene with another value of the attribute in one of its shapes."""
    shapes = list(scene.shapes)
    place = rng.randrange(len(shapes))
    others = [value for value in VALUES[attribute] if value != getattr(shapes[place], attribute)]
    shapes[place] = replace(shapes[place], **{attribute: rng.choice(others)})
    return replace(scene, shapes=tuple(shapes))


def _embed(clip: str, captions: Sequence[str]) -> Tensor:
    """Equal captions have equal embeddings, to the bit."""
    places = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    return FrozenClip(clip).embed_captions(list(places))[[places[caption] for caption in captions]]


def _recall(images: Tensor, captions: Tensor, ids: Sequence[int]) -> float:
    metric = RetrievalRecall((1,))
    metric.update(captions, images, torch.tensor(ids))
    return metric.compute()["t2i_recall@1"]


def _print(title: str, clips: Sequence[str], rows: dict[str, list[float]]) -> None:
    print(f"\n| {title} | {' | '.join(clips)} |")
    print("|---|" + "---:|" * len(clips))
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", help="run folders of dual encoders")
    parser.add_argument("--root", default="data/scenes", help="folder of the embedded benchmark")
    main(**vars(parser.parse_args()))
