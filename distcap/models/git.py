"""Captioners of the GIT family."""

from typing import Any

import torch
from torch import Tensor

from distcap.models.hugging_face import HuggingFaceCaptioner
from distcap.models.loading import SAFE, network, square


class Git(HuggingFaceCaptioner):
    """A CLIP image encoder, its features before the words of one transformer (Wang et al. 2022, arXiv 2205.14100).

    Words see the image and the words before them, the image sees itself. A caption begins after [CLS] and ends with
    [SEP].

    Args:
        init_from: a name on the Hugging Face hub, a folder in that format, or a run folder of the mle or rl stage.
        kwargs: see HuggingFaceCaptioner.
    """

    families = ("git",)

    def __init__(self, init_from: str = "microsoft/git-base-coco", **kwargs: Any) -> None:
        super().__init__(init_from, **kwargs)

    def read(self, name: str) -> Any:
        from transformers import AutoProcessor, GitForCausalLM

        model = network(GitForCausalLM, name, self.dtype)
        self.processor = AutoProcessor.from_pretrained(name, **SAFE)
        self.tokenizer, self.image_processor = self.processor.tokenizer, self.processor.image_processor
        # Memory comes where Hugging Face expects pixels, and the image encoder must not run again.
        model.git.image_encoder.forward = _recall
        return model

    @property
    def encoder(self) -> Any:
        return self.model.git.image_encoder

    @property
    def language_model(self) -> Any:
        return self.model.git.encoder

    @property
    def embedder(self) -> Any:
        return self.model.git

    def side(self) -> int:
        return square(self.model.config.vision_config.image_size)

    def special_tokens(self) -> tuple[int, int]:
        return self.model.config.bos_token_id, self.model.config.eos_token_id

    def see(self, images: Tensor) -> Tensor:
        return self.model.git.image_encoder.vision_model(pixel_values=self.normalise(images)).last_hidden_state

    def decode(self, memory: Tensor, **rules: Any) -> Tensor:
        start = torch.full((len(memory), 1), self.start, device=memory.device)
        return self.model.generate(
            input_ids=start, attention_mask=torch.ones_like(start), pixel_values=memory[:, None], **rules
        )[:, 1:]

    def logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        output = self.model(input_ids=self.shifted(tokens), pixel_values=memory[:, None], use_cache=False)
        return output.logits[:, memory.shape[1] :]


def _recall(pixel_values: Tensor, **kwargs: Any) -> Any:
    """(N, 1, S, E), a picture to whoever counts dimensions -> (N, S, E) in place of the image encoder's output."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=pixel_values[:, 0])
