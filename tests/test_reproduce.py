"""From an empty disk to the results table: a rehearsal on COCO in miniature, in COCO's own layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from miniature import write_coco

from distcap.reproduce import STAGES, run_reproduction
from distcap.types import UserError

CLIP = {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "@clip"}}
TRAINER = {
    **{"max_steps": 2, "max_epochs": 2, "accelerator": "cpu", "devices": 1, "precision": "32-true"},
    **{"enable_progress_bar": False, "enable_model_summary": False},
    "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": ".", "version": ""}},
}
EVALUATED = {
    "callbacks": [
        {"class_path": "distcap.callbacks.Evaluation", "init_args": {"clip": CLIP, "judge": CLIP, "java": False}}
    ]
}
SMALL = {"class_path": "distcap.data.CocoCaptions", "init_args": {"image_size": 32, "batch_size": 4, "num_workers": 0}}


def overlay(file: Path, config: dict[str, Any]) -> str:
    file.write_text(yaml.safe_dump(config))
    return str(file)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A folder in which the command has run, on 12 training images with networks to match; and the command."""
    folder = tmp_path_factory.mktemp("rehearsal")
    write_coco(folder / "archives")
    tiny.write_clip(folder / "runs" / "coco" / "clip")
    tiny.make_captioner().save_pretrained(folder / "captioner")
    first = {"captioner": {"class_path": tiny.VED, "init_args": {"init_from": "./captioner"}}}
    rl = {
        "model": {"class_path": "distcap.stages.RL", "init_args": {"clip": CLIP}},
        "trainer": EVALUATED,
    }
    parts = {
        "mle": {"model": {"class_path": "distcap.stages.MLE", "init_args": first}, "trainer": EVALUATED},
        "discriminator": {"model": {"class_path": "distcap.stages.TrainDiscriminator", "init_args": {"clip": CLIP}}},
        "paper": rl,
        "distcap": rl,
    }
    overlays = {name: overlay(folder / f"{name}.yaml", config) for name, config in parts.items()}
    every = overlay(folder / "every.yaml", {"trainer": TRAINER, "data": SMALL})
    command = ("reproduce", "--archives", "archives", "--overlay", every, "--overlays", json.dumps(overlays))
    tiny.run(folder, *command)
    return folder, command


def test_every_captioner_is_tested_and_in_the_table(rehearsal: Any) -> None:
    folder, _ = rehearsal
    runs = folder / "runs" / "coco"
    page = next(runs.glob("*.html")).read_text()
    for name in ("mle", "paper", "distcap"):
        assert "cider" in json.loads((runs / name / "metrics.json").read_text())["test"]
        assert len(json.loads((runs / name / "captions_test.json").read_text())) == 4
        assert f">{name}<" in page


def test_the_runs_are_of_the_prepared_coco_with_restval_among_the_training_images(rehearsal: Any) -> None:
    folder, _ = rehearsal
    config = yaml.safe_load((folder / "runs" / "coco" / "mle" / "config.yaml").read_text())
    assert config["data"]["init_args"]["annotations"] == "data/coco/dataset_coco.json"
    assert len(list((folder / "data" / "coco" / "train2014").iterdir())) == 8
    assert len(list((folder / "data" / "coco" / "val2014").iterdir())) == 12


def test_the_papers_rl_starts_from_this_captioner_and_this_discriminator(rehearsal: Any) -> None:
    folder, _ = rehearsal
    model = yaml.safe_load((folder / "runs" / "coco" / "paper" / "config.yaml").read_text())["model"]["init_args"]
    assert model["captioner"]["init_args"]["init_from"] == "runs/coco/mle"
    assert model["rewards"]["discriminator"]["init_args"]["init_from"] == "runs/coco/discriminator"
    assert model["rewards"]["contrastive"]["init_args"]["neighbours"] == [4, 5]


def test_what_is_done_is_not_done_again_and_what_is_not_is(rehearsal: Any, capsys: pytest.CaptureFixture) -> None:
    folder, command = rehearsal
    runs = folder / "runs" / "coco"
    before = {name: (runs / name / "config.yaml").stat().st_mtime_ns for name in STAGES}
    seconds = json.loads((runs / "seconds.json").read_text())
    assert list(seconds) == ["prepare", *STAGES]
    del seconds["distcap"]
    (runs / "seconds.json").write_text(json.dumps(seconds))
    tiny.run(folder, *command)
    changed = {name for name in STAGES if (runs / name / "config.yaml").stat().st_mtime_ns != before[name]}
    assert changed == {"distcap"}
    assert "[4/5] paper: RL by the paper's recipe, and its test - done before" in capsys.readouterr().out


def test_what_was_begun_otherwise_is_not_gone_on_with(rehearsal: Any, capsys: pytest.CaptureFixture) -> None:
    """Its runs would be called done, and be another seed's."""
    folder, command = rehearsal
    with pytest.raises(SystemExit):
        tiny.run(folder, *command, "--seed", "1")
    assert "runs/coco holds a reproduction of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overlays", "message"),
    [
        ({"rl": "x.yaml"}, "there is no run rl to lay a config over; there are mle"),
        ({"": "x.yaml"}, "no config x.yaml"),
    ],
)
def test_a_wrong_overlay_is_refused_before_anything_is_fetched(
    overlays: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run_reproduction("coco", tmp_path / "coco", None, None, 0, overlays)
    assert not list(tmp_path.iterdir())
