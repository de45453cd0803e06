"""The loader of training batches, which knows where in an epoch a resumed run stands."""

from collections.abc import Iterator
from typing import Any, Protocol

from lightning import Trainer

from distcap.data.images import ImageLoader
from distcap.types import Batch


class Course(Protocol):
    """What deals the images of an epoch: a sampler, or a stream."""

    @property
    def order(self) -> dict[str, Any]:
        """All that the batches of an epoch depend on, beside its number, by names that a user knows."""

    def begin(self, epoch: int, done: int) -> None:
        """Deal the rest of an epoch, after the batches that this process has had before."""


class TrainingLoader(ImageLoader):
    """Yields the rest of the trainer's epoch: a run that was interrupted within one goes on with its next batch."""

    course: Course
    trainer: Trainer | None = None

    @property
    def remedy(self) -> str:
        """No image is left out any more: all batches have one size, in all processes."""
        return super().remedy or "before training it could be; put it back, and go on with --ckpt_path last"

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # Not before the first batch is asked for, or Lightning has not settled yet where a resumed run stands.
        if self.trainer is not None and self.trainer.training:
            done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            # Lightning tells a sampler its epoch, too, but counts one too many when a run is resumed (2.6).
            self.course.begin(self.trainer.current_epoch, done)
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Tells Lightning that it can be resumed within an epoch; what it needs for that the trainer has."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
