"""What flows between the parts of distcap, and the legend of its shapes.

B images, N captions (any number per image), T tokens of the longest caption, C captions in a contrastive pool,
J images in it, D the width of a CLIP embedding, V the vocabulary.
"""

from __future__ import annotations  # torch is for the type checker: the command line answers without importing it

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def printable(text: str) -> str:
    """A text on one line, with what a terminal would take for a command escaped."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


class UserError(Exception):
    """Something the user can mend. The command line prints its message in one line and exits with code 2.

    The message says what was wrong, what was found, and what to do next. What would break its one line, or a terminal,
    is escaped: a file may be called anything.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class NotFinite(UserError):
    """A loss, a reward or a weight is infinite or not a number: a training that goes on from there learns nothing."""


@dataclass(eq=False)
class Batch:
    """What every data module yields: pixels and strings. Tokens belong to the captioner."""

    images: Tensor
    """(B, 3, H, W) pixels in [0, 1], or (B, S, E) cached features of a frozen captioner encoder."""
    captions: list[list[str]]
    """B lists of ground-truth captions, in the annotation file's order; an empty list where there are none."""
    image_ids: list[int]
    """B identifiers, unique in the data set."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return Batch(self.images.to(device, non_blocking=non_blocking), self.captions, self.image_ids)

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.captions, self.image_ids)


@dataclass(eq=False)
class Rollout:
    """Captions of a batch's images, scored by the captioner: sampled, greedy, or ground truth.

    Ground-truth captions are rollouts too. Teacher forcing is the policy gradient on them with advantage 1, weighted
    teacher forcing the same with their reward.
    """

    captions: Sequence[str]
    """N strings."""
    tokens: Tensor
    """(N, T) the captioner's tokens, end token included."""
    mask: Tensor
    """(N, T) True on real tokens, end token included; False on padding."""
    logprobs: Tensor
    """(N, T) log-probability of each token, zero on padding; with gradient where the captioner was asked for one."""
    image_index: Tensor
    """(N,) the row of the batch that each caption describes."""

    def __len__(self) -> int:
        return len(self.captions)
