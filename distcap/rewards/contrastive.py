"""The bidirectional contrastive reward with human captions as strong baselines."""

import torch
from torch import Tensor

from distcap.checks import above
from distcap.experience import Experience
from distcap.functional import Direction, contrastive
from distcap.rewards.base import Reward
from distcap.types import Rollout, UserError
from distcap.view import Source, Span


class Contrastive(Reward):
    """How much better a caption fits its image than the pool's other captions and images do.

    The formulas are those of `distcap.functional.contrastive` (paper, bidirectional contrastive reward). Negative
    values are usual: the pool holds the image's own human captions.

    Args:
        weight: share in the total reward.
        direction: image_to_text lets captions compete for the image, text_to_image images for the caption.
        ground_truth: human captions are in the pool.
        greedy: the policy's greedy captions are, too.
        neighbours: first and last of the mined neighbours of each image, the nearest being 1, that join the pool of
            images (the released code: 4 and 5); None for none.
        tau: temperature; None for the CLIP's own.
        clamp: upper bound of each direction in units of tau, the released code's 16; None for none.
        clip: which of the stage's `clips` it reads; None for its `clip`.
    """

    def __init__(
        self,
        weight: float = 1.0,
        direction: Direction = "both",
        ground_truth: bool = True,
        greedy: bool = False,
        neighbours: Span | None = None,
        tau: float | None = None,
        clamp: float | None = None,
        clip: str | None = None,
    ) -> None:
        super().__init__(weight)
        self.direction = direction
        self.sources: tuple[Source, ...] = (
            "sampled",
            *(("ground_truth",) if ground_truth else ()),
            *(("greedy",) if greedy else ()),
        )
        self.needs_captions = "set its ground_truth to false" if ground_truth else ""
        self.span = neighbours
        self.neighbours = neighbours[1] if neighbours else 0
        for name, value in (("tau", tau), ("clamp", clamp)):
            if value is not None:
                above(f"{name} of a contrastive reward", value, 0)
        self.tau = tau
        self.clamp = clamp
        self.clip = clip

    def check_batch(self, images: int, samples: int, ground_truth: int) -> None:
        counts = {"sampled": samples, "ground_truth": ground_truth, "greedy": 1}
        captions = images * sum(counts[source] for source in self.sources)
        if self.direction != "text_to_image" and captions < 2:
            raise UserError(
                "a contrastive reward compares a caption with others, and there is one in a step; raise "
                "--data.batch_size, --model.sampler.samples or --model.ground_truth_per_image"
            )
        if self.direction != "image_to_text" and images < 2 and not self.neighbours:
            raise UserError(
                "a contrastive reward compares an image with others, and there is one in a step; raise "
                "--data.batch_size, or set the reward's direction to image_to_text"
            )

    def forward(self, rollout: Rollout, experience: Experience) -> Tensor:
        view = experience.view(self.clip)
        pool = view.pool(self.sources, self.span)
        source = experience.source(rollout)
        own = torch.arange(len(rollout), device=rollout.image_index.device)
        nowhere = torch.full_like(own, -1)
        return contrastive(
            view.caption_embeddings(rollout),
            view.image_embeddings[rollout.image_index],
            pool.captions,
            pool.images,
            own + pool.offsets[source] if source in pool.offsets else nowhere,
            rollout.image_index + pool.image_offset,
            tau=view.tau if self.tau is None else self.tau,
            direction=self.direction,
            clamp=self.clamp,
        )
