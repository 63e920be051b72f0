# SPDX-License-Identifier: BSD-2-Clause
"""Every way of attaching on stock kernels: tests/kernel/test_attach.py in the guests.

Each test there shows an effect. What a kernel lacks is named here; anything else that is skipped
is a failure.
"""

from __future__ import annotations

import subprocess
import sys

from tests.vm.scenario import Guest, Scenario

attaching = Scenario("attach")

# Test names that the kernel cannot pass: sessions of fentry came with 7.0, uprobe sessions with
# 6.13.
ABSENT = {"6.12": ("fsession", "uprobe_session")}


@attaching.setup
def network(guest: Guest) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@attaching.case(timeout=400.0)
def every_way_shows_its_effect(guest: Guest) -> None:
    lacking = ABSENT.get(guest.lane, ())
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider",
            "--rootdir=/project", "-c", "/dev/null", "-o", "pythonpath=/project",
            "-o", "markers=kernel", "--import-mode=importlib", "-rA", "--tb=short",
            "/project/tests/kernel/test_attach.py",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/tmp",
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, "tests/kernel/test_attach.py failed"
    skips = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    surprising = [line for line in skips if not any(f"no {name} here" in line for name in lacking)]
    assert not surprising, surprising
