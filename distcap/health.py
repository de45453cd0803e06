"""What an RL step's numbers say of the policy: is it learning, hacking the reward, or collapsing?"""

from typing import Any

import torch
from torch import Tensor

from distcap.experience import Experience
from distcap.functional import group_mean, kl, masked_mean
from distcap.models import Sampler
from distcap.ngrams import CiderD, bad_ending, repetition, spaced
from distcap.view import Source


@torch.no_grad()
def health(
    experience: Experience,
    advantages: Tensor,
    *,
    costly: bool = False,
    cider: CiderD | None = None,
    decoder: Sampler | None = None,
    discriminator: str | None = None,
    truncated: int | None = None,
) -> dict[str, float | Tensor]:
    """What to log of one RL step: log key -> scalar. No gradient; a value that is not known is left out.

    **"The reward is negative, is that healthy?"** Its level says nothing: a contrastive reward is negative whenever the
    image's own human caption wins. These say it:

    - `reward/gap`, sampled minus greedy reward, in units of the total reward. Samples explore, so it is a little below
      zero; far below, the sampler strays too far; near zero with a low entropy, samples are the greedy caption.
    - `advantage/positive`, the share of samples that beat their baseline, `advantage/std`, how much there is to learn
      from a step, and `reward/zero_std`, the share of images whose samples all score alike and teach nothing.
    - `policy/greedy_cider`, CIDEr-D of the greedy captions against their images' human captions, beside
      `reference/cider`, that of the captioner before RL on the same images. A reward that rises while the first falls
      below the second is hacked, whatever its sign; so is one where `reward/sampled/...` leaves
      `reward/ground_truth/...` far behind. `policy/cider`, of the samples, tells it later: they gain from a mere loss
      of entropy.

    Every step: `reward/advantage`, `advantage/std`, `advantage/positive`, `reward/zero_std` (several samples only),
    `policy/entropy` (nats a token), `policy/length` (tokens, end token included), `policy/truncated`, and
    `reward/SOURCE/NAME`, the mean of each reward, with `discriminator/accuracy`, where the step has computed them.
    When `costly`: `reward/gap`, `policy/kl` (nats a token), `policy/repetition`, `policy/vocabulary` (different words
    in all samples: compare equal batches only), `policy/bad_endings`, `policy/unfinished` (share of samples without an
    end token), `policy/cider`, and `human/length`, `human/repetition`, `human/bad_endings` of the batch's ground truth
    to compare with. What the step has computed anyway, greedy rewards or the reference, is told at every step.

    Args:
        experience: of the step, after its losses were computed. Where its images have no human captions, nothing is
            compared with any.
        advantages: (N,) of the sampled captions.
        costly: also what needs another pass of a network, or the strings.
        cider: a scorer that knows the training ground truth, with its document frequencies.
        decoder: how greedy captions are decoded, for those of the reference.
        discriminator: name of the reward that is P(human). Its accuracy is how often it tells, of a human and a sampled
            caption, which is human (the area under its ROC curve): a half is chance, and needs no threshold.
        truncated: how many captions a CLIP cut in this step; see `FrozenClip.truncated`.

    Returns:
        log key -> scalar.
    """
    batch, sampled, known = experience.batch, experience.sampled, experience.__dict__
    values: dict[str, float | Tensor] = {
        "reward/advantage": advantages.mean(),
        "advantage/std": advantages.std(correction=0),
        "advantage/positive": (advantages > 0).float().mean(),
        # The mean surprise of a sample's own tokens is an unbiased estimate of the policy's entropy.
        "policy/entropy": -masked_mean(sampled.logprobs, sampled.mask).mean(),
        "policy/length": sampled.mask.sum(1).float().mean(),
    }
    if truncated is not None:
        # Before the greedy captions of a costly look: ground truth was embedded, and cut, before training.
        embedded = len(sampled) + (len(experience.greedy) if "greedy" in known else 0)
        values["policy/truncated"] = truncated / embedded
    if len(sampled) > len(batch):
        values["reward/zero_std"] = _zero_spread(experience)
    if costly or "greedy_reward" in known:
        values["reward/gap"] = experience.sampled_reward.mean() - experience.greedy_reward.mean()
    if experience.reference is not None and (costly or "reference_logprobs" in known):
        values["policy/kl"] = kl(sampled.logprobs, experience.reference_logprobs, sampled.mask).mean()
    sources: tuple[Source, ...] = ("sampled", "greedy", "ground_truth")
    for source in sources:
        if source == "sampled" or f"{source}_reward" in known:
            for name, reward in experience.rewards_of(getattr(experience, source)).items():
                values[f"reward/{source}/{name}"] = reward.mean()
    if discriminator is not None and (human := _humans(experience, discriminator)) is not None:
        # Of pairs, for a threshold would have to follow how many samples there are to a human caption.
        machine = experience.rewards_of(sampled)[discriminator]
        values["discriminator/accuracy"] = ((human > machine).float() + (human == machine).float() / 2).mean()
    return {**values, **_of_the_words(experience), **_likeness(experience, cider, decoder)} if costly else values


def _humans(experience: Experience, discriminator: str) -> Tensor | None:
    """(G, 1) the discriminator's reward of the human captions that it learns from, where the step knows them."""
    reward: Any = experience.rewards[discriminator]
    if reward.clip in experience.corpora:
        return reward.discriminator(*experience.human(reward.clip)).sigmoid()[:, None]
    if "ground_truth_reward" not in experience.__dict__:
        return None
    return experience.rewards_of(experience.ground_truth)[discriminator][:, None]


def _zero_spread(experience: Experience) -> Tensor:
    """Scalar: the share of images whose samples all have one reward."""
    index, images = experience.sampled.image_index, len(experience.batch)
    reward = experience.sampled_reward
    spread = group_mean((reward - group_mean(reward, index, images)[index]).abs(), index, images)
    return (spread < 1e-6).float().mean()


def _of_the_words(experience: Experience) -> dict[str, float | Tensor]:
    """How the samples are written, and the ground truth of their images."""
    sampled, captioner = experience.sampled, experience.captioner
    truth = [caption for row in experience.batch.captions for caption in row]
    values: dict[str, float | Tensor] = {
        "policy/vocabulary": float(len({word for caption in sampled.captions for word in spaced(caption).split()}))
    }
    for who, captions in (("policy", sampled.captions), ("human", truth)):
        if captions:
            values[f"{who}/repetition"] = repetition(captions)
            values[f"{who}/bad_endings"] = sum(map(bad_ending, captions)) / len(captions)
    if truth:
        values["human/length"] = captioner.tokenize(truth)[1].sum(1).float().mean()
    values["policy/unfinished"] = (~experience.ended(sampled)).float().mean()
    return values


def _likeness(experience: Experience, cider: CiderD | None, decoder: Sampler | None) -> dict[str, float | Tensor]:
    """CIDEr-D against the human captions: of samples, of greedy captions, and of the reference's on the same images."""
    if cider is None:
        return {}
    batch, sampled, reference = experience.batch, experience.sampled, experience.reference
    own_ids = [batch.image_ids[row] for row in sampled.image_index.tolist()]
    values: dict[str, float | Tensor] = {
        "policy/cider": float(cider(sampled.captions, own_ids).mean()),
        "policy/greedy_cider": float(cider(experience.greedy.captions, batch.image_ids).mean()),
    }
    if reference is not None and decoder is not None:
        # Paired by image: how easy a batch's images are would else be most of the difference.
        tokens, mask, _ = reference.generate(reference.encode(batch.images), decoder)
        values["reference/cider"] = float(cider(reference.detokenize(tokens, mask), batch.image_ids).mean())
    return values
