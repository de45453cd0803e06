"""What a run left that an export needs: its captioner, its config, and what was measured."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcap.models import Captioner, Sampler
from distcap.trained import load_captioner, read_config
from distcap.types import UserError


@dataclass(frozen=True)
class TrainedRun:
    """A run that trained a captioner to the end."""

    folder: Path
    config: dict[str, Any]
    """the resolved config.yaml"""
    metrics: dict[str, dict[str, float]]
    """split -> metric -> value; empty if nothing was measured"""
    signatures: dict[str, dict[str, str]]
    """split -> how its metrics were computed; a split that an older distcap evaluated has none"""
    warnings: list[str]
    """what HackingWatch said of the training"""

    @property
    def name(self) -> str:
        """The last part of the run's name."""
        return self.folder.resolve().name

    @property
    def stage(self) -> dict[str, Any]:
        """Arguments of the stage."""
        return self.config["model"]["init_args"]

    @classmethod
    def read(cls, folder: Path) -> "TrainedRun":
        """Read a run.

        Raises:
            UserError: there is no such run, it has no captioner, or it was not trained to the end.
        """
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder}: no run there (no config.yaml); name the folder of one, e.g. runs/rl")
        config = _config(folder)
        if "captioner" not in config["model"]["init_args"] or not (folder / "captioner").is_dir():
            stage = config["model"]["class_path"].rsplit(".", 1)[-1]
            train = f"distcap fit --config {folder}/config.yaml --run {os.path.relpath(folder, 'runs')}"
            resume = " --ckpt_path last" if any(folder.glob("checkpoints/*.ckpt")) else ""
            raise UserError(
                f"{folder} holds no captioner, its stage is {stage}: MLE and RL leave one when their training ends; go "
                f"on with an interrupted one by `{train}{resume}`"
            )
        metrics = _read_json(folder / "metrics.json", {})
        scores = {split: _read_json(folder / f"scores_{split}.json", {}) for split in metrics}
        return cls(
            folder,
            config,
            {split: _finite(values) for split, values in metrics.items()},
            {split: table["signature"] for split, table in scores.items() if "signature" in table},
            [row["sentence"] for row in _read_json(folder / "health.json", [])],
        )

    def load(self, *, trust: bool = False) -> tuple[Captioner, Sampler]:
        """The captioner as training left it, and how its captions are decoded; see `distcap.trained.load_captioner`."""
        return load_captioner(str(self.folder), trust=trust), Sampler(**self.stage["decoder"])

    def base_model(self) -> str | None:
        """The model on the Hugging Face hub that training began with, found through earlier runs; None if none did."""
        config, seen = self.config, set()
        while True:
            source = config["model"]["init_args"]["captioner"].get("init_args", {}).get("init_from")
            if not isinstance(source, str) or source in seen:
                return None
            seen.add(source)
            if (Path(source) / "config.yaml").is_file():
                config = _config(Path(source))
            else:
                on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith(("runs/", "."))
                return source if on_hub and not Path(source).exists() else None


def _config(run: Path) -> dict[str, Any]:
    config = read_config(str(run))
    if "init_args" not in config.get("model", {}):
        raise UserError(f"{run / 'config.yaml'} isn't the config of a run: it has no model with init_args")
    return config


def _read_json(file: Path, absent: Any) -> Any:
    if not file.exists():
        return absent
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as JSON ({error}); evaluate the run again: `distcap test`") from error
    if not isinstance(found, type(absent)):
        raise UserError(f"{file} should hold a {type(absent).__name__}; evaluate the run again: `distcap test`")
    return found


def _finite(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
