"""The checkpoint that is written when training ends early."""

import os
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn

from distcap.signals import Interrupted


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but for what it does when training ends early.

    Then it writes last.ckpt alone, and only if the weights are those of whole steps. The process that has failed waits
    for no other one: that one may wait for it, in the middle of its step. So the first process writes what it has, and
    the others nothing.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        whole = getattr(pl_module, "between_updates", True)
        if isinstance(exception, Interrupted):
            whole &= exception.between_steps
        # Other strategies put a checkpoint together from what all processes have.
        alone = isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy)
        if whole and alone and trainer.is_global_zero and self._should_save_on_exception(trainer):
            name = self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST)
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(self.save_weights_only)
            trainer.strategy.save_checkpoint(checkpoint, name)
            self._last_global_step_saved = trainer.global_step
            self.last_model_path = name
        last = Path(self.last_model_path or self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST))
        if isinstance(exception, Interrupted) and last.is_file():
            exception.saved = os.path.relpath(last)
