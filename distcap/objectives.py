"""Terms of the objective: what is minimised is their weighted sum."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from distcap.experience import Experience
from distcap.functional import Reduction, Weighting, kl, reinforce, weights


class Term(nn.Module, ABC):
    """A loss on an experience.

    Args:
        weight: its share in the sum.
        reduction: a caption's log-probability is the mean over its own tokens, or the sum.
    """

    needs_reference = False

    def __init__(self, weight: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.weight = weight
        self.reduction: Reduction = reduction

    @abstractmethod
    def forward(self, experience: Experience, advantages: Tensor) -> Tensor:
        """Experience, (N,) advantages of the sampled captions -> scalar, before its weight."""


class PolicyGradient(Term):
    """REINFORCE on the policy's own captions (paper: grad L = -R(c, i) grad log p(c|i))."""

    def forward(self, experience: Experience, advantages: Tensor) -> Tensor:
        return reinforce(experience.sampled.logprobs, experience.sampled.mask, advantages, self.reduction)


class TeacherForcing(Term):
    """The likelihood of the human captions, all alike."""

    def forward(self, experience: Experience, advantages: Tensor) -> Tensor:
        truth = experience.ground_truth
        return reinforce(truth.logprobs, truth.mask, torch.ones(len(truth), device=truth.mask.device), self.reduction)


class WeightedTeacherForcing(Term):
    """The same loss with human captions as trajectories: teacher forcing weighted by how well each describes its image.

    "The batch" of a weighting is that of all processes.

    Args:
        weight: share in the objective.
        weighting: of the captions' total reward; see `distcap.functional.weights`. Raw rewards may be negative, and
            then unlearn the human captions that lose in the pool.
        reduction: see Term.
    """

    def __init__(self, weight: float = 1.0, weighting: Weighting = "minmax", reduction: Reduction = "mean") -> None:
        super().__init__(weight, reduction)
        self.weighting: Weighting = weighting

    def forward(self, experience: Experience, advantages: Tensor) -> Tensor:
        truth = experience.ground_truth
        rewards, first = experience.gather(experience.ground_truth_reward)
        own = weights(rewards, self.weighting)[first : first + len(truth)]
        return reinforce(truth.logprobs, truth.mask, own, self.reduction)


class KLToReference(Term):
    """Distance of the policy from the captioner it started as, on its own samples."""

    needs_reference = True

    def forward(self, experience: Experience, advantages: Tensor) -> Tensor:
        return kl(experience.sampled.logprobs, experience.reference_logprobs, experience.sampled.mask).mean()
