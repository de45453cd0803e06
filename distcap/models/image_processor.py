"""What distcap's data do to an image file, in Hugging Face's words."""

from collections.abc import Sequence
from typing import Any


def image_processor(side: int, mean: Sequence[float], std: Sequence[float]) -> Any:
    """A ViTImageProcessor that makes the pixels which a captioner is trained on.

    They are squashed to a square, bicubic and antialiased, and nothing is cropped: `distcap.data.images.decode`,
    whatever the captioner's first authors did. On transformers' Pillow backend the pixels are the same to the bit
    before they are normalised; its torchvision backend rounds some of them to the neighbouring level of 255.

    Args:
        side: height and width in pixels.
        mean: of each channel, subtracted from pixels in [0, 1].
        std: of each channel, which the difference is divided by.
    """
    from transformers import ViTImageProcessor
    from transformers.image_utils import PILImageResampling

    return ViTImageProcessor(
        size={"height": side, "width": side},
        resample=PILImageResampling.BICUBIC,
        image_mean=list(mean),
        image_std=list(std),
    )
