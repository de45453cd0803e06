"""The method's maths on plain tensors. Shapes are those of `distcap.types`.

Source: Chaffin, Claveau, Kijak, "Distinctive Image Captioning: Leveraging Ground Truth Captions in CLIP Guided
Reinforcement Learning" (arXiv 2402.13936).
"""

from typing import Literal

import torch
from torch import Tensor

Direction = Literal["image_to_text", "text_to_image", "both"]
Reduction = Literal["mean", "sum"]
Weighting = Literal["raw", "minmax", "softmax", "clamp"]
Normalisation = Literal["none", "batch", "group"]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(N, T), (N, T) -> (N,) mean over the real tokens; zero for a row without any. Padding has no say."""
    return _masked_sum(values, mask) / mask.sum(-1).clamp(min=1)


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    # Tensor.sum groups its summands by the padded length: padding would change last bits. A running sum does not.
    return torch.where(mask, values, torch.zeros_like(values)).cumsum(-1)[..., -1]


def sequence_logprobs(logprobs: Tensor, mask: Tensor, reduction: Reduction = "mean") -> Tensor:
    """(N, T), (N, T) -> (N,) log-probability of each caption, end token included.

    "mean" divides by the caption's own number of tokens, never by the padded length; "sum" is log p(c|i) itself.
    """
    if reduction == "mean":
        return masked_mean(logprobs, mask)
    return _masked_sum(logprobs, mask)


def reinforce(logprobs: Tensor, mask: Tensor, advantages: Tensor, reduction: Reduction = "mean") -> Tensor:
    """(N, T), (N, T), (N,) -> scalar: minus the mean over captions of advantage x log-probability.

    Teacher forcing is this with advantage 1 on ground truth, SCST with reward minus greedy reward on samples, and
    weighted teacher forcing with the ground truth's own reward (paper, section on GT captions as trajectories).
    """
    return -(advantages.detach() * sequence_logprobs(logprobs, mask, reduction)).mean()


def weights(rewards: Tensor, weighting: Weighting, temperature: float = 1.0) -> Tensor:
    """(N,) -> (N,) what a ground-truth caption weighs in weighted teacher forcing.

    A raw reward may be negative, and then unlearns the human caption. The others are never negative: "minmax" maps the
    batch onto [0, 1], "softmax" is exp(r / temperature) scaled to sum to N, which is the weight of advantage-weighted
    regression (Peng et al. 2019, arXiv 1910.00177), "clamp" cuts at zero. A batch of equal rewards gets equal weights
    of 1 by minmax and softmax.
    """
    if weighting == "raw":
        return rewards
    if weighting == "clamp":
        return rewards.clamp(min=0)
    if weighting == "softmax":
        return (rewards / temperature).softmax(0) * len(rewards)
    low, high = rewards.min(), rewards.max()
    return torch.where(high > low, (rewards - low) / (high - low).clamp(min=1e-12), torch.ones_like(rewards))


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32 if they had fewer bits: a sum or a count in bfloat16 stops growing at 256."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def group_mean(values: Tensor, index: Tensor, groups: int) -> Tensor:
    """(N,), (N,) -> (groups,) mean of the values of each group, float32 or wider; zero for an empty group."""
    values = at_least_float32(values)
    sums = values.new_zeros(groups).index_add(0, index, values)
    counts = values.new_zeros(groups).index_add(0, index, torch.ones_like(values))
    return sums / counts.clamp(min=1)


def standardise(values: Tensor, index: Tensor, sampled: Tensor, sampled_index: Tensor) -> Tensor:
    """(N,), (N,), (M,), (M,) -> (N,) values by the mean and standard deviation of the samples of their own group.

    Where a group's samples are all alike there is no scale to measure by: the difference from them is left as it is.
    """
    groups = int(max(index.max(), sampled_index.max())) + 1
    values, sampled = at_least_float32(values), at_least_float32(sampled)
    mean = group_mean(sampled, sampled_index, groups)
    std = group_mean((sampled - mean[sampled_index]).square(), sampled_index, groups).sqrt()
    return (values - mean[index]) / torch.where(std > 1e-6, std, torch.ones_like(std))[index]


def leave_one_out(rewards: Tensor, image_index: Tensor) -> Tensor:
    """(N,), (N,) -> (N,) mean reward of the image's other captions (Luo 2020; RLOO).

    Raises ValueError where an image has a single caption: there is no other to compare it with.
    """
    groups = int(image_index.max()) + 1 if len(image_index) else 0
    rewards = at_least_float32(rewards)
    sums = rewards.new_zeros(groups).index_add(0, image_index, rewards)
    counts = rewards.new_zeros(groups).index_add(0, image_index, torch.ones_like(rewards))
    others = counts[image_index] - 1
    if (others < 1).any():
        raise ValueError(
            "leave-one-out needs at least two samples of each image; raise model.init_args.sampler.samples"
        )
    return (sums[image_index] - rewards) / others


def contrastive(
    captions: Tensor,
    images: Tensor,
    pool_captions: Tensor,
    pool_images: Tensor,
    caption_position: Tensor,
    image_position: Tensor,
    *,
    tau: float | Tensor,
    direction: Direction = "both",
    clamp: float | None = None,
) -> Tensor:
    r"""(N,) decoupled contrastive reward: how much better a caption fits its image than the pool does.

    With s(c, i) the cosine similarity,

        r_image_to_text(c, i) = s(c, i) - tau logsumexp_{c' in pool, c' != c} s(c', i) / tau
        r_text_to_image(c, i) = s(c, i) - tau logsumexp_{j in pool, j != i} s(c, j) / tau

    and "both" is their mean (paper, bidirectional contrastive reward). The positive is not in its own denominator. The
    image's other captions, its ground truth among them, stay in the pool: they are the strong baselines.

    Args:
        captions: (N, D) normalised embeddings of the captions to reward.
        images: (N, D) normalised embedding of each caption's image.
        pool_captions: (C, D) captions that compete for the images.
        pool_images: (J, D) images that compete for the captions.
        caption_position: (N,) where each caption stands in the pool; negative if it is not in it.
        image_position: (N,) where each caption's image stands in the pool.
        tau: temperature, 1 / exp(logit_scale) of the CLIP used.
        direction: which of the two, or both.
        clamp: upper bound of each direction in units of tau; the released code has 16. None by default: a masked
            logsumexp needs no guard against cancellation.

    Raises:
        ValueError: a pool has nothing in it for a caption to be compared with.
    """
    own = (captions * images).sum(-1)

    def similarity(rows: Tensor, pool: Tensor) -> Tensor:
        # A bfloat16 has three digits: at tau = 0.01 its rounding would move a reward's exponent by a half.
        with torch.autocast(rows.device.type, enabled=False):
            return rows @ pool.T

    def margin(rivals: Tensor, position: Tensor) -> Tensor:
        columns = torch.arange(rivals.shape[1], device=rivals.device)
        itself = columns[None, :] == position[:, None]
        if bool(itself.all(1).any()):
            raise ValueError("a contrastive reward needs at least two images and two captions in its pool")
        reward = own - tau * (rivals / tau).masked_fill(itself, -torch.inf).logsumexp(1)
        return reward if clamp is None else reward.clamp(max=clamp * float(tau))

    parts = []
    if direction in ("image_to_text", "both"):
        parts.append(margin(similarity(images, pool_captions), caption_position))
    if direction in ("text_to_image", "both"):
        parts.append(margin(similarity(captions, pool_images), image_position))
    return torch.stack(parts).mean(0)


def clipped_ratio(logprobs: Tensor, drawn: Tensor, mask: Tensor, advantages: Tensor, clip: float) -> Tensor:
    r"""(N, T), (N, T), (N, T), (N,) -> (N, T) PPO's pessimistic objective of each token (Schulman 2017, equation 7).

        min(rho A, clamp(rho, 1 - clip, 1 + clip) A),   rho = p_policy / p_drawn

    zero on padding. At the first update after a rollout rho is 1, and the gradient that of REINFORCE.
    """
    ratio = torch.where(mask, logprobs - drawn, torch.zeros_like(logprobs)).exp()
    advantage = advantages.detach()[:, None]
    bounded = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return torch.where(mask, bounded, torch.zeros_like(bounded))


def preference(log_ratios: Tensor, rewards: Tensor, image_index: Tensor, beta: float, temperature: float) -> Tensor:
    r"""(N,), (N,), (N,) -> scalar: the best caption of each image is preferred to its others (Moratelli 2024, DiCO).

        - sum_l w_l log sigmoid(beta (h_best - h_l)),   w = softmax over the losers of (r_best - r_l) / temperature

    with h the log-ratio of policy to reference. An image whose captions all score alike prefers none and adds nothing.
    """
    groups = int(image_index.max()) + 1
    same = image_index[:, None] == image_index[None, :]
    best_reward = rewards.new_full((groups,), -torch.inf).scatter_reduce(0, image_index, rewards, "amax")
    order = torch.arange(len(rewards), device=rewards.device)
    candidates = torch.where(rewards == best_reward[image_index], order, len(rewards))
    best = torch.full_like(order[:groups], len(rewards)).scatter_reduce(0, image_index, candidates, "amin")
    gaps = best_reward[image_index] - rewards
    losers = gaps > 0
    # (groups, N) each image's row weighs its own losers.
    rows = same[best] & losers[None, :]
    weights = torch.where(rows, gaps[None, :] / temperature, -torch.inf).softmax(1).nan_to_num(0.0)
    margins = beta * (log_ratios[best][:, None] - log_ratios[None, :])
    return -(weights * torch.nn.functional.logsigmoid(margins)).sum(1).mean()


def kl(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, reduction: Reduction = "mean") -> Tensor:
    """(N, T), (N, T), (N, T) -> (N,) estimate of KL(policy || reference) from the sampled tokens alone.

    "mean" is per token of the caption, "sum" of the whole caption. The value is Schulman's k3, r - 1 - log r with
    r = p_reference / p_policy: unbiased and never negative ("Approximating KL Divergence", 2020). It is for logging.
    For a loss take `kl_loss`, because k3's gradient is not that of this divergence.
    """
    return sequence_logprobs(_k3(_log_ratio(logprobs, reference_logprobs, mask)), mask, reduction)


def kl_loss(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, reduction: Reduction = "mean") -> Tensor:
    r"""(N, T), (N, T), (N, T) -> (N,) the value of `kl`, with the gradient of KL(policy || reference).

    The gradient is that of Schulman's k2, (log p_policy - log p_reference)^2 / 2, for which

        E_{y ~ policy}[log(p_policy / p_reference) grad log p_policy] = grad KL(policy || reference)

    holds at each token, given the tokens before it. The pull on a token grows with its log-ratio, without bound. k3
    would pull with the gradient of KL(reference || policy), by 1 - p_reference / p_policy, which is never more than 1
    on a token that the policy says too often.

    The tokens must be the policy's own samples, and earlier tokens get no credit for the divergence of later ones.
    """
    log_ratio = _log_ratio(logprobs, reference_logprobs, mask)
    k2 = log_ratio.square() / 2
    return sequence_logprobs(_k3(log_ratio).detach() + (k2 - k2.detach()), mask, reduction)


def _log_ratio(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log(p_reference / p_policy) of each token, zero on padding."""
    return torch.where(mask, reference_logprobs - logprobs, torch.zeros_like(logprobs))


def _k3(log_ratio: Tensor) -> Tensor:
    return log_ratio.exp() - 1 - log_ratio


def ranks(similarity: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(N, J), (N,) -> (N,) columns that beat the target, (N,) other columns that tie with it.

    Kept apart because ties must neither count as hits nor as misses: a captioner that says one thing for all images
    ties everywhere (trap 3 of the metric).
    """
    own = similarity.gather(1, target[:, None])
    better = (~(similarity <= own)).sum(1)  # a NaN beats the target: a broken embedding must not look like a hit
    ties = (similarity == own).sum(1) - 1
    return better, ties


def recall(better: Tensor, ties: Tensor, k: int) -> Tensor:
    """(N,), (N,) -> scalar: the expected recall@k in percent when ties are broken at random."""
    hits = (k - better).clamp(min=0) / (ties + 1)
    return 100 * hits.clamp(max=1).double().mean()
