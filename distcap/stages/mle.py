"""Stage 1: teacher forcing."""

from typing import Any, Literal

import torch
from torch import Tensor

from distcap.checks import at_least, share
from distcap.models import Captioner, Sampler
from distcap.stages.base import CaptionerStage, one_caption
from distcap.types import Batch


class MLE(CaptionerStage):
    """Maximum likelihood of the human captions: reinforce(ground truth, advantage 1), per token.

    The loss is the mean over the tokens of the whole batch: those of all processes, and of all parts of a batch that is
    accumulated. So neither changes the gradient.

    Args:
        captioner: to be trained.
        decoder: how captions are decoded for evaluation.
        captions_per_image: human captions of each image in a step; 0 for all. The image is encoded once for them.
        drop_image: share of the images that are withheld in a step: of them the captioner learns p(caption), which
            guided decoding needs. "Conditioning dropout" in Kornblith et al. 2023, arXiv 2307.16686.
        learning_rate: peak, of AdamW.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up from zero.
        schedule: after the warm-up.
        clip_gradient: largest norm of the gradient; 0 for any.

    Raises:
        UserError: `drop_image` is no share.
    """

    def __init__(
        self,
        captioner: Captioner,
        decoder: Sampler = Sampler(method="greedy"),  # noqa: B008 - a value, never changed
        captions_per_image: int = 0,
        drop_image: float = 0.0,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        clip_gradient: float = 1.0,
    ) -> None:
        super().__init__(
            captioner,
            decoder,
            learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            schedule=schedule,
            clip_gradient=clip_gradient,
        )
        share("--model.drop_image", drop_image)
        one_caption(decoder)
        at_least("--model.captions_per_image", captions_per_image, 0)
        self.captions_per_image = captions_per_image
        self.drop_image = drop_image
        self._tokens: list[Tensor] = []
        """Tokens of each part of an accumulated batch so far, the mean over processes."""

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.truth("train", "teacher forcing learns from human captions")
        super().setup(stage)

    def on_train_start(self) -> None:
        # Hugging Face loads networks in eval mode: without this, a pretrained captioner would learn without dropout.
        self.captioner.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        captions, index = [], []
        for row, truth in enumerate(batch.captions):
            count = min(self.captions_per_image or len(truth), len(truth))
            captions += [truth[i] for i in torch.randperm(len(truth))[:count].tolist()]
            index += [row] * count
        tokens, mask = self.captioner.tokenize(captions)
        rows = torch.tensor(index, device=tokens.device)
        memory = self.captioner.encode(batch.images)
        if self.drop_image:
            dropped = torch.rand(len(memory), 1, 1, device=memory.device) < self.drop_image
            memory = torch.where(dropped, self.captioner.unknown(memory), memory)
        logprobs = self.captioner.score(memory, tokens, mask, rows)
        loss = -logprobs.sum() / mask.sum()
        accumulates = self._trainer is not None and self.trainer.accumulate_grad_batches > 1
        if self.processes == 1 and not accumulates:
            self.log("train/loss", loss, prog_bar=True)
            return loss
        # (2, W) of all processes.
        losses, tokens = self._gathered(torch.stack([loss.detach().double(), mask.sum().double()]))
        self.log("train/loss", (losses * tokens).sum() / tokens.sum(), prog_bar=True)
        self._tokens.append(tokens.mean())
        # How many tokens are still to come isn't known yet: until the step, the first part's number is the unit.
        return loss * (mask.sum() / self._tokens[0]).to(loss.dtype)

    def _gathered(self, values: Tensor) -> Tensor:
        """(K,) of this process -> (K, W) of all."""
        return values[:, None] if self.processes == 1 else self.all_gather(values).T  # type: ignore[union-attr]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """The gradient is a mean over processes and parts, in units of the first part's tokens: rescale it."""
        if not self._tokens:
            return
        parts = self.trainer.accumulate_grad_batches
        factor = self._tokens[0] * parts / torch.stack(self._tokens).sum()
        self._tokens = []
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor.to(parameter.grad.dtype))
