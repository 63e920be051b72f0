# SPDX-License-Identifier: BSD-2-Clause
"""The tests of tests/kernel on stock kernels too, with and without lockdown.

The development host has no kprobes, tracefs, modules or kernel variables in kallsyms, and may be
locked down for tracing programs; the guests have it all, so nothing may be skipped there.
"""

from __future__ import annotations

import subprocess
import sys

from tests.vm.scenario import Guest, Scenario

PARTS = (
    "maps", "programs", "links", "ringbuf", "executor", "undo", "features", "btf_objects",
)  # fmt: skip

plain = Scenario("kernel_tests")
locked = Scenario("kernel_tests_lockdown", lanes=("7.3",), append="lockdown=confidentiality")


def run_part(part: str, allowed_skips: int) -> None:
    """Run one module of tests/kernel with pytest; all must pass."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider",
            "--rootdir=/project", "-c", "/dev/null", "-o", "pythonpath=/project",
            "-o", "markers=kernel", "--import-mode=importlib",
            f"/project/tests/kernel/test_{part}.py",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/tmp",
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, f"tests/kernel/test_{part}.py failed"
    skips = sum(line.startswith("SKIPPED") for line in done.stdout.splitlines())
    assert skips <= allowed_skips, f"{skips} skipped"
    assert " passed" in done.stdout.splitlines()[-1]


def _case(part: str, skips: int) -> object:
    def run(guest: Guest) -> None:
        run_part(part, skips)

    return run


for _part in PARTS:
    plain.case(name=_part)(_case(_part, 0))  # type: ignore[arg-type]
# Under lockdown the kernel refuses kprobes and perf events to everybody: those four are skipped.
for _part, _skips in (("executor", 0), ("programs", 0), ("links", 4), ("ringbuf", 0)):
    locked.case(name=_part)(_case(_part, _skips))  # type: ignore[arg-type]
