# SPDX-License-Identifier: BSD-2-Clause
"""The error of the benchmark."""

from __future__ import annotations

__all__ = ["BenchError"]


class BenchError(Exception):
    """Something that is measured, or measured with, is missing or failed; says which and why."""
