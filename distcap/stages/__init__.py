"""Stages of training: one LightningModule each."""

from distcap.stages.clip import Clip
from distcap.stages.discriminator import TrainDiscriminator
from distcap.stages.mle import MLE
from distcap.stages.rl import RL

__all__ = ["MLE", "RL", "Clip", "TrainDiscriminator"]
