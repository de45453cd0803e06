"""The lazy record of one RL step: everything is computed when it is first read, and once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from distcap.types import Batch, Rollout

Source = Literal["sampled", "greedy", "ground_truth"]
Gather = Callable[[Tensor], tuple[Tensor, int]]


class Policy(Protocol):
    """The part of a captioner that an experience needs."""

    def encode(self, images: Tensor) -> Tensor: ...
    def generate(self, memory: Tensor, sampler: Any) -> tuple[Tensor, Tensor, Tensor]: ...
    def score(self, memory: Tensor, tokens: Tensor, mask: Tensor, image_index: Tensor) -> Tensor: ...
    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]: ...
    def detokenize(self, tokens: Tensor, mask: Tensor) -> list[str]: ...


class DualEncoder(Protocol):
    """The part of a CLIP that an experience needs."""

    @property
    def tau(self) -> float: ...
    def embed_captions(self, captions: Sequence[str]) -> Tensor: ...


class RewardFunction(Protocol):
    """A weighted reward; see `distcap.rewards`."""

    weight: float

    def __call__(self, rollout: Rollout, experience: "Experience") -> Tensor: ...


@dataclass
class Pool:
    """What competes in a contrastive reward: the whole step's captions and images, those of all processes."""

    captions: Tensor
    """(C, D) normalised embeddings."""
    images: Tensor
    """(J, D) normalised embeddings."""
    offsets: dict[Source, int]
    """Where the first own caption of each source stands in `captions`."""
    image_offset: int
    """Where the first own image stands in `images`."""


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
        clip: the dual encoder of the rewards.
        image_embeddings: (B, D) the batch's images as that dual encoder sees them.
        caption_store: ground-truth caption -> its embedding, if it was stored.
        ground_truth_per_image: human captions drawn for each image.
        reference: frozen copy of the captioner before RL.
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
        clip: DualEncoder | None = None,
        image_embeddings: Tensor | None = None,
        caption_store: Any = None,
        ground_truth_per_image: int = 1,
        reference: Policy | None = None,
        gather: Gather = alone,
    ) -> None:
        self.batch = batch
        self.captioner = captioner
        self.clip = clip
        self.reference = reference
        self.rewards = rewards
        self._sampler, self._greedy = sampler, greedy
        self._image_embeddings = image_embeddings
        self._caption_store = caption_store
        self._ground_truth_per_image = ground_truth_per_image
        self.gather = gather
        self._embeddings: dict[Rollout, Tensor] = {}
        self._rewards: dict[Rollout, dict[str, Tensor]] = {}
        self._pools: dict[tuple[Source, ...], Pool] = {}

    @cached_property
    def memory(self) -> Tensor:
        """(B, S, E) the images as the captioner sees them, with gradient; encoded once a step."""
        with torch.enable_grad():  # whoever reads it first
            return self.captioner.encode(self.batch.images)

    def _draw(self, sampler: Any, gradient: bool) -> Rollout:
        with torch.set_grad_enabled(gradient):
            memory = self.memory
            tokens, mask, index = self.captioner.generate(memory.detach(), sampler)
            logprobs = self.captioner.score(memory, tokens, mask, index)
        return Rollout(self.captioner.detokenize(tokens, mask), tokens, mask, logprobs, index)

    @cached_property
    def sampled(self) -> Rollout:
        """The policy's own captions."""
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
        for truth in self.batch.captions:
            order = torch.randperm(max(len(truth), count)).remainder(len(truth))[:count]
            captions += [truth[i] for i in order.tolist()]
        tokens, mask = self.captioner.tokenize(captions)
        index = torch.arange(len(self.batch), device=tokens.device).repeat_interleave(count)
        # A reward may be the first to read this, and rewards are computed without the gradient that WTF needs.
        with torch.enable_grad():
            logprobs = self.captioner.score(self.memory, tokens, mask, index)
        return Rollout(captions, tokens, mask, logprobs, index)

    @cached_property
    def reference_logprobs(self) -> Tensor:
        """(N, T) of the sampled tokens, by the captioner as it was before RL."""
        if self.reference is None:
            raise ValueError("there is no reference to compare the policy with")
        with torch.no_grad():
            memory = self.reference.encode(self.batch.images)
            return self.reference.score(memory, self.sampled.tokens, self.sampled.mask, self.sampled.image_index)

    @property
    def image_embeddings(self) -> Tensor:
        """(B, D) normalised."""
        if self._image_embeddings is None:
            raise ValueError("a reward asks for CLIP embeddings, but the stage has no clip")
        return self._image_embeddings

    def caption_embeddings(self, rollout: Rollout) -> Tensor:
        """(N, D) normalised; human captions come from the store."""
        if rollout not in self._embeddings:
            if self._caption_store is not None and rollout is self.__dict__.get("ground_truth"):
                embeddings = self._caption_store[rollout.captions].to(rollout.tokens.device)
            elif self.clip is None:
                raise ValueError("a reward asks for CLIP embeddings, but the stage has no clip")
            else:
                embeddings = self.clip.embed_captions(rollout.captions)
            self._embeddings[rollout] = embeddings
        return self._embeddings[rollout]

    def pool(self, sources: tuple[Source, ...]) -> Pool:
        """The captions of these sources and the images of all processes, on whose number no reward may depend."""
        if sources not in self._pools:
            offsets: dict[Source, int] = {}
            parts: list[Tensor] = []
            for source in sources:
                part, offset = self.gather(self.caption_embeddings(getattr(self, source)))
                offsets[source] = sum(map(len, parts)) + offset
                parts.append(part)
            images, image_offset = self.gather(self.image_embeddings)
            self._pools[sources] = Pool(torch.cat(parts), images, offsets, image_offset)
        return self._pools[sources]

    def source(self, rollout: Rollout) -> Source | None:
        """What the rollout is to this step; None for one that was made elsewhere."""
        names: tuple[Source, ...] = ("sampled", "greedy", "ground_truth")
        return next((name for name in names if self.__dict__.get(name) is rollout), None)

    @torch.no_grad()
    def rewards_of(self, rollout: Rollout) -> dict[str, Tensor]:
        """Name -> (N,) reward before its weight."""
        if rollout not in self._rewards:
            self._rewards[rollout] = {name: reward(rollout, self) for name, reward in self.rewards.items()}
        return self._rewards[rollout]

    def total(self, rollout: Rollout) -> Tensor:
        """(N,) weighted sum of all rewards."""
        parts = self.rewards_of(rollout)
        return torch.stack([self.rewards[name].weight * value for name, value in parts.items()]).sum(0)

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
