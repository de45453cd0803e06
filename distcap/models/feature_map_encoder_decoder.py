"""A VisionEncoderDecoderModel whose encoder gives a feature map. Needs transformers, and nothing of distcap.

An exported captioner with a convolutional encoder ships this file, for Hugging Face's own class hands the decoder a map
of features, (B, E, H, W), where it reads a sequence.
"""

from typing import Any

from torch import nn
from transformers import VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput


class FeatureMapEncoderDecoder(VisionEncoderDecoderModel):
    """Its decoder attends to the places of the encoder's feature map, row by row."""

    def __init__(self, config: Any = None, encoder: Any = None, decoder: Any = None) -> None:
        super().__init__(config, encoder, decoder)
        self.encoder.register_forward_hook(_flatten)


def _flatten(encoder: nn.Module, inputs: Any, output: Any) -> BaseModelOutput:
    """(B, E, H, W) -> (B, H * W, E), as the captioner was trained."""
    return BaseModelOutput(last_hidden_state=output.last_hidden_state.flatten(2).transpose(1, 2).contiguous())


FeatureMapEncoderDecoder.register_for_auto_class("AutoModelForImageTextToText")
