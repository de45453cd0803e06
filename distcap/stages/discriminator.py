"""Stage 2: tell human captions from the MLE captioner's."""

from abc import abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from distcap.corpus import Corpus
from distcap.data import ImageData
from distcap.experience import Experience
from distcap.models import Captioner, Discriminator, FrozenClip, Sampler, Sight
from distcap.stages.base import Stage
from distcap.types import Batch

Examples = tuple[Tensor | None, Tensor, Tensor]
"""(N, D) images, or None where none are read; (N, D) captions; (N,) True for human ones."""


class DiscriminatorStage(Stage):
    """An MLP on CLIP embeddings learns human (ground truth) captions vs. others.

    Written to RUN/discriminator, for the DiscriminatorReward of the RL stage.

    Args:
        clip: whose embeddings it reads: the reward CLIP, with the same prompt.
        hidden: widths of the MLP.
        images: whether it reads the images' embeddings, too.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    def __init__(
        self, clip: FrozenClip, hidden: tuple[int, ...], images: bool, learning_rate: float, weight_decay: float
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.clip = clip
        self.discriminator = Discriminator(clip.embed_captions([""]).shape[1], hidden, images)

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.clip.to(self.trainer.strategy.root_device)
        splits = ("train", "val") if stage == "fit" else ("val",)
        if self.discriminator.images:
            files = {image: file for split in splits for image, file in self.files(split).items()}
            self.images = self.clip.image_store(files, data.cache_dir)
        truth = [caption for split in splits for row in self.references(split).values() for caption in row]
        self.captions = self.clip.caption_store(truth, data.cache_dir)

    def references(self, split: str) -> dict[int, list[str]]:
        """Image id -> human captions that the examples are made of."""
        return self.truth(split, "a discriminator learns what human captions are")

    @abstractmethod
    def examples(self, batch: Batch) -> Examples:
        """What is told apart in this batch, as many human captions as others; without gradient."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        examples = self.examples(batch)
        loss = self.discriminator.loss(*examples)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self._accuracy(*examples), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        examples = self.examples(batch)
        self.log("val/loss", self.discriminator.loss(*examples), batch_size=len(batch))
        self.log("val/accuracy", self._accuracy(*examples), batch_size=len(batch), prog_bar=True)

    @torch.no_grad()
    def _accuracy(self, images: Tensor | None, captions: Tensor, human: Tensor) -> Tensor:
        return ((self.discriminator(images, captions) > 0) == human).float().mean()

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.discriminator.save(Path(self.trainer.default_root_dir) / "discriminator")


class TrainDiscriminator(DiscriminatorStage):
    """Human (ground truth) vs. generated captions (fresh samples of the captioner), of an image that is read as well.

    Args:
        captioner: the frozen generator, of the mle stage.
        clip: whose embeddings it reads: the reward CLIP.
        corpus: another data set whose human captions, with their images, are told from the captioner's: for images
            without captions. By default those of the images themselves.
        sampler: how the generated captions are drawn; as in the RL stage.
        hidden: widths of the MLP.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    def __init__(
        self,
        captioner: Captioner,
        clip: FrozenClip,
        corpus: ImageData | None = None,
        sampler: Sampler = Sampler(),  # noqa: B008 - a value, never changed
        hidden: tuple[int, ...] = (512, 256),
        learning_rate: float = 5e-4,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(clip, hidden, images=True, learning_rate=learning_rate, weight_decay=weight_decay)
        self.captioner = captioner.requires_grad_(False)
        self.corpus = corpus
        self.sampler = sampler
        self._corpora: dict[str, dict[str | None, Corpus]] = {}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.corpus is not None:
            splits = ("train", "val") if stage == "fit" else ("val",)
            self._corpora = {split: {None: Corpus(self.corpus, split, self.clip)} for split in splits}

    def references(self, split: str) -> dict[int, list[str]]:
        return super().references(split) if self.corpus is None else {}

    @torch.no_grad()
    def examples(self, batch: Batch) -> Examples:
        self.captioner.eval()
        experience = Experience(
            batch,
            self.captioner,
            sampler=self.sampler,
            greedy=Sampler(method="greedy"),
            rewards={},
            clips={None: Sight(self.clip, self.images, self.captions)},
            ground_truth_per_image=self.sampler.samples,
            corpora=self._corpora.get("train" if self.trainer.training else "val"),
        )
        return experience.human_or_sampled()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """The captioner is frozen and comes from its own run."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("captioner.")}
        self.strict_loading = False

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.strict_loading = False
