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

__all__ = [
    "DRACUT", "PLAIN", "SYSTEMD", "by_dracut", "by_dracut_with_systemd", "by_initramfs_tools",
]  # fmt: skip


def _made(run: Mapping[str, Any], script: str, files: Mapping[str, bytes], **changes: str) -> bytes:
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


def by_initramfs_tools(run: Mapping[str, Any], keep: str = "") -> bytes:
    """As ``update-initramfs`` would, after the one command that installs our part. What keeps the
    policy is left to the default unless told."""
    return _made(
        run,
        "restrict initramfs install initramfs-tools\nmkinitramfs -o /tmp/initrd VERSION\n",
        {
            "etc/initramfs-tools/modules": b"virtio_pci\nvirtio_blk\n",
            # Few modules and quick compression: the test's time, nothing else.
            "etc/initramfs-tools/conf.d/test": b"MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n",
        },
        keep=keep,
    )


#: MODULES and VERSION are put in. Few modules and drivers, and quick compression: the test's time.
DRACUT = """\
restrict initramfs install dracut
dracut --force --no-hostonly --no-hostonly-cmdline --modules 'MODULES restrict' \\
    --drivers 'virtio_pci virtio_blk' --compress 'zstd -1' --kver VERSION /tmp/initrd
"""
PLAIN = "base fs-lib kernel-modules rootfs-block udev-rules shell-interpreter shutdown"
SYSTEMD = "systemd systemd-initrd dracut-systemd"


def by_dracut(run: Mapping[str, Any], keep: str = "exec") -> bytes:
    """With dracut's own script as PID 1, which hands on fds but no environment."""
    return _made(run, DRACUT.replace("MODULES", PLAIN), {}, keep=keep)


def by_dracut_with_systemd(run: Mapping[str, Any]) -> bytes:
    """With systemd as PID 1, which closes what it inherits; by the default."""
    return _made(run, DRACUT.replace("MODULES", f"{PLAIN} {SYSTEMD}"), {}, keep="")
