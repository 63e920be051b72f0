# SPDX-License-Identifier: BSD-2-Clause
"""``python3 -m restrict``."""

from __future__ import annotations

import sys

from restrict.cli import main

if __name__ == "__main__":
    sys.exit(main())
