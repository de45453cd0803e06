"""Captioners of the BLIP-2 family."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distcap.models.captioner import Sampler
from distcap.models.loading import SAFE, network, square
from distcap.models.prefix import PrefixCaptioner
from distcap.types import UserError


class Blip2(PrefixCaptioner):
    """A ViT, a Q-Former that asks it a few questions, and a causal language model (Li et al. 2023, arXiv 2301.12597).

    The answers to the queries stand where Hugging Face has its image tokens, at the very beginning. Variants with a
    sequence-to-sequence language model (Flan-T5) are refused.

    Args:
        init_from: a name on the Hugging Face hub, a folder in that format, or a run folder of the mle or rl stage.
        prompt: what the caption goes on from, e.g. "a photo of"; no part of the caption.
        kwargs: see HuggingFaceCaptioner.
    """

    families = ("blip-2",)

    def __init__(self, init_from: str = "Salesforce/blip2-opt-2.7b", prompt: str = "", **kwargs: Any) -> None:
        self.prompt = prompt
        super().__init__(init_from, **kwargs)

    def export(self, folder: Path, decoder: Sampler) -> str:
        if self.prompt:
            raise UserError("captions that go on from a prompt cannot be exported; train with prompt: ''")
        return super().export(folder, decoder)

    def read(self, name: str) -> Any:
        from transformers import AutoProcessor, Blip2Config, Blip2ForConditionalGeneration

        if not Blip2Config.from_pretrained(name, **SAFE).use_decoder_only_language_model:
            raise ValueError("its language model is a sequence-to-sequence one (T5); choose one with OPT")
        model = network(Blip2ForConditionalGeneration, name, self.dtype)
        self.processor = AutoProcessor.from_pretrained(name, **SAFE)
        self.tokenizer, self.image_processor = self.processor.tokenizer, self.processor.image_processor
        return model

    @property
    def encoder(self) -> Any:
        return self.model.vision_model

    @property
    def language_model(self) -> Any:
        return self.model.language_model

    decoder = language_model

    def side(self) -> int:
        return square(self.model.config.vision_config.image_size)

    def special_tokens(self) -> tuple[None, int]:
        # Of the published models a line break, which is not the tokenizer's end token.
        return None, self.model.config.text_config.eos_token_id

    def see(self, images: Tensor) -> Tensor:
        return self.model.get_image_features(self.normalise(images), return_dict=True).pooler_output

    @property
    def taken(self) -> int:
        return self.model.config.num_query_tokens + len(self._words()) - 1

    def _words(self) -> list[int]:
        """Tokens between the image and the caption."""
        words = self.tokenizer(self.prompt, add_special_tokens=False).input_ids
        return [self.model.config.text_config.bos_token_id, *words]

    def prefix(self, memory: Tensor) -> Tensor:
        words = torch.tensor(self._words(), device=memory.device)
        embeddings = self.decoder.get_input_embeddings()(words).expand(len(memory), -1, -1)
        return torch.cat([memory.to(embeddings.dtype), embeddings], 1)
