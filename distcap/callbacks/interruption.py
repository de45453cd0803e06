"""Ends training between two steps when the process is told to end."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from distcap.signals import Interrupted, end_at_once, handle


class Interruption(Callback):
    """Of the first signal a note is taken, and training ends before its next batch; a second one ends it at once.

    So the weights are those of whole steps, and a resumed run ends as one that was not interrupted. All processes end
    before the same batch, whichever of them the signal came to. Lightning's own handler speaks with the others from
    within the signal, and waits forever for one that is in the middle of its step (2.6).
    """

    def __init__(self) -> None:
        self._signal = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signal = 0
        handle(self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self._signal:
            end_at_once(number)
        self._signal = number

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._end(trainer)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        number = self._signal
        if trainer.world_size > 1:
            told = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))  # type: ignore[arg-type]
        if number:
            raise Interrupted(number, between_steps=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What follows, a test for instance, is not begun."""
        if self._signal:
            raise Interrupted(self._signal)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            handle(end_at_once)  # in place of Lightning's, there too

    on_test_start = on_predict_start = on_validation_start
