"""Stage 0, for small worlds: train a dual encoder of one's own."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distcap.models import FrozenClip
from distcap.models.loading import one_line, square
from distcap.stages.base import Stage
from distcap.types import Batch, UserError


class Clip(Stage):
    """A small open_clip model learns from image/text pairs with open_clip's own loss.

    For the embedded benchmark, where no pretrained CLIP helps; train a second one with another seed as the judge.
    Written to RUN/clip in open_clip's format. One process: its loss does not gather the batches of several.

    Args:
        model_cfg: open_clip's model config: embed_dim, vision_cfg, text_cfg.
        init_from: a run of this stage with the same model_cfg, or its folder in open_clip's format, from whose weights
            to go on; None begins anew.
        alt_texts: how many texts of each image, the last ones, are alt-texts.
        alt_text_share: share of the drawn texts that are alt-texts.
        max_logit_scale: bound of the learnt logit scale, 1 / tau.
        learning_rate: peak, of AdamW.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up from zero.

    Raises:
        UserError: there is no CLIP to go on from, or it is another model.
    """

    product = "clip"

    def __init__(
        self,
        model_cfg: dict[str, Any],
        init_from: str | None = None,
        alt_texts: int = 0,
        alt_text_share: float = 0.6,
        max_logit_scale: float = 100.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_steps: int = 30,
    ) -> None:
        super().__init__(learning_rate, weight_decay, warmup_steps, "cosine")
        import open_clip

        self.model_cfg = model_cfg
        self.alt_texts = alt_texts
        self.alt_text_share = alt_text_share
        self.max_logit_scale = max_logit_scale
        try:
            size = model_cfg["vision_cfg"]["image_size"]
            net = open_clip.model.CLIP(**model_cfg)  # type: ignore[call-overload]
        except Exception as error:  # open_clip checks next to nothing
            raise UserError(f"--model.model_cfg makes no CLIP: {one_line(error)}") from error
        self.preprocess_cfg = {
            "size": size,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        }
        # Channels last makes its convolutions half as fast again on a CPU.
        self.net = net.to(memory_format=torch.channels_last)
        if init_from is not None:
            self._go_on_from(init_from)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=self.net.context_length)
        self.objective = open_clip.ClipLoss()

    def _go_on_from(self, model: str) -> None:
        weights = FrozenClip(model).net.state_dict()
        try:
            self.net.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"{model} is a CLIP of another model_cfg than the one that is to go on from it") from error

    @property
    def image_size(self) -> int:
        return square(self.preprocess_cfg["size"])

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.show_to_model(self.trainer.datamodule)  # type: ignore[attr-defined]
        for split in ("train", "val") if stage == "fit" else ("val",):
            self.truth(split, "a CLIP learns from pairs of images and texts")

    def _loss(self, batch: Batch, captions: list[str]) -> Tensor:
        pixels = (batch.images - self.preprocess_cfg["mean"][0]) / self.preprocess_cfg["std"][0]
        tokens = self.tokenizer(captions).to(pixels.device)
        return self.objective(*self.net(pixels, tokens))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._loss(batch, [self._draw(texts) for texts in batch.captions])
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/logit_scale", self.net.logit_scale.exp())
        return loss

    def _draw(self, texts: list[str]) -> str:
        """One text of an image: an alt-text, which tells the details, or a caption."""
        captions, alt_texts = texts[: len(texts) - self.alt_texts], texts[len(texts) - self.alt_texts :]
        return random.choice(
            alt_texts if alt_texts and random.random() < self.alt_text_share else captions or alt_texts
        )

    def on_before_zero_grad(self, optimizer: Any) -> None:
        with torch.no_grad():
            self.net.logit_scale.clamp_(max=float(torch.tensor(self.max_logit_scale).log()))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self._loss(batch, [texts[-1] for texts in batch.captions])
        self.log("val/loss", loss, batch_size=len(batch), prog_bar=True, sync_dist=True)

    def hand_over(self, folder: Path) -> None:
        """In open_clip's format."""
        from safetensors.torch import save_file

        config = {"model_cfg": self.model_cfg, "preprocess_cfg": self.preprocess_cfg}
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
        weights = {name: value.contiguous() for name, value in self.net.state_dict().items()}
        save_file(weights, folder / "open_clip_model.safetensors")
