"""Every shipped config trains a step, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from distcap.cli import configs_folder

ROOT = configs_folder()
FULL = sorted(
    str(file.relative_to(ROOT)) for file in ROOT.rglob("*.yaml") if "model" in (yaml.safe_load(file.read_text()) or {})
)
TINY_CLIP = tiny.CLIP_CONFIG["model_cfg"] | {
    "vision_cfg": tiny.CLIP_CONFIG["model_cfg"]["vision_cfg"] | {"image_size": 64}
}


def load(file: Path) -> Any:
    """A YAML file, its includes resolved."""

    def resolve(value: Any) -> Any:
        if isinstance(value, str) and value.endswith(".yaml"):
            return load(file.parent / value)
        if isinstance(value, dict):
            return {key: resolve(one) for key, one in value.items()}
        return [resolve(one) for one in value] if isinstance(value, list) else value

    return resolve(yaml.safe_load(file.read_text()))


def shrunk(value: Any) -> Any:
    """The same callbacks with tiny CLIPs and without Java."""
    if isinstance(value, list):
        return [shrunk(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_path", "").endswith(".FrozenClip"):
        return {**value, "init_args": {**value["init_args"], "model": "runs/demo/clip"}}
    small = {key: shrunk(one) for key, one in value.items()}
    if value.get("class_path", "").endswith(".Evaluation"):
        small["init_args"]["java"] = False
    return small


def overrides(config: dict[str, Any]) -> list[str]:
    """What makes a config fit a laptop without downloads: data, captioner and CLIPs, nothing of the method."""
    model, stage = config["model"]["init_args"], config["model"]["class_path"].rsplit(".", 1)[1]
    args = [f"--data={'web' if stage == 'Clip' else 'scenes'}.yaml"]
    if stage == "Clip":
        args.append(f"--model.model_cfg={json.dumps(TINY_CLIP)}")
    if (captioner := model.get("captioner")) and captioner["init_args"]["init_from"]:
        args.append("--model.captioner.init_from=runs/demo/mle")
    if model.get("clip"):
        args.append("--model.clip.model=runs/demo/clip")
    for name, reward in model.get("rewards", {}).items():
        if "init_from" in reward.get("init_args", {}):
            args.append(f"--model.rewards.{name}.init_from=runs/demo/discriminator")
    if callbacks := config.get("trainer", {}).get("callbacks"):
        args.append(f"--trainer.callbacks={json.dumps(shrunk(callbacks))}")
    return args


def test_there_is_a_config_for_every_stage() -> None:
    assert {"clip.yaml", "mle.yaml", "discriminator.yaml", "rl.yaml"} <= set(FULL)
    assert {f"demo/{name}.yaml" for name in ("clip", "mle", "discriminator", "clip_only", "distcap")} <= set(FULL)


@pytest.mark.parametrize("name", FULL)
def test_the_config_trains_a_step(name: str, workshop: Path) -> None:
    config = load(ROOT / name)
    cli = tiny.run(
        workshop,
        *("fit", "--config", name, f"--run=configs/{name.removesuffix('.yaml')}"),
        *("--trainer.max_steps=1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"),
        *("--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=null"),
        *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"),
        *overrides(config),
    )
    assert cli.trainer.global_step == 1
    folder = workshop / "runs" / "configs" / name.removesuffix(".yaml")
    assert (folder / "config.yaml").is_file()
    if config.get("test_after_fit"):
        assert set(json.loads((folder / "metrics.json").read_text())) == {"val", "test"}


@pytest.mark.parametrize("name", [str(file.relative_to(ROOT)) for file in sorted(ROOT.rglob("*.yaml"))])
def test_the_head_of_a_config_says_what_it_is_and_a_full_one_how_to_run_it(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert lines[0].startswith("# ")
    if name in FULL:
        assert any(line.startswith(f"#   distcap fit --config {name}") for line in lines)
