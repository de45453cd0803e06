"""A training's checkpoints, of which last.ckpt is always the last."""

import logging
import os
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn

from distcap.signals import Interrupted
from distcap.types import NotFinite, UserError

log = logging.getLogger(__name__)

ASKED_EVERY = 10
"""Steps between two looks at the clock, at which all processes must agree."""


class Checkpoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint, with last.ckpt saved within epochs, too, and at the end whatever is monitored.

    Args:
        minutes: within an epoch, last.ckpt is saved again after so many minutes; 0 saves it between epochs only.

    Raises:
        UserError: the version counter is on, with which the newest of several is no longer called last.ckpt.
    """

    def __init__(self, minutes: float = 10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self._enable_version_counter:
            raise UserError("checkpoint.enable_version_counter: with it last.ckpt is not the last one; set it to false")
        if minutes < 0:
            raise UserError(f"checkpoint.minutes is {minutes}; it is 0 or more")
        self.minutes = minutes
        self._begun = False
        self._last_step = -1
        self._last_time = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._begun = True
        self._last_time = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        ends = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if not self.minutes or self.save_last is not True or not stepped or ends:
            return
        if trainer.global_step % ASKED_EVERY or self._should_skip_saving_checkpoint(trainer):
            return
        if trainer.strategy.broadcast(time.monotonic() - self._last_time >= 60 * self.minutes):
            saved = self._last_global_step_saved
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_global_step_saved = saved  # the epoch may end with this very step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning would save a rehearsal's over the run's own.
        if self.save_last and not trainer.fast_dev_run and self._last_step != trainer.global_step:  # type: ignore[attr-defined]
            asked, self.save_last = self.save_last, True
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self.save_last = asked

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save last.ckpt, if there is something to go on from: finite weights of whole steps.

        The process that has failed waits for no other one: that one may wait for it, in the middle of its step. So the
        first process writes what it has, and the others nothing.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        whole = self._begun and not isinstance(exception, NotFinite) and getattr(pl_module, "between_updates", True)
        if isinstance(exception, Interrupted):
            whole &= exception.between_steps
        # Other strategies put a checkpoint together from what all processes have.
        alone = isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy)
        if whole and alone and trainer.is_global_zero and self._should_save_on_exception(trainer):
            self._save_what_there_is(trainer)
        last = Path(self.last_model_path or self._last)
        if isinstance(exception, Interrupted) and last.is_file():
            exception.saved = os.path.relpath(last)

    @property
    def _last(self) -> str:
        return self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST)

    def _save_what_there_is(self, trainer: Trainer) -> None:
        try:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(self.save_weights_only)
            trainer.strategy.save_checkpoint(checkpoint, self._last)
        except UserError as error:  # the disk is full, or the weights are not finite: what was saved before stays
            log.warning("%s", error)
            return
        self._last_global_step_saved = self._last_step = trainer.global_step
        self.last_model_path = self._last
        log.info("saved %s", self._last)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that was moved has its checkpoints with it; one that goes on from another run's begins with none."""
        there, here = str(state_dict.get("dirpath")), str(self.dirpath)
        if there == here:
            super().load_state_dict(state_dict)
            return

        def moved(path: str) -> str:
            return os.path.join(here, os.path.basename(path)) if path else path

        paths = {key: moved(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        if os.path.exists(paths["best_model_path"]):
            best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
            super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: Any) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._last_step, self._last_time = trainer.global_step, time.monotonic()
