"""Callbacks, attached in YAML."""

from distcap.callbacks.checkpoints import Checkpoints
from distcap.callbacks.dashboard import Dashboard
from distcap.callbacks.evaluation import Evaluation
from distcap.callbacks.hacking import HackingWatch
from distcap.callbacks.interruption import Interruption
from distcap.callbacks.predictions import Predictions

__all__ = ["Checkpoints", "Dashboard", "Evaluation", "HackingWatch", "Interruption", "Predictions"]
