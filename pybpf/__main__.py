# SPDX-License-Identifier: BSD-2-Clause
"""``python3 -m pybpf``."""

from __future__ import annotations

from pybpf.cli import console

console()
