"""A training on two processes, as a program: python two_processes.py DATA RUN signal|error."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from test_resume import Line, coco

from distcap.callbacks import Checkpoints, Interruption
from distcap.lightning_cli import end_processes
from distcap.signals import Interrupted

STEP = 4


class Trouble(Callback):
    """The second process is told to end, or fails."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == STEP:
            if self.what == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            if self.what == "error":
                raise RuntimeError("the power is gone")


def main(data: str, run: str, what: str) -> None:
    stage = Line(schedule="constant")
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "num_sanity_val_steps": 0}
    checkpoint = Checkpoints(dirpath=run, save_last=True, save_on_exception=True, enable_version_counter=False)
    trainer = Trainer(max_epochs=3, callbacks=[Trouble(what), Interruption(), checkpoint], **options)
    try:
        trainer.fit(stage, coco(Path(data), batch_size=2))
    except Interrupted as told:
        sys.exit(128 + told.number if trainer.is_global_zero else 0)
    except RuntimeError:
        end_processes(trainer)
        sys.exit(1)
    finally:
        (Path(run) / f"seen-{trainer.global_rank}.json").write_text(json.dumps(stage.seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
