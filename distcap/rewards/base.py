"""What a reward is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from distcap.experience import Experience
from distcap.types import Rollout


class Reward(nn.Module, ABC):
    """A score of captions, higher is better.

    Args:
        weight: its share in the total; the rewards of a run are summed.
    """

    learning_rate: float | None = None
    """Of a reward that learns with the policy; None for one that does not."""

    neighbours: int = 0
    """The farthest mined neighbour of an image that the reward reads, the nearest being 1; 0 for none."""

    clip: str | None = None
    """Which of the stage's `clips` the reward reads; None for its `clip`, or for none at all."""

    needs_reference: bool = False
    """Whether the reward reads `experience.reference_logprobs`: the captioner as it was before RL is kept for it."""

    needs_captions: str = ""
    """How to do without human captions of the images, for a reward that reads them; empty for one that does not."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def prepare(self, references: Mapping[int, Sequence[str]]) -> None:
        """Called once with the training ground truth: image id -> captions."""

    def check_batch(self, images: int, samples: int, ground_truth: int) -> None:
        """Raises UserError if a batch has too little for the reward to compare.

        Args:
            images: of a step, in all processes together.
            samples: of each of them.
            ground_truth: human captions of each of them.
        """

    @abstractmethod
    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        """(N,) the reward of each caption, before its weight; without gradient."""

    def loss(self, experience: Experience) -> Tensor | None:
        """The loss of a reward that learns, to be minimised along with the policy's; None for one that does not."""
        return None
