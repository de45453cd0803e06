"""LightningCLI with a folder for each run, and errors in one line."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from distcap.callbacks import Dashboard, Predictions
from distcap.cli import STAGE_COMMANDS
from distcap.data import CocoCaptions, ImageFolder
from distcap.run_files import check_yaml
from distcap.shipped import configs_folder
from distcap.stages.base import Stage
from distcap.types import UserError

JSONARGPARSE_YAML = get_loader("yaml")

ON_DISK: dict[str, type[CocoCaptions | ImageFolder]] = {
    "distcap.data.CocoCaptions": CocoCaptions,
    "distcap.data.ImageFolder": ImageFolder,
}
"""Data that must be there already: what is wrong with it is known at once."""


class Parser(LightningArgumentParser):
    """Errors become a UserError, which is printed in one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UserError(" ".join(str(message).split())) from ex


def load_yaml(text: str) -> Any:
    """As jsonargparse loads a config or an argument, unless it grows without bounds: one may be anybody's."""
    with contextlib.suppress(yaml.YAMLError):  # which jsonargparse reports
        check_yaml(text)
    return JSONARGPARSE_YAML(text)


class SaveConfig(SaveConfigCallback):
    """The resolved config goes to RUN/config.yaml."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if stage == "fit":
            self.parser.save(self.config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=False)


def beside(run: str, value: Any) -> Any:
    """A config with "@NAME" replaced by the folder of the run NAME that stands beside RUN.

    So that stages hand over within runs/demo, within runs/mine, or within runs, whatever the family is called.
    """
    if isinstance(value, str) and re.fullmatch(r"@[\w.-]+", value):
        return os.path.join(os.path.dirname(run_folder(run)), value[1:])
    if isinstance(value, list):
        return [beside(run, one) for one in value]
    if isinstance(value, dict | Namespace):
        for key in list(value.keys()):
            value[key] = beside(run, value[key])
    return value


def run_folder(run: str) -> str:
    """Where a run writes. $WANDB_RUN_ID and the like are filled in, for a sweep gives all its runs one name."""
    return os.path.join("runs", os.path.expandvars(run))


class DistcapCLI(LightningCLI):
    """Adds --run, and the run's folder to everything that writes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default="unnamed", help="Everything is written to runs/RUN.")
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the captioner when fit is done.")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.save_on_exception": True})
        # Else what is saved last is the last validated epoch, and not the captioner that training ended with.
        parser.set_defaults({"checkpoint.save_on_train_epoch_end": True})
        parser.add_lightning_class_args(Dashboard, "dashboard")
        parser.link_arguments("run", "trainer.default_root_dir", compute_fn=run_folder)
        parser.link_arguments(
            "run", "checkpoint.dirpath", compute_fn=lambda run: os.path.join(run_folder(run), "checkpoints")
        )

    def before_instantiate_classes(self) -> None:
        config = beside(self.config[self.subcommand].run, self.config[self.subcommand])
        logger = config.trainer.logger
        for one in logger if isinstance(logger, list) else [logger]:
            if not isinstance(one, bool) and one is not None:
                one.init_args.save_dir = run_folder(config.run)
                # A CSVLogger begins its file anew: only training writes to the run's own.
                plain = "" if self.subcommand == "fit" else self.subcommand
                one.init_args.name = os.path.expandvars(config.run) if "Wandb" in one.class_path else plain
                if one.class_path.endswith("TensorBoardLogger") and find_spec("tensorboard") is None:
                    raise UserError(
                        "TensorBoard isn't installed: pip install 'distcap[tensorboard]', or log elsewhere, e.g. "
                        "--config logger/csv.yaml"
                    )
        if self.subcommand != "fit" and config.ckpt_path == "last":
            config.ckpt_path = os.path.join(run_folder(config.run), "checkpoints", "last.ckpt")
        if (path := config.get("ckpt_path")) and path not in ("last", "best", "hpc") and not Path(path).is_file():
            raise UserError(f"{path}: no such checkpoint; a run's are in runs/RUN/checkpoints")
        # Told before networks are downloaded, which Lightning would do first.
        if config.data is not None and (data := ON_DISK.get(config.data.class_path)):
            data(**config.data.init_args.as_dict()).setup(str(self.subcommand))
        corpus = config.model.init_args.get("corpus") if self.subcommand == "fit" else None
        if corpus is not None and (data := ON_DISK.get(corpus.class_path)):
            data(**corpus.init_args.as_dict()).entries("train")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse wraps what a class raises
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None
        if isinstance(self.model, Stage):  # now, rather than when the data are indexed
            self.model.show_to_model(self.datamodule)

    def after_fit(self) -> None:
        if self.config.fit.test_after_fit and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)


def run(args: Sequence[str]) -> DistcapCLI:
    """Run fit, validate, test or predict."""
    # Lightning counts loader workers against cores; a benchmark in memory wants none.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    # Frozen networks are, and a policy samples without dropout.
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    defaults = str(configs_folder() / "defaults.yaml")
    return DistcapCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=Parser,
        parser_kwargs={command: {"default_config_files": [defaults]} for command in STAGE_COMMANDS},
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
        trainer_defaults={"callbacks": [Predictions()]},
        args=list(args),
    )
