"""Two recipes through the command line, in miniature: what each command leaves for the next one and for us."""

import csv
import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

METRICS = [
    *(f"{judge}{direction}_recall@{k}" for judge in ("", "judge_") for direction in ("t2i", "i2t") for k in (1, 5, 10)),
    *(f"bleu@{n}" for n in range(1, 5)),
    *("rouge_l", "cider", "length"),
]
TINY_CLIP = tiny.CLIP_CONFIG["model_cfg"] | {
    "vision_cfg": tiny.CLIP_CONFIG["model_cfg"]["vision_cfg"] | {"image_size": 64}
}


def fit(folder: Path, config: str, run: str, *args: str, steps: int = 6, callbacks: list | None = None) -> None:
    """Two epochs of three steps, evaluated after each."""
    tiny.run(
        folder,
        *(
            "fit",
            "--config",
            f"demo/{config}.yaml",
            f"--run={run}",
            f"--data={'web' if config == 'clip' else 'scenes'}.yaml",
        ),
        *(f"--trainer.max_steps={steps}", "--trainer.log_every_n_steps=1", "--trainer.check_val_every_n_epoch=1"),
        *((f"--trainer.callbacks={json.dumps(callbacks)}",) if callbacks is not None else ()),
        *args,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIPs, MLE, discriminator, RL by two recipes; then test, predict and report."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name, texts in (("scenes", "annotators"), ("web", "web")):
        (folder / f"{name}.yaml").write_text(tiny.SCENES % (folder / "data", texts))
    clip = f"--model.model_cfg={json.dumps(TINY_CLIP)}"
    fit(folder, "clip", "demo/clip", clip)
    fit(folder, "clip", "demo/judge", clip, "--seed_everything=1")
    fit(folder, "mle", "demo/mle", "--model.warmup_steps=1", callbacks=[tiny.EVALUATION])
    fit(folder, "discriminator", "demo/discriminator")
    fit(folder, "rl", "demo/distcap", "--model.health_every=1", callbacks=[tiny.EVALUATION])
    full = ("--config", "experiments/full.yaml", "--run=demo/full")
    fit(folder, "rl", "demo/full", *full, callbacks=[tiny.EVALUATION])
    evaluation = f"--trainer.callbacks={json.dumps([tiny.EVALUATION])}"
    (folder / "runs" / "demo" / "mle" / "first_metrics.json").write_bytes(
        (folder / "runs" / "demo" / "mle" / "metrics.json").read_bytes()
    )
    for command in ("test", "predict"):
        last = ("--config", "demo/mle.yaml", "--run=demo/mle", "--data=scenes.yaml", "--ckpt_path=last")
        tiny.run(folder, command, *last, *([evaluation] if command == "test" else []))
    tiny.run(folder, "report", "runs/demo")
    return folder


def columns(run: Path) -> dict[str, list[float]]:
    """The logged values of each key of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows if row[key]] for key in rows[0]}


@pytest.mark.parametrize("name", ["clip", "judge", "mle", "discriminator", "distcap", "full"])
def test_every_run_stores_its_config_checkpoints_and_curves(folder: Path, name: str) -> None:
    run = folder / "runs" / "demo" / name
    assert (run / "config.yaml").stat().st_size > 0
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "metrics.csv").is_file()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("clip", "clip/open_clip_config.json"),
        ("clip", "clip/open_clip_model.safetensors"),
        ("mle", "captioner/model.safetensors"),
        ("mle", "captioner/tokenizer.json"),
        ("discriminator", "discriminator/model.safetensors"),
        ("distcap", "captioner/model.safetensors"),
    ],
)
def test_a_stage_leaves_what_the_next_one_needs(folder: Path, name: str, file: str) -> None:
    assert (folder / "runs" / "demo" / name / file).is_file()


@pytest.mark.parametrize("name", ["mle", "distcap"])
def test_metrics_json_holds_the_promised_metrics_of_both_splits(folder: Path, name: str) -> None:
    found = json.loads((folder / "runs" / "demo" / name / "metrics.json").read_text())
    assert set(found) == {"val", "test"}
    for split in found.values():
        assert set(METRICS) <= set(split)


def test_the_captions_of_the_test_split_are_stored_with_rank_and_look_alike(folder: Path) -> None:
    rows = json.loads((folder / "runs" / "demo" / "distcap" / "captions_test.json").read_text())
    assert [row["image_id"] for row in rows] == list(range(32, 40))
    for row in rows:
        assert Path(row["file"]).is_file()
        assert 1 <= row["rank"] <= 8
        assert len(row["ground_truth"]) == 5
        assert row["lookalike"]["image_id"] != row["image_id"]


def test_testing_a_checkpoint_gives_what_the_run_itself_found(folder: Path) -> None:
    run = folder / "runs" / "demo" / "mle"
    first, again = (json.loads((run / name).read_text())["test"] for name in ("first_metrics.json", "metrics.json"))
    assert again == first


def test_predictions_are_the_captions_of_the_test_split(folder: Path) -> None:
    run = folder / "runs" / "demo" / "mle"
    rows = json.loads((run / "predictions.json").read_text())
    tested = json.loads((run / "captions_test.json").read_text())
    assert [(row["image_id"], row["caption"]) for row in rows] == [(row["image_id"], row["caption"]) for row in tested]


def test_the_report_is_one_page_that_holds_its_pictures(folder: Path) -> None:
    page = (folder / "runs" / "demo" / "report.html").read_text()
    assert "mle" in page
    assert "distcap" in page
    assert "data:image/" in page
    assert "<script src" not in page
    assert "<link" not in page


def test_the_rl_stage_logs_its_reward_policy_loss_and_validation(folder: Path) -> None:
    found = columns(folder / "runs" / "demo" / "distcap")
    every_step = [
        "train/loss",
        "loss/policy_gradient",
        "loss/weighted_teacher_forcing",
        "reward/total",
        "reward/sampled/contrastive",
        "reward/ground_truth/contrastive",
        "policy/entropy",
        "policy/length",
    ]
    assert {key: len(found.get(key, [])) for key in every_step} == dict.fromkeys(every_step, 6)
    for key in ("policy/kl", "policy/repetition", "policy/vocabulary"):
        assert found[key]
    for key in METRICS:
        assert len(found[f"val/{key}"]) == 2  # every epoch


def test_the_policy_starts_where_its_reference_is(folder: Path) -> None:
    assert columns(folder / "runs" / "demo" / "distcap")["policy/kl"][0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("clip", {"net"}),
        ("mle", {"captioner"}),
        ("discriminator", {"discriminator"}),
        ("distcap", {"captioner"}),
        ("full", {"captioner", "rewards"}),
    ],
)
def test_checkpoints_load_without_running_code_and_hold_only_what_is_trained(
    folder: Path, name: str, parts: set[str]
) -> None:
    """No frozen CLIP, no reference captioner, no frozen weight of the captioner (trap 14)."""
    file = folder / "runs" / "demo" / name / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == parts
    assert checkpoint["global_step"] == 6
    encoder = [key for key in checkpoint["state_dict"] if key.startswith("captioner.model.encoder.")]
    assert not [key for key in encoder if name in ("distcap", "full") and key.endswith(("weight", "bias"))]
    assert encoder or name != "mle"
    held = sum(value.numel() for value in checkpoint["state_dict"].values()) * 4
    assert file.stat().st_size < 3.3 * held + 300_000  # weights and AdamW's two moments


def test_rl_starts_from_the_captioner_of_the_mle_stage_and_moves_it(folder: Path) -> None:
    mle, rl = (
        load_file(folder / "runs" / "demo" / name / "captioner" / "model.safetensors") for name in ("mle", "distcap")
    )
    assert mle.keys() == rl.keys()
    distance = max(float((mle[key] - rl[key]).abs().max()) for key in mle)
    assert 0 < distance < 0.01  # six steps of AdamW at 1e-4


def test_the_discriminator_goes_on_learning_during_rl(folder: Path) -> None:
    before = load_file(folder / "runs" / "demo" / "discriminator" / "discriminator" / "model.safetensors")
    after = torch.load(folder / "runs" / "demo" / "full" / "checkpoints" / "last.ckpt", weights_only=True)
    prefix = "rewards.discriminator.discriminator."
    assert len(columns(folder / "runs" / "demo" / "full")["loss/discriminator"]) == 6
    assert any(not torch.equal(value, after["state_dict"][prefix + key]) for key, value in before.items())


def test_images_and_ground_truth_are_embedded_once_for_all_runs(folder: Path) -> None:
    """Two CLIPs saw the pictures, whatever the number of runs: each in a store of its own, without a row twice."""
    stores = sorted((folder / "data").rglob("index.jsonl"))
    assert len({store.parent.name for store in stores if store.parent.name.endswith("-images")}) == 2
    for store in stores:
        keys = [key for line in store.read_text().splitlines() for key in json.loads(line)["versions"]]
        assert len(keys) == len(set(keys))


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / run / "captioner" / "model.safetensors")


def test_the_same_seed_gives_the_same_metrics_and_captions_twice(folder: Path) -> None:
    fit(folder, "rl", "demo/again", "--model.health_every=1", callbacks=[tiny.EVALUATION])
    for name in ("metrics.json", "captions_test.json"):
        first, second = ((folder / "runs" / "demo" / run / name).read_text() for run in ("distcap", "again"))
        assert first == second


def test_another_seed_gives_other_weights(folder: Path) -> None:
    fit(folder, "rl", "demo/seed", "--seed_everything=1", "--test_after_fit=false", callbacks=[])
    first, second = weights(folder, "demo/distcap"), weights(folder, "demo/seed")
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_the_last_checkpoint_is_the_captioner_that_training_ended_with_within_an_epoch_too(folder: Path) -> None:
    args = ("--test_after_fit=false", "--trainer.check_val_every_n_epoch=2")
    fit(folder, "rl", "demo/uneven", *args, steps=4, callbacks=[])
    saved = torch.load(folder / "runs" / "demo" / "uneven" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    trained = {key: value for key, value in weights(folder, "demo/uneven").items() if key.startswith("decoder.")}
    assert trained
    for key, value in trained.items():
        assert torch.equal(saved["state_dict"][f"captioner.model.{key}"], value), key


@pytest.mark.parametrize("config", ["mle", "rl"])
def test_a_run_interrupted_between_epochs_and_resumed_ends_as_one_that_was_not(folder: Path, config: str) -> None:
    args = ("--model.warmup_steps=1", "--test_after_fit=false")
    fit(folder, config, f"demo/whole-{config}", *args, callbacks=[])
    interrupt = {"class_path": "tiny.Interrupt", "init_args": {"epoch": 1}}
    with pytest.raises(RuntimeError, match="the power is gone"):
        fit(folder, config, f"demo/resumed-{config}", *args, callbacks=[interrupt])
    assert not (folder / "runs" / "demo" / f"resumed-{config}" / "captioner").exists()
    fit(folder, config, f"demo/resumed-{config}", *args, "--ckpt_path=last", callbacks=[])
    whole, resumed = weights(folder, f"demo/whole-{config}"), weights(folder, f"demo/resumed-{config}")
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key
