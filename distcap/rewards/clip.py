"""CLIP similarity, the reward that makes captions distinctive and invites hacking."""

from torch import Tensor

from distcap.experience import Experience
from distcap.rewards.base import Reward
from distcap.types import Rollout


class ClipSimilarity(Reward):
    """r(c, i) = scale * <e(c), e(i)>; CLIP-S with scale 2.5 and `rectified` (Hessel 2021; Cho 2022).

    Args:
        weight: share in the total reward.
        scale: factor of the similarity.
        rectified: cut at zero.
        clip: which of the stage's `clips` it reads; None for its `clip`.
    """

    def __init__(
        self, weight: float = 1.0, scale: float = 1.0, rectified: bool = False, clip: str | None = None
    ) -> None:
        super().__init__(weight)
        self.scale = scale
        self.rectified = rectified
        self.clip = clip

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        view = experience.view(self.clip)
        similarity = (view.caption_embeddings(rollout) * view.image_embeddings[rollout.image_index]).sum(-1)
        return self.scale * (similarity.relu() if self.rectified else similarity)
