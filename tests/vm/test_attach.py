# SPDX-License-Identifier: BSD-2-Clause
"""Attaching and live objects on stock kernels: modules of tests/kernel in the guests.

Each test there shows an effect. What a kernel lacks is named here; anything else that is skipped
is a failure.
"""

from __future__ import annotations

import subprocess
import sys

from tests.vm.scenario import Guest, Scenario

# Five minutes of processor time, and as much again while other guests run.
attaching = Scenario("attach")

# Test names that the kernel cannot pass: sessions of fentry came with 7.0, uprobe sessions with
# 6.13, tracing of many functions with 7.1, instruction arrays with 6.19.
ABSENT = {
    "6.12": ("fsession", "uprobe_session", "fentry_multi", "fexit_multi", "fsession_multi",
             "insn_array", "exclusive maps"),
}  # fmt: skip


@attaching.setup
def network(guest: Guest) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def run_module(guest: Guest, name: str, lacking: tuple[str, ...] = ()) -> None:
    """Run one module of tests/kernel; what it skips must be in ``lacking``."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-rA", "--tb=short", "-p", "no:cacheprovider",
            "--rootdir=/project", "-c", "/dev/null", "-o", "pythonpath=/project",
            "-o", "markers=kernel", "--import-mode=importlib", f"/project/tests/kernel/{name}.py",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/tmp",
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, f"tests/kernel/{name}.py failed"
    skips = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    surprising = [line for line in skips if not any(f"no {what} here" in line for what in lacking)]
    assert not surprising, surprising


@attaching.case()
def every_way_shows_its_effect(guest: Guest) -> None:
    run_module(guest, "test_attach", ABSENT.get(guest.lane, ()))


@attaching.case()
def probes_and_tracing(guest: Guest) -> None:
    run_module(guest, "test_attach_tracing", ABSENT.get(guest.lane, ()))


@attaching.case()
def networks_and_cgroups(guest: Guest) -> None:
    run_module(guest, "test_attach_network", ABSENT.get(guest.lane, ()))


@attaching.case()
def jump_tables(guest: Guest) -> None:
    run_module(guest, "test_jump_tables", ABSENT.get(guest.lane, ()))


@attaching.case()
def exclusive_maps(guest: Guest) -> None:
    run_module(guest, "test_exclusive", ABSENT.get(guest.lane, ()))


@attaching.case()
def older_kernels(guest: Guest) -> None:
    run_module(guest, "test_older")


@attaching.case()
def buffers(guest: Guest) -> None:
    run_module(guest, "test_buffers")


@attaching.case()
def live_objects(guest: Guest) -> None:
    run_module(guest, "test_live_objects")
