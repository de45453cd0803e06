"""Hugging Face's image processors make the pixels that distcap's data make."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from distcap.data.images import decode
from distcap.models.image_processor import image_processor

MEAN, STD = (0.5, 0.25, 0.75), (0.5, 0.25, 0.125)


@pytest.fixture(params=[(24, 24), (100, 40), (33, 71), (10, 12)], ids=str)
def pixels(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """(3, 24, 24) levels of 255 by distcap, and by each backend of a processor that was saved and loaded."""
    width, height = request.param
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "image.png")
    image_processor(24, MEAN, STD).save_pretrained(tmp_path)
    found = {}
    for backend in ("pil", "torchvision"):
        processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        normalised = processor(Image.open(tmp_path / "image.png"), return_tensors="pt").pixel_values[0]
        found[backend] = (normalised * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    return decode(tmp_path / "image.png", 24).float(), found


def test_on_pillow_the_pixels_are_the_same(pixels: tuple[Tensor, dict[str, Tensor]]) -> None:
    ours, found = pixels
    torch.testing.assert_close(found["pil"], ours, atol=1e-4, rtol=0)  # rounding of float32


def test_on_torchvision_they_differ_by_one_level_at_most(pixels: tuple[Tensor, dict[str, Tensor]]) -> None:
    ours, found = pixels
    assert (found["torchvision"] - ours).abs().max() < 1.001
