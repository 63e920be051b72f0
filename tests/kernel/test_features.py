# SPDX-License-Identifier: BSD-2-Clause
"""Feature probes on this machine, and hints that are probed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pybpf.errors import KernelError, UsageError
from pybpf.kernel import features
from pybpf.kernel.map import create
from pybpf.sys import abi, bpf, diagnose

pytestmark = pytest.mark.kernel


def release() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_memory", {})


def test_map_types_agree_with_the_release() -> None:
    for number, since in features.MAP_TYPE_SINCE.items():
        major, minor = (int(part) for part in since.split("."))
        if release() < (major, minor):
            assert features.map_type(number) is not True, number
        elif number not in (19, 21, 24, 26, 28, 29, 32):  # need more than a plain shape, or cgroups
            assert features.map_type(number) is True, number
    assert features.map_type(999) is False


def test_program_types_agree_with_the_release() -> None:
    for number in (1, 2, 3, 5, 6, 7, 8, 13, 15, 17, 18, 23, 24, 25, 30, 31, 32):
        major, minor = (int(part) for part in features.PROGRAM_TYPE_SINCE[number].split("."))
        if release() >= (major, minor):
            assert features.program_type(number) is True, number
    assert features.program_type(999) is False
    # A locked-down host refuses tracing and LSM loads with EPERM: inconclusive, never False.
    assert features.program_type(abi.BPF_PROG_TYPE_LSM) in (True, None)


def test_named_probes() -> None:
    assert features.probe("btf") is True
    assert features.probe("ringbuf") is True
    assert features.probe("common_attrs") is (release() >= (7, 0))
    assert features.requires("ringbuf") == "feature ringbuf (requires >= v5.8)"
    with pytest.raises(UsageError, match="no feature 'warp'; there are: object_names"):
        features.probe("warp")


def test_only_conclusions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = bpf.call, []

    def refuse(cmd: int, attr: bytearray, **kw: Any) -> int:
        calls.append(cmd)
        raise KernelError("refused", errno=1, call="x")

    monkeypatch.setattr(bpf, "call", refuse)
    assert features.map_type(abi.BPF_MAP_TYPE_RINGBUF) is None
    assert features.program_type(1) is None
    monkeypatch.setattr(bpf, "call", real)
    assert features.map_type(abi.BPF_MAP_TYPE_RINGBUF) is True
    monkeypatch.setattr(bpf, "call", refuse)
    before = len(calls)
    assert features.map_type(abi.BPF_MAP_TYPE_RINGBUF) is True
    assert len(calls) == before


def test_the_kernels_own_words_where_it_has_them() -> None:
    with pytest.raises(KernelError) as caught:
        create(999, 4, 4, 1, name="odd")
    words = "The kernel says: Invalid map_type." in str(caught.value)
    assert words is (release() >= (7, 0))
    assert "There is no map type 999" in str(caught.value)


def test_without_capabilities() -> None:
    """A process that gave up its privileges is told which capability is missing, as probed."""
    script = (
        "import os, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import pybpf.kernel.map as m, pybpf.kernel as k, pybpf.errors as e\n"
        "from pybpf.sys import diagnose, bpf\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "assert diagnose.capabilities() == 0\n"
        "for what in (lambda: m.create(1, 4, 4, 1, name='x'), lambda: next(k.map_ids())):\n"
        "    try:\n"
        "        what()\n"
        "    except e.KernelError as error:\n"
        "        print(error)\n"
    )
    root = Path(__file__).resolve().parents[2]
    # The tree may lie where that user cannot go: copy what is needed.
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(root / "pybpf", f"{folder}/pybpf",
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script, folder], capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("map x: BPF_MAP_CREATE failed with EPERM")
    assert "lacks CAP_BPF and CAP_SYS_ADMIN" in first
    assert "kernel.unprivileged_bpf_disabled is" in first
    assert "BPF_MAP_GET_NEXT_ID failed with EPERM" in second
    assert "lacks CAP_SYS_ADMIN" in second


def test_hints_state_only_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/thread-self/status": "CapEff:\t000001ffffffffff\n",
        "/sys/kernel/security/lockdown": "none integrity [confidentiality]\n",
    }
    monkeypatch.setattr(diagnose, "_read", files.get)
    assert diagnose.lockdown() == "confidentiality"
    assert "locked down (confidentiality)" in str(diagnose.permission_hint(abi.BPF_PROG_LOAD))
    files["/sys/kernel/security/lockdown"] = "[none] integrity confidentiality\n"
    assert "all capabilities" in str(diagnose.permission_hint(abi.BPF_PROG_LOAD))
    assert diagnose.permission_hint(abi.BPF_OBJ_PIN) is None
    files["/proc/thread-self/status"] = "CapEff:\t0000008000000000\n"  # CAP_BPF alone
    assert "lacks CAP_PERFMON and CAP_NET_ADMIN" in str(diagnose.permission_hint(abi.BPF_PROG_LOAD))
    files.clear()
    assert diagnose.permission_hint(abi.BPF_PROG_LOAD) is None
    assert diagnose.lockdown() is None
