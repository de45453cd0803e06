"""CIDEr-D against the image's own human captions: the reward of SCST."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distcap.experience import Experience
from distcap.ngrams import CiderD, warn_of_unsplit
from distcap.rewards.base import Reward
from distcap.types import Rollout


class Cider(Reward):
    """CIDEr-D with the document frequencies of the whole training ground truth (Rennie 2017).

    The end token is scored like a word, or captions learn to stop on "a dog on a" (trap 10). A sample that was cut at
    the sampler's max_tokens has none, and gets no credit for one.

    Args:
        weight: share in the total reward.
    """

    needs_captions = "leave it out"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self._scorer: CiderD | None = None

    def prepare(self, references: Mapping[int, Sequence[str]]) -> None:
        warn_of_unsplit(references.values())
        self._scorer = CiderD(references, end_token=True)

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        assert self._scorer is not None, "prepare() comes first"
        image_ids = [experience.batch.image_ids[row] for row in rollout.image_index.tolist()]
        scores = self._scorer(rollout.captions, image_ids, experience.ended(rollout).tolist())
        return torch.as_tensor(scores, dtype=torch.float32, device=rollout.image_index.device)
