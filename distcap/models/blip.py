"""Captioners of the BLIP family."""

from typing import Any

import torch
from torch import Tensor

from distcap.models.hugging_face import HuggingFaceCaptioner
from distcap.models.loading import SAFE, network, square


class Blip(HuggingFaceCaptioner):
    """A ViT and a BERT that attends to it and decodes (Li et al. 2022, arXiv 2201.12086).

    A caption begins after [DEC], which is the config's bos_token_id, and ends with [SEP].

    Args:
        init_from: a name on the Hugging Face hub, a folder in that format, or a run folder of the mle or rl stage.
        kwargs: see HuggingFaceCaptioner.
    """

    families = ("blip",)

    def __init__(self, init_from: str = "Salesforce/blip-image-captioning-base", **kwargs: Any) -> None:
        super().__init__(init_from, **kwargs)

    def read(self, name: str) -> Any:
        from transformers import AutoProcessor, BlipForConditionalGeneration

        model = network(BlipForConditionalGeneration, name, self.dtype)
        self.processor = AutoProcessor.from_pretrained(name, **SAFE)
        self.tokenizer, self.image_processor = self.processor.tokenizer, self.processor.image_processor
        return model

    @property
    def encoder(self) -> Any:
        return self.model.vision_model

    @property
    def language_model(self) -> Any:
        return self.model.text_decoder

    def side(self) -> int:
        return square(self.model.config.vision_config.image_size)

    def special_tokens(self) -> tuple[int, int]:
        config = self.model.config.text_config
        return config.bos_token_id, config.sep_token_id

    def see(self, images: Tensor) -> Tensor:
        return self.model.vision_model(pixel_values=self.normalise(images)).last_hidden_state

    def decode(self, memory: Tensor, **rules: Any) -> Tensor:
        start = torch.full((len(memory), 1), self.start, device=memory.device)
        return self.model.text_decoder.generate(
            input_ids=start, attention_mask=torch.ones_like(start), encoder_hidden_states=memory, **rules
        )[:, 1:]

    def logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        return self.model.text_decoder(
            input_ids=self.shifted(tokens), encoder_hidden_states=memory, use_cache=False
        ).logits
