"""With on_error: skip, an image that cannot be read stops no stage, and batches have one size all the same."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import yaml

BROKEN = {"train": 3, "val": 25, "test": 33}
"""Of forty scenes, one of each split."""
DATA = {"image_size": 64, "batch_size": 4, "num_workers": 0, "on_error": "skip"}


@pytest.fixture(scope="module")
def folder(workshop: Path) -> Path:
    """The workshop with broken.yaml: its scenes, three of them cut short."""
    shutil.copytree(workshop / "data", workshop / "broken", ignore=shutil.ignore_patterns(".distcap"))
    for split, number in BROKEN.items():
        file = workshop / "broken" / "images" / split / f"{number:06}.png"
        file.write_bytes(file.read_bytes()[:-40])
    files = {"annotations": str(workshop / "broken" / "web.json"), "images": str(workshop / "broken" / "images")}
    data = {"class_path": "distcap.data.CocoCaptions", "init_args": files | DATA}
    (workshop / "broken.yaml").write_text(yaml.safe_dump(data))
    return workshop


@pytest.mark.parametrize("config", ["clip", "mle", "discriminator", "grammar", "rl"])
def test_every_stage_trains(folder: Path, config: str) -> None:
    args = [
        "--data=broken.yaml",
        f"--run=demo/broken-{config}",
        "--trainer.max_steps=6",
        "--trainer.check_val_every_n_epoch=1",
    ]
    args += [f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}"] if config in ("mle", "rl") else []
    with pytest.warns(UserWarning, match="1 of 24 images of train cannot be read"):
        cli = tiny.run(folder, "fit", "--config", f"demo/{config}.yaml", *args)
    assert cli.trainer.global_step == 6
    assert cli.trainer.num_training_batches == 5  # of four, of twenty-three
    if config in ("mle", "rl"):
        for split in ("val", "test"):
            rows = json.loads((folder / "runs" / "demo" / f"broken-{config}" / f"captions_{split}.json").read_text())
            assert len(rows) == 7
            assert BROKEN[split] not in {row["image_id"] for row in rows}


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_choice_among_samples_is_made_of_the_others(folder: Path, command: str) -> None:
    callbacks = f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}"
    configs = ["--config", "demo/rl.yaml", "--config", "experiments/best_of_n.yaml", "--model.decoder.samples=2"]
    args = ["--data=broken.yaml", "--run=demo/broken-rerank", callbacks]
    with pytest.warns(UserWarning, match="1 of 8 images of (val|test) cannot be read"):
        tiny.run(folder, command, *configs, *args)


def test_a_corpus_is_read_without_it(folder: Path) -> None:
    corpus = json.dumps(yaml.safe_load((folder / "broken.yaml").read_text()))
    args = ["--data=scenes.yaml", f"--model.corpus={corpus}", "--run=demo/broken-corpus", "--trainer.max_steps=2"]
    with pytest.warns(UserWarning, match="1 of 24 images of train cannot be read"):
        tiny.run(folder, "fit", "--config", "demo/discriminator.yaml", *args)
