"""Normalisation, clipping, preferences, references and neighbours, by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fakes import SHOWN, FakeCaptioner, FakeStore, Pictures, embed, make_batch, make_experience, make_sight
from lightning import Trainer
from torch import Tensor
from words import Data, Stage, make_rollout

from distcap.baselines import LeaveOneOut
from distcap.experience import Experience
from distcap.functional import clipped_ratio, preference, reinforce, sequence_logprobs, standardise
from distcap.models import Sampler
from distcap.objectives import ClippedPolicyGradient, PolicyGradient, WeightedTeacherForcing
from distcap.rewards import ClipSimilarity, Contrastive, GroupSimilarity, RefClipS
from distcap.types import Batch, Rollout

ROOT = 1 / math.sqrt(2)
"""The similarity of "red" and "red dog"."""


def say(experience: Experience, *captions: str) -> Rollout:
    """Make the samples these, one an image."""
    experience.__dict__["sampled"] = make_rollout(experience.captioner, experience.memory, captions)
    return experience.sampled


# standardise.


def test_a_reward_is_measured_by_the_samples_mean_and_standard_deviation() -> None:
    # The samples 1 and 3: mean 2, standard deviation 1.
    one_group = torch.zeros(4, dtype=torch.long)
    found = standardise(torch.tensor([1.0, 2.0, 3.0, 4.5]), one_group, torch.tensor([1.0, 3.0]), one_group[:2])
    assert found.tolist() == [-1, 0, 1, 2.5]


def test_each_group_is_measured_by_its_own_samples() -> None:
    # Mean 2 and deviation 1; mean 20 and deviation 5.
    sampled, index = torch.tensor([1.0, 15.0, 3.0, 25.0]), torch.tensor([0, 1, 0, 1])
    found = standardise(torch.tensor([20.0, 3.0, 30.0]), torch.tensor([1, 0, 1]), sampled, index)
    assert found.tolist() == [0, 1, 2]


def test_where_samples_are_all_alike_the_difference_from_them_is_left() -> None:
    sampled, index = torch.tensor([1.0, 3.0, 10.0, 10.0]), torch.tensor([0, 0, 1, 1])
    assert standardise(sampled, index, sampled, index).tolist() == [-1, 1, 0, 0]
    assert standardise(torch.tensor([10.5]), torch.tensor([1]), sampled, index).tolist() == [0.5]


@pytest.mark.parametrize(("normalise", "groups"), [("batch", [[0, 1, 2, 3]]), ("group", [[0, 1], [2, 3]])])
def test_an_experience_normalises_by_batch_or_by_image(normalise: Any, groups: list[list[int]]) -> None:
    experience = make_experience(make_batch(0, 2), rewards={"clip": ClipSimilarity()}, normalise=normalise)
    index = torch.tensor([0, 0, 1, 1])
    captions = ["red", "cat", "blue dog", "red"]
    experience.__dict__["sampled"] = make_rollout(experience.captioner, experience.memory, captions, index)
    raw = experience.rewards_of(experience.sampled)["clip"]
    assert raw.tolist() == pytest.approx([ROOT, 0, 1, 0])
    for group in groups:
        own = raw[group]
        expected = (own - own.mean()) / own.std(correction=0)
        torch.testing.assert_close(experience.sampled_reward[group], expected)


def test_weights_are_felt_after_normalisation() -> None:
    """A reward of a hundred times the scale has the same say, and its weight decides."""
    rewards = {"small": ClipSimilarity(), "large": ClipSimilarity(weight=0.5, scale=100)}
    together = make_experience(rewards=rewards, normalise="batch")
    alone = make_experience(rewards={"small": ClipSimilarity()}, normalise="batch")
    for experience in (together, alone):
        say(experience, "red", "dog", "blue", "blue cat")
    torch.testing.assert_close(together.sampled_reward, 1.5 * alone.sampled_reward)


# clipped_ratio.


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.5, 1.0, 1.2, 0.0),  # likelier by enough: no more reward for it
        (1.5, -1.0, -1.5, -1.5),  # likelier, but worse than the baseline: the whole charge
        (0.5, 1.0, 0.5, 0.5),  # rarer, but better: all the way back
        (0.5, -1.0, -0.8, 0.0),  # rarer by enough
        (1.1, 2.0, 2.2, 2.2),  # within bounds
    ],
)
def test_the_ratio_is_bounded_where_it_would_be_rewarded(
    ratio: float, advantage: float, expected: float, slope: float
) -> None:
    logprobs = torch.tensor([[math.log(ratio), -7.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    found = clipped_ratio(logprobs, torch.zeros(1, 2), mask, torch.tensor([advantage]), clip=0.2)
    assert found.tolist() == [[pytest.approx(expected), 0]]
    found.sum().backward()
    # d rho / d log p is rho.
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[pytest.approx(slope), 0]]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_first_update_is_that_of_reinforce(reduction: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(3, 4, generator=generator).requires_grad_()
    mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
    advantages = torch.tensor([1.0, -2.0, 0.5])
    clipped = clipped_ratio(logprobs, logprobs.detach(), mask, advantages, clip=0.2)
    (found,) = torch.autograd.grad(-sequence_logprobs(clipped, mask, reduction).mean(), logprobs)
    (expected,) = torch.autograd.grad(reinforce(logprobs, mask, advantages, reduction), logprobs)
    torch.testing.assert_close(found, expected)


# preference.


def prefer(log_ratios: list[float], rewards: list[float], index: list[int], **kwargs: float) -> Tensor:
    ratios = torch.tensor(log_ratios, dtype=torch.double, requires_grad=True)
    loss = preference(ratios, torch.tensor(rewards).double(), torch.tensor(index), **{**PREFERENCE, **kwargs})
    loss.backward()
    assert ratios.grad is not None
    return torch.cat([loss.detach()[None], ratios.grad])


PREFERENCE = {"beta": 2.0, "temperature": 0.1}


def test_two_captions_are_compared_as_in_dpo() -> None:
    # h: -0.2 of the worse, 0.3 of the better; margin 2 x 0.5 = 1.
    loss, worse, better = prefer([-0.2, 0.3], [0.0, 1.0], [0, 0]).tolist()
    assert loss == pytest.approx(math.log(1 + math.exp(-1)))
    # d/dh of -log sigmoid(beta h) is -beta sigmoid(-beta h).
    assert better == pytest.approx(-2 / (1 + math.e))
    assert worse == pytest.approx(2 / (1 + math.e))


def test_captions_that_score_alike_prefer_none() -> None:
    assert prefer([0.3, -0.2, 0.1], [0.5, 0.5, 0.5], [0, 0, 0]).tolist() == [0, 0, 0, 0]


def test_two_best_captions_are_not_compared_with_each_other() -> None:
    loss, *slopes = prefer([0.3, 0.7, -0.2], [1.0, 1.0, 0.0], [0, 0, 0]).tolist()
    assert loss == pytest.approx(math.log(1 + math.exp(-1)))
    assert slopes[1] == 0


def test_the_weights_of_all_losers_sum_to_one() -> None:
    # All log-ratios alike: each comparison costs log 2, and their weighted sum, too.
    assert prefer([0.4] * 4, [0.9, 1.0, 0.5, 0.0], [0] * 4)[0].item() == pytest.approx(math.log(2))


def test_a_loser_weighs_the_more_the_further_behind_it_is() -> None:
    # Gaps 0.1 and 0.2 at temperature 0.1: weights 1 : e.
    _, _, near, far = prefer([0.0] * 3, [1.0, 0.9, 0.8], [0] * 3).tolist()
    assert far / near == pytest.approx(math.e)


def test_images_are_averaged_and_one_without_preference_counts_as_none() -> None:
    one = prefer([-0.2, 0.3], [0.0, 1.0], [0, 0])[0].item()
    two = prefer([5.0, -0.2, 5.0, 0.3], [0.3, 0.0, 0.3, 1.0], [1, 0, 1, 0])[0].item()
    assert two == pytest.approx(one / 2)


def test_the_gradient_of_preference_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios, rewards = torch.randn(2, 6, dtype=torch.double, generator=generator)
    index = torch.tensor([1, 0, 0, 1, 1, 0])
    assert torch.autograd.gradcheck(
        lambda h: preference(h, rewards, index, beta=0.7, temperature=0.3), ratios.requires_grad_()
    )


# Rewards.


class Mined:
    """Image id -> the ids of its look-alikes, nearest first."""

    def __init__(self, table: dict[int, list[int]]) -> None:
        self.table = table

    def of(self, image_ids: Sequence[int], first: int, last: int) -> Tensor:
        return torch.tensor([self.table[image_id][first - 1 : last] for image_id in image_ids])


def with_look_alikes(table: dict[int, list[int]], seen: dict[int, str], batch: Batch | None = None) -> Experience:
    """An experience of images whose look-alikes are known."""
    images = Pictures(embed(*seen.values()), list(seen))
    return make_experience(batch, clips={None: make_sight(images=images, mined=Mined(table))})


def test_group_similarity_is_that_beyond_the_mean_similarity_to_the_look_alikes() -> None:
    # Images: red dog, blue dog, red cat, blue cat. Look-alikes: "red cat" and "red", of which the first is at rank 1.
    seen = {**dict(enumerate(SHOWN, 10)), 30: "red cat", 31: "red"}
    experience = with_look_alikes({image_id: [30, 31] for image_id in range(10, 14)}, seen)
    rollout = say(experience, "red dog", "dog", "red", "blue cat")
    found = GroupSimilarity(group=(1, 2))(rollout, experience)
    assert found.tolist() == pytest.approx([1 - (0.5 + ROOT) / 2, ROOT - 0, ROOT - (ROOT + 1) / 2, 1 - (0.5 + 0) / 2])
    assert GroupSimilarity(group=(2, 2))(rollout, experience).tolist() == pytest.approx([1 - ROOT, ROOT, ROOT - 1, 1])


def test_group_similarity_asks_for_its_farthest_neighbour_to_be_mined() -> None:
    assert GroupSimilarity(group=(2, 7)).neighbours == 7


def one_image(*truth: str) -> Experience:
    """The image "red"."""
    return make_experience(Batch(make_batch(0, 1).images, [list(truth)], [10]), image_embeddings=embed("red"))


def test_ref_clip_s_is_the_harmonic_mean_of_both_similarities() -> None:
    experience = one_image("red dog")
    # To the image 1, to the human caption 1 / sqrt(2).
    expected = 2 / (1 / (2.5 * 1) + 1 / (2.5 * ROOT))
    assert RefClipS()(say(experience, "red"), experience).item() == pytest.approx(expected)


def test_ref_clip_s_reads_the_nearest_human_caption() -> None:
    experience = one_image("cat", "red", "dog")
    assert RefClipS()(say(experience, "red"), experience).item() == pytest.approx(2.5)


def test_ref_clip_s_reads_the_human_captions_of_the_own_image_alone() -> None:
    experience = make_experience()
    # The second image is "blue dog"; "red cat" is what somebody wrote of the third.
    found = RefClipS()(say(experience, "red dog", "red cat", "red cat", "blue cat"), experience)
    assert found.tolist() == pytest.approx([2.5, 0, 2.5, 2.5])


def test_ref_clip_s_of_no_similarity_is_zero_and_finite() -> None:
    experience = one_image("cat")
    for caption in ("dog", "", "cat", "red"):  # like neither, nothing, only the human caption, only the image
        assert RefClipS()(say(experience, caption), experience).item() == 0


def test_ref_clip_s_reads_human_captions_from_the_store() -> None:
    store = FakeStore()
    experience = make_experience(clips={None: make_sight(captions=store)})
    rollout = say(experience, "red", "dog", "cat", "blue cat")
    torch.testing.assert_close(RefClipS()(rollout, experience), RefClipS()(rollout, make_experience()))
    assert store.read == [["red dog", "blue dog", "red cat", "blue cat"]]


# The pool with mined neighbours.


def with_neighbours(ids: list[list[int]], seen: dict[int, str]) -> Experience:
    """Images 10, "red", and 11, "dog", and their neighbours."""
    return with_look_alikes(dict(enumerate(ids, 10)), seen, make_batch(0, 2))


SEEN = {10: "red", 11: "dog", 30: "red cat", 31: "cat"}


def test_neighbours_compete_for_the_caption() -> None:
    experience = with_neighbours([[30], [31]], SEEN)
    found = Contrastive(direction="text_to_image", neighbours=(1, 1), tau=1.0)(
        say(experience, "red", "dog"), experience
    )
    # "red": the other image 0, "red cat" 1 / sqrt(2), "cat" 0. "dog": all three 0.
    assert found.tolist() == pytest.approx([1 - math.log(2 + math.exp(ROOT)), 1 - math.log(3)])


@pytest.mark.parametrize(
    "ids",
    [
        [[30, 31], [31, 30]],  # of both images
        [[11, 30], [30, 31]],  # in the batch
        [[31, 30], [10, 30]],  # the image itself, as another's neighbour
    ],
)
def test_an_image_competes_once_however_many_know_it(ids: list[list[int]]) -> None:
    experience = with_neighbours(ids, SEEN)
    pool = experience.view().pool(("sampled",), (1, 2))
    shown = embed("red", "dog", "red cat", "cat")
    assert len(pool.images) == 4
    assert torch.equal(pool.images[:2], shown[:2])
    assert sorted(pool.images.tolist()) == sorted(shown.tolist())
    expected = [1 - math.log(2 + math.exp(ROOT)), 1 - math.log(3)]
    reward = Contrastive(direction="text_to_image", neighbours=(1, 2), tau=1.0)
    assert reward(say(experience, "red", "dog"), experience).tolist() == pytest.approx(expected)


def test_neighbours_do_not_compete_for_the_image() -> None:
    experience = with_neighbours([[30], [31]], SEEN)
    rollout = say(experience, "red", "dog cat")
    with_, without = (
        Contrastive(direction="image_to_text", neighbours=span)(rollout, experience) for span in ((1, 1), None)
    )
    assert torch.equal(with_, without)


def test_neighbours_that_were_not_mined_are_an_error() -> None:
    experience = make_experience()
    with pytest.raises(ValueError, match="none were mined"):
        GroupSimilarity()(experience.sampled, experience)


# Several updates on one rollout.


def test_rescoring_keeps_captions_and_rewards_and_reads_the_policy_anew() -> None:
    captioner = FakeCaptioner()
    experience = make_experience(captioner=captioner, rewards={"clip": ClipSimilarity()})
    sampled, truth = experience.sampled, experience.ground_truth
    captions, reward = list(sampled.captions), experience.sampled_reward
    drawn, written = sampled.logprobs.detach().clone(), truth.logprobs.detach().clone()
    with torch.no_grad():
        captioner.bigrams.mul_(1.5)
    captioner.calls.clear()
    experience.rescore()
    assert experience.sampled is sampled
    assert list(sampled.captions) == captions
    assert experience.sampled_reward is reward
    assert torch.equal(experience.drawn_logprobs, drawn)
    assert captioner.calls == ["encode", "score", "score"]
    for rollout, before in ((sampled, drawn), (truth, written)):
        now = captioner.score(
            captioner.encode(experience.batch.images), rollout.tokens, rollout.mask, rollout.image_index
        )
        assert torch.equal(rollout.logprobs, now)
        assert rollout.logprobs.requires_grad
        assert not torch.allclose(rollout.logprobs, before)


def test_rescoring_twice_still_remembers_the_policy_that_drew() -> None:
    captioner = FakeCaptioner()
    experience = make_experience(captioner=captioner)
    drawn = experience.sampled.logprobs.detach().clone()
    for _ in range(2):
        with torch.no_grad():
            captioner.bigrams.mul_(1.5)
        experience.rescore()
    assert torch.equal(experience.drawn_logprobs, drawn)


class Counting(Stage):
    """Keeps the ratio of probabilities that each update begins with."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        sampled, drawn = self._experience.sampled, self._experience.drawn_logprobs
        self.drift.append(float((sampled.logprobs - drawn).abs().max().detach()))
        return loss


def fit(updates: int, *, rewards: Any = None, **objective: Any) -> Counting:
    """Three steps of four images."""
    sampling = {"sampler": Sampler(samples=2), "decoder": Sampler(method="greedy")}
    rewards = {"clip": ClipSimilarity()} if rewards is None else rewards
    stage = Counting(rewards, LeaveOneOut(), objective, updates_per_rollout=updates, learning_rate=0.01, **sampling)
    stage.drift = []
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(accelerator="cpu", max_epochs=1, **dict.fromkeys(quiet, False))
    trainer.fit(stage, datamodule=Data(12, 4))
    return stage


def test_three_updates_per_rollout_are_three_optimizer_steps_and_one_of_the_trainer() -> None:
    stage = fit(3, clipped=ClippedPolicyGradient(), teacher=WeightedTeacherForcing())
    assert stage.global_step == 3
    assert stage.captioner.calls.count("generate multinomial") == 3
    (optimizer,) = stage.trainer.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {9}
    first, second, third = (stage.drift[update::3] for update in range(3))
    assert first == [0, 0, 0]
    assert all(0 < one < two for one, two in zip(second, third, strict=True))


class Learner(ClipSimilarity):
    """A reward that learns, and counts how often it is asked for its loss."""

    learning_rate = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.scale_of_loss = torch.nn.Parameter(torch.ones((), dtype=torch.double))
        self.asked = 0

    def loss(self, experience: Experience) -> Tensor:
        self.asked += 1
        return self.scale_of_loss.square()


def test_a_reward_that_learns_does_so_once_a_rollout_whatever_the_number_of_updates() -> None:
    learner = Learner()
    stage = fit(3, rewards={"learner": learner}, clipped=ClippedPolicyGradient())
    assert stage.captioner.calls.count("generate multinomial") == 3
    assert learner.asked == 3


def test_one_clipped_update_moves_as_the_plain_policy_gradient() -> None:
    clipped, plain = (fit(1, term=term) for term in (ClippedPolicyGradient(), PolicyGradient()))
    for one, other in zip(clipped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)
