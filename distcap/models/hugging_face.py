"""What captioners in the Hugging Face format share; an adapter fills in what is particular to its family."""

import json
import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distcap.checks import at_least
from distcap.models.captioner import Captioner, Sampler
from distcap.models.checkpointing import checkpoint_layers
from distcap.models.guidance import guide
from distcap.models.image_processor import image_processor
from distcap.models.loading import SAFE, as_data, check_config, check_vocabulary
from distcap.models.lora import FILE as ADAPTERS
from distcap.models.lora import Lora, load_adapters, merged, save_adapters
from distcap.types import UserError

log = logging.getLogger(__name__)

USAGE = """\
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

model = AutoModelForImageTextToText.from_pretrained(folder{trust}).eval()
processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
rules = GenerationConfig.from_pretrained(folder)

images = [ImageOps.exif_transpose(Image.open(file)).convert("RGB") for file in files]
pixels = processor(images, return_tensors="pt").pixel_values
tokens = model.generate(pixel_values=pixels, generation_config=rules)
captions = [caption.strip() for caption in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
"""


PLACES = ("wpe", "position_embeddings", "embed_positions")
"""What language models call a table of learnt embeddings of places, which has an end."""


class HuggingFaceCaptioner(Captioner):
    """A network with its tokenizer and image processor, all three in the Hugging Face format.

    An adapter reads them and says where the parts of its network are (`read`, `encoder`, `language_model`), what its
    memory of an image is (`see`), and how the language model goes on from it (`decode`, `logits`).

    Args:
        init_from: a name on the Hugging Face hub, a folder in that format, or a run folder of the mle or rl stage.
        max_tokens: ground-truth captions are cut after so many tokens, end token included.
        freeze_encoder: train all but the image encoder.
        lora: train low-rank adapters of the language model alone.
        gradient_checkpointing: compute each layer's activations anew for its gradient rather than store them: about a
            third more time for much less memory. Off, and on, the gradient is the same.

    Raises:
        UserError: there is no such model.
    """

    families: tuple[str, ...] = ()
    """The `model_type`s of Hugging Face that the adapter is for; none where its auto class decides."""
    mean: Tensor
    std: Tensor
    start: Any
    """The token before the first, an int; None in a family that has none, whose `logits` do not ask for it."""
    end: int
    pad: int

    def __init__(
        self,
        init_from: str | None,
        max_tokens: int = 40,
        freeze_encoder: bool = False,
        lora: Lora | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        at_least("--model.captioner.max_tokens", max_tokens, 1)
        self.max_tokens: int = max_tokens
        self.freeze_encoder = freeze_encoder or lora is not None
        self.lora = lora
        self.gradient_checkpointing = gradient_checkpointing
        self.tokenizer: Any = None
        self.processor: Any = None
        self.image_processor: Any = None
        self.model: Any = None
        if init_from is not None:
            self._load(init_from)

    @abstractmethod
    def read(self, name: str) -> Any:
        """The network of a hub name or folder; sets tokenizer, image_processor, and the processor that is saved."""

    @property
    @abstractmethod
    def encoder(self) -> Any:
        """The part of the network that `freeze_encoder` freezes."""

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """The part of the network that LoRA adapts."""

    @abstractmethod
    def side(self) -> int:
        """Of the square images that the encoder sees; known before an untrained captioner is built."""

    @property
    def image_size(self) -> int:  # type: ignore[override]
        return self.side()

    @property
    def embedder(self) -> Any:
        """The part of the network that embeds tokens, and in some families their places."""
        return self.language_model

    @property
    def taken(self) -> int:
        """Places that are taken before the one at which a caption's first token is predicted."""
        return 0

    @property
    def longest(self) -> int | None:  # type: ignore[override]
        if self.model is None:
            return None
        tables = [
            part
            for name, part in self.embedder.named_modules()
            if isinstance(part, nn.Embedding) and name.rsplit(".", 1)[-1] in PLACES
        ]
        if not tables:  # places are rotations, or distances: any number of them
            return None
        [table, *_] = tables
        told = getattr(self.embedder.config, "max_position_embeddings", table.num_embeddings)
        # RoBERTa's places begin behind that of padding.
        skipped = 0 if table.padding_idx is None else table.padding_idx + 1
        return min(told, table.num_embeddings) - skipped - self.taken

    @abstractmethod
    def special_tokens(self) -> tuple[int | None, int]:
        """The token before a caption's first, if there is one, and the token that ends it."""

    @abstractmethod
    def see(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [0, 1], of the right size -> (B, S, E) memory."""

    @abstractmethod
    def decode(self, memory: Tensor, **rules: Any) -> Tensor:
        """(B, S, E), arguments of Hugging Face's generate() -> (N, T) tokens, the start token left out."""

    @abstractmethod
    def logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """(N, S, E), (N, T) -> (N, T, V) of each token, given the ones before it."""

    @property
    def trained(self) -> bool:
        return self.model is not None

    def train(self, mode: bool = True) -> "HuggingFaceCaptioner":
        """A frozen encoder stays in eval mode: neither dropout nor running averages."""
        super().train(mode)
        if self.model is not None and self.freeze_encoder:
            self.encoder.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """In which weights are loaded: float32 whatever they were saved in, for updates are lost in fewer bits."""
        return torch.float32 if self.lora is None else getattr(torch, self.lora.base)

    @property
    def precision(self) -> torch.dtype:
        """Of the image encoder's weights now: that of its pixels. A Trainer's `bf16-true` changes it after loading."""
        return next(self.encoder.parameters()).dtype

    def _load(self, source: str) -> None:
        run = Path(source) / "captioner"
        if not run.is_dir() and source.startswith(("runs/", ".", "/")) and not (Path(source) / "config.json").exists():
            raise UserError(
                f"{source}: no captioner there; train it first (distcap fit --config mle.yaml, or demo/mle.yaml for "
                "the embedded benchmark), or name another with --model.captioner.init_from"
            )
        name = str(run) if run.is_dir() else source
        with as_data(f"captioner {name}"):
            self._check_family(name)
            self._adopt(self.read(name))
        if self.lora is not None:
            load_adapters(self.model, self.lora, Path(name))

    def _check_family(self, name: str) -> None:
        """Hugging Face would warn, and read another family's config with weights drawn at random."""
        from transformers import PreTrainedConfig

        config = PreTrainedConfig.get_config_dict(name, **SAFE)[0]
        check_config(config)
        found = config.get("model_type")
        if self.families and found not in self.families:
            raise ValueError(f"it is a {found} model, {type(self).__name__} is for {' and '.join(self.families)}")

    def _adopt(self, model: Any) -> None:
        """Take the model over, and none of the decoding rules that it brings along (trap 8)."""
        self.model = model
        self.start, self.end = self.special_tokens()
        pad = self.tokenizer.pad_token_id
        self.pad = int(self.end if pad is None else pad)
        self._tokens = {"eos_token_id": self.end, "pad_token_id": self.pad}
        if self.start is not None:
            self._tokens |= {"decoder_start_token_id": self.start, "bos_token_id": self.start}
        check_vocabulary(self.tokenizer, self.embedder.get_input_embeddings().num_embeddings)
        _ = self.image_size  # one that sees no squares is refused now
        self._neutralise()
        self.register_buffer("mean", torch.tensor(self.image_processor.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.image_processor.image_std).view(3, 1, 1), persistent=False)
        self.encoder.requires_grad_(not self.freeze_encoder)
        if self.lora is not None:
            model.requires_grad_(False)
            self.lora.add_to(self.language_model)
        if self.gradient_checkpointing:
            checkpoint_layers(model)

    def _neutralise(self) -> None:
        """No part of the network may decode by rules of its own: what generate() is not told it takes from there."""
        from transformers import GenerationConfig, GenerationMixin

        ours = {"decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
        for part in self.model.modules():
            if isinstance(part, GenerationMixin):
                rules = part.generation_config.to_diff_dict()
                if dropped := {key: rule for key, rule in rules.items() if key not in ours and not key.startswith("_")}:
                    log.info("the captioner's own decoding rules are not used: %s", dropped)
                part.generation_config = GenerationConfig(**self._tokens)

    def encode(self, images: Tensor) -> Tensor:
        side = self.image_size
        if images.shape[-1] != side:
            raise UserError(
                f"the captioner sees images of {side} pixels, got {images.shape[-1]}; set --data.image_size={side}"
            )
        return self.see(images)

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [0, 1] -> the same by the processor's mean and standard deviation.

        In the precision of the encoder's weights.
        """
        return ((images - self.mean) / self.std).to(self.precision)

    @torch.no_grad()
    def generate(self, memory: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor, Tensor]:
        self.allow("max_tokens of a sampler or decoder", sampler.max_tokens)
        guided = sampler.guidance != 1
        output = self.decode(
            torch.cat([memory, self.unknown(memory)]) if guided else memory,
            generation_config=self._rules(sampler),
            logits_processor=[partial(guide, gamma=sampler.guidance)] if guided else None,
        )
        # Guided, the second half is the first once more.
        tokens = output[: len(memory) * sampler.samples]
        # The end token may double as padding (GPT-2): what counts is everything up to the first one.
        ended = (tokens == self.end).cumsum(1)
        mask = (ended == 0) | ((ended == 1) & (tokens == self.end))
        index = torch.arange(len(memory), device=memory.device).repeat_interleave(sampler.samples)
        return tokens, mask, index

    def _rules(self, sampler: Sampler) -> Any:
        """The sampler as a GenerationConfig."""
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

    def score(
        self, memory: Tensor, tokens: Tensor, mask: Tensor, image_index: Tensor, temperature: float = 1.0
    ) -> Tensor:
        # Padding is moved behind the caption, where a causal decoder cannot see it. Columns of nothing but padding
        # would change how the sums are ordered, hence the last bits of other columns.
        order = (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
        words = tokens.gather(1, order)
        logits = self.logits(memory.index_select(0, image_index), words).float()
        if temperature != 1:
            logits = logits / temperature
        logprobs = logits.log_softmax(-1).gather(2, words[..., None]).squeeze(2)
        logprobs = torch.where(mask.gather(1, order), logprobs, torch.zeros_like(logprobs))
        return torch.zeros_like(tokens, dtype=logprobs.dtype).scatter(1, order, logprobs)

    def shifted(self, tokens: Tensor) -> Tensor:
        """(N, T) -> (N, T) what the decoder reads when it predicts them: the start token and all but the last."""
        return torch.cat([torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]], 1)

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
        """Of a captioner with LoRA the merged weights, so that no one who reads them needs to know of adapters.

        Where the base has fewer bits than float32, the adapters are written beside them, for a captioner with the same
        `lora` to go on with: merged weights in so few bits would be another captioner.
        """
        self._save_weights(folder)
        self.processor.save_pretrained(folder)
        if self.lora is not None and self.lora.base != "float32":
            save_adapters(self.model, self.lora, folder)

    def export(self, folder: Path, decoder: Sampler) -> str:
        if decoder.guidance != 1:
            raise UserError(
                f"captions are decoded with guidance {decoder.guidance:g}, of which transformers alone knows nothing; "
                "a captioner whose decoder has guidance: 1 can be exported"
            )
        self.save_pretrained(folder)
        (folder / ADAPTERS).unlink(missing_ok=True)
        usage = self.usage(folder)
        self._rules(decoder).save_pretrained(folder)  # over those that came with the weights
        return usage

    def usage(self, folder: Path) -> str:
        """The code that captions with what `export` wrote; adds to the folder what the code needs beyond that."""
        if (network := self.exported()) is not self.model:
            network.save_pretrained(folder)
        # It names the authors' image processor, which would be read before the one that makes the pixels we trained on.
        (folder / "processor_config.json").unlink(missing_ok=True)
        pixels = image_processor(self.image_size, self.mean.flatten().tolist(), self.std.flatten().tolist())
        pixels.save_pretrained(folder)
        return USAGE.format(trust=", trust_remote_code=True" if any(folder.glob("*.py")) else "")

    def exported(self) -> Any:
        """The network, or the same one of a class that brings its code along where transformers has none for it."""
        return self.model

    def _save_weights(self, folder: Path) -> None:
        if self.lora is None:
            self.model.save_pretrained(folder)
            return
        self.model.save_pretrained(folder, state_dict=merged(self.model))
        # Hugging Face loads weights in the precision that the config names, and that would round the merged ones.
        file = folder / "config.json"
        file.write_text(json.dumps(_float32(json.loads(file.read_text())), indent=2))


def _float32(config: Any) -> Any:
    """A config of Hugging Face's, and those of its parts, with float32 for the precision of the weights."""
    if not isinstance(config, dict):
        return config
    return {
        key: "float32" if key in ("dtype", "torch_dtype") and value else _float32(value)
        for key, value in config.items()
    }
