"""What tests share: a folder where every stage has been run once, on a benchmark of forty pictures."""

import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false")

import families
import lightning.pytorch  # noqa: F401 - its log goes to the stderr of its import: not to one that a test captures
import pytest
import tiny


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes.yaml and web.yaml (data), and runs/demo/{clip,judge,second,mle,discriminator,grammar}."""
    folder = tmp_path_factory.mktemp("workshop")
    for name, texts in (("scenes", "annotators"), ("web", "web")):
        (folder / f"{name}.yaml").write_text(tiny.SCENES % (folder / "data", texts))
    for seed, name in enumerate(("clip", "judge", "second")):
        tiny.write_clip(folder / "runs" / "demo" / name, seed)
    for name in ("mle", "discriminator", "grammar"):
        steps = ["--data=scenes.yaml", "--trainer.max_steps=2", "--test_after_fit=false"]
        tiny.run(folder, "fit", "--config", f"demo/{name}.yaml", *steps)
    return folder


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved captioner of each family, by its name."""
    folder = tmp_path_factory.mktemp("families")
    for name, write in families.WRITERS.items():
        write(folder / name)
    return folder
