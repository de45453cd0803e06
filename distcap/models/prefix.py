"""Captioners whose language model reads the image as the first of its embeddings."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from distcap.models.hugging_face import HuggingFaceCaptioner


class PrefixCaptioner(HuggingFaceCaptioner):
    """A causal language model that goes on from a prefix, of which the projected image is a part.

    The memory of an image is what the language model reads of it; so the image encoder has nothing to do while
    captions are drawn and scored.
    """

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """What generates from embeddings: the language model with its head."""

    @abstractmethod
    def prefix(self, memory: Tensor) -> Tensor:
        """(N, S, E) memory -> (N, P, E) embeddings of all that stands before a caption."""

    def positions(self, rows: int, length: int) -> dict[str, Tensor]:
        """Arguments that tell where `length` embeddings stand; none where the language model counts by itself."""
        return {}

    def _prefix(self, memory: Tensor) -> Tensor:
        """The prefix in the language model's precision."""
        return self.prefix(memory).to(self.decoder.get_input_embeddings().weight.dtype)

    def decode(self, memory: Tensor, **rules: Any) -> Tensor:
        prefix = self._prefix(memory)
        return self.decoder.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device),
            **self.positions(*prefix.shape[:2]),
            **rules,
        )

    def logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        words = self.decoder.get_input_embeddings()(tokens[:, :-1])
        inputs = torch.cat([self._prefix(memory), words], 1)
        return self.decoder(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device),
            **self.positions(*inputs.shape[:2]),
            use_cache=False,
            logits_to_keep=tokens.shape[1],
        ).logits
