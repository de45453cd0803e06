"""ClipCap's network in the Hugging Face format. Needs transformers and open_clip, and nothing of distcap.

An exported captioner ships this file, for transformers has no such class; open_clip builds its image encoder.
"""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SEEING = ("embed_dim", "vision_cfg", "quick_gelu")
"""Of open_clip's model_cfg, what the image encoder depends on."""
NO_TEXT: dict[str, Any] = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""The least of a text encoder: open_clip builds one beside each image encoder, and it is thrown away."""


class ClipCapConfig(PreTrainedConfig):
    """What the network is made of.

    Args:
        clip: open_clip's config of the image encoder: model_cfg, of which embed_dim, vision_cfg and quick_gelu count,
            and preprocess_cfg.
        language_model: the config of a causal language model, as a dict.
        prefix: P, embeddings an image.
        kwargs: see PreTrainedConfig.
    """

    model_type = "clipcap"

    def __init__(
        self,
        clip: dict[str, Any] | None = None,
        language_model: dict[str, Any] | None = None,
        prefix: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.clip, self.language_model, self.prefix = clip, language_model, prefix


class ClipCapModel(PreTrainedModel):
    """An image encoder of open_clip, a mapping network (an MLP), and a causal language model.

    Args:
        config: of all three.
        vision: the image encoder, (B, 3, H, W) -> (B, D); None for one of random weights.
        language_model: whose embeddings are E wide; None for one of random weights.
    """

    config_class = ClipCapConfig
    _keep_in_fp32_modules_strict = ["mapping"]  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: Any, vision: nn.Module | None = None, language_model: Any = None) -> None:
        super().__init__(config)
        self.vision = untrained_vision(config.clip["model_cfg"]) if vision is None else vision
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.language_model))
        self.language_model = language_model
        width, size = config.clip["model_cfg"]["embed_dim"], language_model.get_input_embeddings().embedding_dim
        hidden, out = size * config.prefix // 2, size * config.prefix
        self.mapping = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """All parts come with theirs."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, P, E)"""
        return self.mapping(self.vision(pixel_values).float()).unflatten(1, (self.config.prefix, -1))

    def generate(self, pixel_values: Tensor, **rules: Any) -> Tensor:
        """(B, 3, H, W), arguments of the language model's generate() -> (N, T) tokens"""
        prefix = self(pixel_values).to(self.language_model.dtype)
        seen = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
        return self.language_model.generate(inputs_embeds=prefix, attention_mask=seen, **rules)


def untrained_vision(model_cfg: dict[str, Any]) -> nn.Module:
    """open_clip's image encoder; on the CPU, even where transformers builds all else without memory."""
    import open_clip

    used: dict[str, Any] = {name: model_cfg[name] for name in SEEING if name in model_cfg}
    logging.disable(logging.WARNING)  # that there are no weights beside the config
    try:
        with TemporaryDirectory() as folder, torch.device("cpu"):
            config: dict[str, Any] = {"model_cfg": {**used, "text_cfg": NO_TEXT}, "preprocess_cfg": {}}
            (Path(folder) / "open_clip_config.json").write_text(json.dumps(config))
            return open_clip.create_model(f"local-dir:{folder}", load_weights=False).visual
    finally:
        logging.disable(logging.NOTSET)
