"""What `distcap predict` writes."""

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from distcap.files import write_whole
from distcap.types import UserError


class Predictions(Callback):
    """Writes RUN/predictions.json: rows of image_id, file and caption, as COCO's results format has them.

    They are in the order of the data module's images.
    """

    def __init__(self) -> None:
        self._captions: dict[int, str] = {}

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        if not isinstance(outputs, dict):
            raise UserError("predict captions images: it needs a stage with a captioner (mle or rl)")
        self._captions.update(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        files = {entry.image_id: data.path(entry) for entry in data.entries("predict")}
        rows = [
            {"image_id": image, "file": str(file), "caption": self._captions[image]}
            for image, file in files.items()
            if image in self._captions
        ]
        # Each process captions its share of the images.
        name = "predictions.json" if trainer.world_size == 1 else f"predictions-{trainer.global_rank}.json"
        file = Path(trainer.default_root_dir) / name
        write_whole(file, json.dumps(rows, indent=1, ensure_ascii=False))
        print(f"{len(rows)} captions written to {file}")
