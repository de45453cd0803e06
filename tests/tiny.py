"""Tiny networks and data sets: the real classes, too small to be good at anything."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file

from distcap.cli import main
from distcap.models import VisionEncoderDecoder

CAPTIONS = [
    "a dog on a porch",
    "two dogs , one of them asleep",
    "a red heart next to a star at night",
    "there is a small green moon in the snow",
    "a cat",
]

SCENES = """class_path: distcap.data.Scenes
init_args: {root: %s, train: 24, val: 8, test: 8, batch_size: 8, image_size: 64, texts: %s}
"""

CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}

ENCODER = {
    "model_type": "vit",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONVOLUTIONAL = {
    "model_type": "resnet",
    "image_size": 32,
    "hidden_size": 16,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
DECODER = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}


def write_clip(folder: Path, seed: int = 0, side: int = 32) -> Path:
    """An untrained CLIP in open_clip's format, where the clip stage would leave one in its run."""
    import open_clip

    torch.manual_seed(seed)
    config = copy.deepcopy(CLIP_CONFIG)
    config["model_cfg"]["vision_cfg"]["image_size"] = config["preprocess_cfg"]["size"] = side
    net = open_clip.model.CLIP(**config["model_cfg"])
    (folder / "clip").mkdir(parents=True)
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(config))
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(weights, folder / "clip" / "open_clip_model.safetensors")
    return folder


def make_captioner(
    dropout: float = 0.0, seed: int = 0, encoder: dict[str, Any] = ENCODER, **kwargs: Any
) -> VisionEncoderDecoder:
    """An untrained captioner of 32-pixel images that knows the words of CAPTIONS, in eval mode.

    Its weights are spread, so that it has strong opinions for tests to compare.
    """
    torch.manual_seed(seed)
    encoder = {**encoder, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    decoder = {**DECODER, "resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    captioner = VisionEncoderDecoder(None, encoder, decoder, **kwargs)
    captioner.prepare(CAPTIONS)
    with torch.no_grad():
        for parameter in captioner.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return captioner.eval()


VED = "distcap.models.VisionEncoderDecoder"


def write_run(folder: Path, captioner: Any = None, clip: Any = None, *, seed: int = 0, **more: Any) -> str:
    """A run folder of the RL stage: a config, and a captioner of 32-pixel images if there was none yet."""
    if not (folder / "captioner").exists():
        make_captioner(seed=seed).save_pretrained(folder / "captioner")
    captioner = {"class_path": VED, "init_args": {"init_from": "runs/demo/mle"}} if captioner is None else captioner
    model = {"class_path": "distcap.stages.RL", "init_args": {"captioner": captioner, "clip": clip}}
    config = {"run": "demo/rl", "model": model, "data": {"init_args": {"image_size": 32}}, **more}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


EVALUATION: dict[str, Any] = {
    "class_path": "distcap.callbacks.Evaluation",
    "init_args": {
        "clip": {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "runs/demo/clip"}},
        "judge": {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "runs/demo/judge"}},
        "java": False,
    },
}
"""The evaluation of the demo's configs, without Java."""


class Interrupt(Callback):
    """Something goes wrong when an epoch begins."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("the power is gone")


class InterruptStep(Callback):
    """Something goes wrong when a step begins, within an epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the power is gone")


def run(folder: Path, *args: str) -> Any:
    """The command line in a folder, without decoration."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    with contextlib.chdir(folder):
        return main([*args, *(quiet if args[0] in ("fit", "validate", "test", "predict") else [])])
