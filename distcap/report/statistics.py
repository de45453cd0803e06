"""Means over seeds and images with their intervals, paired differences, and the Pareto front. Numpy alone.

Notation: S seeds, N images of a seed, C columns of an image's row, D draws of the bootstrap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Rows = Sequence[np.ndarray]
"""For each of S seeds, (N, C): what an image adds to the sums that a metric is made of."""

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(..., C) sums over images, (...) numbers of images -> (...) the metric."""


def mean(sums: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The statistic of a metric that is a mean over images: rows have one column."""
    return sums[..., 0] / images


@dataclass(frozen=True)
class Estimate:
    """A metric's mean over seeds, or a paired difference of two, with its 95 % interval."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]
    """The metric on each seed."""
    p: float
    """Two-sided, of the mean being zero: says something of differences alone."""


class Bootstrap:
    """Hierarchical bootstrap (Davison and Hinkley 1997, section 3.8): draws seeds, then images within each drawn seed.

    A draw is made once and applied to all systems and metrics, so that two systems are compared on the same images of
    the same seeds. Intervals are percentiles. With S seeds the bootstrap sees (S - 1) / S of the variance between them,
    so with few its intervals are too narrow. Of two equal systems on three seeds of 500 images, with nested draws, the
    interval of the difference misses zero in 1 % of the cases if seeds don't differ, 10 % if they differ as much as the
    images of one seed let its mean vary, and 24 % if five times as much: a difference then has one sign on three seeds
    one time in four. So read the seeds' own differences, too.

    Args:
        images: N of each seed.
        draws: D.
        seed: of the drawing.
        crossed: whether all seeds have the same images: a draw then takes the same ones from each of its seeds. Else
            each seed has images of its own.
    """

    def __init__(self, images: Sequence[int], draws: int = 2000, seed: int = 0, crossed: bool = False) -> None:
        if not images or min(images) < 1:
            raise ValueError(f"a bootstrap of {list(images)} images: it needs a seed or more, and an image of each")
        if crossed and len(set(images)) > 1:
            raise ValueError(f"seeds with {list(images)} images don't have the same images")
        generator = np.random.default_rng(seed)
        count = len(images)
        self.images = np.array(images)
        self.seeds = generator.integers(count, size=(draws, count))  # (D, S) seed at each place of a draw
        # How often each image is drawn is all that a sum needs to know, and makes of it a matrix product.
        self._times: list[list[np.ndarray]] = []
        """For each place and each seed, (D', N) of the draws that have this seed at this place."""
        shared = generator.multinomial(images[0], np.full(images[0], 1 / images[0]), draws) if crossed else None
        for place in range(count):
            chosen = [self.seeds[:, place] == s for s in range(count)]
            if shared is not None:
                self._times.append([shared[rows] for rows in chosen])
            else:
                self._times.append(
                    [
                        generator.multinomial(n, np.full(n, 1 / n), rows.sum())
                        for n, rows in zip(images, chosen, strict=True)
                    ]
                )

    def replicates(self, rows: Rows, statistic: Statistic = mean) -> tuple[np.ndarray, np.ndarray]:
        """(S,) the metric on each seed as it is, (D,) its mean over the seeds of each draw."""
        if [len(seed) for seed in rows] != self.images.tolist():
            raise ValueError(f"a bootstrap of {self.images.tolist()} images got {[len(seed) for seed in rows]}")
        sums = np.empty((*self.seeds.shape, rows[0].shape[1]))
        for place, times in enumerate(self._times):
            for s, drawn in enumerate(times):
                sums[self.seeds[:, place] == s, place] = drawn @ rows[s]
        found = statistic(np.stack([seed.sum(0) for seed in rows]), self.images)
        return found, statistic(sums, self.images[self.seeds]).mean(1)

    def estimate(self, rows: Rows, statistic: Statistic = mean) -> Estimate:
        """The metric's mean over seeds and its interval."""
        return _estimate(*self.replicates(rows, statistic))

    def difference(self, rows: Rows, others: Rows, statistic: Statistic = mean) -> Estimate:
        """The metric of one system less that of another, paired by seed and image, with interval and p-value.

        The p-value is the bootstrap's: twice the share of draws on the far side of zero. Flipping signs instead would
        need the metric to be a mean over images, which BLEU is not, and would leave out that training another time
        gives another captioner; flipping whole seeds cannot go below 1/4 with three of them.
        """
        (found, drawn), (found_other, drawn_other) = (self.replicates(r, statistic) for r in (rows, others))
        return _estimate(found - found_other, drawn - drawn_other)


def _estimate(found: np.ndarray, drawn: np.ndarray) -> Estimate:
    low, high = np.percentile(drawn, [2.5, 97.5])
    # One is added because the data itself are a draw: no p-value of a finite number of draws is zero.
    side = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (side + 1) / (len(drawn) + 1))
    return Estimate(float(found.mean()), float(low), float(high), tuple(map(float, found)), float(p))


def pareto_front(points: np.ndarray) -> list[int]:
    """(M, 2) points, more is better on both axes -> the rows that no other beats, by ascending first axis.

    A point is beaten by one that is at least as good on both and better on one; like points stand together.
    """
    at_least = (points[:, None] >= points[None]).all(-1)  # (M, M) row at least as good as column
    better = (points[:, None] > points[None]).any(-1)
    front = np.flatnonzero(~(at_least & better).any(0))
    return sorted(front.tolist(), key=lambda i: tuple(points[i]))
