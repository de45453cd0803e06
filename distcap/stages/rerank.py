"""A rival without training: of many samples, the one that CLIP finds most similar to the image."""

from typing import Any

import torch
from torch import Tensor

from distcap.models import Captioner, FrozenClip, Sampler
from distcap.stages.base import CaptionerStage, draw_from
from distcap.types import Batch, UserError

SPLITS = {"validate": "val", "test": "test", "predict": "predict"}
"""What each command captions."""


class Rerank(CaptionerStage):
    """Best-of-n sampling: c = argmax_{c in n samples of p(c | i)} <e(c), e(i)>, with e of the reward CLIP.

    What RL on the CLIP similarity must beat: it spends n decodings an image instead of training. `distcap validate`,
    `test` and `predict` only.

    Args:
        captioner: trained, of the mle stage or any other.
        clip: the dual encoder that chooses: the reward CLIP, never the judge.
        decoder: how the n candidates are drawn.

    Raises:
        UserError: the decoder leaves no choice, or it was asked to fit.
    """

    def __init__(
        self,
        captioner: Captioner,
        clip: FrozenClip,
        decoder: Sampler = Sampler(samples=10),  # noqa: B008 - a value, never changed
    ) -> None:
        if decoder.samples < 2:
            raise UserError(
                f"Rerank chooses among samples, and its decoder draws {decoder.samples} by {decoder.method}; "
                "set decoder: {method: multinomial, samples: 10}"
            )
        super().__init__(captioner, decoder, learning_rate=0.0)
        self.clip = clip

    def setup(self, stage: str) -> None:
        if stage == "fit":
            raise UserError(
                "Rerank has nothing to train: distcap test (or validate, or predict) with the same arguments"
            )
        super().setup(stage)
        self.clip.to(self.trainer.strategy.root_device)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self._images = self.clip.image_store(self.files(SPLITS[stage]), data.cache_dir)

    def training_step(self, *args: Any) -> Tensor:
        """Never called: Lightning wants to see one before setup() can say that there is nothing to train."""
        raise NotImplementedError

    @torch.no_grad()
    def caption(self, batch: Batch) -> list[str]:
        """B captions: of each image's samples the most similar one, whatever was captioned before."""
        draw_from("rerank", *batch.image_ids)
        captions, index = self.decode(batch)
        # Each distinct caption is embedded once: most samples are said of several images.
        rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        embeddings = self.clip.embed_captions(list(rows))[[rows[caption] for caption in captions]]
        images = self._images[batch.image_ids].to(embeddings.device)
        similarity = (embeddings * images[index]).sum(-1)
        own = index == torch.arange(len(batch), device=index.device)[:, None]
        best = similarity.where(own, similarity.new_tensor(-torch.inf)).argmax(1)
        return [captions[row] for row in best.tolist()]
