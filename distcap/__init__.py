"""Distinctive image captioning with CLIP-guided reinforcement learning."""

__version__ = "0.1.0"
