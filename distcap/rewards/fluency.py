"""Rules of fluent writing as rewards: penalties for what a reward-hacked caption does, 0 for a caption that does not.

They read strings alone. An empty caption pays nothing, so none of them should be a run's only reward.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from distcap.experience import Experience
from distcap.ngrams import bad_ending, repetition, tokenize
from distcap.rewards.base import Reward
from distcap.types import Rollout, UserError


class Penalty(Reward):
    """Minus what a rule charges for a caption.

    Args:
        weight: share in the total reward.
    """

    @abstractmethod
    def charge(self, caption: str) -> float:
        """At least 0, and 0 for a caption that keeps the rule."""

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        charges = [self.charge(caption) for caption in rollout.captions]
        return -torch.tensor(charges, dtype=torch.float32, device=rollout.image_index.device)


class Length(Penalty):
    """Minus the tokens beyond a target, as a share of it: 15 tokens where 10 are right cost 0.5.

    Short captions pay nothing. Tokens are those of n-gram metrics: words, no punctuation.

    Args:
        weight: share in the total reward.
        target: tokens that are free; None for the mean of the training ground truth.

    Raises:
        UserError: the target is not more than 0.
    """

    def __init__(self, weight: float = 1.0, target: float | None = None) -> None:
        super().__init__(weight)
        if target is not None and target <= 0:
            raise UserError(f"target: {target} tokens leave no room for a caption; it must be more than 0, or null")
        self.target = target
        self.needs_captions = "" if target else "set its target"

    def prepare(self, references: Mapping[int, Sequence[str]]) -> None:
        if self.target is None:
            self.target = fmean(len(tokenize(caption)) for captions in references.values() for caption in captions)

    def charge(self, caption: str) -> float:
        assert self.target is not None, "prepare() comes first"
        return max(0.0, len(tokenize(caption)) / self.target - 1)


class Repetition(Penalty):
    """Minus the share of a caption's n-grams that it has said before: see distcap.ngrams.repetition.

    Args:
        weight: share in the total reward.
        n: words in an n-gram; 1 charges for every second "a", too.
    """

    def __init__(self, weight: float = 1.0, n: int = 2) -> None:
        super().__init__(weight)
        self.n = n

    def charge(self, caption: str) -> float:
        return repetition([caption], self.n)


class BadEnding(Penalty):
    """Minus 1 for a caption that breaks off, like "a dog on a": see distcap.ngrams.bad_ending.

    Args:
        weight: share in the total reward.
    """

    def charge(self, caption: str) -> float:
        return float(bad_ending(caption))
