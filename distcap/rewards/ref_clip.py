"""CLIP-S tempered by the human captions."""

import torch
from torch import Tensor

from distcap.experience import Experience
from distcap.rewards.base import Reward
from distcap.types import Rollout


class RefClipS(Reward):
    """Harmonic mean of CLIP-S, 2.5 relu(s(c, i)), and 2.5 relu of the similarity to the nearest of the image's human
    captions (Hessel 2021, section 3; the scale is method.md's, the original leaves it off the second).

    A human caption is its own nearest: its second part is 2.5.

    Args:
        weight: share in the total reward.
        scale: factor of both similarities.
        clip: which of the stage's `clips` it reads; None for its `clip`.
    """

    needs_captions = "take ClipSimilarity"

    def __init__(self, weight: float = 1.0, scale: float = 2.5, clip: str | None = None) -> None:
        super().__init__(weight)
        self.scale = scale
        self.clip = clip

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        view = experience.view(self.clip)
        captions = view.caption_embeddings(rollout)
        image = (captions * view.image_embeddings[rollout.image_index]).sum(-1).relu()
        truth, rows = view.reference_embeddings()
        with torch.autocast(captions.device.type, enabled=False):  # in the embeddings' own precision
            similarity = captions @ truth.T
        own = rows[None, :] == rollout.image_index[:, None]
        text = similarity.masked_fill(~own, -1).amax(1).relu()
        # Of two zeros the harmonic mean is zero.
        return self.scale * 2 * image * text / (image + text).clamp(min=torch.finfo(image.dtype).tiny)
