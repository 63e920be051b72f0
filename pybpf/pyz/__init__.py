# SPDX-License-Identifier: BSD-2-Clause
"""Self-running bundles (``.pyz``): the executor and a frozen Plan in one file.

``container`` has the format, ``merge`` makes the executor's modules one, ``loader`` is what
unpacks them in the process that runs the bundle.
"""

from __future__ import annotations

from pybpf.pyz.container import build, is_container, plan_of

__all__ = ["build", "is_container", "plan_of"]
