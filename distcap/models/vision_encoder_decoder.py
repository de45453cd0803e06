"""Captioners of Hugging Face's VisionEncoderDecoderModel family."""

import copy
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distcap.models.captioner import Captioner, Sampler
from distcap.models.image_processor import image_processor
from distcap.types import UserError

log = logging.getLogger(__name__)

USAGE = """\
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

model = AutoModelForImageTextToText.from_pretrained(folder{trust}).eval()
processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
tokenizer = AutoTokenizer.from_pretrained(folder)

images = [ImageOps.exif_transpose(Image.open(file)).convert("RGB") for file in files]
tokens = model.generate(processor(images, return_tensors="pt").pixel_values)
captions = [caption.strip() for caption in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
"""


class VisionEncoderDecoder(Captioner):
    """An image encoder and a language model that attends to it, e.g. nlpconnect/vit-gpt2-image-captioning.

    Args:
        init_from: a name on the Hugging Face hub, a folder in that format, or a run folder of the mle or rl stage. None
            builds an untrained model of `encoder` and `decoder`, with a vocabulary of the training captions.
        encoder: for an untrained model, its Hugging Face config, e.g. {model_type: vit, image_size: 64, ...}. With a
            convolutional one, as {model_type: resnet, image_size: 64, ...}, Hugging Face's own generate() must be given
            the memory, for it flattens no feature map.
        decoder: likewise, e.g. {model_type: gpt2, n_embd: 128, ...}.
        max_tokens: ground-truth captions are cut after so many tokens, end token included.
        freeze_encoder: train the language model alone.

    Raises:
        UserError: there is no such model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        init_from: str | None = "nlpconnect/vit-gpt2-image-captioning",
        encoder: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
        max_tokens: int = 40,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.freeze_encoder = freeze_encoder
        self.configs = (encoder, decoder)
        self.model: Any = None
        if init_from is not None:
            self._load(init_from)
        elif encoder is None or decoder is None:
            raise UserError("a captioner with init_from: null needs the configs of its encoder and decoder")

    @property
    def trained(self) -> bool:
        return self.model is not None

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
        encoder, decoder = (dict(config or {}) for config in self.configs)
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            AutoConfig.for_model(**encoder), AutoConfig.for_model(**{**decoder, **special, "add_cross_attention": True})
        )
        config.decoder_start_token_id = self.tokenizer.bos_token_id
        config.pad_token_id = self.tokenizer.pad_token_id
        self._adopt(VisionEncoderDecoderModel(config), mean=[0.5] * 3, std=[0.5] * 3)

    def train(self, mode: bool = True) -> "VisionEncoderDecoder":
        """A frozen encoder stays in eval mode: neither dropout nor running averages."""
        super().train(mode)
        if self.model is not None and self.freeze_encoder:
            self.model.encoder.eval()
        return self

    def _load(self, source: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

        run = Path(source) / "captioner"
        if not run.is_dir() and source.startswith(("runs/", ".", "/")) and not (Path(source) / "config.json").exists():
            raise UserError(
                f"{source}: no captioner there; train it first (distcap fit --config mle.yaml, or demo/mle.yaml for "
                "the embedded benchmark), or name another with --model.captioner.init_from"
            )
        name = str(run) if run.is_dir() else source
        try:
            model = VisionEncoderDecoderModel.from_pretrained(name)
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            processor = AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(f"captioner {name} cannot be loaded: {str(error).splitlines()[0][:300]}") from error
        self._adopt(model, processor.image_mean, processor.image_std)

    def _adopt(self, model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take the model over, and none of the decoding rules that it brings along (trap 8)."""
        from transformers import GenerationConfig

        config = model.config
        start = next(
            token
            for token in (config.decoder_start_token_id, config.decoder.bos_token_id, self.tokenizer.bos_token_id)
            if token is not None
        )
        self.start, self.end = int(start), int(self.tokenizer.eos_token_id)
        pad = self.tokenizer.pad_token_id
        self.pad = int(self.end if pad is None else pad)
        rules = model.generation_config.to_diff_dict()
        ours = {"decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
        if dropped := {key: rule for key, rule in rules.items() if key not in ours and not key.startswith("_")}:
            log.info("the captioner's own decoding rules are not used: %s", dropped)
        self._tokens = {"decoder_start_token_id": self.start, "eos_token_id": self.end, "pad_token_id": self.pad}
        model.generation_config = GenerationConfig(**self._tokens)
        self.processor = image_processor(config.encoder.image_size, mean, std)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        # Captions are padded after their end, where a causal decoder cannot see it: no mask is needed, nor a warning.
        model.decoder.config.pad_token_id = None
        model.encoder.requires_grad_(not self.freeze_encoder)
        self.model = model

    def encode(self, images: Tensor) -> Tensor:
        side = self.model.config.encoder.image_size
        if images.shape[-1] != side:
            raise UserError(
                f"the captioner sees images of {side} pixels, got {images.shape[-1]}; set --data.image_size={side}"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            memory = self.model.encoder(pixel_values=(images - self.mean) / self.std).last_hidden_state
        # A convolutional encoder gives (B, E, H, W).
        return memory.flatten(2).transpose(1, 2).contiguous() if memory.ndim == 4 else memory

    def _rules(self, sampler: Sampler) -> Any:
        """A sampler in Hugging Face's words, but for guidance, which has none there."""
        from transformers import GenerationConfig

        return GenerationConfig(
            **self._tokens,
            max_new_tokens=sampler.max_tokens,
            use_cache=True,
            do_sample=sampler.method == "multinomial",
            num_beams=sampler.beams if sampler.method == "beam" else 1,
            num_return_sequences=sampler.samples,
            no_repeat_ngram_size=sampler.no_repeat_ngram,
            **(
                {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p}
                if sampler.method == "multinomial"
                else {}
            ),
        )

    @torch.no_grad()
    def generate(self, memory: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor, Tensor]:
        from transformers.modeling_outputs import BaseModelOutput

        guided = sampler.guidance != 1
        known = torch.cat([memory, self.unknown(memory)]) if guided else memory
        output = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=known),
            generation_config=self._rules(sampler),
            logits_processor=[partial(_guide, gamma=sampler.guidance)] if guided else None,
        )
        # Guided, the second half is the first once more.
        tokens = output[: len(memory) * sampler.samples, 1:]
        # The end token may double as padding (GPT-2): what counts is everything up to the first one.
        ended = (tokens == self.end).cumsum(1)
        mask = (ended == 0) | ((ended == 1) & (tokens == self.end))
        index = torch.arange(len(memory), device=memory.device).repeat_interleave(sampler.samples)
        return tokens, mask, index

    def score(self, memory: Tensor, tokens: Tensor, mask: Tensor, image_index: Tensor) -> Tensor:
        # Columns of nothing but padding would change how the sums are ordered, hence the last bits of other columns.
        length, width = int(mask.any(0).sum()), tokens.shape[1]
        tokens, mask = tokens[:, :length], mask[:, :length]
        inputs = torch.cat([tokens.new_full((len(tokens), 1), self.start), tokens[:, :-1]], 1)
        states = memory.index_select(0, image_index)
        if projection := getattr(self.model, "enc_to_dec_proj", None):
            states = projection(states)
        logits = self.model.decoder(input_ids=inputs, encoder_hidden_states=states, use_cache=False).logits
        logprobs = logits.float().log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)
        logprobs = torch.where(mask, logprobs, torch.zeros_like(logprobs))
        return torch.nn.functional.pad(logprobs, (0, width - length))

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = self.tokenizer(list(captions), add_special_tokens=False).input_ids
        rows = [[*row[: self.max_tokens - 1], self.end] for row in rows]
        length = max(map(len, rows))
        tokens = torch.tensor([row + [self.pad] * (length - len(row)) for row in rows], device=self.mean.device)
        lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
        return tokens, torch.arange(length, device=tokens.device)[None, :] < lengths[:, None]

    def detokenize(self, tokens: Tensor, mask: Tensor) -> list[str]:
        rows = [row[keep].tolist() for row, keep in zip(tokens.cpu(), mask.cpu(), strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def save_pretrained(self, folder: Path) -> None:
        self._save(self.model, folder)

    def export(self, folder: Path, decoder: Sampler) -> str:
        if decoder.guidance != 1:
            raise UserError(
                f"captions are decoded with guidance {decoder.guidance:g}, of which transformers alone knows nothing; "
                "a captioner whose decoder has guidance: 1 can be exported"
            )
        model = self.model if self._sees_a_sequence() else self._with_feature_map()
        self._save(model, folder)
        self._rules(decoder).save_pretrained(folder)
        return USAGE.format(trust="" if model is self.model else ", trust_remote_code=True")

    def _save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _sees_a_sequence(self) -> bool:
        """Whether the encoder's output is (B, S, E), which is what Hugging Face's own class hands to the decoder."""
        side = self.model.config.encoder.image_size
        with torch.no_grad():
            return self.model.encoder(pixel_values=self.mean.new_zeros(1, 3, side, side)).last_hidden_state.ndim == 3

    def _with_feature_map(self) -> Any:
        """The same model, of a class that can say how it is to be used: saved, it brings its code along."""
        from distcap.models.feature_map_encoder_decoder import FeatureMapEncoderDecoder

        model = FeatureMapEncoderDecoder(copy.deepcopy(self.model.config))
        model.load_state_dict(self.model.state_dict())
        return model


def _guide(tokens: Tensor, scores: Tensor, gamma: float) -> Tensor:
    """(2N, T), (2N, V) -> (2N, V) guided log-probabilities of the next token, of the first half and again.

    A logits processor of Hugging Face's. The first half of the rows knows its images, the second does not. Both get the
    very same numbers, so that greedy search and beam search choose, reorder and end them alike: what either half's
    cache holds is the same caption, or the same beams. (Their own processors either halve the rows, which generate()
    does not expect, or call a model without encoder.)

    Source: Kornblith et al. 2023, arXiv 2307.16686.
    """
    image, none = scores.log_softmax(-1).chunk(2)
    guided = (1 - gamma) * none + gamma * image
    # What another rule forbids, as a repeated n-gram, has -inf in both halves: their difference is not a number.
    guided = guided.masked_fill(image.isneginf(), -torch.inf).log_softmax(-1)
    return guided.repeat(2, 1)


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
