"""Terms of the objective: what is minimised is their weighted sum."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from distcap.experience import Experience
from distcap.functional import (
    Reduction,
    Weighting,
    clipped_ratio,
    kl_loss,
    preference,
    reinforce,
    sequence_logprobs,
    weights,
)
from distcap.types import UserError


class Term(nn.Module, ABC):
    """A loss on an experience.

    Args:
        weight: its share in the sum.
        reduction: a caption's log-probability is the mean over its own tokens, or the sum.
    """

    needs_reference: bool = False
    """Whether the term reads `experience.reference_logprobs`: the captioner as it was before RL is kept for it."""
    least_samples: int = 1
    """Samples of each image that the term needs."""
    needs_captions: str = ""
    """How to do without human captions of the images, for a term that reads them; empty for one that does not."""

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


class ClippedPolicyGradient(Term):
    """PPO: several updates on one rollout, none of which may move a token's probability far (Schulman 2017).

    For a stage with `updates_per_rollout` above 1; with one update it is PolicyGradient.

    Args:
        weight: share in the objective.
        clip: how far the ratio of probabilities may move from 1 and still be rewarded for it.
        reduction: see Term.
    """

    def __init__(self, weight: float = 1.0, clip: float = 0.2, reduction: Reduction = "mean") -> None:
        super().__init__(weight, reduction)
        self.clip = clip

    def forward(self, experience: Experience, advantages: Tensor) -> Tensor:
        sampled = experience.sampled
        objective = clipped_ratio(sampled.logprobs, experience.drawn_logprobs, sampled.mask, advantages, self.clip)
        return -sequence_logprobs(objective, sampled.mask, self.reduction).mean()


class Preference(Term):
    """DiCO-style: the best sample of each image is preferred to the others, as far as the reference allows.

    No advantage enters, hence no baseline: the rewards order and weigh the samples (Moratelli 2024, arXiv 2408.14547).
    Their captions come from beam search, and the reward is PAC-S; here they are the sampler's, by whatever reward.

    Args:
        weight: share in the objective.
        beta: how strongly the policy is held to the reference.
        temperature: of the weights of the losers; the further behind, the heavier.
        reduction: see Term; DPO's log-ratio is that of whole captions, the sum.
    """

    needs_reference = True

    least_samples = 2

    def __init__(
        self, weight: float = 1.0, beta: float = 0.2, temperature: float = 0.1, reduction: Reduction = "sum"
    ) -> None:
        super().__init__(weight, reduction)
        self.beta = beta
        self.temperature = temperature

    def forward(self, experience: Experience, advantages: Tensor) -> Tensor:
        sampled = experience.sampled
        policy = sequence_logprobs(sampled.logprobs, sampled.mask, self.reduction)
        reference = sequence_logprobs(experience.reference_logprobs, sampled.mask, self.reduction)
        return preference(
            policy - reference, experience.sampled_reward, sampled.image_index, self.beta, self.temperature
        )


class TeacherForcing(Term):
    """The likelihood of the human captions, all alike."""

    needs_captions = "leave it out"

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
        temperature: of the softmax weighting, on the rewards' scale: the lower, the more the best captions weigh.
        reduction: see Term.

    Raises:
        UserError: the temperature isn't above zero, or another weighting has no use for one.
    """

    needs_captions = "leave it out"

    def __init__(
        self,
        weight: float = 1.0,
        weighting: Weighting = "minmax",
        temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(weight, reduction)
        if not temperature > 0 or (temperature != 1 and weighting != "softmax"):
            raise UserError(
                f"WeightedTeacherForcing: weighting {weighting}, temperature {temperature:g}; "
                "a temperature is of softmax, and above zero"
            )
        self.weighting: Weighting = weighting
        self.temperature = temperature

    def forward(self, experience: Experience, advantages: Tensor) -> Tensor:
        truth = experience.ground_truth
        rewards, first = experience.gather(experience.ground_truth_reward)
        own = weights(rewards, self.weighting, self.temperature)[first : first + len(truth)]
        return reinforce(truth.logprobs, truth.mask, own, self.reduction)


class KLToReference(Term):
    """Distance of the policy from the captioner that it started as: KL(policy || reference), on the policy's samples.

    Its value is an unbiased estimate of the divergence, and its gradient that of the divergence; see
    `distcap.functional.kl_loss`.

    Args:
        weight: share in the objective.
        reduction: the divergence per token of a caption ("mean"), or of whole captions ("sum").
    """

    needs_reference = True

    def forward(self, experience: Experience, advantages: Tensor) -> Tensor:
        sampled = experience.sampled
        return kl_loss(sampled.logprobs, experience.reference_logprobs, sampled.mask, self.reduction).mean()
