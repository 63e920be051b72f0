# SPDX-License-Identifier: BSD-2-Clause
"""Kernel tests: real bpf(2) on this machine. Nothing is attached that could deny anything."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.helpers import fds_to_begin_with, live_names, open_fds, settle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="bpf(2) needs root")
    for item in items:
        if "kernel" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def system_bpffs() -> Iterator[None]:
    """/sys/fs/bpf, where maps are pinned by default: mounted for the tests if nothing is there."""
    place = "/sys/fs/bpf"
    with open("/proc/mounts") as mounts:
        there = any(line.split()[1:3] == [place, "bpf"] for line in mounts)
    if there or os.geteuid() != 0:
        yield
        return
    subprocess.run(["mount", "-t", "bpf", "bpf", place], check=True)
    yield
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix of object names that is ours alone; at the end nothing of it may be left."""
    name = f"t{os.getpid() % 100000:05d}"
    before = fds_to_begin_with()
    yield name
    assert settle(lambda: open_fds() == before), f"fds left: {open_fds() ^ before}"
    assert settle(lambda: not live_names(name)), f"left in the kernel: {live_names(name)}"


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A bpf filesystem of our own."""
    folder = tmp_path / "bpf"
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
