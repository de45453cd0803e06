"""The lazy record of one RL step: everything is computed when it is first read, and once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from distcap.functional import Normalisation, standardise
from distcap.types import Batch, Rollout, UserError

Source = Literal["sampled", "greedy", "ground_truth"]
Gather = Callable[[Tensor], tuple[Tensor, int]]
Span = tuple[int, int]
"""First and last of an image's mined neighbours, the nearest being 1."""
Neighbours = Callable[[Sequence[int], int, int], tuple[Tensor, Tensor]]
"""B image ids, first and last -> (B, K) ids of their neighbours, (B, K, D) normalised embeddings."""


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


class HumanPairs(Protocol):
    """The part of a corpus that an experience needs."""

    def draw(self, count: int) -> tuple[Tensor, Tensor]: ...


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
        corpus: human captions of another data set, which what learns to tell human from generated ones learns from; by
            default it does so from the ground truth.
        reference: frozen copy of the captioner before RL.
        neighbours: looks up the images that the dual encoder finds alike.
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
        clip: DualEncoder | None = None,
        image_embeddings: Tensor | None = None,
        caption_store: Any = None,
        ground_truth_per_image: int = 1,
        corpus: HumanPairs | None = None,
        reference: Policy | None = None,
        neighbours: Neighbours | None = None,
        normalise: Normalisation = "none",
        gather: Gather = alone,
    ) -> None:
        self.batch = batch
        self.captioner = captioner
        self.clip = clip
        self.reference = reference
        self.rewards = rewards
        self.corpus = corpus
        self._sampler, self._greedy = sampler, greedy
        self._image_embeddings = image_embeddings
        self._caption_store = caption_store
        self._ground_truth_per_image = ground_truth_per_image
        self._neighbours = neighbours
        self.normalise: Normalisation = normalise
        self.gather = gather
        self._embeddings: dict[Rollout, Tensor] = {}
        self._rewards: dict[Rollout, dict[str, Tensor]] = {}
        self._pools: dict[tuple[tuple[Source, ...], Span | None], Pool] = {}

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

    @cached_property
    def human(self) -> tuple[Tensor, Tensor]:
        """(G, D) images and (G, D) captions that people wrote of them, normalised: ground truth, or of the corpus."""
        if self.corpus is None:
            truth = self.ground_truth
            return self.image_embeddings[truth.image_index], self.caption_embeddings(truth)
        images, captions = self.corpus.draw(len(self.batch) * self._ground_truth_per_image)
        return images.to(self.image_embeddings.device), captions.to(self.image_embeddings.device)

    def human_or_sampled(self) -> tuple[Tensor, Tensor, Tensor]:
        """(M, D) images, (M, D) captions, (M,) True for human ones: samples, then what they are to be told from."""
        sampled = self.sampled
        images, captions = self.human
        images = torch.cat([self.image_embeddings[sampled.image_index], images])
        captions = torch.cat([self.caption_embeddings(sampled), captions])
        return images, captions, torch.arange(len(images), device=images.device) >= len(sampled)

    @cached_property
    def drawn_logprobs(self) -> Tensor:
        """(N, T) of the sampled tokens, by the policy that drew them; without gradient."""
        return self.sampled.logprobs.detach()

    def rescore(self) -> None:
        """After an update: the same captions and rewards, but log-probabilities of the policy as it is now."""
        _ = self.drawn_logprobs
        self.__dict__.pop("memory", None)
        for rollout in (self.sampled, self.__dict__.get("ground_truth")):
            if rollout is not None:
                rollout.logprobs = self.captioner.score(self.memory, rollout.tokens, rollout.mask, rollout.image_index)

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
            human = rollout is self.__dict__.get("ground_truth")
            self._embeddings[rollout] = self._embed(rollout.captions, human=human)
        return self._embeddings[rollout]

    def reference_embeddings(self) -> tuple[Tensor, Tensor]:
        """(R, D) normalised embeddings of all human captions of the batch, (R,) the row of the batch of each."""
        captions = [caption for truth in self.batch.captions for caption in truth]
        embeddings = self._embed(captions, human=True)
        counts = torch.tensor([len(truth) for truth in self.batch.captions], device=embeddings.device)
        return embeddings, torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    def _embed(self, captions: Sequence[str], *, human: bool) -> Tensor:
        """(N, D) normalised, on the images' device; what humans said is looked up if it was stored."""
        if self.clip is None:
            raise ValueError("a reward asks for CLIP embeddings, but the stage has no clip")
        if human and self._caption_store is not None:
            return self._caption_store[captions].to(self.image_embeddings.device)
        return self.clip.embed_captions(captions)

    def neighbours(self, span: Span) -> tuple[Tensor, Tensor]:
        """(B, K) ids of each image's neighbours in a span of ranks, (B, K, D) their normalised embeddings."""
        if self._neighbours is None:
            raise ValueError("a reward asks for mined neighbours, but none were mined")
        ids, embeddings = self._neighbours(self.batch.image_ids, *span)
        return ids.to(self.image_embeddings.device), embeddings.to(self.image_embeddings.device)

    def pool(self, sources: tuple[Source, ...], span: Span | None = None) -> Pool:
        """The captions of these sources and the images of all processes, on whose number no reward may depend.

        With a span, the images' mined neighbours join them; one that is there already competes once.
        """
        if (sources, span) not in self._pools:
            offsets: dict[Source, int] = {}
            parts: list[Tensor] = []
            for source in sources:
                part, offset = self.gather(self.caption_embeddings(getattr(self, source)))
                offsets[source] = sum(map(len, parts)) + offset
                parts.append(part)
            images, image_offset = self.gather(self.image_embeddings)
            if span is not None:
                ids, embeddings = self.neighbours(span)
                near, _ = self.gather(embeddings.flatten(0, 1))
                near_ids, _ = self.gather(ids.flatten())
                own_ids, _ = self.gather(torch.tensor(self.batch.image_ids, device=ids.device))
                images = torch.cat([images, near[_newcomers(own_ids, near_ids)]])
            self._pools[sources, span] = Pool(torch.cat(parts), images, offsets, image_offset)
        return self._pools[sources, span]

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
        return torch.stack(parts).sum(0)

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


def _newcomers(known: Tensor, ids: Tensor) -> Tensor:
    """(M,), (K,) -> (K,) True where an id is not among the known ones, nor earlier among the ids."""
    everything = torch.cat([known, ids])
    unique, where = everything.unique(return_inverse=True)
    place = torch.arange(len(everything), device=ids.device)
    first = torch.full_like(unique, len(everything)).scatter_reduce(0, where, place, "amin")
    return first[where[len(known) :]] == place[len(known) :]
