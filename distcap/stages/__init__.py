"""Stages of training: one LightningModule each."""

from distcap.stages.clip import Clip
from distcap.stages.discriminator import TrainDiscriminator
from distcap.stages.grammar import TrainGrammar
from distcap.stages.mle import MLE
from distcap.stages.rerank import Rerank
from distcap.stages.rl import RL

__all__ = ["MLE", "RL", "Clip", "Rerank", "TrainDiscriminator", "TrainGrammar"]
