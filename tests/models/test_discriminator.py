"""The discriminator: its two labels, and its files."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from distcap.models import Discriminator
from distcap.types import UserError


def test_a_saved_discriminator_comes_back_as_it_was(tmp_path: Path):
    discriminator = Discriminator(4, hidden=(8, 3))
    discriminator.save(tmp_path / "discriminator")
    loaded = Discriminator.load(str(tmp_path))
    images, captions = torch.randn(5, 4), torch.randn(5, 4)
    assert (loaded.width, loaded.hidden) == (4, (8, 3))
    assert torch.equal(loaded(images, captions), discriminator(images, captions))


def test_a_missing_discriminator_says_where_it_looked_and_what_to_run(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere: no discriminator there; .*distcap fit --config discriminator\.yaml"):
        Discriminator.load(str(tmp_path / "nowhere"))


def test_the_hidden_layers_are_the_papers():
    shapes = [tuple(parameter.shape) for parameter in Discriminator(10).parameters() if parameter.dim() == 2]
    assert shapes == [(512, 20), (256, 512), (1, 256)]


def test_no_gradient_reaches_the_embeddings():
    images, captions = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    Discriminator(4).loss(images, captions, torch.tensor([True, False, True])).backward()
    assert images.grad is None
    assert captions.grad is None


def test_training_gives_human_captions_the_higher_logit():
    torch.manual_seed(0)
    images, human = normalize(torch.randn(64, 4), dim=-1), torch.arange(64) % 2 == 0
    captions = torch.where(human[:, None], images, -images)
    discriminator = Discriminator(4, hidden=(16,))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        discriminator.loss(images, captions, human).backward()
        optimizer.step()
    logits = discriminator(images, captions)
    assert logits[human].mean() > 1
    assert logits[~human].mean() < -1
