"""A captioner knows its own image size: nobody has to say it, and whoever says another is told at once."""

import contextlib
import json
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from lightning import LightningDataModule
from PIL import Image

from distcap.cli import main
from distcap.data import CocoCaptions, ImageFolder, Scenes, Shards
from distcap.models import Captioner
from distcap.stages import Clip
from distcap.trained import image_size
from distcap.types import UserError

SIDE = 48
"""Neither the default of anything here, nor the size of the images."""
WRITTEN = {family: families.ADAPTERS[family].__name__ for family in families.WRITERS}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photos/ and their captions."""
    rows = []
    for number in range(6):
        file = tmp_path / "photos" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (40 * number, 0, 90)).save(file)
        split = ("train", "train", "train", "train", "val", "test")[number]
        rows.append({"file_name": file.name, "captions": [tiny.CAPTIONS[number % 5]], "split": split})
    (tmp_path / "photos" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", WRITTEN)
def test_any_captioner_that_is_no_run_captions_without_a_flag(family: str, here: Path) -> None:
    families.WRITERS[family](here / family, 64 if family == "qwen_vl" else SIDE if family != "smolvlm" else 64)
    main(["caption", "photos", "--run", family, "--captioner", WRITTEN[family], "--clip", "none", "--num_workers=0"])
    assert len(Path("captions.jsonl").read_text().splitlines()) == 6


def blip(here: Path) -> list[str]:
    """The arguments of an MLE of a pretrained BLIP of 48 pixels on the photos."""
    if not (here / "blip").exists():
        families.blip(here / "blip", SIDE)
    captioner = {"class_path": "distcap.models.Blip", "init_args": {"init_from": str(here / "blip")}}
    return [
        "--config=mle.yaml",
        "--data=data/folder.yaml",
        "--data.folder=photos",
        "--data.batch_size=2",
        "--data.num_workers=0",
        f"--model.captioner={json.dumps(captioner)}",
        "--trainer.max_steps=1",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.callbacks=[]",
        "--trainer.logger=false",
        "--test_after_fit=false",
        "--run=sized",
    ]


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_stage_command_shows_the_captioner_what_it_sees(command: str, here: Path) -> None:
    cli = tiny.run(here, command, *blip(here))
    assert cli.datamodule.image_size == SIDE
    assert {data.size for data in cli.datamodule._datasets.values()} == {SIDE}


def test_another_size_is_refused_before_anything_long(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        tiny.run(here, "fit", *blip(here), "--data.image_size=224")
    assert end.value.code == 2
    said = "distcap: the model sees images of 48 pixels, got 224; set --data.image_size=48, or leave it out"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert not list(here.glob("runs/*/*.yaml"))


def test_the_size_that_older_runs_wrote_down_is_taken_as_ever(here: Path) -> None:
    cli = tiny.run(here, "validate", *blip(here), f"--data.image_size={SIDE}")
    assert cli.datamodule.image_size == SIDE


CLIP = ["--config=demo/clip.yaml", "--data=data/folder.yaml", "--data.folder=photos", "--data.batch_size=2"]
CLIP += ["--data.num_workers=0", "--trainer.max_steps=1", "--trainer.logger=false", "--run=clip"]


def test_a_clip_that_learns_is_shown_what_it_sees(here: Path) -> None:
    """Its tower is convolutional: images of 224 pixels passed through it, and nobody noticed."""
    cli = tiny.run(here, "fit", *CLIP)
    assert cli.datamodule.image_size == 64


def test_a_clip_that_is_to_learn_from_another_size_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        tiny.run(here, "fit", *CLIP, "--data.image_size=224")
    assert end.value.code == 2
    assert "the model sees images of 64 pixels, got 224; set --data.image_size=64" in capsys.readouterr().err


def model_cfg(**vision: Any) -> dict[str, Any]:
    config = tiny.CLIP_CONFIG["model_cfg"]
    return {**config, "vision_cfg": {**config["vision_cfg"], **vision}}


def test_a_clip_of_oblong_images_is_one_line() -> None:
    with pytest.raises(UserError, match="must see square ones"):
        _ = Clip(model_cfg(image_size=[32, 64])).image_size


@pytest.mark.parametrize("vision", [{"width": 0}, {"head_width": 100}, {"depth": 3}, {"image_size": "x"}])
def test_a_clip_that_cannot_be_made_is_one_line(vision: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^--model\.model_cfg makes no CLIP: "):
        Clip(model_cfg(**vision))


@pytest.mark.parametrize("told", [None, 32])
def test_data_take_the_models_size_and_no_other(told: int | None) -> None:
    made = {"image_size": told, "batch_size": 1, "num_workers": 0}
    evaluation = CocoCaptions("a.json", "images", **made)
    every: list[Any] = [ImageFolder("photos", **made), Scenes("scenes", image_size=told), evaluation]
    every.append(Shards("a.tar", CocoCaptions("a.json", "images", **made), image_size=told))
    for data in every:
        assert isinstance(data, LightningDataModule)
        data.see(32)
        data.see(32)
        assert data.image_size == 32
        with pytest.raises(UserError, match=r"sees images of 64 pixels, got 32; set --data\.image_size=64, or leave"):
            data.see(64)
    assert every[-1].evaluation.image_size == 32


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_of_nothing_is_one_line(size: int) -> None:
    with pytest.raises(UserError, match=f"--data.image_size is {size}; it takes 1 or more"):
        ImageFolder("photos", image_size=size)


def test_a_runs_size_is_its_captioners_whatever_its_config_says(tmp_path: Path) -> None:
    run = tiny.write_run(tmp_path, data={"init_args": {"image_size": 64}})
    assert image_size(tiny.make_captioner(), run) == 32


class Foreign(torch.nn.Module):
    """A captioner that does not say what it sees."""

    image_size = Captioner.image_size


@pytest.mark.parametrize(("told", "size"), [(96, 96), (None, 224), ("x", 224), (0, 224), (True, 224)])
def test_a_captioner_that_does_not_say_sees_what_it_learnt_from(told: Any, size: int, tmp_path: Path) -> None:
    run = tiny.write_run(tmp_path, data={"init_args": {"image_size": told}})
    with contextlib.chdir(tmp_path):
        assert image_size(Foreign(), run) == size  # type: ignore[arg-type]
