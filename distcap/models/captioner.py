"""What every captioner can do, and how captions are drawn from it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn


@dataclass
class Sampler:
    """How captions are drawn.

    Args:
        method: "multinomial" for on-policy samples, "greedy", or "beam" (the paper's: 5 beams, no repeated trigram).
        samples: captions drawn for each image; more than one for multinomial only.
        temperature: of multinomial sampling. The gradient is taken at temperature 1: other values are off-policy.
        top_k: sample among the k likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens that have this probability together.
        beams: of beam search.
        no_repeat_ngram: forbid repeating n-grams of this size; 0 for none.
        max_tokens: longest caption, end token included.
    """

    method: Literal["multinomial", "greedy", "beam"] = "multinomial"
    samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 5
    no_repeat_ngram: int = 0
    max_tokens: int = 30

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.samples > 1 and self.method != "multinomial"):
            raise ValueError(f"{self.samples} samples of each image by {self.method}: only multinomial draws several")


class Captioner(nn.Module, ABC):
    """The policy: images in, captions out. Tokens are its own affair; the rest of distcap speaks strings."""

    @property
    def trained(self) -> bool:
        """False for a captioner that has no weights of its own yet."""
        return True

    def prepare(self, captions: Iterable[str]) -> None:
        """Called before training with the training captions, for captioners that make their vocabulary of them."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [0, 1] -> (B, S, E) memory, shared by all that is drawn or scored for an image."""

    @abstractmethod
    def generate(self, memory: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, E) -> (N, T) tokens, (N, T) mask, (N,) image_index. Without gradient; the caller chooses eval mode."""

    @abstractmethod
    def score(self, memory: Tensor, tokens: Tensor, mask: Tensor, image_index: Tensor) -> Tensor:
        """(B, S, E), (N, T), (N, T), (N,) -> (N, T) log-probability of each token, zero on padding."""

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N strings -> (N, T) tokens with their end token, (N, T) mask."""

    @abstractmethod
    def detokenize(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """(N, T), (N, T) -> N strings."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write the captioner in the Hugging Face format."""
