"""Stage 2: tell human captions from the MLE captioner's."""

from pathlib import Path

import torch
from torch import Tensor

from distcap.experience import Experience
from distcap.models import Captioner, Discriminator, FrozenClip, Sampler
from distcap.stages.base import Stage
from distcap.types import Batch


class TrainDiscriminator(Stage):
    """An MLP on CLIP embeddings learns human (ground truth) vs. generated (fresh samples of the captioner).

    Written to RUN/discriminator, for the DiscriminatorReward of the RL stage.

    Args:
        captioner: the frozen generator, of the mle stage.
        clip: whose embeddings it reads: the reward CLIP.
        sampler: how the generated captions are drawn; as in the RL stage.
        hidden: widths of the MLP.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        captioner: Captioner,
        clip: FrozenClip,
        sampler: Sampler = Sampler(),  # noqa: B008 - a value, never changed
        hidden: tuple[int, ...] = (512, 256),
        learning_rate: float = 5e-4,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.captioner = captioner.requires_grad_(False)
        self.clip = clip
        self.sampler = sampler
        self.discriminator = Discriminator(clip.embed_captions([""]).shape[1], hidden)

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.clip.to(self.trainer.strategy.root_device)
        splits = ("train", "val") if stage == "fit" else ("val",)
        files = {image: file for split in splits for image, file in self.files(split).items()}
        self.images = self.clip.image_store(files, data.cache_dir)
        truth = [caption for split in splits for row in data.references(split).values() for caption in row]
        self.captions = self.clip.caption_store(truth, data.cache_dir)

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and truth of as many generated captions as human ones."""
        self.captioner.eval()
        experience = Experience(
            batch,
            self.captioner,
            sampler=self.sampler,
            greedy=Sampler(method="greedy"),
            rewards={},
            clip=self.clip,
            image_embeddings=self.images[batch.image_ids].to(self.device),
            caption_store=self.captions,
            ground_truth_per_image=self.sampler.samples,
        )
        with torch.no_grad():
            rollouts = experience.sampled, experience.ground_truth
            images = torch.cat([experience.image_embeddings[rollout.image_index] for rollout in rollouts])
            captions = torch.cat([experience.caption_embeddings(rollout) for rollout in rollouts])
        human = torch.arange(len(images), device=images.device) >= len(rollouts[0])
        return self.discriminator(images, captions), human

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, human = self._step(batch)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, human.float())
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", ((logits > 0) == human).float().mean(), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits, human = self._step(batch)
        self.log("val/accuracy", ((logits > 0) == human).float().mean(), batch_size=len(batch), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """The captioner is frozen and comes from its own run."""
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("captioner.")}
        self.strict_loading = False

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.strict_loading = False

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.discriminator.save(Path(self.trainer.default_root_dir) / "discriminator")
