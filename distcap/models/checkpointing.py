"""Gradient checkpointing: activations are computed anew for the gradient instead of being stored."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from distcap.types import UserError


def checkpoint_layers(model: nn.Module) -> None:
    """Checkpoint every layer for which Hugging Face provides it, in training and in eval mode alike.

    Their own `gradient_checkpointing_enable` has an effect in training mode only, and a policy samples and scores in
    eval mode.

    Raises:
        UserError: the model has no such layer.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"gradient_checkpointing: {type(model).__name__} has no layers that can do it; set it to false")
    for layer in layers:
        # Without a gradient to compute, as in generate() with its cache, this is the layer's own forward pass.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
