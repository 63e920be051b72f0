#!/usr/bin/python3 -BEs
# SPDX-License-Identifier: BSD-2-Clause
"""``init=`` on the test's root, as `restrict initramfs successor --events` would make it: takes the
policy over, leaves a reader of its events, and executes the harness."""

from __future__ import annotations

import sys

if "/project" not in sys.path:
    sys.path.insert(0, "/project")

from restrict.initramfs_start import take_over  # noqa: E402
from restrict.policy import default_plan  # noqa: E402
from tests.vm.restrict_boot import HARNESS  # noqa: E402

if __name__ == "__main__":
    plans = default_plan("fsaccess"), default_plan("pins")
    sys.exit(take_over(HARNESS.split(), *plans, events=True))
