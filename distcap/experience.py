"""The lazy record of one RL step: everything is computed when it is first read, and once."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from distcap.functional import Normalisation, at_least_float32, standardise
from distcap.models import Sight
from distcap.types import Batch, NotFinite, Rollout, UserError
from distcap.view import Gather, Source, View


class Policy(Protocol):
    """The part of a captioner that an experience needs."""

    def encode(self, images: Tensor) -> Tensor: ...
    def generate(self, memory: Tensor, sampler: Any) -> tuple[Tensor, Tensor, Tensor]: ...
    def score(
        self, memory: Tensor, tokens: Tensor, mask: Tensor, image_index: Tensor, temperature: float = 1.0
    ) -> Tensor: ...
    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]: ...
    def detokenize(self, tokens: Tensor, mask: Tensor) -> list[str]: ...


class HumanPairs(Protocol):
    """The part of a corpus that an experience needs."""

    def draw(self, count: int) -> tuple[Tensor, Tensor]: ...


class RewardFunction(Protocol):
    """A weighted reward; see `distcap.rewards`."""

    weight: float

    def __call__(self, rollout: Rollout, experience: "Experience") -> Tensor: ...


def alone(values: Tensor) -> tuple[Tensor, int]:
    """The gather of a single process."""
    return values, 0


class Experience:
    """What one RL step knows of a batch.

    A baseline that does not read `greedy_reward` does not pay for greedy decoding, a step without a KL term not for the
    reference.

    Args:
        batch: images and their ground truth.
        captioner: the policy; in eval mode, so that its samples are on-policy.
        sampler: how `sampled` is drawn.
        greedy: how `greedy` is drawn.
        rewards: by name; the total is their weighted sum.
        clips: the dual encoders that rewards read, by name; None is the name of the stage's `clip`.
        ground_truth_per_image: human captions drawn for each image.
        corpora: by the same names, human captions of another data set: what learns to tell human from generated ones
            does so from them, or else from the ground truth.
        reference: frozen copy of the captioner before RL; None if nothing compares the policy with it.
        normalise: each reward by itself, before its weight: by the mean and the standard deviation of the samples of
            the batch, of all processes, or of the image. Greedy and human captions are measured by the same yardstick.
        gather: (M, ...) of this process -> (W x M, ...) of all, and where this process's rows begin.
    """

    def __init__(
        self,
        batch: Batch,
        captioner: Policy,
        *,
        sampler: Any,
        greedy: Any,
        rewards: Mapping[str, RewardFunction],
        clips: Mapping[str | None, Sight] | None = None,
        ground_truth_per_image: int = 1,
        corpora: Mapping[str | None, HumanPairs] | None = None,
        reference: Policy | None = None,
        normalise: Normalisation = "none",
        gather: Gather = alone,
    ) -> None:
        self.batch = batch
        self.captioner = captioner
        self.reference = reference
        self.rewards = rewards
        self.corpora = corpora or {}
        self._sampler, self._greedy = sampler, greedy
        self._ground_truth_per_image = ground_truth_per_image
        self.normalise: Normalisation = normalise
        self.gather = gather
        self._views = {name: View(self, sight) for name, sight in (clips or {}).items()}
        self._rewards: dict[Rollout, dict[str, Tensor]] = {}
        self._human: dict[str | None, tuple[Tensor, Tensor]] = {}

    @cached_property
    def memory(self) -> Tensor:
        """(B, S, E) the images as the captioner sees them, with gradient; encoded once a step."""
        with torch.enable_grad():  # whoever reads it first
            return self.captioner.encode(self.batch.images)

    def _draw(self, sampler: Any, gradient: bool) -> Rollout:
        with torch.set_grad_enabled(gradient):
            memory = self.memory
            tokens, mask, index = self.captioner.generate(memory.detach(), sampler)
            logprobs = self.captioner.score(memory, tokens, mask, index, _temperature(sampler))
        return Rollout(self.captioner.detokenize(tokens, mask), tokens, mask, logprobs, index)

    @cached_property
    def sampled(self) -> Rollout:
        """The policy's own captions; their log-probabilities are at the sampler's temperature, as they were drawn."""
        return self._draw(self._sampler, gradient=True)

    @cached_property
    def greedy(self) -> Rollout:
        """The policy's likeliest caption of each image; for baselines and pools, without gradient."""
        return self._draw(self._greedy, gradient=False)

    @cached_property
    def ground_truth(self) -> Rollout:
        """Human captions, as many of each image; with replacement where it has fewer."""
        count = self._ground_truth_per_image
        captions = []
        for image_id, truth in zip(self.batch.image_ids, self.batch.captions, strict=True):
            if not truth:
                raise UserError(
                    f"image id {image_id} has no human caption, and a reward, baseline or term reads ground_truth; "
                    "take it out of the mix, or write captions"
                )
            order = torch.randperm(max(len(truth), count)).remainder(len(truth))[:count]
            captions += [truth[i] for i in order.tolist()]
        tokens, mask = self.captioner.tokenize(captions)
        index = torch.arange(len(self.batch), device=tokens.device).repeat_interleave(count)
        # A reward may be the first to read this, and rewards are computed without the gradient that WTF needs.
        with torch.enable_grad():
            logprobs = self.captioner.score(self.memory, tokens, mask, index)
        return Rollout(captions, tokens, mask, logprobs, index)

    def human(self, clip: str | None = None) -> tuple[Tensor, Tensor]:
        """(G, D) images and (G, D) captions that people wrote of them, normalised: ground truth, or of the corpus."""
        if clip not in self._human:
            if corpus := self.corpora.get(clip):
                images, captions = corpus.draw(len(self.batch) * self._ground_truth_per_image)
                device = self.batch.images.device
                self._human[clip] = images.to(device), captions.to(device)
            else:
                view, truth = self.view(clip), self.ground_truth
                self._human[clip] = view.image_embeddings[truth.image_index], view.caption_embeddings(truth)
        return self._human[clip]

    def human_or_sampled(self, clip: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(M, D) images, (M, D) captions, (M,) True for human ones: samples, then what they are to be told from."""
        view, sampled = self.view(clip), self.sampled
        images, captions = self.human(clip)
        images = torch.cat([view.image_embeddings[sampled.image_index], images])
        captions = torch.cat([view.caption_embeddings(sampled), captions])
        return images, captions, torch.arange(len(images), device=images.device) >= len(sampled)

    @cached_property
    def drawn_logprobs(self) -> Tensor:
        """(N, T) of the sampled tokens, by the policy that drew them; without gradient."""
        return self.sampled.logprobs.detach()

    def rescore(self) -> None:
        """After an update: the same captions and rewards, but log-probabilities of the policy as it is now."""
        _ = self.drawn_logprobs
        self.__dict__.pop("memory", None)
        for rollout, temperature in (
            (self.sampled, _temperature(self._sampler)),
            (self.__dict__.get("ground_truth"), 1.0),
        ):
            if rollout is not None:
                rollout.logprobs = self.captioner.score(
                    self.memory, rollout.tokens, rollout.mask, rollout.image_index, temperature
                )

    @cached_property
    def reference_logprobs(self) -> Tensor:
        """(N, T) of the sampled tokens, by the captioner as it was before RL, at the sampler's temperature."""
        if self.reference is None:
            raise UserError(
                "a term or a reward reads reference_logprobs, but no reference was kept; say so in its class: "
                "needs_reference = True"
            )
        sampled = self.sampled
        with torch.no_grad():
            memory = self.reference.encode(self.batch.images)
            return self.reference.score(
                memory, sampled.tokens, sampled.mask, sampled.image_index, _temperature(self._sampler)
            )

    @cached_property
    def _end(self) -> Tensor:
        """Scalar, the end token: the last token of an empty caption."""
        tokens, mask = self.captioner.tokenize([""])
        return tokens[0, mask[0].sum() - 1]

    def ended(self, rollout: Rollout) -> Tensor:
        """(N,) True for a caption that reached its end token, False for one cut at the sampler's max_tokens."""
        last = rollout.tokens.gather(1, (rollout.mask.sum(1, keepdim=True) - 1).clamp(min=0))[:, 0]
        return last == self._end.to(last.device)

    def view(self, clip: str | None = None) -> View:
        """The batch as one CLIP sees it: the stage's of that name, or its `clip`."""
        if clip not in self._views:
            raise ValueError(f"a reward asks for CLIP embeddings, but the stage has no {clip or 'clip'}")
        return self._views[clip]

    @property
    def image_embeddings(self) -> Tensor:
        """(B, D) normalised, as the stage's `clip` sees them."""
        return self.view().image_embeddings

    def caption_embeddings(self, rollout: Rollout) -> Tensor:
        """(N, D) normalised, as the stage's `clip` reads them."""
        return self.view().caption_embeddings(rollout)

    def source(self, rollout: Rollout) -> Source | None:
        """What the rollout is to this step; None for one that was made elsewhere."""
        names: tuple[Source, ...] = ("sampled", "greedy", "ground_truth")
        return next((name for name in names if self.__dict__.get(name) is rollout), None)

    @torch.no_grad()
    def rewards_of(self, rollout: Rollout) -> dict[str, Tensor]:
        """Name -> (N,) reward before its weight; in float32 or wider, whatever precision the reward was computed in."""
        if rollout not in self._rewards:
            self._rewards[rollout] = {
                name: at_least_float32(reward(rollout, self)) for name, reward in self.rewards.items()
            }
        return self._rewards[rollout]

    def _normalised(self, name: str, rollout: Rollout) -> Tensor:
        reward = self.rewards_of(rollout)[name]
        if self.normalise == "none":
            return reward
        sampled, index = self.rewards_of(self.sampled)[name], self.sampled.image_index
        if self.normalise == "batch":
            sampled, _ = self.gather(sampled)
            return standardise(reward, torch.zeros_like(rollout.image_index), sampled, torch.zeros_like(sampled).long())
        return standardise(reward, rollout.image_index, sampled, index)

    @torch.no_grad()
    def total(self, rollout: Rollout) -> Tensor:
        """(N,) weighted sum of all rewards, each normalised."""
        parts = [reward.weight * self._normalised(name, rollout) for name, reward in self.rewards.items()]
        total = torch.stack(parts).sum(0)
        if not total.isfinite().all():
            raise NotFinite(self._not_finite(rollout))
        return total

    def _not_finite(self, rollout: Rollout) -> str:
        """Which reward it was, and of what caption."""
        for name, reward in self.rewards_of(rollout).items():
            if len(bad := (~reward.isfinite()).nonzero()):
                return f"the reward {name} of {rollout.captions[int(bad[0])]!r} is {float(reward[bad[0]])}"
        return "a reward is infinite or not a number once it is normalised and weighted"

    @cached_property
    def sampled_reward(self) -> Tensor:
        """(N,)"""
        return self.total(self.sampled)

    @cached_property
    def greedy_reward(self) -> Tensor:
        """(B,)"""
        return self.total(self.greedy)

    @cached_property
    def ground_truth_reward(self) -> Tensor:
        """(G,)"""
        return self.total(self.ground_truth)


def _temperature(sampler: Any) -> float:
    """Of the policy that the sampler draws from: greedy and beam search follow the captioner itself."""
    return sampler.temperature if sampler.method == "multinomial" else 1.0
