"""Similarity to one's own image beyond that to its look-alikes."""

from torch import Tensor

from distcap.experience import Experience
from distcap.rewards.base import Reward
from distcap.types import Rollout


class GroupSimilarity(Reward):
    """r(c, i) = s(c, i) - mean over a group of similar images j of s(c, j) (Zhang et al. 2022, group optimisation).

    The group is the image's nearest neighbours in the training set by the CLIP that it reads, itself excluded.

    Args:
        weight: share in the total reward.
        group: first and last of the neighbours, the nearest being 1.
        clip: which of the stage's `clips` it reads; None for its `clip`.
    """

    def __init__(self, weight: float = 1.0, group: tuple[int, int] = (1, 5), clip: str | None = None) -> None:
        super().__init__(weight)
        self.group = group
        self.neighbours = group[1]
        self.clip = clip

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        view = experience.view(self.clip)
        _, embeddings = view.neighbours(self.group)
        captions = view.caption_embeddings(rollout)
        own = (captions * view.image_embeddings[rollout.image_index]).sum(-1)
        # Cosines are linear in the image: their mean is the cosine with the mean of the embeddings.
        return own - (captions * embeddings.mean(1)[rollout.image_index]).sum(-1)
