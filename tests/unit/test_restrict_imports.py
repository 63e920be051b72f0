# SPDX-License-Identifier: BSD-2-Clause
"""restrict: the modules of early boot keep to the small import set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "re", "enum", "typing", "dataclasses", "contextlib", "collections", "functools", "inspect",
    "elftools", "construct", "subprocess", "argparse", "json", "socket", "signal", "selectors",
    "logging", "tempfile", "shutil", "pathlib", "importlib.metadata", "traceback", "warnings",
}  # fmt: skip


@pytest.mark.parametrize(
    "module",
    [
        "init", "initramfs_start", "fsaccess", "handover", "lockout", "preflight", "devmapper",
        "keyring", "mounts", "modules", "events", "seccomp", "serve", "status", "simulate",
        "config", "guard", "kmsg", "gpt", "images", "disks", "cli", "policy", "pins", "pins_status",
        "keep", "keep_init", "keep_pins", "keep_ownerless", "keep_keeper", "resume", "upgrade",
        "userns_pins", "userns_status",
    ],
)  # fmt: skip
def test_early_boot_imports_little(module: str) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
before = set(sys.modules)
import restrict.{module}
if {module == "init"}:
    restrict.init._preload()
    import pybpf.plan.frozen, pybpf.plan.run, pybpf.kernel.ringbuf
print(" ".join(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    found = set(done.stdout.split())
    assert not found & HEAVY
    # os and what it needs; extension modules; of ctypes the C core alone.
    assert {n for n in found if n.partition(".")[0] not in ("restrict", "pybpf")} <= {
        "__future__", "_collections_abc", "_stat", "abc", "_abc", "genericpath", "os", "os.path",
        "posixpath", "stat", "_ctypes", "_struct", "struct", "_socket", "_thread", "binascii",
        "errno", "fcntl", "mmap", "select", "time", "_sha256", "_sha2",
    }  # fmt: skip
