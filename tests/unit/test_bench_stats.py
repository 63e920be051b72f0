# SPDX-License-Identifier: BSD-2-Clause
"""The benchmark's statistics."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from tools.benchmarks.stats import median_interval, paired_ratios, quantile, summarise


@pytest.mark.parametrize("count", [1, 2, 3, 10, 31])
def test_quantiles_agree_with_the_standard_library(count: int) -> None:
    values = [random.Random(count).gauss(10, 3) for _ in range(count)]
    assert quantile(values, 0.5) == pytest.approx(statistics.median(values))
    assert quantile(values, 0) == min(values)
    assert quantile(values, 1) == max(values)
    if count > 1:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        assert [quantile(values, q) for q in (0.25, 0.5, 0.75)] == pytest.approx(
            [low, middle, high]
        )


def test_quantile_does_not_need_order_and_does_not_change_it() -> None:
    values = [3.0, 1.0, 2.0]
    assert quantile(values, 0.5) == 2.0
    assert values == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(("values", "fraction"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
def test_quantile_refuses(values: list[float], fraction: float) -> None:
    with pytest.raises(ValueError):
        quantile(values, fraction)


@pytest.mark.parametrize(
    ("count", "rank"),
    # Ranks from the table of the sign test's interval for the median, 95 % (Dixon and Massey).
    [(6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (30, 10), (50, 18)],
)
def test_median_interval_has_the_ranks_of_the_tables(count: int, rank: int) -> None:
    values = [float(n) for n in range(1, count + 1)]
    assert median_interval(values) == (float(rank), float(count + 1 - rank))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_values_have_no_interval(count: int) -> None:
    assert median_interval([float(n) for n in range(count)]) is None


def test_median_interval_covers_the_true_median_as_often_as_it_says() -> None:
    chance = random.Random(7)
    true_median = math.log(2)  # of the exponential distribution, as skewed as timings are
    covered = 0
    for _ in range(2000):
        limits = median_interval([chance.expovariate(1) for _ in range(15)])
        assert limits is not None
        covered += limits[0] <= true_median <= limits[1]
    # Exactly 0.9648 for 15 values; five standard deviations of 2,000 trials are 0.02.
    assert covered / 2000 == pytest.approx(0.9648, abs=0.021)


def test_ratios_of_pairs_ignore_what_slows_both() -> None:
    slow = [1.0, 5.0, 2.0, 9.0]
    ours = [0.8 * load for load in slow]
    assert paired_ratios(ours, slow) == pytest.approx([0.8] * 4)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError):
        paired_ratios([1.0, 2.0], [1.0])


def test_summary() -> None:
    summary = summarise([float(n) for n in range(1, 10)])
    assert (summary.count, summary.median, summary.low, summary.high) == (9, 5.0, 3.0, 7.0)
    assert (summary.least, summary.most, summary.interval) == (1.0, 9.0, (2.0, 8.0))
    assert summary.json()["interval"] == (2.0, 8.0)
    with pytest.raises(ValueError):
        summarise([])
