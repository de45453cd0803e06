"""The bootstrap, paired differences and the Pareto front, on few images, and against loops that draw one by one."""

import random
from itertools import product
from statistics import fmean

import numpy as np
import pytest

from distcap.metrics.ngram import bleu
from distcap.report.statistics import Bootstrap, mean, pareto_front


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def bleu4(sums: np.ndarray, images: np.ndarray) -> np.ndarray:
    return bleu(sums)[..., 3]


def slow_interval(rows: list[np.ndarray], statistic, draws: int, crossed: bool) -> tuple[float, float]:
    """The same bootstrap with plain loops and Python's own generator."""
    generator = random.Random(1)
    values = []
    for _ in range(draws):
        common = generator.choices(range(len(rows[0])), k=len(rows[0]))
        seeds = generator.choices(rows, k=len(rows))
        drawn = [s[common] if crossed else s[generator.choices(range(len(s)), k=len(s))] for s in seeds]
        values.append(fmean(float(statistic(d.sum(0), np.array(len(d)))) for d in drawn))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def test_the_mean_is_over_seeds_whatever_their_number_of_images() -> None:
    estimate = Bootstrap([2, 4]).estimate([column(0, 100), column(0, 0, 0, 40)])
    assert estimate.seeds == (50, 10)
    assert estimate.mean == 30


def test_all_draws_of_seeds_and_images_by_hand() -> None:
    # Two seeds, of one image worth 0 and one worth 10: draws are (0, 0), (0, 10), (10, 0), (10, 10).
    _, drawn = Bootstrap([1, 1], draws=4000).replicates([column(0), column(10)])
    assert set(drawn) == {0, 5, 10}
    # A quarter, a half, a quarter: 0.05 is more than six standard errors of a share of 4000 draws, one in 10^9.
    assert [np.mean(drawn == value) for value in (0, 5, 10)] == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_all_draws_of_images_by_hand() -> None:
    # One seed of two images: 0 and 0, 0 and 1 twice, 1 and 1.
    _, drawn = Bootstrap([2], draws=4000).replicates([column(0, 1)])
    assert [np.mean(drawn == value) for value in (0, 0.5, 1)] == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


@pytest.mark.parametrize("crossed", [False, True])
def test_the_interval_of_a_mean_is_that_of_a_loop(crossed: bool) -> None:
    generator = np.random.default_rng(0)
    # Images that are hard on every seed: only then does it matter whether seeds share them.
    hard = generator.normal(size=(40, 1))
    rows = [hard + offset + 0.3 * generator.normal(size=(40, 1)) for offset in (0.0, 0.1, -0.1)]
    estimate = Bootstrap([40] * 3, draws=8000, crossed=crossed).estimate(rows)
    # An endpoint's standard error is 0.005 a side.
    assert (estimate.low, estimate.high) == pytest.approx(slow_interval(rows, mean, 8000, crossed), abs=0.04)


def test_images_that_all_seeds_share_do_not_average_out() -> None:
    hard = np.random.default_rng(0).normal(size=(40, 1))
    nested, crossed = (Bootstrap([40] * 4, crossed=kind).estimate([hard] * 4) for kind in (False, True))
    # Four seeds of images of their own halve the interval; four times the same images do not.
    ratio = (crossed.high - crossed.low) / (nested.high - nested.low)
    assert ratio == pytest.approx(2, rel=0.15)


def test_the_interval_of_corpus_bleu_is_that_of_a_loop() -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(6, 12, size=(2, 30))
    rows = []
    for row in words:
        said = row[:, None] - np.arange(4)
        correct = (said * generator.uniform(0.2, 0.8, size=said.shape)).astype(int)
        rows.append(np.column_stack([correct, said, row, row + 1]).astype(float))
    estimate = Bootstrap([30, 30], draws=4000).estimate(rows, bleu4)
    assert estimate.seeds == pytest.approx([float(bleu(r.sum(0))[3]) for r in rows])
    assert (estimate.low, estimate.high) == pytest.approx(slow_interval(rows, bleu4, 4000, False), abs=0.01)


def test_two_systems_are_compared_on_the_same_images() -> None:
    # Images differ by up to 100, the systems by one on each: unpaired, the interval would be tens wide.
    base = [column(0, 30, 60, 100), column(10, 80, 20, 50)]
    estimate = Bootstrap([4, 4]).difference([rows + 1 for rows in base], base)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((1, 1, 1))
    assert estimate.seeds == pytest.approx((1, 1))


def test_no_draw_on_the_far_side_gives_the_smallest_p_value() -> None:
    base = [column(1, 2, 3)] * 3
    assert Bootstrap([3] * 3, draws=999).difference([r + 1 for r in base], base).p == 2 / 1000
    assert Bootstrap([3] * 3, draws=999).difference([r - 1 for r in base], base).p == 2 / 1000


def test_a_system_and_itself_have_p_value_one() -> None:
    base = [column(1, 2, 3)] * 3
    estimate = Bootstrap([3] * 3).difference(base, base)
    assert (estimate.mean, estimate.p) == (0, 1)


def test_the_p_value_by_hand() -> None:
    # Seeds differ by 1, 1 and -1. Of the 27 draws of seeds, all sums of three signs with P(-) = 1/3, those at or below
    # zero have two or three minuses: 3 * 2 / 27 + 1 / 27 = 7 / 27; the other side is larger.
    rows, others = [column(1), column(1), column(0)], [column(0), column(0), column(1)]
    draws = [sum(draw) <= 0 for draw in product((1, 1, -1), repeat=3)]
    assert sum(draws) == 7
    # 0.04 is more than five standard errors, 2 * sqrt(7/27 * 20/27 / 20000) = 0.006: one in 10^9.
    assert Bootstrap([1] * 3, draws=20000).difference(rows, others).p == pytest.approx(2 * 7 / 27, abs=0.04)


def test_equal_systems_differ_one_time_in_twenty() -> None:
    """With one seed and many images the percentile interval is known to be right."""
    generator = np.random.default_rng(0)
    bootstrap = Bootstrap([200], draws=399)
    zeros = [np.zeros((200, 1))]
    alarms = sum(bootstrap.difference([generator.normal(size=(200, 1))], zeros).p < 0.05 for _ in range(400))
    # 20 expected, with a standard deviation of 4.4: outside of five of them one time in a million.
    assert 2 <= alarms <= 42


def test_the_same_seed_draws_the_same() -> None:
    rows = [column(1, 2, 4), column(0, 3, 5)]
    estimates = [Bootstrap([3, 3], seed=seed, draws=50).estimate(rows) for seed in (0, 0, 1)]
    assert estimates[0] == estimates[1]
    assert estimates[0] != estimates[2]


@pytest.mark.parametrize(
    ("images", "crossed", "message"),
    [([], False, "a seed or more"), ([3, 0], False, "an image of each"), ([3, 4], True, "don't have the same images")],
)
def test_a_bootstrap_of_nothing_is_refused(images: list[int], crossed: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bootstrap(images, crossed=crossed)


def test_rows_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2\] images got \[3\]"):
        Bootstrap([2]).estimate([column(1, 2, 3)])


def test_the_front_holds_what_nothing_beats_from_left_to_right() -> None:
    #          beaten by 1   front   front   beaten by 2: less on one, equal on the other
    points = [(1.0, 5.0), (2.0, 6.0), (3.0, 4.0), (3.0, 3.0)]
    assert pareto_front(np.array(points)) == [1, 2]


def test_like_points_are_on_the_front_together() -> None:
    assert pareto_front(np.array([(1.0, 1.0), (1.0, 1.0), (0.0, 1.0)])) == [0, 1]


def test_the_front_of_many_points_is_that_of_a_loop() -> None:
    points = np.random.default_rng(0).integers(0, 6, size=(30, 2)).astype(float)
    expected = {
        i for i, (x, y) in enumerate(points) if not any((a >= x and b >= y) and (a > x or b > y) for a, b in points)
    }
    assert set(pareto_front(points)) == expected
