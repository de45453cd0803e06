"""Callbacks, attached in YAML."""

from distcap.callbacks.evaluation import Evaluation
from distcap.callbacks.hacking import HackingWatch
from distcap.callbacks.predictions import Predictions

__all__ = ["Evaluation", "HackingWatch", "Predictions"]
