"""The optimizer that all stages share, and what the RL stage asks of its surroundings."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import words
from fakes import make_sight
from torch import nn

from distcap.baselines import Zero
from distcap.models import Neighbours
from distcap.objectives import PolicyGradient
from distcap.rewards import ClipSimilarity, GroupSimilarity, Reward
from distcap.stages.base import Stage
from distcap.types import UserError


class Slope(Stage):
    """Two parameters, two groups."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(learning_rate=1.0, **kwargs)
        self.slow, self.fast = (nn.Parameter(torch.zeros(2)) for _ in range(2))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.slow]}, {"params": [self.fast], "lr": 10.0}]


def configured(stage: Stage, precision: str = "32-true") -> dict[str, Any]:
    stage._trainer = SimpleNamespace(precision=precision, estimated_stepping_batches=10)
    return stage.configure_optimizers()


def test_each_group_is_clipped_by_its_own_norm() -> None:
    """The fast one's gradient has length 5, the slow one's 0.5; neither sees the other's."""
    stage = Slope(clip_gradient=1.0)
    optimizer = configured(stage)["optimizer"]
    stage.slow.grad, stage.fast.grad = torch.tensor([0.3, 0.4]), torch.tensor([3.0, 4.0])
    stage.configure_gradient_clipping(optimizer)
    torch.testing.assert_close(stage.slow.grad, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(stage.fast.grad, torch.tensor([0.6, 0.8]))


def test_without_a_bound_no_gradient_is_clipped() -> None:
    stage = Slope(clip_gradient=0.0)
    stage.slow.grad = stage.fast.grad = torch.tensor([30.0, 40.0])
    stage.configure_gradient_clipping(configured(stage)["optimizer"])
    assert stage.fast.grad.tolist() == [30.0, 40.0]


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_float16_gradients_are_unscaled_before_they_are_clipped(precision: str, fused: bool) -> None:
    """Lightning leaves the unscaling to a fused optimizer, which does it after the clipping."""
    (default,) = {group["fused"] for group in configured(Slope(), precision)["optimizer"].param_groups}
    assert default is fused


@pytest.mark.parametrize(
    ("schedule", "last"), [("constant", 1.0), ("linear", 0.0), ("cosine", 0.0)], ids=["constant", "linear", "cosine"]
)
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(schedule: Any, last: float) -> None:
    made = configured(Slope(warmup_steps=4, schedule=schedule))
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert rates[10] == pytest.approx(last, abs=1e-6)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(10 * optimizer.param_groups[0]["lr"])


class Wanting(Reward):
    """Asks for two look-alikes of each image."""

    neighbours = 2

    def forward(self, rollout: Any, experience: Any) -> torch.Tensor:
        raise AssertionError("never asked")


def test_look_alikes_without_a_clip_to_find_them_are_one_error() -> None:
    stage = words.Stage({"wanting": Wanting()}, Zero(), {"policy_gradient": PolicyGradient()})
    stage._sights = {}
    with pytest.raises(UserError, match=r"look-alikes are mined with a CLIP.*model\.clip"):
        stage._mine(words.Data())


def test_without_rewards_nothing_is_mined() -> None:
    stage = words.Stage({}, Zero(), {"policy_gradient": PolicyGradient()})
    stage._sights = {None: make_sight()}
    stage._mine(words.Data())
    assert stage._sights[None].mined is None


def test_a_reward_that_names_a_clip_which_the_stage_does_not_have_is_one_error() -> None:
    named = {"similarity": ClipSimilarity(clip="siglip")}
    with pytest.raises(UserError, match=r"similarity reads the CLIP 'siglip', but model.clips has \['other'\]"):
        words.Stage(named, Zero(), {"policy_gradient": PolicyGradient()}, clips={"other": words.Clip()})


def test_each_clip_that_is_read_finds_its_own_look_alikes_and_only_those_asked_for() -> None:
    class OtherSight(words.Clip):
        """Sees of an image the next one."""

        def image_store(self, files: Any, folder: Any) -> words.Store:
            return words.Store({i: words.SEEN[(i + 7) % len(words.SEEN)] for i in files})

    rewards = {"near": GroupSimilarity(group=(1, 2), clip="other"), "plain": ClipSimilarity(clip="third")}
    clips = {"other": OtherSight(), "third": words.Clip(), "idle": None}  # which no reward names
    stage = words.Stage(rewards, Zero(), {"policy_gradient": PolicyGradient()}, clips=clips)
    stage._trainer = SimpleNamespace(  # type: ignore[assignment]
        datamodule=words.Data(),
        accumulate_grad_batches=1,
        world_size=1,
        global_rank=0,
        strategy=SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda table: table),
    )
    stage.setup("fit")
    found = {name: sight.mined for name, sight in stage._sights.items()}
    assert found.keys() == {None, "other", "third"}
    assert found[None] is found["third"] is None
    shifted = Neighbours.mine(words.SEEN.roll(-7, 0), list(words.TRUTH), 2)
    assert torch.equal(found["other"].of([0, 5], 1, 2), shifted.of([0, 5], 1, 2))
    experience = stage.experience(words.make_batch(range(4)))
    ids, _ = experience.view("other").neighbours((1, 2))
    assert torch.equal(ids, shifted.of(range(4), 1, 2))
