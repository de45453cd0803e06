"""What holds of every captioner's life: each family, in either precision, whole, with a frozen encoder, or by LoRA."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from lives import CUT, EPOCHS, NAMES, STEPS, TEST, TRAIN, Life, assert_equal, likelihood

Row = tuple[str, str, str]
LEARNING: tuple[Row, ...] = (
    ("vision_encoder_decoder", "plain", "bf16-mixed"),
    ("blip", "freeze", "32-true"),
    ("git", "lora", "bf16-mixed"),
    ("clipcap", "lora-bfloat16", "32-true"),
    ("blip2", "plain", "32-true"),
    ("smolvlm", "freeze", "bf16-mixed"),
    ("qwen_vl", "lora-bfloat16", "bf16-mixed"),
)
"""The quick ones of teacher forcing: each family once, each way and either precision several times."""
GROWN = (LEARNING[0], LEARNING[3])
"""Those that come to RL and are published."""
MEASURED = LEARNING[4]
"""In one precision all along, so that a checkpoint can be held against the captioner that was left."""
ALL: list[Row] = [
    (family, way, precision)
    for family in families.WRITERS
    for way in ("plain", "freeze", "lora", "lora-bfloat16")
    for precision in ("32-true", "bf16-mixed")
]


def rows(quick: Sequence[Row]) -> list[Any]:
    """All lives, of which all but the quick ones are slow."""
    return [pytest.param(row, id="-".join(row), marks=[] if row in quick else [pytest.mark.slow]) for row in ALL]


LIVES: dict[Row, Life] = {}


@pytest.fixture(scope="module", params=rows(LEARNING))
def life(request: pytest.FixtureRequest, yard: Path) -> Life:
    measured = request.param in (*GROWN, MEASURED)
    return LIVES.setdefault(request.param, Life(yard, *request.param, measured=measured))


@pytest.fixture(scope="module", params=rows(GROWN))
def grown(request: pytest.FixtureRequest, yard: Path) -> Life:
    return LIVES.setdefault(request.param, Life(yard, *request.param))


def test_teacher_forcing_trains_in_training_mode_what_was_loaded_in_eval_mode(life: Life) -> None:
    """But not an encoder that is frozen; with LoRA, the adapters at least."""
    captioner = life.mle.model.captioner
    encoder = {id(module) for module in captioner.encoder.modules()}
    inside = [(name, one) for name, one in captioner.model.named_modules() if name]
    frozen = {f"model.{name}" for name, one in inside if id(one) in encoder} if captioner.freeze_encoder else set()
    learning = {f"model.{name}" for name, _ in inside} - frozen
    if life.way.startswith("lora"):
        learning = {name for name in learning if "lora_" in name}
    assert learning
    for row in life.trace("mle"):
        assert not learning - set(row["training"])
        assert not frozen & set(row["training"])


def test_rl_samples_and_scores_in_eval_mode(grown: Life) -> None:
    """With dropout, a sample's probability would not be that of the policy that drew it."""
    assert grown.rl
    assert {name for row in grown.trace("rl") for name in row["training"] if name.startswith("model.")} == set()


def test_a_run_that_was_cut_within_an_epoch_ends_as_one_that_was_not(life: Life) -> None:
    assert life.resumed.trainer.global_step == life.mle.trainer.global_step
    assert_equal(life.weights("cut"), life.weights("mle"))


def test_every_photo_is_seen_once_an_epoch_whether_the_run_was_cut_or_not(life: Life) -> None:
    assert life.mle
    assert life.resumed
    names = {e.image_id: e.file.name for e in life.mle.datamodule.entries("train")}
    for run in ("mle", "cut"):
        rows = life.trace(run)
        # The step that was cut had begun.
        assert [row["step"] for row in rows if row["step"] != CUT] == [s for s in range(EPOCHS * STEPS) if s != CUT]
        steps = {row["step"]: row for row in rows}
        for epoch in range(EPOCHS):
            seen = Counter(names[i] for row in steps.values() if row["epoch"] == epoch for i in row["images"])
            assert seen == Counter(TRAIN)


def test_the_captioner_that_is_handed_over_is_the_one_that_was_trained(life: Life) -> None:
    """By what it says of captions, and with LoRA by its weights: a small change must not be lost in their rounding."""
    trained, handed = life.mle.model.captioner, life.load("mle")
    rounding = 2e-2 if life.way.endswith("bfloat16") else 1e-5
    torch.testing.assert_close(likelihood(handed), likelihood(trained), rtol=rounding, atol=10 * rounding)
    if not life.way.startswith("lora"):
        return
    before = dict(families.load(life.family, life.base).named_parameters())
    after, layers = dict(handed.named_parameters()), 0
    for name, layer in trained.named_modules():
        if hasattr(layer, "lora_A"):
            layers += 1
            weight = f"{name.removesuffix('.base_layer')}.weight"
            old = before[weight].to(torch.bfloat16 if life.way.endswith("bfloat16") else torch.float32).float()
            learnt = layer.get_delta_weight("default").float()
            assert learnt.abs().max() > 0
            assert (after[weight] - old - learnt).norm() < 0.02 * learnt.norm(), weight
    assert layers


def test_test_and_caption_and_the_exported_folder_say_the_same(grown: Life) -> None:
    """In one precision, for a rounding may choose another word."""
    assert grown.rl
    config = grown.config("rl", precision="32-true")
    family = ("--captioner", families.ADAPTERS[grown.family].__name__)
    run = f"{grown.name}/rl"
    tiny.run(grown.yard, "test", "--config", config, "--run", run, "--model.captioner.init_from", f"runs/{run}")
    tested = grown.said_by_test("rl")
    captioned = grown.said_by_caption(f"runs/{run}")
    published = grown.said_by_caption(str(grown.exported.relative_to(grown.yard)), *family)
    assert set(tested) == set(TEST)
    assert set(captioned) == set(NAMES) == set(published)
    assert tested == {name: captioned[name] for name in TEST}
    if "bfloat16" not in grown.name:  # an export is float32 throughout, whose other rounding may decide a near tie
        assert published == captioned
    # So short a life may teach a ClipCap one caption for all.
    assert len(set(captioned.values())) > (0 if grown.family == "clipcap" else 1)


def test_last_is_the_last_step_and_tests_as_the_captioner_that_was_left(life: Life) -> None:
    assert life.mle
    at = torch.load(life.folder("mle") / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert at == life.mle.trainer.global_step
    if not life.measured or life.precision != "32-true" or life.way != "plain":
        return
    said = life.said_by_test("mle")
    config = life.config("mle")
    tiny.run(life.yard, "test", "--config", config, "--run", f"{life.name}/mle", "--ckpt_path", "last")
    assert life.said_by_test("mle") == said
