"""Baselines: what a caption's reward is compared with, to tell how well it did from how easy its image is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from distcap.experience import Experience
from distcap.functional import leave_one_out


class Baseline(nn.Module, ABC):
    """The advantage of a sample is its reward minus this."""

    least_samples: int = 1
    """Samples of each image that it needs."""

    @abstractmethod
    def forward(self, experience: Experience) -> Tensor:
        """(N,) one value for each sampled caption, without gradient."""


class Zero(Baseline):
    """None: the reward itself. For rewards that are relative already, such as the contrastive one."""

    def forward(self, experience: Experience) -> Tensor:
        return experience.sampled_reward.new_zeros(len(experience.sampled))


class Greedy(Baseline):
    """Self-critical: the reward of the image's greedy caption (Rennie 2017)."""

    def forward(self, experience: Experience) -> Tensor:
        return experience.greedy_reward[experience.sampled.image_index]


class LeaveOneOut(Baseline):
    """The mean reward of the image's other samples (Luo 2020); needs two samples of each image or more."""

    least_samples = 2

    def forward(self, experience: Experience) -> Tensor:
        return leave_one_out(experience.sampled_reward, experience.sampled.image_index)
