# SPDX-License-Identifier: BSD-2-Clause
"""Medians and their uncertainty. Nothing here assumes a distribution: timings have none.

The spread of single values is told by the quartiles, the uncertainty of the median by an
interval between two order statistics: the number of values below the true median is binomial
with p = 1/2 whatever the distribution (H. A. David, H. N. Nagaraja, Order Statistics, 7.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

__all__ = ["Summary", "median_interval", "paired_ratios", "quantile", "summarise"]


@dataclass(frozen=True)
class Summary:
    """What is told of a number of values, in their own unit.

    low, high: first and third quartile; interval: limits of the median at 95 % confidence, None
    where there are too few values (fewer than 6) for any.
    """

    count: int
    median: float
    low: float
    high: float
    least: float
    most: float
    interval: tuple[float, float] | None

    def json(self) -> dict[str, object]:
        """As JSON takes it."""
        return asdict(self)


def quantile(values: Sequence[float], fraction: float) -> float:
    """The value below which ``fraction`` of the values lie, interpolated between neighbours.

    Raises ValueError for no values, or a fraction outside 0 … 1.
    """
    if not values:
        raise ValueError("no values")
    if not 0 <= fraction <= 1:
        raise ValueError(f"{fraction} is no fraction")
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    below = math.floor(place)
    above = math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Two of the values between which the true median lies with at least this probability.

    None if even the whole range has a smaller one: both outermost values are on the same side
    of the median with probability 2 ** (1 - n).
    """
    count = len(values)
    ordered = sorted(values)
    tail = (1 - confidence) / 2
    # P(at most k of n values below the median); the limits are the values k from either end.
    reached = 0.0
    found = None
    for k in range(count // 2):
        reached += math.comb(count, k) / 2**count
        if reached > tail:
            break
        found = k
    return None if found is None else (ordered[found], ordered[count - 1 - found])


def summarise(values: Sequence[float]) -> Summary:
    """The summary of at least one value. Raises ValueError for none."""
    return Summary(
        count=len(values),
        median=quantile(values, 0.5),
        low=quantile(values, 0.25),
        high=quantile(values, 0.75),
        least=min(values),
        most=max(values),
        interval=median_interval(values),
    )


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """ours / theirs, each with its neighbour of the same round.

    What slows the machine for a while slows both of a pair, so it leaves their ratio alone; the
    ratio of two medians from separate runs has no such protection.
    Raises ValueError if the numbers of values differ.
    """
    return [a / b for a, b in zip(ours, theirs, strict=True)]
