# SPDX-License-Identifier: BSD-2-Clause
"""Initramfs images that ``restrict initramfs`` makes, for scenarios that boot by them.

On the host only: everything here but the names.
"""

from __future__ import annotations

import os

from tests.vm.restrict_boot import HARNESS, configuration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

__all__ = ["INTERPRETER", "arguments", "modules_of", "segment_and_generator", "standalone"]

#: Debian's own interpreter is what most images will have; else the one that runs the tests.
INTERPRETER = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else None


def modules_of(lane: str) -> Path:
    """The folder of the lane's kernel modules."""
    from tools.guest.lanes import lane_of
    from tools.guest.packages import kernel

    return kernel(lane_of(lane)).tree / "modules"


def arguments(run: Mapping[str, Any], folder: Path, **changes: str) -> dict[str, Any]:
    """What ``initramfs.build`` is told for the run's signed root; its files are in ``folder``."""
    (folder / "root.p7s").write_bytes(bytes.fromhex(run["images"]["root"]["signature"]))
    changes = {"plan": "", "signature": "root.p7s", "init": HARNESS, **changes}
    lines = configuration(run, **changes).splitlines()
    kept = [line for line in lines if not line.startswith(("module =", "certificate ="))]
    (folder / "init.conf").write_text("\n".join(kept) + "\n")
    found: dict[str, Any] = {
        "configuration": folder / "init.conf",
        "modules_from": modules_of(run["lane"]),
        "modules": ["virtio_blk"],
        "python": INTERPRETER,
    }
    if run["keyring"]:
        (folder / "certificate.der").write_bytes(run["certificate"])
        found["certificates"] = [folder / "certificate.der"]
    return found


def standalone(run: Mapping[str, Any], **changes: str) -> bytes:
    """A whole initramfs that boots the run's signed root."""
    import tempfile
    from pathlib import Path

    from restrict import initramfs

    with tempfile.TemporaryDirectory() as name:
        return initramfs.build(standalone=True, **arguments(run, Path(name), **changes)).data


#: A generator's initramfs in small, with busybox: mounts as Debian's does, and does not keep the
#: environment, as dracut does not.
_GENERATOR = """\
#!/bin/sh
# /init of a generator
mkdir -p /sys /proc /dev /run /root
mount -t sysfs -o nodev,noexec,nosuid sysfs /sys || echo "sysfs is mounted already"
mount -t proc -o nodev,noexec,nosuid proc /proc || exit 11
mount -t devtmpfs -o nosuid,mode=0755 udev /dev || exit 12
mount -t tmpfs -o nodev,nosuid,mode=0755 tmpfs /run || exit 13
mkdir /run/test
echo "$0 $*" >/run/test/arguments
cp /bin/busybox /run/test/busybox
# Of the initramfs itself: allowed; a copy of it on a tmpfs: denied.
/bin/busybox true && echo allowed >/run/test/initramfs
/run/test/busybox true 2>/run/test/said
echo $? >/run/test/tmpfs
/restrict/open || exit 14
mount -t erofs -o ro /dev/mapper/root /root || exit 15
for folder in /sys /proc /dev /run; do mount --move $folder /root$folder || exit 16; done
exec env -i PATH=/usr/bin:/bin switch_root /root /project/tests/vm/initramfs_next.py
"""


def segment_and_generator(run: Mapping[str, Any], **changes: str) -> bytes:
    """A segment, and behind it the initramfs of another generator.

    changes: to the segment's configuration.
    """
    import tempfile
    from pathlib import Path

    from restrict import initramfs
    from restrict.initramfs_cpio import Entry, archive
    from tools.guest.packages import toolbox

    with tempfile.TemporaryDirectory() as name:
        built = initramfs.build(**arguments(run, Path(name), **changes))
        size = initramfs.write(Path(name, "segment.cpio.xz"), built)
        segment = Path(name, "segment.cpio.xz").read_bytes()
        assert len(segment) == size
    busybox = (toolbox().tree / "usr/bin/busybox").read_bytes()
    applets = ("sh", "mount", "mkdir", "cp", "env", "switch_root")
    generator = [
        Entry.file("init", _GENERATOR.encode(), 0o755),
        Entry.file("bin/busybox", busybox, 0o755),
        *(Entry.symlink(f"bin/{applet}", "busybox") for applet in applets),
        Entry.character_device("dev/console", 5, 1),
    ]
    return segment + archive(generator)
