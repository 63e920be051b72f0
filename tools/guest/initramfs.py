# SPDX-License-Identifier: BSD-2-Clause
"""The guest's initramfs: a base segment per lane, cached, and a small one per run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .cache import cache_root, content_hash, publish
from .cpio import Archive
from .keys import signer
from .lanes import Lane
from .packages import Kernel, Toolbox
from .trees import PROJECT, small_system

__all__ = ["base_segment", "given_segment", "module_list", "run_segment"]

_FORMAT = "2"
_INSIDE = PROJECT / "tools/guest/inside"


def module_list(lane: Lane, kernel: Kernel) -> list[tuple[str, str]]:
    """(module, parameters) in load order, with everything the lane's modules depend on."""
    parameters = dict(lane.main_modules)
    return [(name, parameters.get(name, "")) for name in kernel.closure(list(parameters))]


def base_segment(tools: Toolbox, lane: Lane, kernel: Kernel) -> Path:
    """The segment with CPython and the kernel's modules.

    It is not compressed: the emulated processor takes longer to decompress it than qemu takes
    to hand over the bytes.
    """
    small = small_system(tools)
    modules = [name for name, _ in module_list(lane, kernel)]
    key = content_hash([_FORMAT, small.name, kernel.identity, *modules])

    def build(folder: Path) -> None:
        archive = Archive()
        archive.tree(small)
        archive.node("dev/console", 5, 1)
        for name in modules:
            archive.file(f"usr/lib/modules/{name}.ko", kernel.module(name))
        (folder / "base.cpio").write_bytes(archive.finish())

    target = cache_root() / "initramfs" / f"{lane.name}-{key}"
    return publish(target, build, f"the initramfs of lane {lane.name}", keep=2) / "base.cpio"


def run_segment(
    tools: Toolbox, run: dict[str, object], files: dict[str, bytes], project: Path
) -> bytes:
    """The segment of one run: PID 1, the project, what to do, and *files* for /run/vm/files."""
    archive = Archive()
    archive.tree(project, "project")
    archive.file("init", (_INSIDE / "init.py").read_bytes(), 0o755)
    archive.file("vm/certificate.der", signer(tools).der())
    archive.file("vm/run.json", json.dumps(run, sort_keys=True).encode())
    archive.directory("vm/files")
    for name, data in sorted(files.items()):
        mode = 0o755 if data[:4] == b"\x7fELF" or data[:2] == b"#!" else 0o644
        archive.file(f"vm/files/{name}", data, mode)
    return archive.finish()


def given_segment(files: Mapping[str, bytes], project: Path) -> bytes:
    """The segment of a run whose initramfs has an ``init`` of its own: *files*, and /project."""
    archive = Archive()
    archive.tree(project, "project")
    for name, data in sorted(files.items()):
        executable = name == "init" or data[:4] == b"\x7fELF" or data[:2] == b"#!"
        archive.file(name, data, 0o755 if executable else 0o644)
    return archive.finish()
