"""Whole lives of captioners: what users do with a pretrained one, from its first step to the folder that they publish.

A life is lived in a yard, a folder with photos as phones make them and with two CLIPs. Whatever a test asks of it is
done once, by the command line.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import families
import photos
import pytest
import tiny
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

BATCH, STEPS, EPOCHS = 4, 4, 2
"""Images of a batch, batches of an epoch, epochs."""
CUT = 6
"""The step of MLE that a cut run does not get to: two batches of its epoch were seen, two were not."""
LOG = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": ".", "version": ""}}
NAMES = sorted(photos.READABLE)
TRAIN, VAL, TEST = NAMES[:16], NAMES[16:21], NAMES[21:]
ELSEWHERE = "more"
"""A folder that a link leads to."""
DROPOUTS = ("dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob")
DROPOUTS += ("resid_pdrop", "embd_pdrop", "attn_pdrop")


class Trace(Callback):
    """Writes down, in RUN/trace-PROCESS.jsonl, the images of every step, and which modules were in training mode."""

    def on_train_batch_start(self, trainer: Trainer, stage: LightningModule, batch: Any, batch_idx: int) -> None:
        modules = stage.captioner.named_modules()
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "images": batch.image_ids,
            "training": [name for name, one in modules if one.training],
        }
        with (Path(trainer.default_root_dir) / f"trace-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


class Break(Callback):
    """Something goes wrong when a step begins, in one process; or the process gets a signal, or waits for one."""

    def __init__(self, step: int, rank: int = 0, by: str = "RuntimeError") -> None:
        self.step, self.rank, self.by = step, rank, by

    def on_train_batch_start(self, trainer: Trainer, stage: LightningModule, *args: Any) -> None:
        if trainer.global_step != self.step or trainer.global_rank != self.rank:
            return
        if self.by == "RuntimeError":
            raise RuntimeError("the power is gone")
        os.kill(os.getpid(), getattr(signal, self.by))


def give_dropout(folder: Path, share: float = 0.1) -> None:
    """To every config of a captioner's folder: the tiny networks have none, and real ones do."""

    def change(node: Any) -> None:
        for key in node if isinstance(node, dict) else ():
            if key in DROPOUTS and isinstance(node[key], int | float):
                node[key] = share
            change(node[key])

    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text())
        change(config)
        file.write_text(json.dumps(config))


def lay_yard(yard: Path) -> None:
    """photos/ with captions, some of them behind a link and some of them broken; runs/clip and runs/judge."""
    for seed, name in enumerate(("clip", "judge")):
        tiny.write_clip(yard / "runs" / "demo" / name, seed)
    (yard / "photos").mkdir()
    (yard / "elsewhere").mkdir()
    (yard / "photos" / ELSEWHERE).symlink_to(yard / "elsewhere")
    rows = []
    for split, names in {"train": [*TRAIN, *photos.BROKEN], "val": VAL, "test": TEST}.items():
        for number, name in enumerate(names):
            file = f"{ELSEWHERE}/{name}" if number % 4 == 1 else name
            write = photos.READABLE.get(name) or photos.BROKEN[name]
            (yard / "photos" / file).write_bytes(write(number))
            captions = [tiny.CAPTIONS[number % 5], tiny.CAPTIONS[(number + 2) % 5]]
            rows.append({"file_name": file, "captions": captions, "split": split})
    # As Windows' editors write it.
    (yard / "photos" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")


@dataclass
class Life:
    """Of one captioner.

    Args:
        yard: where.
        family: of `families`.
        way: plain, freeze, lora, or lora-bfloat16.
        precision: of the trainer.
        dropout: of all layers that have some.
        name: of its runs' folder.
        measured: whether captions are measured, which takes its time.
    """

    yard: Path
    family: str
    way: str = "plain"
    precision: str = "32-true"
    dropout: float = 0.1
    name: str = ""
    measured: bool = True

    def __post_init__(self) -> None:
        self.name = self.name or f"{self.family}-{self.way}-{self.precision}".replace("_", "-")

    @cached_property
    def base(self) -> Path:
        """The pretrained captioner, in the Hugging Face format."""
        folder = self.yard / "base" / self.name
        folder.parent.mkdir(exist_ok=True)
        families.WRITERS[self.family](folder)
        if self.dropout:
            give_dropout(folder, self.dropout)
        return folder

    def captioner(self, init_from: str) -> dict[str, Any]:
        options = dict(families.OPTIONS.get(self.family, {}))
        if self.way == "freeze":
            options["freeze_encoder"] = True
        elif self.way.startswith("lora"):
            base = "bfloat16" if self.way.endswith("bfloat16") else "float32"
            options["lora"] = {"targets": families.TARGETS[self.family], "r": 2, "base": base, "dropout": self.dropout}
        kind = families.ADAPTERS[self.family].__name__
        return {"class_path": f"distcap.models.{kind}", "init_args": {**options, "init_from": init_from}}

    def stage(self, name: str) -> dict[str, Any]:
        """The stage's part of a config: MLE from the pretrained captioner, or RL from MLE's."""
        settings: dict[str, Any] = {"learning_rate": 0.002, "schedule": "constant"}
        if name == "mle":
            captioner = self.captioner(str(self.base.relative_to(self.yard)))
            return {
                "class_path": "distcap.stages.MLE",
                "init_args": {**settings, "captioner": captioner, "captions_per_image": 1},
            }
        clip = {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "runs/demo/clip"}}
        return {
            "class_path": "distcap.stages.RL",
            "init_args": {
                **settings,
                "captioner": self.captioner(f"runs/{self.name}/mle"),
                "clip": clip,
                "sampler": {"samples": 2, "max_tokens": 8},
                "ground_truth_per_image": 2,
                "rewards": {"contrastive": {"class_path": "distcap.rewards.Contrastive", "init_args": {"weight": 1.0}}},
                "baseline": {"class_path": "distcap.baselines.LeaveOneOut"},
                "objective": {"policy_gradient": {"class_path": "distcap.objectives.PolicyGradient"}},
            },
        }

    def config(self, stage: str, callbacks: Sequence[dict[str, Any]] = (), **trainer: Any) -> str:
        """The file of a config, written. Several processes share the batch."""
        evaluation = [tiny.EVALUATION] if self.measured else []
        settings = {
            "max_epochs": EPOCHS, "accelerator": "cpu", "precision": self.precision, "log_every_n_steps": 1,
            "check_val_every_n_epoch": EPOCHS, "logger": LOG,
            "callbacks": [*evaluation, {"class_path": "lives.Trace"}, *callbacks], **trainer,
        }  # fmt: skip
        batch = BATCH // trainer.get("devices", 1)
        data = {"folder": "photos", "batch_size": batch, "num_workers": 0, "on_error": "skip", "image_size": 32}
        file = self.yard / f"{self.name}-{stage}-{len(list(self.yard.glob('*.yaml')))}.yaml"
        config = {
            "trainer": settings,
            "data": {"class_path": "distcap.data.ImageFolder", "init_args": data},
            "model": self.stage(stage),
        }
        file.write_text(json.dumps(config))
        return str(file)

    def fit(
        self, run: str, stage: str = "mle", *args: str, callbacks: Sequence[dict[str, Any]] = (), **trainer: Any
    ) -> Any:
        """`distcap fit` in this process."""
        config = self.config(stage, callbacks, **trainer)
        return tiny.run(self.yard, "fit", "--config", config, "--run", f"{self.name}/{run}", *args)

    def folder(self, run: str) -> Path:
        return self.yard / "runs" / self.name / run

    def trace(self, run: str, rank: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder(run) / f"trace-{rank}.jsonl").read_text().splitlines()]

    def load(self, run: str) -> Any:
        """What a run handed over, as any later stage reads it."""
        return families.load(self.family, self.folder(run))

    @cached_property
    def mle(self) -> Any:
        """Teacher forcing in one go, and its test."""
        return self.fit("mle", "mle", "--test_after_fit", str(self.measured).lower())

    @cached_property
    def resumed(self) -> Any:
        """The same in a folder of its own, cut within an epoch, and gone on with by `--ckpt_path last`."""
        with pytest.raises(RuntimeError, match="the power is gone"):
            self.fit("cut", callbacks=[{"class_path": "lives.Break", "init_args": {"step": CUT}}])
        return self.fit("cut", "mle", "--ckpt_path", "last")

    @cached_property
    def rl(self) -> Any:
        """RL of the captioner that teacher forcing left, and its test."""
        assert self.mle
        return self.fit("rl", "rl", "--test_after_fit", "true", max_epochs=1, check_val_every_n_epoch=1)

    @cached_property
    def exported(self) -> Path:
        assert self.rl
        tiny.run(self.yard, "export", f"runs/{self.name}/rl", "--output", f"published/{self.name}")
        return self.yard / "published" / self.name

    def said_by_test(self, run: str) -> dict[str, str]:
        rows = json.loads((self.folder(run) / "captions_test.json").read_text())
        return {Path(row["file"]).name: row["caption"] for row in rows}

    def said_by_caption(self, source: str, *args: str) -> dict[str, str]:
        """Of the test images; `source` is the argument of --run."""
        output = self.yard / f"{source.replace('/', '-')}.jsonl"
        command = ("caption", "photos", "--run", source, "--num_workers", "0", "--overwrite", "true", "--clip", "none")
        tiny.run(self.yard, *command, "--output", str(output), *args)
        rows = map(json.loads, output.read_text().splitlines())
        return {Path(row["file"]).name: row["caption"] for row in rows}

    def weights(self, run: str) -> dict[str, Tensor]:
        """What a run handed over, file by file."""
        from safetensors.torch import load_file

        files = sorted((self.folder(run) / "captioner").rglob("*.safetensors"))
        assert files
        return {f"{file.name} {key}": one for file in files for key, one in load_file(file).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def likelihood(captioner: Any) -> Tensor:
    """Of four captions of four images of noise."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    captioner = captioner.eval()
    tokens, mask = captioner.tokenize(tiny.CAPTIONS[:4])
    with torch.no_grad():
        return captioner.score(captioner.encode(images), tokens, mask, torch.arange(4)).sum(1)


def shell(
    folder: Path, *args: str, seconds: float = 180, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """`distcap` in a process of its own, as a shell runs it; `before` comes before the command."""
    here = Path(__file__).parent
    paths = (here.parents[1], here.parent, here)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"] if args[0] == "fit" else []
    command = [*before, sys.executable, "-m", "distcap.cli", *args, *quiet]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the other processes of a run are in its session
            said, _ = process.communicate()
            said += f"\nstill there after {seconds} s"
    _end_session(process.pid)
    return subprocess.CompletedProcess(command, process.returncode, said)


def _end_session(leader: int) -> None:
    """What the process left behind must not outlive the test."""
    for _ in range(2):
        try:
            os.killpg(leader, signal.SIGKILL)
        except ProcessLookupError:
            return
        time.sleep(0.1)


def moved(yard: Path, run: str, to: str) -> None:
    (yard / to).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(yard / run, yard / to)
