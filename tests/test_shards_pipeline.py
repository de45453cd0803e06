"""Teacher forcing and RL on shards written from the painted scenes, through the command line."""

import json
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

KINDS = {"mle": "demo/mle.yaml", "rl": "demo/rl.yaml"}


@pytest.fixture(scope="module")
def folder(workshop: Path) -> Path:
    """The workshop with shards.yaml, 24 scenes in three shards."""
    scenes = workshop / "data"
    packed = (str(scenes / "annotators.json"), str(scenes / "images"))
    tiny.run(workshop, "prepare", "shards", *packed, "--output", str(workshop / "shards"), "--per_shard", "9")
    evaluation = yaml.safe_load((workshop / "scenes.yaml").read_text())
    init_args = {"shards": f"{workshop}/shards/{{00000..00002}}.tar", "evaluation": evaluation}
    init_args |= {"image_size": 64, "batch_size": 4, "num_workers": 0}
    data = {"class_path": "distcap.data.Shards", "init_args": init_args}
    (workshop / "shards.yaml").write_text(yaml.safe_dump(data))
    return workshop


def fit(folder: Path, kind: str, run: str, *args: str, callbacks: list | None = None) -> None:
    """Two epochs of six steps."""
    fixed = ("--data=shards.yaml", "--trainer.max_steps=12", "--test_after_fit=false")
    callbacks_arg = f"--trainer.callbacks={json.dumps(callbacks or [])}"
    tiny.run(folder, "fit", "--config", KINDS[kind], f"--run=demo/{run}", *fixed, callbacks_arg, *args)


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / "demo" / run / "captioner" / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_interrupted_within_an_epoch_and_resumed_ends_as_one_that_was_not(folder: Path, kind: str) -> None:
    fit(folder, kind, f"whole-{kind}")
    interrupt = {"class_path": "tiny.InterruptStep", "init_args": {"step": 8}}
    with pytest.raises(RuntimeError, match="the power is gone"):
        fit(folder, kind, f"resumed-{kind}", callbacks=[interrupt])
    fit(folder, kind, f"resumed-{kind}", "--ckpt_path=last")
    whole, resumed = weights(folder, f"whole-{kind}"), weights(folder, f"resumed-{kind}")
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


def test_evaluation_is_that_of_the_other_data_set(folder: Path) -> None:
    fit(folder, "rl", "tested", "--trainer.max_steps=1", "--test_after_fit=true", callbacks=[tiny.EVALUATION])
    rows = json.loads((folder / "runs" / "demo" / "tested" / "captions_test.json").read_text())
    assert [row["image_id"] for row in rows] == list(range(32, 40))
