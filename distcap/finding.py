"""Which image a caption finds among the given ones, and which it is most easily taken for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distcap.functional import ranks

CHUNK = 1024
"""Captions that are compared with all images at a time."""


@dataclass(frozen=True)
class Finding:
    """What a CLIP that reads a caption makes of the given images."""

    image: int
    """The image that was captioned."""
    similarity: float
    """Of the caption to it."""
    better: int
    """Other images that the caption fits better."""
    ties: int
    """Other images that it fits as well."""
    rival: int | None
    """The other image that the caption fits best: what it is most easily taken for. None where there is no other."""
    rival_similarity: float | None
    """Of the caption to the rival."""

    @property
    def rank(self) -> int:
        """Of the captioned image, the first being 1; the best one where there are ties."""
        return self.better + 1

    @property
    def found(self) -> bool:
        """The caption fits its own image better than any other."""
        return not self.better and not self.ties

    @property
    def hit(self) -> float:
        """Chance that the own image comes first when ties are broken at random: recall@1 of this caption."""
        return 0.0 if self.better else 1 / (self.ties + 1)

    @property
    def margin(self) -> float:
        """By how much the rival fits better; negative if it fits worse."""
        return -torch.inf if self.rival_similarity is None else self.rival_similarity - self.similarity


def find(captions: Tensor, images: Tensor, image_index: Tensor) -> list[Finding]:
    """(N, D), (J, D) normalised embeddings, (N,) the row of each caption's image -> N findings."""
    # Like images are compared once: two that should tie must not differ by a rounding error.
    unique, where = images.double().unique(dim=0, return_inverse=True)
    findings: list[Finding] = []
    for part, target in zip(captions.double().split(CHUNK), image_index.split(CHUNK), strict=True):
        similarity = (part @ unique.T)[:, where]
        better, ties = ranks(similarity, target)
        own = similarity.gather(1, target[:, None])[:, 0]
        others = similarity.scatter(1, target[:, None], -torch.inf)
        best, rival = others.max(1)
        alone = len(images) == 1
        columns = (target, own, better, ties, rival, best)
        for image, mine, beaten, tied, other, its in zip(*(column.tolist() for column in columns), strict=True):
            rivals = (None, None) if alone else (other, its)
            findings.append(Finding(image, mine, beaten, tied, *rivals))
    return findings


def confusable(findings: Sequence[Finding], count: int) -> list[tuple[int, int]]:
    """The pairs of images of which one has a caption that fits the other as well or better; the worst first."""
    margins: dict[tuple[int, int], float] = {}
    for finding in findings:
        if finding.rival is not None and finding.margin >= 0:
            pair = (min(finding.image, finding.rival), max(finding.image, finding.rival))
            margins[pair] = max(margins.get(pair, 0.0), finding.margin)
    return sorted(margins, key=lambda pair: -margins[pair])[:count]
