"""A training's checkpoints, of which last.ckpt is always the last."""

import logging
import os
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

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
        self._resumed = False
        self._last_step = -1
        self._last_time = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._begun = self._resumed = True
        self._last_time = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if self._resumed:
            # Lightning logs a step too far after a checkpoint that was saved while a step was interrupted.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self._resumed = False

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
        """What has no finite value any more, or was never restored, must not replace what can be gone on from."""
        if isinstance(exception, NotFinite) or not self._begun:
            return
        try:
            if self.save_last is not True:
                super().on_exception(trainer, pl_module, exception)
            # Lightning leaves a second file, which nobody reads and nothing removes.
            elif self._should_save_on_exception(trainer):
                self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
                log.info("saved %s", self.last_model_path)
        except UserError as error:
            log.warning("%s", error)

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
