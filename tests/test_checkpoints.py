"""A checkpoint holds what is trained of a captioner, and goes on only with the weights that it was trained beside."""

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from lightning import LightningDataModule, Trainer
from tiny import CAPTIONS
from torch import Tensor
from torch.utils.data import DataLoader

from distcap.stages import MLE
from distcap.types import Batch, UserError


def collate(ids: list[int]) -> Batch:
    pixels = torch.stack([torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in ids])
    return Batch(pixels, [[CAPTIONS[i]] for i in ids], ids)


class Data(LightningDataModule):
    """Four images in two batches, always in this order."""

    def references(self, split: str) -> dict[int, list[str]]:
        return {i: [CAPTIONS[i]] for i in range(4)}

    def train_dataloader(self) -> Any:
        return DataLoader(range(4), 2, collate_fn=collate)  # type: ignore[arg-type]


def fit(folder: Path, family: str, run: Path, epochs: int, ckpt_path: Path | None = None, **kwargs: Any) -> MLE:
    torch.manual_seed(0)
    stage = MLE(families.load(family, folder, **kwargs), learning_rate=1e-2, schedule="constant")
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=epochs, default_root_dir=run, enable_checkpointing=False, **options)  # type: ignore[arg-type]
    trainer.fit(stage, Data(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(run / "last.ckpt")
    return stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "blip"
    families.blip(folder)
    return folder


WAYS: dict[str, dict[str, Any]] = {
    "lora": {"lora": families.lora("blip")},
    "frozen": {"freeze_encoder": True},
    "all": {},
}


def trained(stage: MLE) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in stage.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(way: str, folder: Path, tmp_path: Path) -> None:
    whole = trained(fit(folder, "blip", tmp_path / "whole", 2, **WAYS[way]))
    fit(folder, "blip", tmp_path / "half", 1, **WAYS[way])
    file = tmp_path / "half" / "last.ckpt"
    resumed = trained(fit(folder, "blip", tmp_path / "resumed", 2, file, **WAYS[way]))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    held = torch.load(file, weights_only=True)["state_dict"].keys()
    assert held >= whole.keys()
    assert (way == "lora") == all("lora_" in name for name in held)
    assert (way == "all") == any(name.startswith("captioner.model.vision_model.") for name in held)


def test_a_trained_weight_that_is_missing_is_noticed(folder: Path, tmp_path: Path) -> None:
    fit(folder, "blip", tmp_path, 1, **WAYS["lora"])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint["state_dict"][next(name for name in checkpoint["state_dict"] if "lora_B" in name)]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"it lacks captioner\..*lora_B"):
        fit(folder, "blip", tmp_path / "resumed", 2, tmp_path / "last.ckpt", **WAYS["lora"])


def test_frozen_weights_that_have_changed_since_are_one_error(folder: Path, tmp_path: Path) -> None:
    fit(folder, "blip", tmp_path, 1, **WAYS["lora"])
    other = families.load("blip", folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.001)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"other frozen weights than model\.captioner\.init_from gives now"):
        fit(tmp_path / "other", "blip", tmp_path / "resumed", 2, tmp_path / "last.ckpt", **WAYS["lora"])


def test_a_checkpoint_that_holds_everything_can_still_be_read(folder: Path, tmp_path: Path) -> None:
    """As those that were written before frozen weights were left out."""
    stage = fit(folder, "blip", tmp_path, 1, **WAYS["frozen"])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint["frozen"]
    checkpoint["state_dict"] = stage.state_dict()
    torch.save(checkpoint, tmp_path / "last.ckpt")
    fit(folder, "blip", tmp_path / "resumed", 2, tmp_path / "last.ckpt", **WAYS["frozen"])
