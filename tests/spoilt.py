"""A reward that is not a number from some step on."""

from torch import Tensor

from distcap.experience import Experience
from distcap.rewards import Reward
from distcap.types import Rollout


class Spoilt(Reward):
    """One for every caption, and for the first one of later calls nothing that is a number.

    Args:
        calls: that go well; each step makes one for samples and one for human captions.
    """

    def __init__(self, weight: float = 1.0, calls: int = 0) -> None:
        super().__init__(weight)
        self.calls = calls

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        reward = rollout.logprobs.new_ones(len(rollout))
        self.calls -= 1
        if self.calls < 0:
            reward[0] = float("nan")
        return reward
