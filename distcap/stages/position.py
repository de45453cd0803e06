"""Where in its epoch a run stands, as its checkpoints say it.

Lightning's counters tell how far a process has come. What a resumed run needs is which batches the weights have learnt
from. The two differ where a step was begun and not ended, within accumulated batches, and in an epoch that a limit cut
short, which Lightning counts as a whole one (2.6).
"""

from typing import Any

from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from distcap.data.training import TrainingLoader
from distcap.types import UserError

KEY = "position"
LOOP = "epoch_loop."


def settle(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint's counters stand after the last batch that its weights have learnt from.

    Each is left in the one of Lightning's states from which it goes on without a batch, a validation or a logged step
    too many or too few.
    """
    if trainer.state.fn != TrainerFn.FITTING:
        return
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"], loops[f"{LOOP}batch_progress"]
    optimizer = loops[f"{LOOP}automatic_optimization.optim_progress"]["optimizer"]
    length = trainer.num_training_batches
    began, epoch = epochs["current"]["started"], epochs["current"]["processed"]
    steps = optimizer["step"]["current"]["completed"] if epochs["current"]["ready"] == began else 0
    done = min(steps * trainer.accumulate_grad_batches, length)
    if done and began == epoch:  # it ended, or a limit ended it
        epoch -= 1
    validates = trainer.validating or _validation_is_due(trainer, done)
    if done == length and not validates:
        epoch, done, steps = epoch + 1, 0, 0
    unfinished = int(done > 0)
    _write(epochs, "current", epoch, ready=unfinished, started=unfinished)
    _write(epochs, "total", epoch, ready=unfinished, started=unfinished)
    before = batches["total"]["completed"] - batches["current"]["completed"]
    # The states after a batch, before the validation that follows it, and before an epoch.
    left = {"completed": -1} if done and not validates else {}
    _write(batches, "current", done, **left)
    _write(batches, "total", before + done, **left, ready=int(not done))
    batches["is_last_batch"] = done == length
    for progress in optimizer.values():
        _write(progress, "current", steps)
        _write(progress, "total", progress["total"]["completed"])
    validation = loops[f"{LOOP}val_loop.batch_progress"]
    _write(validation, "current", 0)
    _write(validation, "total", 0, ready=int(validates), started=int(validates))
    # Lightning adds the one that is missing when it goes on; where epochs are counted, not before a new one.
    missing = int(done > 0 or trainer.max_steps != -1)
    loops[f"{LOOP}state_dict"]["_batches_that_stepped"] = trainer.global_step - missing
    checkpoint[KEY] = {"batches": done, "order": _order(trainer)}


def check(trainer: Trainer, position: dict[str, Any]) -> None:
    """Raises UserError where the rest of the epoch would be other images than those that were left."""
    now = _order(trainer)
    for name, value in position["order"].items() if position["batches"] else ():
        if now.get(name) != value:
            raise UserError(
                f"the checkpoint was written within an epoch, with {name}: {value}, and now it is {now.get(name)}: the "
                "epoch's other images cannot be told; keep it as it was, or go on from a checkpoint of an epoch's end"
            )
    # It was one too many, to say that the next epoch has not begun; now its first batch has.
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    progress.ready = progress.started + 1


def _validation_is_due(trainer: Trainer, done: float) -> bool:
    """Whether the last batch is over and the validation that follows it has not begun."""
    loop = trainer.fit_loop.epoch_loop
    current: Any = loop.batch_progress.current
    over = current.completed < current.processed == done
    return over and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def _order(trainer: Trainer) -> dict[str, Any]:
    """What the batches of an epoch depend on, if the data set says so."""
    loader = trainer.train_dataloader
    order = loader.course.order if isinstance(loader, TrainingLoader) else {}
    return order | {"--trainer.accumulate_grad_batches": trainer.accumulate_grad_batches}


def _write(progress: dict[str, Any], which: str, count: float, **more: int) -> None:
    """All counters of a progress alike, but for a difference in some."""
    for name in progress[which]:
        progress[which][name] = int(count) + more.get(name, 0)
