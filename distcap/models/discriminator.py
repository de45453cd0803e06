"""Human or machine? An MLP on CLIP embeddings that tells ground-truth captions from others."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from distcap.checks import at_least
from distcap.models.loading import as_data, check_finite
from distcap.types import UserError


class Discriminator(nn.Module):
    """[e(image); e(caption)] -> logit of "a human wrote this" (paper: 512 - ReLU - 256 - ReLU - 2).

    One logit stands for the released code's softmax over two, which has a redundant degree of freedom.

    Without images it is a grammar head (Cho et al. 2022, arXiv 2205.13115: Linear - ReLU - Linear, so hidden=(512,)) on
    e(caption) alone, and "generated" stands for a human caption that was corrupted.

    Args:
        width: D, of the CLIP embeddings.
        hidden: widths of the hidden layers.
        images: reads the image's embedding, too; False for the caption's alone.

    Raises:
        UserError: a width is less than one.
    """

    def __init__(self, width: int, hidden: tuple[int, ...] = (512, 256), images: bool = True) -> None:
        super().__init__()
        at_least("width of a discriminator", width, 1)
        for size in hidden:
            at_least("hidden of a discriminator", size, 1)
        self.width, self.hidden, self.images = width, tuple(hidden), images
        sizes = (2 * width if images else width, *hidden)
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, images: Tensor | None, captions: Tensor) -> Tensor:
        """(N, D), (N, D) -> (N,) logits. The embeddings are taken as they are: no gradient reaches CLIP.

        One that reads captions alone ignores the images, which may be None. Mixed precision around it has no effect:
        the reward of a step is compared with others to more digits than a bfloat16 has.
        """
        inputs = captions
        if self.images:
            assert images is not None, "this discriminator reads images"
            inputs = torch.cat([images, captions], -1)
        with torch.autocast(inputs.device.type, enabled=False):
            return self.layers(inputs.detach().to(next(self.parameters()).dtype)).squeeze(-1)

    def loss(self, images: Tensor | None, captions: Tensor, human: Tensor) -> Tensor:
        """(N, D), (N, D), (N,) True for ground truth -> scalar binary cross-entropy.

        Generated and human captions weigh half each, however many there are. A step has several samples but one human
        caption of each image, and by the plain mean P(human) would sink for both: the reward with it.
        """
        weight = 1 / torch.where(human, human.sum(), (~human).sum())
        return binary_cross_entropy_with_logits(
            self(images, captions), human.float(), weight / weight.sum(), reduction="sum"
        )

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = {"width": self.width, "hidden": self.hidden, "images": self.images}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def load(cls, init_from: str) -> "Discriminator":
        """From a run folder of the discriminator or the grammar stage. Raises UserError if there is none."""
        from safetensors.torch import load_file

        folder = Path(init_from) / "discriminator"
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{init_from}: no discriminator there; train it first with distcap fit --config discriminator.yaml "
                "or grammar.yaml (demo/discriminator.yaml, demo/grammar.yaml for the embedded benchmark)"
            )
        with as_data(f"discriminator {folder}"):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            if not isinstance(config, dict) or config.keys() | {"images"} != {"width", "hidden", "images"}:
                raise ValueError("its config.json is not a discriminator's")
            discriminator = cls(**config)
            discriminator.load_state_dict(load_file(folder / "model.safetensors"))
            check_finite(discriminator)
        return discriminator
