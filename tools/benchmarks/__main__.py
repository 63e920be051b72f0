# SPDX-License-Identifier: BSD-2-Clause
"""``python -m tools.benchmarks``: see tools/bench."""

from __future__ import annotations

import sys

from tools.benchmarks.cli import main

sys.exit(main())
