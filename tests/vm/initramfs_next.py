#!/usr/bin/python3 -BEs
# SPDX-License-Identifier: BSD-2-Clause
"""``init=`` on the test's root, as `restrict initramfs successor` would make it: takes the policy
over and executes the harness."""

from __future__ import annotations

import sys

if "/project" not in sys.path:
    sys.path.insert(0, "/project")

from restrict import fsaccess  # noqa: E402
from restrict.initramfs_start import resume  # noqa: E402
from tests.vm.restrict_boot import HARNESS  # noqa: E402

if __name__ == "__main__":
    sys.exit(resume(fsaccess.default_plan(), HARNESS.split()))
