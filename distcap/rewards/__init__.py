"""Rewards: one class each, named in YAML under model.init_args.rewards."""

from distcap.rewards.base import Reward
from distcap.rewards.cider import Cider
from distcap.rewards.clip import ClipSimilarity
from distcap.rewards.contrastive import Contrastive
from distcap.rewards.discriminator import DiscriminatorReward
from distcap.rewards.fluency import BadEnding, Length, Repetition
from distcap.rewards.group import GroupSimilarity
from distcap.rewards.ref_clip import RefClipS

__all__ = [
    "BadEnding",
    "Cider",
    "ClipSimilarity",
    "Contrastive",
    "DiscriminatorReward",
    "GroupSimilarity",
    "Length",
    "RefClipS",
    "Repetition",
    "Reward",
]
