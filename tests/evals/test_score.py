"""Intervals against the equations that define them, and against how often they are right."""

from __future__ import annotations

import math
import random

import pytest

from hornbook.evals.score import NORMAL_95, ratio, wilson


def test_the_quantile_is_the_normal_distributions() -> None:
    assert abs(math.erf(NORMAL_95 / math.sqrt(2)) - 0.95) < 1e-12


@pytest.mark.parametrize("total", [1, 2, 7, 50, 1000, 10**6])
@pytest.mark.parametrize("z", [1.0, NORMAL_95, 3.0])
def test_wilsons_ends_solve_the_score_equation(total: int, z: float) -> None:
    """|share - p| = z sqrt(p (1 - p) / n) at both ends, which is what Wilson's interval inverts."""
    for correct in sorted({0, 1, total // 3, total // 2, total - 1, total}):
        low, high = wilson(correct, total, z)
        share = correct / total
        assert 0 <= low <= share <= high <= 1
        for end in (low, high):
            if 0 < end < 1:
                assert math.isclose(abs(share - end), z * math.sqrt(end * (1 - end) / total), rel_tol=1e-6)
    assert wilson(0, total, z)[0] == 0 and wilson(total, total, z)[1] == 1


def test_wilson_is_the_same_for_right_and_wrong_and_narrows() -> None:
    for correct, total in ((3, 10), (1, 4), (50, 70)):
        low, high = wilson(correct, total)
        other_low, other_high = wilson(total - correct, total)
        assert math.isclose(low, 1 - other_high) and math.isclose(high, 1 - other_low)
        wider_low, wider_high = wilson(correct * 10, total * 10)
        assert low < wider_low < wider_high < high
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_covers_the_truth() -> None:
    """Exactly, by the binomial distribution: averaged over proportions, near 95 %."""
    total, covered = 40, []
    for truth in [i / 200 for i in range(10, 191)]:
        chances = [math.comb(total, k) * truth**k * (1 - truth) ** (total - k) for k in range(total + 1)]
        covered.append(sum(c for k, c in enumerate(chances) if wilson(k, total)[0] <= truth <= wilson(k, total)[1]))
    assert 0.94 < sum(covered) / len(covered) < 0.965 and min(covered) > 0.88


def test_a_ratio_is_of_sums_and_covers_the_truth() -> None:
    """Documents of very different sizes, whose true ratio is known: about 95 of 100 intervals hold it."""
    dice, truth, hits, runs = random.Random(0), 2.5, 0, 1500
    for _ in range(runs):
        sizes = [math.exp(dice.gauss(4, 0.7)) for _ in range(80)]
        figures = [size * max(0.0, dice.gauss(truth, 0.6)) for size in sizes]
        value, low, high = ratio(figures, sizes)
        assert math.isclose(value, sum(figures) / sum(sizes)) and math.isclose(value - low, high - value)
        hits += low <= truth <= high
    assert 0.925 < hits / runs < 0.97


def test_a_ratio_of_equal_sizes_is_the_interval_of_a_mean() -> None:
    figures = [3.0, 5.0, 4.0, 8.0, 1.0]
    mean = sum(figures) / 5
    error = math.sqrt(sum((figure - mean) ** 2 for figure in figures) / 4 / 5)
    value, low, high = ratio(figures, [1.0] * 5)
    assert math.isclose(value, mean)
    assert math.isclose(high - mean, NORMAL_95 * error) and math.isclose(mean - low, NORMAL_95 * error)


def test_a_ratio_of_one_or_no_document() -> None:
    value, low, high = ratio([6.0], [3.0])
    assert value == 2 and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, ratio([], []))) and all(map(math.isnan, ratio([0.0], [0.0])))
    assert ratio([2.0, 4.0], [1.0, 2.0]) == (2.0, 2.0, 2.0)  # one rate everywhere: no doubt left
