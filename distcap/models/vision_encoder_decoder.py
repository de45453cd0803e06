"""Captioners of Hugging Face's VisionEncoderDecoderModel family."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distcap.models.hugging_face import HuggingFaceCaptioner
from distcap.models.image_processor import image_processor
from distcap.models.loading import SAFE, as_data, network, square
from distcap.models.lora import merged
from distcap.types import UserError


class VisionEncoderDecoder(HuggingFaceCaptioner):
    """An image encoder and a language model that attends to it, e.g. nlpconnect/vit-gpt2-image-captioning.

    Args:
        init_from: a name on the Hugging Face hub, a folder in that format, or a run folder of the mle or rl stage. None
            builds an untrained model of `encoder` and `decoder`, with a vocabulary of the training captions.
        encoder: for an untrained model, its Hugging Face config, e.g. {model_type: vit, image_size: 64, ...}. With a
            convolutional one, as {model_type: resnet, image_size: 64, ...}, Hugging Face's own generate() must be given
            the memory, for it flattens no feature map.
        decoder: likewise, e.g. {model_type: gpt2, n_embd: 128, ...}.
        kwargs: see HuggingFaceCaptioner.

    Raises:
        UserError: there is no such model.
    """

    families = ("vision-encoder-decoder",)

    def __init__(
        self,
        init_from: str | None = "nlpconnect/vit-gpt2-image-captioning",
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_from, **kwargs)
        self.configs = (encoder, decoder)
        if init_from is None and (encoder is None or decoder is None):
            raise UserError("a captioner with init_from: null needs the configs of its encoder and decoder")

    def prepare(self, captions: Iterable[str]) -> None:
        """Build the untrained model once its vocabulary is known; nothing for one that was loaded."""
        if self.model is not None:
            return
        from transformers import AutoConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

        self.tokenizer = _word_tokenizer(captions)
        special = {
            "vocab_size": len(self.tokenizer),
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        decoder = {**dict(self.configs[1] or {}), **special, "add_cross_attention": True}
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            self._encoder_config(), AutoConfig.for_model(**decoder)
        )
        config.decoder_start_token_id = self.tokenizer.bos_token_id
        config.pad_token_id = self.tokenizer.pad_token_id
        self.processor = self.image_processor = image_processor(self.image_size, [0.5] * 3, [0.5] * 3)
        self._adopt(VisionEncoderDecoderModel(config))

    def _encoder_config(self) -> Any:
        """Of an untrained model, what its image encoder is to be."""
        from transformers import AutoConfig

        with as_data("model.captioner.encoder"):
            return AutoConfig.for_model(**dict(self.configs[0] or {}))

    def read(self, name: str) -> Any:
        from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

        model = network(VisionEncoderDecoderModel, name, self.dtype, idle=("encoder.pooler.",))
        self.tokenizer = AutoTokenizer.from_pretrained(name, **SAFE)
        self.processor = self.image_processor = AutoImageProcessor.from_pretrained(name, **SAFE)
        return model

    def _adopt(self, model: Any) -> None:
        super()._adopt(model)
        # A ViT's pooler is no part of its memory: a gradient never reaches it, and plain `ddp` would wait for one.
        if isinstance(pooler := getattr(model.encoder, "pooler", None), nn.Module):
            pooler.requires_grad_(False)

    @property
    def encoder(self) -> Any:
        return self.model.encoder

    @property
    def language_model(self) -> Any:
        return self.model.decoder

    def side(self) -> int:
        config = self._encoder_config() if self.model is None else self.model.config.encoder
        if size := getattr(config, "image_size", None):
            return square(size)
        if self.image_processor is None:
            raise UserError("model.captioner.encoder names no image_size; add one, e.g. image_size: 224")
        size = dict(getattr(self.image_processor, "crop_size", None) or self.image_processor.size)
        return square([size["height"], size["width"]] if "height" in size else size.get("shortest_edge"))

    def special_tokens(self) -> tuple[int, int]:
        config = self.model.config
        start = next(
            token
            for token in (config.decoder_start_token_id, config.decoder.bos_token_id, self.tokenizer.bos_token_id)
            if token is not None
        )
        # Captions are padded after their end, where a causal decoder cannot see it: no mask is needed, nor a warning.
        config.decoder.pad_token_id = None
        return int(start), int(self.tokenizer.eos_token_id)

    def see(self, images: Tensor) -> Tensor:
        memory = self.model.encoder(pixel_values=self.normalise(images)).last_hidden_state
        # A convolutional encoder gives (B, E, H, W).
        return memory.flatten(2).transpose(1, 2).contiguous() if memory.ndim == 4 else memory

    def decode(self, memory: Tensor, **rules: Any) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        return self.model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=memory), **rules)[:, 1:]

    def logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        if projection := getattr(self.model, "enc_to_dec_proj", None):
            memory = projection(memory)
        return self.model.decoder(input_ids=self.shifted(tokens), encoder_hidden_states=memory, use_cache=False).logits

    def save_pretrained(self, folder: Path) -> None:
        super().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def exported(self) -> Any:
        return self.model if self._sees_a_sequence() else self._with_feature_map()

    def _sees_a_sequence(self) -> bool:
        """Whether the encoder's output is (B, S, E), which is what Hugging Face's own class hands to the decoder."""
        side = self.image_size
        with torch.no_grad():
            pixels = self.normalise(self.mean.new_zeros(1, 3, side, side))
            return self.model.encoder(pixel_values=pixels).last_hidden_state.ndim == 3

    def _with_feature_map(self) -> Any:
        """The same model, of a class that can say how it is to be used: saved, it brings its code along."""
        from distcap.models.feature_map_encoder_decoder import FeatureMapEncoderDecoder

        model = FeatureMapEncoderDecoder(copy.deepcopy(self.model.config))
        model.load_state_dict(self.model.state_dict() if self.lora is None else merged(self.model))
        return model


def _word_tokenizer(captions: Iterable[str]) -> Any:
    """One token a word or punctuation mark, in Hugging Face's format."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>"}
    tokenizer = Tokenizer(models.WordLevel(unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(captions, trainers.WordLevelTrainer(special_tokens=list(special.values())))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
