"""Rewards: one class each, named in YAML under model.init_args.rewards."""

from distcap.rewards.base import Reward
from distcap.rewards.cider import Cider
from distcap.rewards.clip import ClipSimilarity
from distcap.rewards.contrastive import Contrastive
from distcap.rewards.discriminator import DiscriminatorReward

__all__ = ["Cider", "ClipSimilarity", "Contrastive", "DiscriminatorReward", "Reward"]
