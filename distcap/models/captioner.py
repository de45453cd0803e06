"""What every captioner can do, and how captions are drawn from it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distcap.checks import above, at_least, number, share
from distcap.types import UserError


@dataclass
class Sampler:
    """How captions are drawn.

    Args:
        method: "multinomial" for on-policy samples, "greedy", or "beam" (the paper's: 5 beams, no repeated trigram).
        samples: captions drawn for each image; more than one for multinomial only.
        temperature: of multinomial sampling. Samples are scored at the same temperature, so that the policy gradient is
            that of the policy they were drawn from.
        top_k: sample among the k likeliest tokens; 0 for all. Log-probabilities are those of the whole distribution, so
            the policy gradient with top_k is biased: it ignores that the other tokens cannot be drawn.
        top_p: sample among the likeliest tokens that have this probability together; biased likewise below 1.
        beams: of beam search.
        no_repeat_ngram: forbid repeating n-grams of this size; 0 for none.
        max_tokens: longest caption, end token included.
        guidance: gamma of classifier-free guidance (Kornblith et al. 2023, arXiv 2307.16686): the next token is chosen
            by log p = (1 - gamma) log p(y) + gamma log p(y | image), normalised. 1 is none; more is more specific.
            Greedy and beam only. A captioner learns p(y) by the mle stage's `drop_image`.

    Raises:
        UserError: a number that is out of range, several samples of a method that draws one, or guidance of multinomial
            samples.
    """

    method: Literal["multinomial", "greedy", "beam"] = "multinomial"
    samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 5
    no_repeat_ngram: int = 0
    max_tokens: int = 30
    guidance: float = 1.0

    def __post_init__(self) -> None:
        for name, low in (("samples", 1), ("beams", 1), ("max_tokens", 1), ("top_k", 0), ("no_repeat_ngram", 0)):
            at_least(_argument(name), getattr(self, name), low)
        above(_argument("temperature"), self.temperature, 0)
        share(_argument("top_p"), self.top_p, zero=False)
        number(_argument("guidance"), self.guidance)
        if self.samples > 1 and self.method != "multinomial":
            raise UserError(
                f"{self.samples} samples of each image by {self.method}: only multinomial draws several; "
                "set samples: 1, or method: multinomial"
            )
        if self.guidance != 1 and self.method == "multinomial":
            # A sample's log-probability is the captioner's own: guided samples would be another policy's.
            raise UserError(
                f"guidance {self.guidance} of multinomial samples: they are drawn from the captioner itself; "
                "set method: greedy (or beam), or guidance: 1"
            )


def _argument(name: str) -> str:
    return f"{name} of a sampler or decoder"


class Captioner(nn.Module, ABC):
    """The policy: images in, captions out. Tokens are its own affair; the rest of distcap speaks strings."""

    task: ClassVar[str] = "image-to-text"
    """What it does, in the words of the Hugging Face hub."""
    max_tokens: int | None = None
    """Ground-truth captions are cut after so many tokens, end token included; None for never."""
    image_size: int | None = None
    """Side of the square images that the captioner sees; None for any."""
    longest: int | None = None
    """Tokens of the longest caption that the network has positions for, end token included; None for any."""

    @property
    def trained(self) -> bool:
        """False for a captioner that has no weights of its own yet."""
        return True

    def allow(self, name: str, tokens: int) -> None:
        """Raises UserError where an argument of this name asks for captions that are longer than the longest."""
        if self.longest is not None and tokens > self.longest:
            raise UserError(
                f"{name} is {tokens}, but this captioner has positions for captions of {self.longest} tokens; lower it"
            )

    def prepare(self, captions: Iterable[str]) -> None:
        """Called before training with the training captions, for captioners that make their vocabulary of them."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [0, 1] -> (B, S, E) memory, shared by all that is drawn or scored for an image."""

    def unknown(self, memory: Tensor) -> Tensor:
        """(B, S, E) memory -> (B, S, E) of images of which nothing is known: zeros.

        The condition of p(y), without an image: in training (`drop_image` of the mle stage) and in guided decoding.
        """
        return torch.zeros_like(memory)

    @abstractmethod
    def generate(self, memory: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, E) -> (N, T) tokens, (N, T) mask, (N,) image_index. Without gradient; the caller chooses eval mode."""

    @abstractmethod
    def score(
        self, memory: Tensor, tokens: Tensor, mask: Tensor, image_index: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """(B, S, E), (N, T), (N, T), (N,) -> (N, T) log-probability of each token, zero on padding.

        At another temperature it is that of the policy that samples at this temperature: log softmax(logits / T).
        """

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N strings -> (N, T) tokens with their end token, (N, T) mask."""

    @abstractmethod
    def detokenize(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """(N, T), (N, T) -> N strings."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write the captioner in the Hugging Face format."""

    def export(self, folder: Path, decoder: Sampler) -> str:
        """Write the captioner for programs that know Hugging Face's transformers and nothing of distcap.

        Args:
            folder: gets what save_pretrained writes, the decoding rules as generation_config.json, and any code needed.
            decoder: how captions are decoded.

        Returns:
            Python code that loads the captioner from `folder` and makes `captions` of the image files in `files`.

        Raises:
            UserError: transformers alone cannot caption as this captioner and decoder do.
        """
        raise UserError(
            f"{type(self).__name__} has no export: transformers alone could not use it; write the class an export() "
            "as that of distcap.models.VisionEncoderDecoder"
        )
