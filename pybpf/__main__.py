# SPDX-License-Identifier: BSD-2-Clause
"""``python3 -m pybpf``."""

from __future__ import annotations

import sys

from pybpf.cli import main

sys.exit(main())
