"""Human or machine? An MLP on CLIP embeddings that tells ground-truth captions from generated ones."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from distcap.types import UserError


class Discriminator(nn.Module):
    """[e(image); e(caption)] -> logit of "a human wrote this" (paper: 512 - ReLU - 256 - ReLU - 2).

    One logit stands for the released code's softmax over two, which has a redundant degree of freedom.

    Args:
        width: D, of the CLIP embeddings.
        hidden: widths of the hidden layers.
    """

    def __init__(self, width: int, hidden: tuple[int, ...] = (512, 256)) -> None:
        super().__init__()
        self.width, self.hidden = width, tuple(hidden)
        sizes = (2 * width, *hidden)
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        """(N, D), (N, D) -> (N,) logits. The embeddings are taken as they are: no gradient reaches CLIP."""
        return self.layers(torch.cat([images, captions], -1).detach()).squeeze(-1)

    def loss(self, images: Tensor, captions: Tensor, human: Tensor) -> Tensor:
        """(N, D), (N, D), (N,) True for ground truth -> scalar binary cross-entropy."""
        return nn.functional.binary_cross_entropy_with_logits(self(images, captions), human.float())

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"width": self.width, "hidden": self.hidden}))
        save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def load(cls, init_from: str) -> "Discriminator":
        """From a run folder of the discriminator stage. Raises UserError if there is none."""
        from safetensors.torch import load_file

        folder = Path(init_from) / "discriminator"
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{init_from}: no discriminator there; train it first with distcap fit --config discriminator.yaml "
                "(demo/discriminator.yaml for the embedded benchmark)"
            )
        discriminator = cls(**json.loads((folder / "config.json").read_text()))
        discriminator.load_state_dict(load_file(folder / "model.safetensors"))
        return discriminator
