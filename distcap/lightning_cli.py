"""LightningCLI with a folder for each run, and errors in one line."""

import contextlib
import errno
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from distcap.callbacks import Checkpoints, Dashboard, Interruption, Predictions
from distcap.checkpoints import WholeCheckpoints, best_checkpoint, read_checkpoint
from distcap.checks import above, at_least
from distcap.cli import STAGE_COMMANDS
from distcap.curves import Curves
from distcap.data import CocoCaptions, ImageFolder
from distcap.files import whole_file
from distcap.run_files import check_yaml
from distcap.run_folder import RunFolder
from distcap.shipped import configs_folder
from distcap.stages.base import Stage, check_stage
from distcap.trained import is_run, read_config
from distcap.types import NotFinite, UserError

JSONARGPARSE_YAML = get_loader("yaml")

ON_DISK: dict[str, type[CocoCaptions | ImageFolder]] = {
    "distcap.data.CocoCaptions": CocoCaptions,
    "distcap.data.ImageFolder": ImageFolder,
}
"""Data that must be there already: what is wrong with it is known at once."""


WITHOUT_WANDB = "set WANDB_MODE=offline in the environment, or log to a file with --config logger/csv.yaml"
PATIENCE = 3.0
"""Seconds that a process has to end by itself, for it sees that the connection is closed."""
LOST = re.compile(r"gloo|NCCL|(connection|socket).*(closed|reset)|broken pipe", re.IGNORECASE)
"""What a collective says when the process at the other end is gone."""


class Parser(LightningArgumentParser):
    """Errors become a UserError, which is printed in one line."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UserError(" ".join(str(message).split())) from ex


DISK = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)
"""What a disk says that is full, or must not be written to."""


def load_yaml(text: str) -> Any:
    """As jsonargparse loads a config or an argument, unless it grows without bounds: one may be anybody's."""
    with contextlib.suppress(yaml.YAMLError):  # which jsonargparse reports
        check_yaml(text)
    return JSONARGPARSE_YAML(text)


class SaveConfig(SaveConfigCallback):
    """The resolved config goes to RUN/config.yaml; nothing of what was there goes before all is ready to begin."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            config = self.config.clone()
            # How this training was begun: whoever repeats it from its config means to begin one.
            config.ckpt_path, config.overwrite = None, False
            with whole_file(Path(trainer.default_root_dir) / "config.yaml") as part:
                self.parser.save(config, part, skip_none=False, overwrite=True, multifile=False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).begin(anew=self.config.overwrite)


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


def writes_the_run() -> bool:
    """Whether this is the one process of a run that writes its folder: the first one of the first machine."""
    others = (os.environ.get(name, "0") for name in ("NODE_RANK", "GROUP_RANK"))
    return getattr(rank_zero_only, "rank", 0) == 0 and all(rank == "0" for rank in others)


class DistcapCLI(LightningCLI):
    """Adds --run, and the run's folder to everything that writes.

    Args:
        owned: gets what must be let go of when the command ends: the folder's lock.
    """

    def __init__(self, owned: ExitStack, **kwargs: Any) -> None:
        self._owned = owned
        self._checkpoint: dict[str, Any] = {}
        super().__init__(**kwargs)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's hyperparameters change the config: ours have none, a stranger's may."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default="unnamed", help="Everything is written to runs/RUN.")
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Delete the training that runs/RUN holds, and begin anew. By default, fit refuses such a folder.",
        )
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the captioner when fit is done.")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.save_on_exception": True})
        parser.set_defaults({"checkpoint.enable_version_counter": False})
        # Else what is saved last is the last validated epoch, and not the captioner that training ended with.
        parser.set_defaults({"checkpoint.save_on_train_epoch_end": True})
        parser.add_lightning_class_args(Dashboard, "dashboard")
        parser.link_arguments("run", "trainer.default_root_dir", compute_fn=run_folder)
        parser.link_arguments(
            "run", "checkpoint.dirpath", compute_fn=lambda run: os.path.join(run_folder(run), "checkpoints")
        )

    def before_instantiate_classes(self) -> None:
        config = beside(self.config[self.subcommand].run, self.config[self.subcommand])
        check_trainer(config.trainer)
        logger = config.trainer.logger
        for one in logger if isinstance(logger, list) else [logger]:
            if not isinstance(one, bool) and one is not None:
                one.init_args.save_dir = run_folder(config.run)
                # A CSVLogger begins its file anew: only training writes to the run's own.
                plain = "" if self.subcommand == "fit" else self.subcommand
                one.init_args.name = os.path.expandvars(config.run) if "Wandb" in one.class_path else plain
                if "Wandb" in one.class_path:
                    check_wandb(bool(one.init_args.get("offline")))
                if one.class_path.endswith("TensorBoardLogger") and find_spec("tensorboard") is None:
                    raise UserError(
                        "TensorBoard isn't installed: pip install 'distcap[tensorboard]', or log elsewhere, e.g. "
                        "--config logger/csv.yaml"
                    )
        for flag in ("optimizer", "lr_scheduler"):
            if config.get(flag) is not None:
                raise UserError(
                    f"--{flag} would leave the stage's own settings without effect; set --model.learning_rate, "
                    "--model.weight_decay, --model.warmup_steps and --model.schedule"
                )
        self._find_checkpoint(config)
        # Told before networks are downloaded, which Lightning would do first.
        if config.data is not None and (data := ON_DISK.get(config.data.class_path)):
            data(**config.data.init_args.as_dict()).setup(str(self.subcommand))
        corpus = config.model.init_args.get("corpus") if self.subcommand == "fit" else None
        if corpus is not None and (data := ON_DISK.get(corpus.class_path)):
            data(**corpus.init_args.as_dict()).entries("train")
        if writes_the_run() and not config.trainer.fast_dev_run:  # which is nothing but a rehearsal
            self._take_folder(config)

    def _find_checkpoint(self, config: Namespace) -> None:
        """Read the checkpoint that is asked for, and see that the stage can do with it what it is to do."""
        folder, fit = RunFolder(run_folder(config.run)), self.subcommand == "fit"
        if fit and config.get("ckpt_path") is None and SLURMEnvironment.detect() and folder.requeued is not None:
            # The scheduler repeats the command, and the first time it may have begun anew.
            config.ckpt_path, config.overwrite = "hpc", False
        if asked := config.get("ckpt_path"):
            path = _checkpoint_file(folder, asked)
            config.ckpt_path = str(path)
            self._checkpoint = read_checkpoint(path, mmap=True, map_location="cpu")
            if fit:
                _check_resumable(self._checkpoint, path, config.model.class_path)

    def _take_folder(self, config: Namespace) -> None:
        """Own the run's folder, and see that no training in it is lost unasked."""
        folder, checkpoint = RunFolder(run_folder(config.run)), config.get("ckpt_path")
        self._owned.enter_context(folder.owned())
        if self.subcommand != "fit":
            return
        resumes = checkpoint is not None and folder.holds(checkpoint)
        if resumes and config.overwrite:
            raise UserError(f"--ckpt_path goes on with what is in {folder} and --overwrite deletes it; leave one out")
        if not resumes and not config.overwrite:
            folder.check_free()

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"--seed_everything: {error}") from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            raise UserError(f"--trainer: {' '.join(str(error).split())}") from error

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse wraps what a class raises
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UserError | MisconfigurationException):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None
        if isinstance(self.model, Stage):  # now, rather than when the data are indexed
            self.model.show_to_model(self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and self.subcommand == "fit" and writes_the_run():
                logger._experiment = Curves(logger.log_dir, self._checkpoint.get("global_step", 0))
        self._checkpoint = {}
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            self._run_processes(subcommand)
        except NotFinite as error:
            raise UserError(self._not_finite(error)) from error
        except OSError as error:
            if error.errno not in DISK:
                raise
            raise UserError(
                f"{error.filename or 'the disk'}: {error.strerror}; what was done is kept, see to that and "
                + ("go on with --ckpt_path last" if subcommand == "fit" else "repeat the command")
            ) from error

    def _run_processes(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            end_processes(self.trainer)
            raise

    def _not_finite(self, error: NotFinite) -> str:
        folder = RunFolder(self.trainer.default_root_dir)
        remedy = "set a smaller --model.learning_rate, or see to what made it"
        if folder.last is None:
            remedy += "; there is no checkpoint yet, begin anew"
        else:
            remedy += f"; the last good checkpoint is {folder.last}, go on from it with --ckpt_path last"
        return f"step {self.trainer.global_step + 1} of the training: {error}; {remedy}"

    def after_fit(self) -> None:
        if self.config.fit.test_after_fit and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)


def _checkpoint_file(folder: RunFolder, asked: str) -> Path:
    """The file of a --ckpt_path, which may be a word for one of the run's. Raises UserError if there is none."""
    if asked == "last":
        if folder.last is None:
            raise UserError(
                f"{folder.checkpoints / 'last.ckpt'}: no such checkpoint; there is nothing of --run to go on from"
            )
        return folder.last
    if asked == "best":
        if folder.last is None or (best := best_checkpoint(folder.last)) is None:
            raise UserError(
                f"--ckpt_path best: {folder} kept no best checkpoint, because its training did not monitor a metric "
                "(--checkpoint.monitor val/cider --checkpoint.mode max does) or has none; say last, or name a file"
            )
        return best
    if asked == "hpc" and folder.requeued is not None:
        return folder.requeued
    if not Path(asked).is_file():
        raise UserError(f"{asked}: no such checkpoint; a run's are in runs/RUN/checkpoints")
    return Path(asked)


def _check_resumable(checkpoint: dict[str, Any], path: Path, class_path: str) -> None:
    """Raises UserError if a training of this stage cannot go on from the checkpoint."""
    run = path.parent.parent
    if "stage" not in checkpoint and is_run(str(run)):  # an older distcap's says nothing, but its run does
        model = read_config(str(run)).get("model")
        if isinstance(model, dict) and isinstance(model.get("class_path"), str):
            checkpoint = {**checkpoint, "stage": model["class_path"].rpartition(".")[2]}
    check_stage(checkpoint, class_path.rpartition(".")[2], run)
    if not {"optimizer_states", "lr_schedulers"} <= checkpoint.keys():
        raise UserError(f"{path} holds weights alone, with which a training cannot go on; evaluate it, or name another")


def check_trainer(config: Namespace) -> None:
    """Raises UserError for a number that Lightning would divide by, or train nothing with."""
    for name, low in (("accumulate_grad_batches", 1), ("check_val_every_n_epoch", 1), ("log_every_n_steps", 0)):
        if config[name] is not None:
            at_least(f"--trainer.{name}", config[name], low)
    for name in ("val_check_interval", "limit_train_batches"):
        if isinstance(config[name], int | float):
            above(f"--trainer.{name}", config[name], 0)


def check_wandb(offline: bool) -> None:
    """Raises UserError where Weights & Biases would ask for an account, and nobody is there to answer."""
    if offline or os.environ.get("WANDB_MODE", "online") != "online" or sys.stdin.isatty():
        return
    import wandb

    if not wandb.api.api_key:
        raise UserError(f"Weights & Biases knows no account here: run `wandb login`, {WITHOUT_WANDB}")


def end_processes(trainer: Trainer) -> None:
    """End the processes that Lightning has started and that would wait for this one; none should outlive it."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        begin = time.monotonic()
        while time.monotonic() < begin + PATIENCE and any(process.poll() is None for process in launcher.procs):
            time.sleep(0.05)
        launcher.kill(signal.SIGKILL)


def of_the_user(error: BaseException) -> str | None:
    """One line about what the user can fix, of the errors that are no UserError; None for a bug."""
    if isinstance(error, MisconfigurationException):
        return " ".join(str(error).split())
    if isinstance(error, ValueError) and "`val_check_interval`" in str(error):
        return f"--trainer.val_check_interval: {' '.join(str(error).split())}"
    if type(error).__module__.startswith("wandb."):
        return f"Weights & Biases: {' '.join(str(error).split())}; {WITHOUT_WANDB}"
    if isinstance(error, RuntimeError) and LOST.search(str(error)):
        return "another process of this run has ended, and this one cannot go on without it; what that one said is why"
    return None


def run(args: Sequence[str]) -> DistcapCLI:
    """Run fit, validate, test or predict."""
    # Lightning counts loader workers against cores; a benchmark in memory wants none.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # what is there is asked about, see RunFolder
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    # Frozen networks are, and a policy samples without dropout.
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    defaults = str(configs_folder() / "defaults.yaml")
    try:
        with ExitStack() as owned:
            return DistcapCLI(
                owned,
                model_class=LightningModule,
                datamodule_class=LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                parser_class=Parser,
                parser_kwargs={command: {"default_config_files": [defaults]} for command in STAGE_COMMANDS},
                save_config_callback=SaveConfig,
                save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
                trainer_defaults={"callbacks": [Predictions(), Interruption()]},
                args=list(args),
            )
    except Exception as error:
        if line := of_the_user(error):
            raise UserError(line) from error
        raise
