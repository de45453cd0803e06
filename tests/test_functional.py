"""The maths: against the released code's own numbers, against slow loops, and by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from distcap.functional import (
    contrastive,
    group_mean,
    kl,
    kl_loss,
    leave_one_out,
    masked_mean,
    ranks,
    recall,
    reinforce,
    sequence_logprobs,
    standardise,
    weights,
)

ORACLE: list[dict[str, Any]] = json.loads((Path(__file__).parent / "oracles" / "contrastive_reward.json").read_text())
DIRECTIONS = {"image_to_text": "image_to_text", "text_to_image": "text_to_image", "bidirectional": "both"}
"""The oracle's names for the directions, and ours."""


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("ours", DIRECTIONS.items(), ids=DIRECTIONS.keys())
@pytest.mark.parametrize("source", ["policy", "ground_truth"])
@pytest.mark.parametrize("case", ORACLE, ids=[f"{len(case['images'])} images, tau {case['tau']}" for case in ORACLE])
def test_contrastive_equals_the_released_code(case: dict[str, Any], source: str, ours: tuple[str, Any]):
    images, policy, truth, greedy = (double(case[key]) for key in ("images", "policy", "ground_truth", "greedy"))
    count = torch.arange(len(images))
    found = contrastive(
        policy if source == "policy" else truth,
        images,
        torch.cat([policy, truth, greedy]),
        torch.cat([images, double(case["extra_images"])]),
        count if source == "policy" else count + len(policy),
        count,
        tau=case["tau"],
        direction=ours[1],
        clamp=case["clamp_max_in_logits"],
    )
    expected = double(case["expected"][source][ours[0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def slow_contrastive(
    captions: Tensor, images: Tensor, pool_captions: Tensor, pool_images: Tensor, tau: float
) -> Tensor:
    """The formulas in loops; caption n stands at n in its pool, and so does its image."""
    rewards = []
    for n, (caption, image) in enumerate(zip(captions, images, strict=True)):
        own = float(caption @ image)
        texts = sum(math.exp(float(c @ image) / tau) for m, c in enumerate(pool_captions) if m != n)
        pictures = sum(math.exp(float(caption @ i) / tau) for m, i in enumerate(pool_images) if m != n)
        rewards.append((own - tau * math.log(texts) + own - tau * math.log(pictures)) / 2)
    return double(rewards)


def test_contrastive_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    pool_captions, pool_images = (
        normalize(torch.randn(n, 6, generator=generator, dtype=torch.float64), dim=-1) for n in (7, 5)
    )
    captions, images = pool_captions[:3], pool_images[:3]
    own = torch.arange(3)
    found = contrastive(captions, images, pool_captions, pool_images, own, own, tau=0.05)
    expected = slow_contrastive(captions, images, pool_captions, pool_images, 0.05)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_contrastive_by_hand():
    # Two perpendicular images, a perfect caption of each, tau 1: own similarity 1, the competitor's 0, log(exp(0)) = 0.
    eye = torch.eye(2)
    for direction in ("image_to_text", "text_to_image", "both"):
        found = contrastive(eye, eye, eye, eye, torch.arange(2), torch.arange(2), tau=1.0, direction=direction)
        assert found.tolist() == [1, 1]


def test_a_caption_outside_the_pool_competes_with_all_of_it():
    eye = torch.eye(2)
    outside = torch.tensor([-1])
    found = contrastive(eye[:1], eye[:1], eye, eye, outside, torch.tensor([0]), tau=1.0, direction="image_to_text")
    assert found.item() == pytest.approx(1 - math.log(math.e + 1))


def test_the_clamp_binds_each_direction_in_units_of_tau():
    eye = torch.eye(2)
    own = torch.arange(2)
    free = contrastive(eye, eye, eye, eye, own, own, tau=0.05)
    bound = contrastive(eye, eye, eye, eye, own, own, tau=0.05, clamp=16)
    assert free.tolist() == [1, 1]
    assert bound.tolist() == pytest.approx([0.8, 0.8])


def test_contrastive_takes_tau_as_a_tensor():
    eye, own = torch.eye(2), torch.arange(2)
    as_tensor = contrastive(eye, eye, eye, eye, own, own, tau=torch.tensor(0.05), clamp=16)
    assert torch.equal(as_tensor, contrastive(eye, eye, eye, eye, own, own, tau=0.05, clamp=16))


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image", "both"])
def test_a_pool_without_a_competitor_is_an_error(direction: Any):
    one, first = torch.ones(1, 1), torch.tensor([0])
    with pytest.raises(ValueError, match="at least two"):
        contrastive(one, one, one, one, first, first, tau=1.0, direction=direction)


# Padding.

GARBAGE = [7.0, math.inf, -math.inf, math.nan]


def pad(values: Tensor, columns: int, filling: float = 0.0) -> Tensor:
    return torch.cat([values, torch.full((len(values), columns), filling, dtype=values.dtype)], 1)


def ragged(rows: int = 64, columns: int = 23) -> tuple[Tensor, Tensor]:
    """Random float32 log-probabilities, and a mask with lengths 1, 2, ... : long enough for sums to be vectorised."""
    logprobs = -torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) * 7
    lengths = torch.arange(rows) % columns + 1
    return logprobs, torch.arange(columns) < lengths[:, None]


@pytest.mark.parametrize("columns", [1, 3, 8, 100])
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_padding_changes_no_bit_of_a_log_probability(reduction: Any, garbage: float, columns: int):
    logprobs, mask = ragged()
    padded = sequence_logprobs(pad(logprobs, columns, garbage), pad(mask, columns, False), reduction)
    assert torch.equal(padded, sequence_logprobs(logprobs, mask, reduction))


@pytest.mark.parametrize("columns", [1, 3, 8, 100])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_changes_no_bit_of_the_loss_and_its_gradient(garbage: float, columns: int):
    values, mask = ragged()
    advantages = torch.linspace(-1, 1, len(values))

    def loss_and_gradient(logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        logprobs.requires_grad_()
        loss = reinforce(logprobs, mask, advantages)
        return loss.detach(), torch.autograd.grad(loss, logprobs)[0]

    loss, gradient = loss_and_gradient(values.clone(), mask)
    padded_loss, padded_gradient = loss_and_gradient(pad(values, columns, garbage), pad(mask, columns, False))
    assert torch.equal(padded_loss, loss)
    assert torch.equal(padded_gradient, pad(gradient, columns))


@pytest.mark.parametrize("columns", [1, 3, 8, 100])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_changes_no_bit_of_the_kl(garbage: float, columns: int):
    logprobs, mask = ragged()
    reference = logprobs.flip(0)
    more = pad(mask, columns, False)
    padded = kl(pad(logprobs, columns, garbage), pad(reference, columns, garbage), more)
    assert torch.equal(padded, kl(logprobs, reference, mask))


def test_the_mean_is_over_a_captions_own_tokens():
    # True is a real token: (1 + 3) / 2 and 5 / 1; a row without tokens is zero.
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0], [100.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    assert masked_mean(values, mask).tolist() == [2, 5, 0]
    assert sequence_logprobs(values, mask, "sum").tolist() == [4, 5, 0]


# The policy gradient.


def test_reinforce_by_hand():
    # Mean log-probabilities -2 and -5 with advantages 1 and -2: -(-2 + 10) / 2.
    logprobs = torch.tensor([[-1.0, -3.0], [-5.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert reinforce(logprobs, mask, torch.tensor([1.0, -2.0])).item() == -4


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_of_reinforce_is_that_of_finite_differences(reduction: Any):
    logprobs, mask = ragged(4, 5)
    advantages = double([1.0, -2.0, 0.5, 3.0])
    logprobs = logprobs.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: reinforce(values, mask, advantages, reduction), (logprobs,))


def test_no_gradient_flows_into_the_advantage():
    advantages = torch.ones(1, requires_grad=True)
    loss = reinforce(torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1, dtype=torch.bool), advantages)
    assert torch.autograd.grad(loss, advantages, allow_unused=True)[0] is None


def test_kl_is_zero_between_equals_and_never_negative():
    logprobs, mask = ragged()
    assert kl(logprobs, logprobs, mask).tolist() == [0] * len(logprobs)
    assert (kl(logprobs, logprobs.flip(0), mask) >= 0).all()


def test_kl_by_hand():
    # The reference finds the token twice as likely: 2 - 1 - log 2.
    found = kl(torch.tensor([[math.log(0.25)]]), torch.tensor([[math.log(0.5)]]), torch.tensor([[True]]))
    assert found.item() == pytest.approx(1 - math.log(2))


def exact_gradients(seed: int = 0, drift: float = 2.0) -> dict[str, torch.Tensor]:
    """Of one token among 50, by the logits: what the loss gives on average, and the two divergences' own gradients."""
    generator = torch.Generator().manual_seed(seed)
    policy = torch.randn(50, generator=generator, dtype=torch.double)
    reference = (policy + drift * torch.randn(50, generator=generator, dtype=torch.double)).log_softmax(0)
    found = {}
    for name in ("kl_loss", "k3", "policy || reference", "reference || policy"):
        logits = policy.clone().requires_grad_()
        logprobs = logits.log_softmax(0)
        chance = logprobs.exp().detach()
        rows = logprobs[:, None], reference[:, None], torch.ones(50, 1, dtype=torch.bool)
        {
            "kl_loss": (chance * kl_loss(*rows)).sum(),
            "k3": (chance * kl(*rows)).sum(),
            "policy || reference": (logprobs.exp() * (logprobs - reference)).sum(),
            "reference || policy": (reference.exp() * (reference - logprobs)).sum(),
        }[name].backward()
        found[name] = logits.grad
    return found


@pytest.mark.parametrize("drift", [0.1, 1.0, 4.0])
def test_the_kl_losss_gradient_is_the_divergences_own_whatever_the_distance(drift: float):
    found = exact_gradients(drift=drift)
    torch.testing.assert_close(found["kl_loss"], found["policy || reference"], atol=1e-12, rtol=1e-9)
    # Why kl() itself is no loss: differentiated, its value leads along the other divergence.
    torch.testing.assert_close(found["k3"], found["reference || policy"], atol=1e-12, rtol=1e-9)


def test_the_kl_loss_has_the_unbiased_value():
    logprobs, reference, mask = (torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -0.5, -7.0]]), MASK_OF_TWO)
    assert torch.equal(kl_loss(logprobs, reference, mask), kl(logprobs, reference, mask))


def test_the_kl_losss_pull_on_a_hacked_token_grows_with_its_ratio():
    pulls = []
    for ratio in (0.5, 0.1, 0.01, 1e-4):  # p_reference / p_policy
        logprobs = torch.tensor([[0.0]], requires_grad=True)
        kl_loss(logprobs, torch.tensor([[math.log(ratio)]]), torch.tensor([[True]])).sum().backward()
        pulls.append(float(logprobs.grad))
    assert pulls == pytest.approx([math.log(2), math.log(10), math.log(100), math.log(1e4)])


def test_the_kl_of_a_whole_caption_is_the_sum_of_its_tokens():
    logprobs, reference = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-1.5, -0.5, -7.0]])
    for function in (kl, kl_loss):
        mean = function(logprobs, reference, MASK_OF_TWO)
        assert function(logprobs, reference, MASK_OF_TWO, "sum").tolist() == pytest.approx((2 * mean).tolist())


MASK_OF_TWO = torch.tensor([[True, True, False]])


@pytest.mark.parametrize("values", [torch.rand(3000).bfloat16(), torch.rand(3000).half()])
def test_means_of_many_values_of_few_bits_do_not_stall(values: torch.Tensor):
    # In bfloat16 a sum of halves stops at 256, and so does a count.
    one_group = torch.zeros(len(values), dtype=torch.long)
    assert float(group_mean(values, one_group, 1)) == pytest.approx(float(values.float().mean()), abs=1e-4)
    found = standardise(values, one_group, values, one_group)
    assert float(found.mean()) == pytest.approx(0, abs=1e-3)
    assert float(found.std()) == pytest.approx(1, abs=1e-2)
    others = leave_one_out(values, one_group)
    assert float(others.mean()) == pytest.approx(float(values.float().mean()), abs=1e-4)


def test_kl_averages_over_a_policys_tokens_to_the_true_divergence():
    # A policy (1/4, 3/4), a reference (1/2, 1/2): the expectation of the estimates is the sum of p log(p / q).
    policy, reference = torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5])
    estimate = kl(policy.log()[:, None], reference.log()[:, None], torch.ones(2, 1, dtype=torch.bool))
    assert (policy * estimate).sum().item() == pytest.approx((policy * (policy / reference).log()).sum().item())


# Weights, groups, baselines.


def test_raw_weights_are_the_rewards_and_may_be_negative():
    assert weights(torch.tensor([-1.0, 0.0, 3.0]), "raw").tolist() == [-1, 0, 3]


@pytest.mark.parametrize("weighting", ["minmax", "softmax", "clamp"])
def test_all_other_weights_are_never_negative(weighting: Any):
    assert (weights(torch.tensor([-5.0, -1.0, 0.0, 3.0]), weighting) >= 0).all()
    assert (weights(torch.tensor([-5.0, -1.0]), weighting) >= 0).all()


def test_weights_by_hand():
    rewards = torch.tensor([-1.0, 0.0, 3.0])
    assert weights(rewards, "minmax").tolist() == [0, 0.25, 1]
    assert weights(rewards, "clamp").tolist() == [0, 0, 3]
    assert weights(torch.tensor([0.0, math.log(3)]), "softmax").tolist() == pytest.approx([0.5, 1.5])
    # At half the temperature the odds are squared, 9 to 1.
    assert weights(torch.tensor([0.0, math.log(3)]), "softmax", 0.5).tolist() == pytest.approx([0.2, 1.8])


@pytest.mark.parametrize("weighting", ["minmax", "softmax"])
@pytest.mark.parametrize("rewards", [[-2.0, -2.0, -2.0], [0.3]], ids=["three alike", "one"])
def test_equal_rewards_weigh_one(rewards: list[float], weighting: Any):
    assert weights(torch.tensor(rewards), weighting).tolist() == [1] * len(rewards)


def test_group_means_by_hand():
    # Group 0 has 1 and 3, group 1 nothing, group 2 has 5.
    assert group_mean(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([0, 2, 0]), 3).tolist() == [2, 0, 5]


def test_leave_one_out_by_hand():
    # Image 0 has 1, 2, 6: the means of the others are 4, 3.5, 1.5. Image 1 has 10 and 20. Order is free.
    rewards, index = torch.tensor([1.0, 10.0, 2.0, 20.0, 6.0]), torch.tensor([0, 1, 0, 1, 0])
    assert leave_one_out(rewards, index).tolist() == [4, 20, 3.5, 10, 1.5]


def test_leave_one_out_of_a_single_sample_is_an_error():
    with pytest.raises(ValueError, match="at least two samples"):
        leave_one_out(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]))


# Retrieval.


def test_ranks_count_what_beats_the_target_and_what_ties_with_it():
    similarity = torch.tensor([[0.5, 0.9, 0.5, 0.1], [0.2, 0.8, 0.1, 0.1]])
    better, ties = ranks(similarity, torch.tensor([0, 1]))
    assert better.tolist() == [1, 0]
    assert ties.tolist() == [1, 0]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_captioner_that_says_one_thing_for_all_images_has_the_recall_of_chance(k: int):
    # Trap 3: each image finds its caption among five alike, k times out of five.
    constant = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])[:, None].expand(5, 5)
    assert recall(*ranks(constant, torch.arange(5)), k).item() == pytest.approx(100 * k / 5)


def test_recall_by_hand():
    # First; second; in a tie of two for places 1 and 2; in a tie of three for places 2, 3, 4.
    better, ties = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 2])
    assert recall(better, ties, 1).item() == pytest.approx(100 * (1 + 0 + 1 / 2 + 0) / 4)
    assert recall(better, ties, 2).item() == pytest.approx(100 * (1 + 1 + 1 + 1 / 3) / 4)
    assert recall(better, ties, 4).item() == 100


def test_recall_is_the_average_over_random_tie_breaking():
    # 4,000 draws: the standard error is below 50 / sqrt(4000) = 0.8 points, and 4 points are five of it.
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 3, (6, 6), generator=generator).double()
    own = torch.arange(6)
    expected = recall(*ranks(similarity, own), 2).item()
    hits = [
        recall(*ranks(similarity + 0.5 * torch.rand(6, 6, generator=generator), own), 2).item() for _ in range(4000)
    ]
    assert sum(hits) / len(hits) == pytest.approx(expected, abs=4)


def test_a_broken_embedding_is_no_hit():
    # A NaN that competes wins; a NaN that is the target makes the recall NaN. Neither raises the score.
    own = torch.arange(2)
    assert recall(*ranks(torch.tensor([[0.5, math.nan], [0.1, 0.9]]), own), 1).item() == 50
    assert math.isnan(recall(*ranks(torch.full((2, 2), math.nan), own), 1).item())
