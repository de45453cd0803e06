"""The discriminator: its two labels, and its files."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

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


def test_a_grammar_head_reads_captions_alone():
    head = Discriminator(10, hidden=(512,), images=False)
    assert [tuple(parameter.shape) for parameter in head.parameters() if parameter.dim() == 2] == [(512, 10), (1, 512)]
    images, captions = torch.randn(2, 3, 10)
    assert torch.equal(head(images, captions), head(None, captions))


def test_one_that_reads_images_tells_captions_by_them():
    discriminator, captions = Discriminator(4), torch.randn(3, 4)
    assert not torch.equal(*(discriminator(torch.randn(3, 4), captions) for _ in range(2)))


@pytest.mark.parametrize("images", [True, False])
def test_a_saved_discriminator_remembers_whether_it_reads_images(tmp_path: Path, images: bool):
    Discriminator(4, images=images).save(tmp_path / "discriminator")
    assert Discriminator.load(str(tmp_path)).images is images


def test_a_folder_from_before_there_were_grammar_heads_reads_images(tmp_path: Path):
    Discriminator(4).save(tmp_path / "discriminator")
    (tmp_path / "discriminator" / "config.json").write_text(json.dumps({"width": 4, "hidden": [512, 256]}))
    assert Discriminator.load(str(tmp_path)).images


class Given(Discriminator):
    """Says what it is told: its logits are the captions' first numbers."""

    def forward(self, images: Tensor | None, captions: Tensor) -> Tensor:
        return captions[:, 0]


def loss(logits: list[float], human: list[bool]) -> Tensor:
    return Given(1, images=False).loss(None, torch.tensor(logits)[:, None], torch.tensor(human))


def test_generated_and_human_captions_weigh_half_each_however_many_there_are():
    # P(human) of 1/2, 1/2 and 3/4 for generated captions, of 1/4 for the human one; 3/4 has the logit log 3.
    found = loss([0, 0, math.log(3), -math.log(3)], [False, False, False, True])
    assert found.item() == pytest.approx(((2 * math.log(2) + math.log(4)) / 3 + math.log(4)) / 2)


def test_of_equal_counts_the_loss_is_the_plain_cross_entropy():
    logits, human = torch.randn(6), torch.tensor([True, False, False, True, True, False])
    torch.testing.assert_close(
        loss(logits.tolist(), human.tolist()), binary_cross_entropy_with_logits(logits, human.float())
    )


@pytest.mark.parametrize("human", [True, False])
def test_of_one_kind_alone_the_loss_is_its_mean(human: bool):
    # P(human) is 1/2 and 3/4, or 1/2 and 1/4: the same loss for either kind.
    found = loss([0, math.log(3) if human else -math.log(3)], [human, human])
    assert found.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_k_samples_to_a_human_caption_do_not_sink_the_probability_of_either():
    """Of captions that cannot be told apart, half are human as far as anyone can know: the best logit is 0."""
    logit = torch.zeros(5, requires_grad=True)
    Given(1, images=False).loss(None, logit[:, None], torch.arange(5) == 0).backward()
    assert logit.grad.sum().item() == pytest.approx(0)


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


def test_mixed_precision_around_it_changes_no_bit_of_its_opinion() -> None:
    """A bfloat16 has three digits, and a reward's spread within a batch may be smaller than that."""
    discriminator = Discriminator(8, hidden=(16,))
    images, captions = torch.randn(2, 50, 8)
    plain = discriminator(images, captions)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = discriminator(images, captions)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)
