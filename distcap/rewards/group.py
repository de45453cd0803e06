"""Similarity to one's own image beyond that to its look-alikes."""

from torch import Tensor

from distcap.experience import Experience
from distcap.rewards.base import Reward
from distcap.types import Rollout


class GroupSimilarity(Reward):
    """r(c, i) = s(c, i) - mean over a group of similar images j of s(c, j) (Zhang et al. 2022, group optimisation).

    The group is the image's nearest neighbours in the training set by the reward CLIP, itself excluded.

    Args:
        weight: share in the total reward.
        group: first and last of the neighbours, the nearest being 1.
    """

    def __init__(self, weight: float = 1.0, group: tuple[int, int] = (1, 5)) -> None:
        super().__init__(weight)
        self.group = group
        self.neighbours = group[1]

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        _, embeddings = experience.neighbours(self.group)
        captions = experience.caption_embeddings(rollout)
        own = (captions * experience.image_embeddings[rollout.image_index]).sum(-1)
        # Cosines are linear in the image: their mean is the cosine with the mean of the embeddings.
        return own - (captions * embeddings.mean(1)[rollout.image_index]).sum(-1)
