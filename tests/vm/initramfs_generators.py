# SPDX-License-Identifier: BSD-2-Clause
"""Initramfs images that Debian's generators make with our part in them, for scenarios.

On the host only. An image depends on the run (its configuration names the root hash), so it is
made for each; the generator's tree is cached.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.vm.initramfs_images import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["by_initramfs_tools"]


def _made(
    run: Mapping[str, Any], script: str, files: Mapping[str, bytes], **changes: str
) -> bytes:
    from tools.guest.generators import run_generator
    from tools.guest.lanes import lane_of
    from tools.guest.packages import kernel

    found = kernel(lane_of(run["lane"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = arguments(run, folder, **changes)
        text = (folder / "init.conf").read_text()
        if "certificates" in given:
            text += "certificate = certificate.der\n"
        etc = {f"etc/restrict/{path.name}": path.read_bytes() for path in folder.iterdir()}
    etc["etc/restrict/init.conf"] = text.encode()
    script = script.replace("VERSION", found.release)
    (data,), said = run_generator(found, "initramfs", script, {**etc, **files}, ["tmp/initrd"])
    print(said)
    return data


def by_initramfs_tools(run: Mapping[str, Any]) -> bytes:
    """As ``update-initramfs`` would, after the one command that installs our part."""
    return _made(
        run,
        "restrict initramfs install initramfs-tools\nmkinitramfs -o /tmp/initrd VERSION\n",
        {
            "etc/initramfs-tools/modules": b"virtio_pci\nvirtio_blk\n",
            # Few modules and quick compression: the test's time, nothing else.
            "etc/initramfs-tools/conf.d/test": b"MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n",
        },
    )
