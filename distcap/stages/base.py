"""What the stages of training share."""

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from distcap.data import ImageData
from distcap.models import Captioner, Sampler
from distcap.types import Batch, UserError


def draw_from(*key: object) -> None:
    """Seed all chance with the run's seed and a key: what is drawn next depends on nothing that was drawn before."""
    draw = random.Random(" ".join(map(str, (os.environ.get("PL_GLOBAL_SEED", "0"), *key))))
    random.seed(draw.getrandbits(63))
    torch.manual_seed(draw.getrandbits(63))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Of each tensor its name, shape and up to sixty-four values: enough to tell two trainings apart, at no cost."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        some = value.flatten()[:: max(1, value.numel() // 64)]
        digest.update(f"{name} {tuple(value.shape)} {some.tolist()}".encode())
    return digest.hexdigest()[:16]


def check_lengths(captioner: nn.Module, lengths: Mapping[str, int], stage: str) -> None:
    """Raises UserError if the captioner has no places for captions so long; of training, for ground truth as well."""
    if not isinstance(captioner, Captioner):  # but another module that does what one does
        return
    if stage == "fit" and captioner.max_tokens is not None:
        lengths = {**lengths, "--model.captioner.max_tokens": captioner.max_tokens}
    for name, tokens in lengths.items():
        captioner.allow(name, tokens)


class Stage(LightningModule):
    """A LightningModule with AdamW, warm-up, and clipping by parameter group.

    Hyperparameters are not saved in checkpoints: the run's config.yaml has them, and Lightning would prefer a
    checkpoint's own to the ones asked for. Stages hand over by `init_from`; `--ckpt_path` resumes.

    Args:
        learning_rate: peak, of AdamW.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up from zero.
        schedule: after the warm-up.
        clip_gradient: largest norm of each parameter group's gradient; 0 for any.
    """

    corpus: ImageData | None = None
    """Another data set, for a stage that reads its human captions."""

    def __init__(
        self,
        learning_rate: float,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        clip_gradient: float = 1.0,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.clip_gradient = clip_gradient

    @property
    def image_size(self) -> int | None:
        """Side of the square images that the stage's model sees; None for any."""
        return None

    def show_to_model(self, data: Any) -> None:
        """Let the data module make the pixels that the model sees. Raises UserError if it was told of other ones."""
        if self.image_size is not None and hasattr(data, "see"):
            data.see(self.image_size)

    def prepare_data(self) -> None:
        """Lightning sees to the stage's own data module."""
        if self.corpus is not None:
            self.corpus.prepare_data()

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """Of the optimizer; each is clipped by its own norm, so that none slows another down."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> Any:
        from transformers import get_scheduler

        optimizer = torch.optim.AdamW(
            list(self.parameter_groups()),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            # Faster, but it unscales float16 gradients itself, after they were clipped.
            fused=self.trainer.precision != "16-mixed",
        )
        scheduler = get_scheduler(
            "constant_with_warmup" if self.schedule == "constant" else self.schedule,
            optimizer,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=int(self.trainer.estimated_stepping_batches),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if self.clip_gradient:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.clip_gradient)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Each step draws from a seed of its own, so that a run that was interrupted draws on as if it had not been."""
        draw_from(self.current_epoch, batch_idx, self.global_rank)

    def files(self, split: str) -> dict[int, Path]:
        """Image id -> file, of a split of the data module."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return {entry.image_id: data.path(entry) for entry in data.entries(split)}

    def truth(self, split: str, reader: str) -> dict[int, list[str]]:
        """Image id -> human captions, of a split of the data module.

        Raises:
            UserError: there are none, and the reader, as it says of itself, needs some.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        references = data.references(split)
        if not any(references.values()):
            raise UserError(
                f"{reader}, and {data.name} has no human captions of its {split} images; {data.captions_hint}"
            )
        return references

    def log_train(self, values: dict[str, Tensor | float]) -> None:
        self.log_dict(values, on_step=True, on_epoch=False)


class CaptionerStage(Stage):
    """A stage that trains a captioner, and captions validation, test and prediction images.

    Args:
        captioner: the policy.
        decoder: how captions are decoded for evaluation.
    """

    def __init__(self, captioner: Captioner, decoder: Sampler, learning_rate: float, **kwargs: Any) -> None:
        super().__init__(learning_rate, **kwargs)
        self.captioner = captioner
        self.decoder = decoder
        self._fitted = False

    @property
    def image_size(self) -> int | None:
        return getattr(self.captioner, "image_size", None)

    def lengths(self) -> dict[str, int]:
        """By argument, how many tokens the captions may have that the captioner is asked for."""
        return {"--model.decoder.max_tokens": self.decoder.max_tokens}

    def setup(self, stage: str) -> None:
        self.show_to_model(self.trainer.datamodule)  # type: ignore[attr-defined]
        self._untrained = stage != "fit" and not (self._fitted or self.captioner.trained)
        self._fitted |= stage == "fit"
        self.captioner.prepare(self._truth())
        check_lengths(self.captioner, self.lengths(), stage)
        self._fingerprint = fingerprint(self._frozen())  # before anything changes their device or precision

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of the captioner only what is trained, and a fingerprint of the rest, which `init_from` gives again."""
        frozen = self._frozen()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["frozen"] = self._fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._untrained = False
        if checkpoint.get("frozen", self._fingerprint) != self._fingerprint:
            raise UserError(
                "the checkpoint's captioner has other frozen weights than model.captioner.init_from gives now; name "
                "the same one, with the same freeze_encoder and lora"
            )
        # Loading stays strict: what is trained must be there, all of it.
        checkpoint["state_dict"] = {**self._frozen(), **checkpoint["state_dict"]}

    def _frozen(self) -> dict[str, Tensor]:
        """The captioner's frozen weights, by their names in a checkpoint."""
        parameters = self.captioner.named_parameters("captioner", remove_duplicate=False)
        return {name: parameter.data for name, parameter in parameters if not parameter.requires_grad}

    def on_validation_start(self) -> None:
        if self._untrained:
            raise UserError(
                f"{self.trainer.state.fn.value} needs a trained captioner; name its checkpoint, "  # type: ignore[union-attr]
                "e.g. --ckpt_path last for the run's own"
            )

    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    def _truth(self) -> Iterator[str]:
        """The training captions, read only if the captioner asks for them."""
        reader = "an untrained captioner, without --model.captioner.init_from, takes its words from human captions"
        for captions in self.truth("train", reader).values():
            yield from captions

    @torch.no_grad()
    def decode(self, batch: Batch) -> tuple[list[str], Tensor]:
        """N captions, as many of each image as the decoder draws, and (N,) the row of the batch that each describes."""
        training = self.captioner.training
        self.captioner.eval()
        tokens, mask, index = self.captioner.generate(self.captioner.encode(batch.images), self.decoder)
        self.captioner.train(training)
        return self.captioner.detokenize(tokens, mask), index

    def caption(self, batch: Batch) -> list[str]:
        """B captions, one of each image."""
        return self.decode(batch)[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:  # type: ignore[override]
        """Image id -> caption; the Evaluation callback makes metrics of them."""
        return dict(zip(batch.image_ids, self.caption(batch), strict=True))

    test_step = validation_step  # type: ignore[assignment]
    predict_step = validation_step  # type: ignore[assignment]

    def on_train_end(self) -> None:
        """Hand the captioner over in the Hugging Face format, to any later stage and any other program."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.captioner.save_pretrained(Path(self.trainer.default_root_dir) / "captioner")
