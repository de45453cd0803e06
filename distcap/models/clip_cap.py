"""ClipCap: what a CLIP sees becomes the prefix of a language model."""

import copy
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from distcap.models.captioner import Captioner
from distcap.models.clip import FrozenClip
from distcap.models.prefix import PrefixCaptioner
from distcap.types import UserError


class ClipCapModel(nn.Module):
    """An image encoder of open_clip, a mapping network (an MLP), and a causal language model of Hugging Face.

    Args:
        vision: (B, 3, H, W) -> (B, D).
        language_model: whose embeddings are E wide.
        config: open_clip's of the encoder, and `prefix`, P embeddings an image.
    """

    def __init__(self, vision: nn.Module, language_model: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.vision = vision
        self.language_model = language_model
        width, size = config["clip"]["model_cfg"]["embed_dim"], language_model.get_input_embeddings().embedding_dim
        hidden, out = size * config["prefix"] // 2, size * config["prefix"]
        self.mapping = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P, E)"""
        return self.mapping(self.vision(pixels).float()).unflatten(1, (self.config["prefix"], -1))

    def save_pretrained(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        """config.json and model.safetensors of encoder and mapping network; the language model as Hugging Face does."""
        from safetensors.torch import save_file

        weights = self.state_dict() if state_dict is None else state_dict
        own = {name: value.contiguous() for name, value in weights.items() if not name.startswith("language_model.")}
        language = _under("language_model.", weights)
        self.language_model.save_pretrained(folder / "language_model", state_dict=language)
        (folder / "config.json").write_text(json.dumps({"model_type": "clipcap", **self.config}, indent=2))
        save_file(own, folder / "model.safetensors")


class ClipCap(PrefixCaptioner):
    """The image encoder of a CLIP, a mapping network, any causal language model (Mokady et al. 2021, arXiv 2111.09734).

    Their MLP variant. The image encoder is frozen by default, as theirs; with `lora` the mapping network learns, too.
    There is no such class in transformers: a saved folder holds the language model in its format, in a folder of its
    own, and image encoder and mapping network beside it.

    Args:
        init_from: a run folder of the mle or rl stage, or a folder that was saved before. None puts `clip`, an
            untrained mapping network and `language_model` together.
        clip: with nothing to start from, whose image encoder it is.
        language_model: with nothing to start from, a name on the Hugging Face hub or a folder in that format.
        prefix: with nothing to start from, embeddings an image, P.
        freeze_encoder: train all but the image encoder.
        kwargs: see HuggingFaceCaptioner.
    """

    families = ("clipcap",)

    export = Captioner.export  # transformers has no such class

    def __init__(
        self,
        init_from: str | None = None,
        clip: FrozenClip | None = None,
        language_model: str = "openai-community/gpt2",
        prefix: int = 10,
        freeze_encoder: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_from, freeze_encoder=freeze_encoder, **kwargs)
        self._trained = init_from is not None
        if init_from is None:
            if clip is None:
                raise UserError("a ClipCap with init_from: null needs a CLIP to see with; set clip")
            with self.loading(language_model):
                language = self._read_language_model(language_model)
            vision = copy.deepcopy(clip.net.visual).requires_grad_(True)
            self._adopt(self._compose(vision, language, {"prefix": prefix, "clip": clip.config}))

    @property
    def trained(self) -> bool:
        return self._trained

    def read(self, name: str) -> Any:
        import open_clip
        from safetensors.torch import load_file

        config = json.loads((Path(name) / "config.json").read_text())
        config.pop("model_type")
        language = self._read_language_model(str(Path(name) / "language_model"))
        logging.disable(logging.WARNING)  # that there are no weights beside the config
        try:
            with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
                net = open_clip.create_model(f"local-dir:{Path(name).resolve() / 'clip'}", load_weights=False)
                model = self._compose(net.visual, language, config)
        finally:
            logging.disable(logging.NOTSET)
        weights = load_file(Path(name) / "model.safetensors")
        model.vision.load_state_dict(_under("vision.", weights))
        model.mapping.load_state_dict(_under("mapping.", weights))
        return model

    def _read_language_model(self, name: str) -> Any:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(name)
        return AutoModelForCausalLM.from_pretrained(name, dtype=self.dtype)

    def _compose(self, vision: nn.Module, language_model: Any, config: dict[str, Any]) -> ClipCapModel:
        preprocess = config["clip"]["preprocess_cfg"]
        self.image_processor = SimpleNamespace(image_mean=preprocess["mean"], image_std=preprocess["std"])
        return ClipCapModel(vision.to(self.dtype), language_model, config)

    def _adopt(self, model: ClipCapModel) -> None:
        super()._adopt(model)
        model.mapping.requires_grad_(True)

    @property
    def encoder(self) -> Any:
        return self.model.vision

    @property
    def language_model(self) -> Any:
        return self.model.language_model

    decoder = language_model

    @property
    def image_size(self) -> int:
        size = self.model.config["clip"]["preprocess_cfg"]["size"]
        return size if isinstance(size, int) else size[0]

    def special_tokens(self) -> tuple[None, int]:
        # Captions are padded after their end, where a causal decoder cannot see it: no mask is needed, nor a warning.
        self.language_model.config.pad_token_id = None
        return None, self.tokenizer.eos_token_id

    def see(self, images: Tensor) -> Tensor:
        return self.model(self.normalise(images))

    def prefix(self, memory: Tensor) -> Tensor:
        return memory

    def save_pretrained(self, folder: Path) -> None:
        self._save_weights(folder)
        self.tokenizer.save_pretrained(Path(folder) / "language_model")
        (Path(folder) / "clip").mkdir(exist_ok=True)
        config = json.dumps(self.model.config["clip"], indent=2)
        (Path(folder) / "clip" / "open_clip_config.json").write_text(config)


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a part, by their names within it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
