# SPDX-License-Identifier: BSD-2-Clause
"""The self-running bundle that runs on this machine's kernel and, the same bytes, in guests."""

from __future__ import annotations

from pathlib import Path

import pybpf
from pybpf.pyz import build

__all__ = ["FEATURES", "features_bundle"]

FEATURES = Path(__file__).resolve().parent.parent / "objects/features.bpf.o"


def features_bundle() -> bytes:
    """The bundle of tests/objects/features.bpf.o: maps of many kinds, CO-RE, kernel functions."""
    return build(pybpf.to_bytes(pybpf.compile(pybpf.read(FEATURES))))
