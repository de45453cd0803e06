"""Dropout and batch statistics: on while a captioner learns by teacher forcing, off while it samples and is rewarded.

Hugging Face loads every pretrained network in eval mode, and Lightning leaves modes as they are.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from tiny import CAPTIONS, CONVOLUTIONAL, make_captioner
from torch import nn
from torch.utils.data import DataLoader

from distcap.baselines import LeaveOneOut
from distcap.models import Captioner, Sampler
from distcap.objectives import PolicyGradient
from distcap.rewards import Repetition
from distcap.stages import MLE, RL
from distcap.types import Batch

FAMILIES = list(families.WRITERS)
OPTIONS: dict[str, Any] = {"all": {}, "frozen encoder": {"freeze_encoder": True}, "adapters": {"lora": True}}
GREEDY = Sampler(method="greedy", max_tokens=4)
MODAL = (nn.Dropout, nn.modules.batchnorm._BatchNorm)
"""Modules that compute something else in training mode."""


class Data(LightningDataModule):
    """Four images of 32 pixels, two a batch, of three epochs with a validation after each."""

    name, cache_dir, neighbours_needed, captions_hint = "four images", Path(), 0, ""

    def references(self, split: str) -> Mapping[int, list[str]]:
        return {image: [CAPTIONS[image], CAPTIONS[0]] for image in range(4)}

    def entries(self, split: str) -> list[Any]:
        return [SimpleNamespace(image_id=image) for image in range(4)]

    def path(self, entry: Any) -> Path:
        return Path()

    def _loader(self) -> DataLoader:
        def batch(ids: list[int]) -> Batch:
            pixels = torch.rand(len(ids), 3, 32, 32, generator=torch.Generator().manual_seed(ids[0]))
            return Batch(pixels, [self.references("train")[i] for i in ids], ids)

        return DataLoader(range(4), 2, collate_fn=batch)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = _loader


class Modes(Callback):
    """Which modules were in training mode while a gradient was taken, and while captions were decoded."""

    def __init__(self) -> None:
        self.learning: list[set[str]] = []
        self.decoding: list[set[str]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        captioner, watch = pl_module.captioner, self
        for name, modes in (("score", self.learning), ("generate", self.decoding)):
            plain = getattr(captioner, name)

            def spy(*args: Any, plain: Any = plain, modes: list[set[str]] = modes, **kwargs: Any) -> Any:
                modes.append(watch.active(captioner))
                return plain(*args, **kwargs)

            setattr(captioner, name, spy)

    def active(self, captioner: nn.Module) -> set[str]:
        return {name for name, part in captioner.named_modules() if isinstance(part, MODAL) and part.training}


def fit(stage: Any) -> Modes:
    modes = Modes()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        fast_dev_run=False,
        callbacks=[modes],
    )
    stage.on_train_end = lambda: None  # nothing is handed over
    trainer.fit(stage, datamodule=Data())
    return modes


def load(family: str, shelf: Path, option: str) -> Captioner:
    kwargs = {**OPTIONS[option], **({"lora": families.lora(family, dropout=0.1)} if option == "adapters" else {})}
    return families.load(family, shelf / family, **kwargs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_captioner_learns_with_its_dropout_and_is_evaluated_without(
    family: str, option: str, shelf: Path
) -> None:
    captioner: Any = load(family, shelf, option)
    frozen = {id(part) for part in captioner.encoder.modules()} if captioner.freeze_encoder else set()
    expected = {name for name, part in captioner.named_modules() if isinstance(part, MODAL) and id(part) not in frozen}
    modes = fit(MLE(captioner, decoder=GREEDY))
    # In the second epoch, too: the validation between them puts every mode back.
    assert modes.learning == [expected] * 4
    assert modes.decoding == [set()] * 4
    if option == "adapters":
        assert any("lora_dropout" in name for name in expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_samples_and_is_scored_without_dropout(family: str, option: str, shelf: Path) -> None:
    captioner = load(family, shelf, option)
    stage = RL(
        captioner,
        {"repetition": Repetition()},
        LeaveOneOut(),
        {"policy_gradient": PolicyGradient()},
        sampler=Sampler(samples=2, max_tokens=4),
        decoder=GREEDY,
        health_every=2,
    )
    stage.files = lambda split: {}  # type: ignore[method-assign]
    modes = fit(stage)
    assert len(modes.learning) >= 4
    assert not set().union(*modes.learning, *modes.decoding)


@pytest.mark.filterwarnings("ignore")
def test_a_captioner_from_parts_learns_with_its_dropout_too() -> None:
    captioner = make_captioner(dropout=0.1, encoder=CONVOLUTIONAL)
    modes = fit(MLE(captioner, decoder=GREEDY))
    assert any("bn" in name or "normalization" in name for name in modes.learning[0])
    assert any("drop" in name for name in modes.learning[0])
