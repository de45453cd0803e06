"""Being told to end: Ctrl-C, a scheduler's SIGTERM, a terminal that is closed."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """The process was told to end. The command line says so in one line, and exits with 128 + the signal's number.

    Not a KeyboardInterrupt: Lightning exits with 1 after one.

    Args:
        number: of the signal.
        between_steps: whether training ended where a checkpoint can be written, if it was training.
    """

    def __init__(self, number: int, between_steps: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.between_steps = between_steps
        self.saved: str | None = None
        """The checkpoint to go on from."""

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        told = f"interrupted by {'Ctrl-C' if name == 'SIGINT' else name}"
        return f"{told}; saved {self.saved}: the same command with --ckpt_path last goes on" if self.saved else told


def end_at_once(number: int, frame: FrameType | None = None) -> None:
    """A handler that ends the process wherever it is."""
    raise Interrupted(number)


def handle(handler: Callable[[int, FrameType | None], None]) -> None:
    """Let it see to all signals that end a process; those that are ignored, as SIGHUP under nohup, stay so."""
    if threading.current_thread() is not threading.main_thread():
        return
    process = os.getpid()

    def of_this_process(number: int, frame: FrameType | None) -> None:
        # The workers of a loader inherit it; theirs is to serve the process until it ends them.
        if os.getpid() == process:
            handler(number, frame)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, of_this_process)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Signals end what is done here by an `Interrupted`."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handle(end_at_once)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # it was none of Python's
                    signal.signal(number, handler)
