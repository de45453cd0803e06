"""What a CLIP sees of the embedded benchmark: how many of the test pictures do complete, true descriptions find?

    python benchmarks/eyes.py runs/demo/clip runs/demo/judge

Then again with an attribute left out of all descriptions: what can be left out without loss is not seen. No captioner
can be told from a better one by a CLIP that does not see where they differ.
"""

import json
import random
from pathlib import Path

import torch
from jsonargparse import CLI

from distcap.data.annotators import describe
from distcap.data.scenes import draw_scenes
from distcap.metrics.retrieval import RetrievalRecall
from distcap.models import FrozenClip

ATTRIBUTES = ("kind", "colour", "size", "pattern", "background")


def main(clip: str, judge: str, root: str = "data/scenes") -> None:
    """Print a table of R@1 in percent, caption to image.

    Args:
        clip: run folder of a dual encoder.
        judge: of another.
        root: folder of the embedded benchmark.
    """
    recipe = json.loads((Path(root) / "recipe.json").read_text())
    clips = (clip, judge)
    sizes = {split: recipe[split] for split in ("train", "val", "test")}
    drawn = list(draw_scenes(sizes, recipe["lookalikes"], random.Random(recipe["seed"])))
    test = {number: scene for number, (split, scene) in enumerate(drawn) if split == "test"}
    files = [Path(root) / "images" / "test" / f"{number:06d}.png" for number in test]
    print("| said | " + " | ".join(clips) + " |")
    print("|---|" + "---:|" * len(clips))
    seen = {name: FrozenClip(name).embed_images(files) for name in clips}
    for without in (None, *ATTRIBUTES):
        captions = [describe(scene, without) for scene in test.values()]
        row = []
        for name in clips:
            metric = RetrievalRecall((1,))
            distinct = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
            embeddings = FrozenClip(name).embed_captions(list(distinct))[[distinct[caption] for caption in captions]]
            metric.update(embeddings, seen[name], torch.tensor(list(test)))
            row.append(f"{metric.compute()['t2i_recall@1']:.1f}")
        print(f"| {f'all but the {without}' if without else 'everything'} | {' | '.join(row)} |")


if __name__ == "__main__":
    CLI(main, as_positional=True)
