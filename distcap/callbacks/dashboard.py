"""What Weights & Biases shows of a run beyond its curves."""

import re
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from distcap.callbacks.hacking import HackingWatch

FEWER = ("val/judge_gap", "val/repetition", "val/bad_endings", "val/truncated", "val/judge_truncated")
"""Validation metrics of which less is better."""
HANDED_OVER = ("captioner", "clip", "discriminator")
"""Folders in RUN that stages leave for later ones."""


class Dashboard(Callback):
    """Makes a W&B run a whole record: config, trade-off, best metrics, warnings, and what was trained.

    The curves are the stage's own and the caption table is Evaluation's; the last value of each metric is in W&B's
    summary anyway. Without a WandbLogger nothing is done. W&B's own process uploads, or writes to disk in offline mode.

    - config: RUN/config.yaml.
    - `val/tradeoff`: a chart of caption-to-image R@1, by the judge if there is one, over CIDEr, a point a validation.
    - summary: `best/val/METRIC`, and what HackingWatch said as `health/SYMPTOM`, which is an alert as well.
    - artifact: what the stage leaves for later ones (captioner, CLIP or discriminator), as safetensors. Checkpoints,
      which hold the optimizer too, are three times as large: Lightning's own `log_model: true` uploads those.

    Args:
        artifact: upload what was trained when the training ends.
    """

    def __init__(self, artifact: bool = True) -> None:
        self.artifact = artifact
        self._points: list[list[float]] = []
        self._best: dict[str, float] = {}
        self._alerted = 0

    def state_dict(self) -> dict[str, Any]:
        return {"points": self._points, "best": self._best, "alerted": self._alerted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._points, self._best = state_dict["points"], state_dict["best"]
        self._alerted = state_dict["alerted"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        import yaml

        for logger in wandb_loggers(trainer):
            config = (Path(trainer.default_root_dir) / "config.yaml").read_text()
            logger.log_hyperparams(yaml.safe_load(config))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self._alert(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = wandb_loggers(trainer)
        if not loggers or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        now = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        for key, value in now.items():
            better = min if key in FEWER else max
            self._best[key] = better(value, self._best.get(key, value))
        recall = now.get("val/judge_t2i_recall@1", now.get("val/t2i_recall@1"))
        if recall is not None and "val/cider" in now:
            self._points.append([trainer.global_step, now["val/cider"], recall])
        for logger in loggers:
            logger.experiment.summary.update({f"best/{key}": value for key, value in self._best.items()})
            if self._points:
                logger.log_metrics({"val/tradeoff": _chart(self._points)}, trainer.global_step)
        self._alert(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The stage may have handed over only when the training had ended."""
        for logger in wandb_loggers(trainer) if self.artifact and stage == "fit" else ():
            _upload(logger, Path(trainer.default_root_dir))

    def _alert(self, trainer: Trainer) -> None:
        """Pass on what HackingWatch found since it was last asked."""
        if not (loggers := wandb_loggers(trainer)):
            return
        watches = [callback for callback in trainer.callbacks if isinstance(callback, HackingWatch)]  # type: ignore[attr-defined]
        found = [row for watch in watches for row in watch.found]
        for row in found[self._alerted :]:
            for logger in loggers:
                logger.experiment.summary[f"health/{row['symptom']}"] = row["sentence"]
                logger.experiment.alert(f"{logger.experiment.name}: {row['symptom']}"[:64], row["sentence"], "WARN")
        self._alerted = len(found)


def wandb_loggers(trainer: Trainer) -> list[Any]:
    """The W&B loggers, in the one process that writes."""
    from lightning.pytorch.loggers import WandbLogger

    return [one for one in trainer.loggers if isinstance(one, WandbLogger) and trainer.is_global_zero]


def _chart(points: list[list[float]]) -> Any:
    import wandb

    table = wandb.Table(columns=["step", "CIDEr", "R@1"], data=points)
    return wandb.plot.scatter(table, x="CIDEr", y="R@1", title="Distinctive (R@1) and human-like (CIDEr)")


def _upload(logger: Any, run: Path) -> None:
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", logger.experiment.name), type="model")
    for name in HANDED_OVER:
        if (run / name).is_dir():
            artifact.add_dir(str(run / name), name=name)
    logger.experiment.log_artifact(artifact)
