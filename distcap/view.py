"""The batch of an RL step as one CLIP sees it: everything is computed when it is first read, and once."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from distcap.models import Sight
from distcap.types import Batch, Rollout

Source = Literal["sampled", "greedy", "ground_truth"]
Gather = Callable[[Tensor], tuple[Tensor, int]]
"""(M, ...) of this process -> (W x M, ...) of all, and where this process's rows begin."""
Span = tuple[int, int]
"""First and last of an image's mined neighbours, the nearest being 1."""


class Step(Protocol):
    """The part of an experience that a view needs."""

    batch: Batch
    gather: Gather

    def source(self, rollout: Rollout) -> Source | None: ...


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


class View:
    """Embeddings, pools and neighbours of one CLIP.

    Args:
        step: the experience, which must outlive the view.
        sight: the CLIP, and what it has seen of the data set.
    """

    def __init__(self, step: Step, sight: Sight) -> None:
        # Weak, for the experience holds its views: in a circle, each step's graph would stay until Python looks for it.
        self._step: Step = weakref.proxy(step)
        self._sight = sight
        self._embeddings: dict[Rollout, Tensor] = {}
        self._pools: dict[tuple[tuple[Source, ...], Span | None], Pool] = {}

    @property
    def tau(self) -> float:
        """The CLIP's own temperature."""
        return self._sight.clip.tau

    @cached_property
    def image_embeddings(self) -> Tensor:
        """(B, D) normalised."""
        batch = self._step.batch
        return self._sight.images[batch.image_ids].to(batch.images.device)

    def caption_embeddings(self, rollout: Rollout) -> Tensor:
        """(N, D) normalised; human captions come from the store."""
        if rollout not in self._embeddings:
            human = self._step.source(rollout) == "ground_truth"
            self._embeddings[rollout] = self._embed(rollout.captions, human=human)
        return self._embeddings[rollout]

    def reference_embeddings(self) -> tuple[Tensor, Tensor]:
        """(R, D) normalised embeddings of all human captions of the batch, (R,) the row of the batch of each."""
        batch = self._step.batch
        captions = [caption for truth in batch.captions for caption in truth]
        embeddings = self._embed(captions, human=True)
        counts = torch.tensor([len(truth) for truth in batch.captions], device=embeddings.device)
        return embeddings, torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    def _embed(self, captions: Sequence[str], *, human: bool) -> Tensor:
        """(N, D) normalised, on the batch's device; what humans said is looked up if it was stored."""
        if human and self._sight.captions is not None:
            return self._sight.captions[captions].to(self._step.batch.images.device)
        return self._sight.clip.embed_captions(captions)

    def neighbours(self, span: Span) -> tuple[Tensor, Tensor]:
        """(B, K) ids of each image's neighbours in a span of ranks, (B, K, D) their normalised embeddings."""
        batch = self._step.batch
        ids, embeddings = self._sight.neighbours(batch.image_ids, *span)
        return ids.to(batch.images.device), embeddings.to(batch.images.device)

    def pool(self, sources: tuple[Source, ...], span: Span | None = None) -> Pool:
        """The captions of these sources and the images of all processes, on whose number no reward may depend.

        With a span, the images' mined neighbours join them; one that is there already competes once.
        """
        if (sources, span) not in self._pools:
            gather = self._step.gather
            offsets: dict[Source, int] = {}
            parts: list[Tensor] = []
            for source in sources:
                part, offset = gather(self.caption_embeddings(getattr(self._step, source)))
                offsets[source] = sum(map(len, parts)) + offset
                parts.append(part)
            images, image_offset = gather(self.image_embeddings)
            if span is not None:
                ids, embeddings = self.neighbours(span)
                near, _ = gather(embeddings.flatten(0, 1))
                near_ids, _ = gather(ids.flatten())
                own_ids, _ = gather(torch.tensor(self._step.batch.image_ids, device=ids.device))
                images = torch.cat([images, near[_newcomers(own_ids, near_ids)]])
            self._pools[sources, span] = Pool(torch.cat(parts), images, offsets, image_offset)
        return self._pools[sources, span]


def _newcomers(known: Tensor, ids: Tensor) -> Tensor:
    """(M,), (K,) -> (K,) True where an id is not among the known ones, nor earlier among the ids."""
    everything = torch.cat([known, ids])
    unique, where = everything.unique(return_inverse=True)
    place = torch.arange(len(everything), device=ids.device)
    first = torch.full_like(unique, len(everything)).scatter_reduce(0, where, place, "amin")
    return first[where[len(known) :]] == place[len(known) :]
