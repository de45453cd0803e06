"""What the stages of training share."""

import hashlib
import json
import math
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from distcap.checks import at_least
from distcap.data import ImageData
from distcap.files import whole_folder
from distcap.models import Captioner, Sampler
from distcap.stages import position
from distcap.types import Batch, NotFinite, UserError

SKIPPED = 50
"""Steps in a row that float16 may skip while it looks for a scale at which gradients are finite."""


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


def _constant(step: int) -> float:
    """The factor of a learning rate that has no schedule."""
    return 1.0


def check_lengths(captioner: nn.Module, lengths: Mapping[str, int], stage: str) -> None:
    """Raises UserError if the captioner has no places for captions so long; of training, for ground truth as well."""
    if not isinstance(captioner, Captioner):  # but another module that does what one does
        return
    if stage == "fit" and captioner.max_tokens is not None:
        lengths = {**lengths, "--model.captioner.max_tokens": captioner.max_tokens}
    for name, tokens in lengths.items():
        captioner.allow(name, tokens)


def check_stage(checkpoint: Mapping[str, Any], stage: str, run: Path) -> None:
    """See that a checkpoint is one of the stage that is to go on with it: another one's steps are not its own.

    Args:
        checkpoint: what was read.
        stage: name of the stage's class.
        run: the folder of the run that the checkpoint is of.

    Raises:
        UserError: another stage wrote it.
    """
    if (wrote := checkpoint.get("stage", stage)) == stage:
        return
    remedy = f"name a checkpoint of a {stage} run"
    if any(name.startswith("captioner.") for name in checkpoint["state_dict"]):
        remedy = f"to begin with its captioner, say --model.captioner.init_from {run} instead of --ckpt_path"
    raise UserError(f"the checkpoint is of the stage {wrote}, whose steps {stage} cannot go on with; {remedy}")


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first one that holds anything infinite or not a number; None if all is well."""
    return next((name for name, value in weights if value.is_floating_point() and not value.isfinite().all()), None)


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
    product: str | None = None
    """The folder in RUN that the stage hands over to later ones; None for a stage that hands nothing over."""
    between_updates: bool = True
    """Whether the weights are those after a whole step, now that something has gone wrong."""

    def __init__(
        self,
        learning_rate: float,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        clip_gradient: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("learning_rate", learning_rate),
            ("weight_decay", weight_decay),
            ("warmup_steps", warmup_steps),
            ("clip_gradient", clip_gradient),
        ):
            at_least(f"--model.{name}", value, 0)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.clip_gradient = clip_gradient
        self._position: dict[str, Any] | None = None
        self._skipped = 0
        self._handed_over = False

    def setup(self, stage: str) -> None:
        """Refuse what a Trainer can be told and a stage would not do.

        Raises:
            UserError: the Trainer is to clip gradients, or to keep the weights that learn in 16 bits.
        """
        if stage != "fit":
            return
        if self.trainer.gradient_clip_val is not None or self.trainer.gradient_clip_algorithm is not None:
            raise UserError(
                "--trainer.gradient_clip_val has no effect here, because each parameter group is clipped by its own "
                "norm; set --model.clip_gradient instead"
            )
        if self.trainer.precision in ("bf16-true", "16-true"):
            raise UserError(
                f"--trainer.precision {self.trainer.precision} keeps the weights in 16 bits, where small updates are "
                "lost; train with bf16-mixed (evaluation may use either)"
            )

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
        """Of the optimizer; each is clipped by its own norm, so that none slows another down.

        A group with `steady: True` keeps its learning rate: warm-up and schedule are for the others.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> Any:
        from transformers import get_scheduler

        groups = list(self.parameter_groups())
        steady = [group.pop("steady", False) for group in groups]
        optimizer = torch.optim.AdamW(
            groups,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            # Faster, but it unscales float16 gradients itself, after they were clipped.
            fused=self.trainer.precision != "16-mixed",
        )
        # Of an optimizer that nobody uses: the scheduler of ours has a rate for each group.
        (rate,) = get_scheduler(
            "constant_with_warmup" if self.schedule == "constant" else self.schedule,
            torch.optim.SGD([nn.Parameter(torch.zeros(1))]),
            num_warmup_steps=self.warmup_steps,
            num_training_steps=self._total_steps(),
        ).lr_lambdas
        rates = [_constant if constant else rate for constant in steady]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _total_steps(self) -> int:
        """Of the training. Raises UserError if there is no end to it, or if its schedule needs to know one."""
        steps = self.trainer.estimated_stepping_batches
        if math.isfinite(steps):
            return int(steps)
        remedy = "name an end with --trainer.max_steps or --trainer.max_epochs"
        if self.schedule != "constant":
            raise UserError(f"the schedule {self.schedule} falls until the last step, and there is none; {remedy}")
        if not any(isinstance(one, Timer) for one in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(f"the training has no end: {remedy}, or with --trainer.max_time")
        return 0  # a constant schedule does not ask

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        limit = self.clip_gradient or math.inf
        self._check_norms([nn.utils.clip_grad_norm_(group["params"], limit) for group in optimizer.param_groups])

    def _check_norms(self, norms: list[Tensor]) -> None:
        """Raises NotFinite before a gradient spoils the weights. All processes have the same one, and stop together."""
        self._skipped = 0 if bool(sum(norm.to(self.device) for norm in norms).isfinite()) else self._skipped + 1  # type: ignore[union-attr]
        # Float16 skips a step of infinite gradients by itself, and scales the next one down.
        if self._skipped > (SKIPPED if self.trainer.precision == "16-mixed" else 0):
            losses = {name: value for name, value in self.trainer.callback_metrics.items() if "loss" in name}
            bad = [f"{name} is {float(value)}" for name, value in losses.items() if not value.isfinite()]
            raise NotFinite(", ".join(bad) or "the gradient is infinite or not a number")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Each step draws from a seed of its own, so that a run that was interrupted draws on as if it had not been.

        Raises:
            UserError: the run was interrupted within an epoch, and cannot go on with the rest of it.
        """
        if self._position is not None:
            position.check(self.trainer, self._position)
            self._position = None
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also the stage's name, and the position within the epoch."""
        self._check_finite()
        checkpoint["stage"] = type(self).__name__
        position.settle(self.trainer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_stage(checkpoint)
        self._check_weights(checkpoint["state_dict"])
        self._position = checkpoint.get(position.KEY)

    def _check_stage(self, checkpoint: Mapping[str, Any]) -> None:
        """Whose captioner is evaluated is another matter than whose steps are gone on with."""
        if self.trainer.training:
            check_stage(checkpoint, type(self).__name__, Path(str(self.trainer.ckpt_path)).parent.parent)

    def own_weights(self) -> dict[str, Tensor]:
        """By name, what a checkpoint must hold, neither more nor less."""
        return self.state_dict()

    def _check_weights(self, found: Mapping[str, Tensor]) -> None:
        """Raises UserError if a checkpoint's weights are not those of this model."""
        own = self.own_weights()
        faults = [f"lacks {name}" for name in own if name not in found]
        faults += [f"has {name}, which is unknown here" for name in found if name not in own]
        faults += [
            f"has {name} of shape {list(found[name].shape)}, and here it is {list(value.shape)}"
            for name, value in own.items()
            if name in found and found[name].shape != value.shape
        ]
        if not faults and (bad := not_finite(found.items())):
            faults = [f"has values in {bad} that are infinite or not a number"]
        if faults:
            more = f", and {len(faults) - 1} more differences" if len(faults) > 1 else ""
            raise UserError(
                f"the checkpoint is of another model: it {faults[0]}{more}; go on with the settings and the data of "
                "the run that wrote it, which are in its config.yaml"
            )

    def _check_finite(self) -> None:
        """Raises NotFinite if what was trained must not be kept."""
        if bad := not_finite((name, value) for name, value in self.named_parameters() if value.requires_grad):
            raise NotFinite(f"the weight {bad} is infinite or not a number")

    def hand_over(self, folder: Path) -> None:
        """Write what later stages need to an empty folder, which becomes RUN/PRODUCT."""
        raise NotImplementedError

    def on_train_end(self) -> None:
        if self.product and self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._check_finite()
            with whole_folder(Path(self.trainer.default_root_dir) / self.product) as folder:
                self.hand_over(folder)
        self._handed_over = True

    def on_fit_end(self) -> None:
        """A training that had taken all its steps before it was killed has nothing to train, but all to hand over."""
        if not self._handed_over and self.trainer.global_step:
            # What is logged next, as a test, belongs to the last step; Lightning counts on only where it trains.
            self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
            self.on_train_end()

    @property
    def processes(self) -> int:
        """How many train together."""
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def log_train(self, values: Mapping[str, Tensor | float], prog_bar: bool = False) -> None:
        """Log values of a step: means over all processes, each of which has its own share of the batch."""
        self.log_dict(self._means(values), on_step=True, on_epoch=False, prog_bar=prog_bar)

    def _means(self, values: Mapping[str, Tensor | float]) -> Mapping[str, Any]:
        if (processes := self.processes) == 1:
            return values
        own = {name: float(value) for name, value in values.items()}
        parts: list[Any] = [None] * processes
        # As objects, because a process whose images have no captions has fewer values.
        torch.distributed.all_gather_object(parts, own)
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: fmean(part[name] for part in parts if name in part) for name in names}


def one_caption(decoder: Sampler) -> None:
    """Raises UserError if a decoder draws several captions of each image, among which nobody would choose."""
    if decoder.samples > 1:
        raise UserError(
            f"--model.decoder draws {decoder.samples} captions of each image, and one is evaluated; set its samples to "
            "1, or choose among them with distcap.stages.Rerank"
        )


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
        super().setup(stage)
        self.show_to_model(self.trainer.datamodule)  # type: ignore[attr-defined]
        self._untrained = stage != "fit" and not (self._fitted or self.captioner.trained)
        self._fitted |= stage == "fit"
        self.captioner.prepare(self._truth())
        check_lengths(self.captioner, self.lengths(), stage)
        self._fingerprint = fingerprint(self._frozen())  # before anything changes their device or precision

    product = "captioner"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of the captioner only what is trained, and a fingerprint of the rest, which `init_from` gives again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["vocabulary"] = self._vocabulary()
        frozen = self._frozen()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["frozen"] = self._fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_stage(checkpoint)
        self._untrained = False
        if checkpoint.get("frozen", self._fingerprint) != self._fingerprint:
            raise UserError(
                "the checkpoint's captioner has other frozen weights than model.captioner.init_from gives now; name "
                "the same one, with the same freeze_encoder and lora"
            )
        if checkpoint.get("vocabulary", self._vocabulary()) != self._vocabulary():
            raise UserError(
                "the checkpoint's captioner made its vocabulary of other captions than these; go on with the data that "
                "it began with, or name its run with --model.captioner.init_from instead of a checkpoint"
            )
        # Loading stays strict: what is trained must be there, all of it.
        checkpoint["state_dict"] = {**self._frozen(), **checkpoint["state_dict"]}
        super().on_load_checkpoint(checkpoint)

    def _vocabulary(self) -> str:
        """Changes with the words of a captioner's tokenizer and their numbers; of one without a tokenizer, nothing."""
        tokenizer: Any = getattr(self.captioner, "tokenizer", None)
        words = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        return hashlib.sha256(json.dumps(sorted(words.items())).encode()).hexdigest()[:16]

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

    def hand_over(self, folder: Path) -> None:
        """In the Hugging Face format, for any later stage and any other program."""
        self.captioner.save_pretrained(folder)
