"""The optimizer that all stages share, and what the RL stage asks of its surroundings."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import words
from fakes import make_sight
from torch import nn

from distcap.baselines import Zero
from distcap.models import Discriminator, Neighbours, Sampler
from distcap.objectives import KLToReference, PolicyGradient, Preference, Term
from distcap.rewards import ClipSimilarity, DiscriminatorReward, GroupSimilarity, Reward
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


def test_for_rewards_that_read_no_look_alikes_nothing_is_mined() -> None:
    stage = words.Stage({"similarity": ClipSimilarity()}, Zero(), {"policy_gradient": PolicyGradient()})
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
    stage._trainer = words.make_trainer(words.Data())
    stage.setup("fit")
    found = {name: sight.mined for name, sight in stage._sights.items()}
    assert found.keys() == {None, "other", "third"}
    assert found[None] is found["third"] is None
    shifted = Neighbours.mine(words.SEEN.roll(-7, 0), list(words.TRUTH), 2)
    assert torch.equal(found["other"].of([0, 5], 1, 2), shifted.of([0, 5], 1, 2))
    experience = stage.experience(words.make_batch(range(4)))
    ids, _ = experience.view("other").neighbours((1, 2))
    assert torch.equal(ids, shifted.of(range(4), 1, 2))


class Unsteady(Slope):
    """Its fast group learns at one rate all along."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.slow]}, {"params": [self.fast], "lr": 7e-5, "steady": True}]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_steady_group_keeps_its_rate_through_warm_up_and_schedule(schedule: Any) -> None:
    made = configured(Unsteady(warmup_steps=4, schedule=schedule))
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(11):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert {rate for _, rate in rates} == {7e-5}
    assert [rate for rate, _ in rates[:5]] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_a_reward_that_learns_is_a_steady_group(tmp_path: Path) -> None:
    """The released code trains its discriminator at a constant 7e-5, whatever the policy's schedule is."""
    Discriminator(words.WIDTH, hidden=(4,)).save(tmp_path / "discriminator")
    rewards = {"discriminator": DiscriminatorReward(str(tmp_path))}
    stage = words.Stage(rewards, Zero(), {"policy_gradient": PolicyGradient()}, warmup_steps=4, schedule="linear")
    optimizer = configured(stage)["optimizer"]
    assert [group["lr"] for group in optimizer.param_groups] == [0, 7e-5]


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ({"gradient_clip_val": 1.0}, r"--model\.clip_gradient"),
        ({"gradient_clip_algorithm": "value"}, r"--model\.clip_gradient"),
        ({"precision": "bf16-true"}, "bf16-mixed"),
        ({"precision": "16-true"}, "bf16-mixed"),
    ],
)
def test_what_a_trainer_would_be_told_in_vain_is_refused_before_the_first_step(
    setting: dict[str, Any], remedy: str
) -> None:
    stage = words.Stage({"similarity": ClipSimilarity()}, Zero(), {"policy_gradient": PolicyGradient()})
    stage._trainer = words.make_trainer(words.Data(), **setting)
    with pytest.raises(UserError, match=remedy):
        stage.setup("fit")


def set_up(*terms: Term, **kwargs: Any) -> words.Stage:
    objective = {f"term{number}": term for number, term in enumerate(terms)}
    stage = words.Stage({"similarity": ClipSimilarity()}, Zero(), objective, **kwargs)
    stage._trainer = words.make_trainer(words.Data())
    stage.setup("fit")
    return stage


@pytest.mark.parametrize(
    ("term", "health_every", "kept"),
    [(PolicyGradient(), 0, False), (PolicyGradient(), 10, True), (KLToReference(), 0, True), (Preference(), 0, True)],
)
def test_the_captioner_is_copied_only_for_who_reads_the_copy(term: Term, health_every: int, kept: bool) -> None:
    assert bool(set_up(term, health_every=health_every, sampler=Sampler(samples=2))._reference) is kept


def test_without_a_reference_a_step_has_no_health_that_needs_one() -> None:
    stage = set_up(PolicyGradient(), health_every=0)
    stage.training_step(words.make_batch(range(4)), 0)
    assert "policy/length" in stage.logged
    assert not {"policy/kl", "reference/cider", "policy/vocabulary"} & stage.logged.keys()


class Undeclared(Term):
    """Reads the reference, and does not say so."""

    def forward(self, experience: Any, advantages: Any) -> torch.Tensor:
        return experience.reference_logprobs.mean()


def test_a_term_that_reads_a_reference_it_did_not_declare_is_one_error() -> None:
    stage = set_up(Undeclared(), health_every=0)
    with pytest.raises(UserError, match="needs_reference = True"):
        stage.training_step(words.make_batch(range(4)), 0)


def test_the_reference_stays_what_the_captioner_was_when_the_policy_moves() -> None:
    stage = set_up(KLToReference())
    with torch.no_grad():
        stage.captioner.bigrams.mul_(2.0)
    experience = stage.experience(words.make_batch(range(4)))
    assert (experience.sampled.logprobs - experience.reference_logprobs).abs().max() > 0.1
    assert KLToReference()(experience, torch.zeros(0)) > 0


def drawn(epoch: int, batch: int, rank: int) -> list[float]:
    stage = Slope()
    stage._trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)  # type: ignore[assignment]
    stage.on_train_batch_start(None, batch)
    return torch.rand(4).tolist()


def test_every_process_and_every_step_draws_by_a_seed_of_its_own() -> None:
    """Else two processes would draw the same samples of their images, and half of the draws would be lost."""
    steps = [(epoch, batch, rank) for epoch in range(2) for batch in range(2) for rank in range(3)]
    assert len({tuple(drawn(*step)) for step in steps}) == len(steps)
    assert drawn(1, 1, 1) == drawn(1, 1, 1)
