# SPDX-License-Identifier: BSD-2-Clause
"""ObjectSpec and a kernel → Plan."""

from __future__ import annotations

from pybpf.compiler.compile import compile, compile_alternatives
from pybpf.compiler.target import Target

__all__ = ["Target", "compile", "compile_alternatives"]
