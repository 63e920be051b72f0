# SPDX-License-Identifier: BSD-2-Clause
"""Plain text tables, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from tools.benchmarks.stats import Summary

__all__ = ["number", "render", "spread"]


def number(value: float) -> str:
    """Three significant digits and never an exponent: 0.0123, 1.23, 12.3, 123, 12,345."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    digits = 1 if size >= 9.995 else 2
    while size < 0.9995 and digits < 9:
        size *= 10
        digits += 1
    return f"{value:.{digits}f}"


def spread(summary: Summary) -> str:
    """The median and the quartiles: "1.23 (1.20..1.31)"."""
    return f"{number(summary.median)} ({number(summary.low)}..{number(summary.high)})"


def render(headers: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """A table: the first column to the left, all others to the right, widths as needed.

    Raises ValueError for a row of another length than the headers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"the row {row!r} has {len(row)} cells for {len(headers)} columns")
    widths = [max(len(line[i]) for line in [headers, *rows]) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return (indent + "  ".join([first, *rest])).rstrip()

    rule = indent + "  ".join("-" * width for width in widths)
    return "\n".join([line(headers), rule, *map(line, rows)])
