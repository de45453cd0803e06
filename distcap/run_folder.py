"""The folder of one run: who may write to it, what it holds, and what a training that begins anew takes away."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from distcap.files import UNFINISHED
from distcap.types import UserError

PRODUCTS = ("captioner", "clip", "discriminator")
"""What stages leave for later ones when their training ends."""
LEFT = (
    *("metrics.csv", "metrics.json", "scores_*.json", "captions_*.json", "predictions*.json", "health.json"),
    *("hparams.yaml", "events.out.tfevents.*", "hpc_ckpt_*.ckpt"),
)
"""What else a training, its evaluation and its loggers leave, beside config.yaml, which each training writes anew."""
WAIT = 3.0
"""Seconds that a lock may stay held by processes whose parent was just killed."""


class RunFolder:
    """runs/RUN.

    Args:
        path: of the folder; it need not be there yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """While it lasts, no other process can own the folder. The system lets go of a lock whose owner was killed.

        Raises:
            UserError: another process owns the folder, or it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=WAIT)
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"{self} is in use: another distcap writes to it; wait until that is done, or name another --run"
            ) from error
        except OSError as error:
            raise UserError(
                f"{self} cannot be written to ({error.strerror or error}); make it writable, or start distcap in a "
                "folder where runs/ is"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def product(self) -> Path | None:
        """What its training handed over; None if it did not come to its end."""
        return next((self.path / name for name in PRODUCTS if (self.path / name).is_dir()), None)

    @property
    def last(self) -> Path | None:
        """The newest state of its training: last.ckpt, or another checkpoint if it was killed before the first one.

        Raises:
            UserError: there is more than one that is called the last.
        """
        found = sorted(filter(Path.is_file, self.checkpoints.glob("*.ckpt")), key=os.path.getmtime)
        lasts = [file for file in found if re.fullmatch(r"last(-v\d+)?", file.stem)]
        if len(lasts) > 1:
            raise UserError(
                f"{self.checkpoints} holds {' and '.join(file.name for file in lasts)}, for an older distcap trained "
                f"there more than once; name the one that you mean with --ckpt_path, the newest is {lasts[-1]}"
            )
        return next(reversed(lasts or found), None)

    @property
    def requeued(self) -> Path | None:
        """What Lightning saved when SLURM ended a job that is to go on; None if it did not."""
        return max(self.path.glob("hpc_ckpt_*.ckpt"), key=os.path.getmtime, default=None)

    def holds(self, checkpoint: str | Path) -> bool:
        """Whether a checkpoint is of the folder's own training."""
        return Path(checkpoint).resolve().parent in (self.checkpoints.resolve(), self.path.resolve())

    def check_free(self) -> None:
        """Raises UserError if a training would be lost by one that begins here."""
        if not any(self.checkpoints.glob("*.ckpt")) and self.product is None:
            return
        state = "an interrupted training" if self.product is None else "a finished training"
        resume = "go on with it by --ckpt_path last, " if any(self.checkpoints.glob("*.ckpt")) else ""
        raise UserError(
            f"{self} holds {state}; name another --run, {resume}or say --overwrite true, which deletes it "
            "and begins anew"
        )

    def begin(self, anew: bool) -> None:
        """Take away what a kill left half written; anew, all that a former training and its evaluation left."""
        for part in (*self.path.glob(f"*{UNFINISHED}"), *self.checkpoints.glob(f"*{UNFINISHED}")):
            _remove(part)
        if anew:
            for pattern in (*PRODUCTS, "checkpoints", *LEFT):
                for old in self.path.glob(pattern):
                    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
