"""Every shipped config trains a step, through the command line."""

import contextlib
import json
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from distcap.ablation import SYSTEMS
from distcap.shipped import configs_folder
from distcap.stages import Clip
from distcap.steps import experiment
from distcap.types import UserError

ROOT = configs_folder()
PAPER = {"paper_mle", "paper_discriminator", "paper_rl"}
"""The paper's three stages on COCO, each to be laid over that stage's config; see test_reproduce.py."""
EXPERIMENTS = sorted({file.stem for file in (ROOT / "experiments").glob("*.yaml")} - PAPER)
FULL = sorted(
    str(file.relative_to(ROOT))
    for file in ROOT.rglob("*.yaml")
    if "class_path" in (yaml.safe_load(file.read_text()) or {}).get("model", {}) and file.parent.name != "experiments"
)
MIX = {
    *("sampler", "ground_truth_per_image", "rewards", "normalise", "baseline", "updates_per_rollout", "objective"),
}
"""What makes a system."""
PLATFORM = {"captioner", "clip", "clips", "learning_rate", "warmup_steps", "schedule"}
"""What all systems share on one data set."""
NO_CHECKPOINT = {"pac_s": ("--model.clip.pretrained=openai",)}
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
        return {**value, "init_args": {**value["init_args"], "model": "@clip"}}
    small = {key: shrunk(one) for key, one in value.items()}
    if value.get("class_path", "").endswith(".Evaluation"):
        small["init_args"]["java"] = False
    return small


def overrides(config: dict[str, Any], stage: str = "") -> list[str]:
    """What makes a config fit a laptop without downloads: data, captioner and CLIPs, nothing of the method.

    An experiment that is laid over it may be of another stage.
    """
    model, stage = config["model"]["init_args"], stage or config["model"]["class_path"].rsplit(".", 1)[1]
    args = [f"--data={'web' if stage == 'Clip' else 'scenes'}.yaml"]
    if stage == "Clip":
        args.append(f"--model.model_cfg={json.dumps(TINY_CLIP)}")
    if (captioner := model.get("captioner")) and captioner["init_args"]["init_from"]:
        args.append("--model.captioner.init_from=@mle")
    if model.get("clip") and stage != "MLE":
        args.append("--model.clip.model=@clip")
    if model.get("clips") and stage == "RL":
        args.append(f"--model.clips={json.dumps(shrunk(model['clips']))}")
    if callbacks := config.get("trainer", {}).get("callbacks"):
        args.append(f"--trainer.callbacks={json.dumps(shrunk(callbacks))}")
    return args


STEP = (
    *("--trainer.max_steps=1", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"),
    *("--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=null"),
    *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"),
)


def test_there_is_a_config_for_every_stage() -> None:
    stages = ("clip", "mle", "discriminator", "grammar", "rl")
    assert {f"{folder}{stage}.yaml" for folder in ("", "demo/") for stage in stages} <= set(FULL)


@pytest.mark.parametrize("name", FULL)
def test_the_config_trains_a_step(name: str, workshop: Path) -> None:
    config = load(ROOT / name)
    run = f"demo/of-{name.removesuffix('.yaml').replace('/', '-')}"
    cli = tiny.run(workshop, "fit", "--config", name, f"--run={run}", *STEP, *overrides(config))
    assert cli.trainer.global_step == 1
    assert (workshop / "runs" / run / "config.yaml").is_file()
    if config.get("test_after_fit"):
        assert set(json.loads((workshop / "runs" / run / "metrics.json").read_text())) == {"val", "test"}


PIECES = sorted(set(families.WRITERS) - {"vision_encoder_decoder"})
SIDES = {"smolvlm": 64, "qwen_vl": 64}
"""Of models that are told the size of images."""


def test_every_piece_of_a_captioner_is_of_a_family_that_is_tested() -> None:
    assert {file.stem for file in (ROOT / "captioner").glob("*.yaml")} == {*PIECES, "tiny", "vit_gpt2"}


@pytest.mark.parametrize("name", PIECES)
def test_the_captioner_trains_a_step_of_mle_and_one_of_rl_from_there(name: str, workshop: Path) -> None:
    """Its piece as it is, but for a tiny network of the same class; rl starts from what mle left."""
    families.WRITERS[name](workshop / "families" / name, side=64)
    sides = [f"--model.captioner.image_size={SIDES[name]}"] if name in SIDES else []
    start, runs = f"families/{name}", []
    for stage in ("mle", "rl"):
        runs.append(f"demo/{name}-{stage}")
        config = load(ROOT / f"{stage}.yaml")
        args = [arg for arg in overrides(config) if "captioner" not in arg]
        piece = ("--model.captioner", f"captioner/{name}.yaml", f"--model.captioner.init_from=./{start}", *sides)
        only = ("--test_after_fit=false", "--trainer.limit_val_batches=0", "--trainer.callbacks=[]")
        cli = tiny.run(workshop, "fit", "--config", f"{stage}.yaml", f"--run={runs[-1]}", *STEP, *args, *piece, *only)
        assert cli.trainer.global_step == 1
        start = f"runs/{runs[-1]}"
    mle, rl = (load_file(next((workshop / "runs" / run / "captioner").rglob("model.safetensors"))) for run in runs)
    assert mle.keys() == rl.keys()
    saved = torch.load(workshop / "runs" / runs[1] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    lora = "lora" in load(ROOT / "captioner" / f"{name}.yaml")["init_args"]
    assert any("lora_A" in key for key in saved) == lora
    assert not lora or all("lora_" in key for key in saved if key.startswith("captioner."))


def test_a_captioner_put_together_of_trained_parts_is_tested_when_it_has_learnt(workshop: Path) -> None:
    """It says of itself that it is untrained, and so it is until then."""
    families.WRITERS["clipcap"](workshop / "parts" / "clipcap", side=64)
    clip = {"class_path": "distcap.models.FrozenClip", "init_args": {"model": "parts/clipcap-clip"}}
    parts = {"init_from": None, "clip": clip, "language_model": "parts/clipcap-language", "prefix": 2}
    captioner = json.dumps({"class_path": "distcap.models.ClipCap", "init_args": parts})
    run = ("--config", "demo/mle.yaml", "--run=demo/parts", "--data=scenes.yaml", f"--model.captioner={captioner}")
    tiny.run(workshop, "fit", *run, *STEP, f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}")
    assert set(json.loads((workshop / "runs/demo/parts/metrics.json").read_text())) == {"val", "test"}


def test_the_second_clip_differs_from_the_first_by_its_seed(workshop: Path) -> None:
    configs = ("--config", "demo/clip.yaml", "--config", "demo/second.yaml", "--run=demo/of-second")
    cli = tiny.run(workshop, "fit", *configs, *STEP, *overrides(load(ROOT / "demo/clip.yaml")))
    assert cli.trainer.global_step == 1
    assert cli.config["fit"]["seed_everything"] == 2000


def test_the_sharp_clip_goes_on_from_the_first(workshop: Path) -> None:
    config, still = load(ROOT / "demo/clip.yaml"), (*STEP, "--model.learning_rate=0")
    first, sharp = ("--config", "demo/clip.yaml", "--run=demo/of-first"), ("--config", "demo/clip.yaml")
    sharp = (*sharp, "--config", "demo/sharp.yaml", "--run=demo/of-sharp", "--model.init_from=@of-first")
    tiny.run(workshop, "fit", *first, *still, *overrides(config))
    cli = tiny.run(workshop, "fit", *sharp, *still, *overrides(config))
    assert cli.model.max_logit_scale > config["model"]["init_args"]["max_logit_scale"]
    before, after = (
        load_file(workshop / "runs/demo" / run / "clip/open_clip_model.safetensors") for run in ("of-first", "of-sharp")
    )
    assert all(torch.equal(after[name], value) for name, value in before.items() if "running" not in name)
    assert load(ROOT / "demo/sharp.yaml")["model"]["init_args"]["init_from"] == "@clip"


def test_a_clip_of_another_size_cannot_be_gone_on_from(workshop: Path) -> None:
    other = {**TINY_CLIP, "embed_dim": 8}
    with pytest.raises(UserError, match="runs/demo/clip is a CLIP of another model_cfg"), contextlib.chdir(workshop):
        Clip(other, init_from="runs/demo/clip")


def test_the_judge_is_a_clip_that_learns_otherwise(workshop: Path) -> None:
    configs = ("--config", "demo/clip.yaml", "--config", "demo/judge.yaml", "--run=demo/of-judge")
    config = load(ROOT / "demo/clip.yaml")
    cli = tiny.run(workshop, "fit", *configs, *STEP, *overrides(config))
    assert cli.trainer.global_step == 1
    assert cli.model.max_logit_scale > config["model"]["init_args"]["max_logit_scale"]
    assert cli.config["fit"]["seed_everything"] == 1000


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("base", ["rl.yaml", "demo/rl.yaml"])
def test_the_experiment_trains_a_step_or_is_tested_on_either_data_set(name: str, base: str, workshop: Path) -> None:
    run = f"demo/{name}-{base.removesuffix('.yaml').replace('/', '-')}"
    config = load(ROOT / base)
    stage = load(ROOT / "experiments" / f"{name}.yaml")["model"]["class_path"].rsplit(".", 1)[1]
    trains = stage == "RL"
    own = experiment(name).configs[2:] if base == "demo/rl.yaml" else ()
    over = (part for config in (f"experiments/{name}.yaml", *own) for part in ("--config", config))
    configs = ("--config", base, *over, f"--run={run}")
    cli = tiny.run(
        workshop,
        "fit" if trains else "test",
        *configs,
        *STEP,
        *overrides(config, stage),
        *NO_CHECKPOINT.get(name, ()),
    )
    if trains:
        assert cli.trainer.global_step == 1
    assert "test" in json.loads((workshop / "runs" / run / "metrics.json").read_text())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_states_its_whole_mix(name: str) -> None:
    """What it leaves out would be what the config before it says, whatever that is."""
    experiment = load(ROOT / "experiments" / f"{name}.yaml")
    if experiment["model"]["class_path"].endswith(".RL"):
        assert set(experiment["model"]["init_args"]) >= MIX
        assert "group_size" in experiment["data"]["init_args"]
    for base in ("rl.yaml", "demo/rl.yaml"):
        assert set(load(ROOT / base)["model"]["init_args"]) <= MIX | PLATFORM


def test_the_papers_recipe_on_coco_is_that_of_the_benchmark_but_for_longer_captions() -> None:
    """And states the discriminator's rate, which is its default."""
    short, long = (load(ROOT / "experiments" / f"{name}.yaml")["model"]["init_args"] for name in ("paper", "paper_rl"))
    assert long["sampler"].pop("max_tokens") == 50
    assert long["rewards"]["discriminator"]["init_args"].pop("learning_rate") == 7e-5
    assert long == short


def test_the_mix_for_images_without_captions_is_stated_whole() -> None:
    assert set(load(ROOT / "captionless.yaml")["model"]["init_args"]) == MIX


def test_the_default_recipe_is_that_of_distcap_on_either_data_set() -> None:
    recipe, coco, demo = (
        {key: load(ROOT / f"{name}.yaml")["model"]["init_args"][key] for key in MIX}
        for name in ("experiments/distcap", "rl", "demo/rl")
    )
    assert recipe == coco == demo


@pytest.mark.parametrize("file", sorted((ROOT / "demo" / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_a_system_has_of_its_own_on_the_benchmark_is_no_part_of_its_mix(file: Path) -> None:
    assert set(load(file)["model"]["init_args"]) <= PLATFORM
    assert f"demo/experiments/{file.name}" in experiment(file.stem).configs


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_head_of_an_experiment_names_its_paper_and_both_commands(name: str) -> None:
    lines = (ROOT / "experiments" / f"{name}.yaml").read_text().splitlines()
    assert lines[1].startswith("# Paper: ")
    heads = [line for line in lines if line.startswith("#   distcap ")]
    own = "".join(f" --config {config}" for config in experiment(name).configs[1:])
    assert [head.split()[4] for head in heads] == ["rl.yaml", "demo/rl.yaml"]
    assert f"--config experiments/{name}.yaml" in heads[0]
    assert f"demo/rl.yaml{own} --run demo/{name}" in heads[1]


def test_every_experiment_is_in_the_ablation_but_those_that_need_a_download() -> None:
    assert set(SYSTEMS) == set(EXPERIMENTS) - {"pac_s"}


@pytest.mark.parametrize("name", [str(file.relative_to(ROOT)) for file in sorted(ROOT.rglob("*.yaml"))])
def test_the_head_of_a_config_says_what_it_is_and_a_full_one_how_to_run_it(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert lines[0].startswith("# ")
    if name in FULL:
        assert any(line.startswith(f"#   distcap fit --config {name}") for line in lines)


SWEEPS = sorted(file.stem for file in (ROOT / "sweeps").glob("*.yaml"))


def commands(sweep: dict[str, Any]) -> list[list[str]]:
    """What a W&B agent executes for the first and for the last value of each parameter, expanded as it does."""
    lines = []
    for which in (0, -1):
        chosen = {name: {"value": parameter["values"][which]} for name, parameter in sweep["parameters"].items()}
        macros = create_sweep_command_args({"args": chosen}) | {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
        parts = [
            macros[part[2:-1]] if part.startswith("${") else [part] for part in create_sweep_command(sweep["command"])
        ]
        lines.append([argument for part in parts for argument in part])
    return lines


@pytest.mark.parametrize("name", SWEEPS)
def test_the_sweep_trains_a_step_with_its_first_and_last_weights(
    name: str, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = load_sweep_config(str(ROOT / "sweeps" / f"{name}.yaml"))
    for number, (env, program, *args) in enumerate(commands(sweep)):
        assert (env, program) == ("/usr/bin/env", "distcap")
        monkeypatch.setenv("WANDB_RUN_ID", f"id{number}")
        small = (*STEP, *overrides(load(ROOT / "rl.yaml")), "--test_after_fit=false", "--trainer.logger=false")
        args[args.index("--run") + 1] = f"demo/{args[args.index('--run') + 1]}"
        cli = tiny.run(workshop, *args, *small)
        assert cli.trainer.global_step == 1
        assert (workshop / "runs" / "demo" / f"sweep-id{number}" / "config.yaml").is_file()
        for parameter, values in sweep["parameters"].items():
            _, part, key, attribute = parameter.split(".")
            assert getattr(getattr(cli.model, part)[key], attribute) == values["values"][-number]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_looks_for_the_most_of_a_metric_that_is_logged(name: str) -> None:
    metric = yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())["metric"]
    assert metric == {"name": "val/judge_t2i_recall@1", "goal": "maximize"}
