"""Checkpoints on disk: written whole, and read as data."""

import os
import pickle
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version

from distcap.files import whole_file
from distcap.types import UserError

KEYS = ("state_dict", "loops", "global_step", "epoch", "pytorch-lightning_version")
"""Of what Lightning writes, what is read again."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the target, on the same disk, and replaces it last: a kill or a full disk loses the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            with whole_file(Path(path)) as part:
                torch.save(checkpoint, part)
        except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of a full disk
            raise UserError(
                f"{path} cannot be written ({' '.join(str(error).split())[:200]}); the checkpoint that was there "
                "before is kept. Make room, then go on with --ckpt_path last"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return read_checkpoint(Path(path), map_location="cpu" if map_location is None else map_location)


def read_checkpoint(path: Path, **options: Any) -> dict[str, Any]:
    """A checkpoint of Lightning's, as data: nothing in it is executed.

    Raises:
        UserError: it is damaged, or something else.
    """
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare checksums
        found = None if damaged else torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, numbers and text, and is not read, because that could run code in it; "
            "name a checkpoint that distcap wrote"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); name another checkpoint") from error
    except Exception as error:  # of a damaged file, torch and zipfile raise whatever they stumble over
        raise UserError(_damaged(path)) from error
    if damaged:
        raise UserError(_damaged(path))
    if not isinstance(found, dict) or (missing := [key for key in KEYS if key not in found]):
        lacks = f"it lacks {', '.join(missing)}" if isinstance(found, dict) else f"it holds a {type(found).__name__}"
        raise UserError(f"{path} is no checkpoint of a training ({lacks}); name one of those in runs/RUN/checkpoints")
    if not all(isinstance(found[key], dict) for key in ("state_dict", "loops")) or not _is_version(found[KEYS[-1]]):
        raise UserError(_damaged(path))
    return found


def best_checkpoint(last: Path) -> Path | None:
    """The best one of a training by the metric that it monitored, which its last one tells; None if it tells none."""
    states = read_checkpoint(last, mmap=True, map_location="cpu").get("callbacks", {})
    for state in states.values():
        if isinstance(state, dict) and state.get("monitor") and isinstance(state.get("best_model_path"), str):
            best = last.with_name(os.path.basename(state["best_model_path"]))
            return best if best.is_file() else None
    return None


def _damaged(path: Path) -> str:
    return f"{path} is damaged, or no checkpoint; name another one, those of a run are in runs/RUN/checkpoints"


def _is_version(text: Any) -> bool:
    try:
        return bool(Version(text))
    except (InvalidVersion, TypeError):
        return False
