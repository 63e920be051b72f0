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

__all__ = ["INTERPRETER", "arguments", "modules_of", "standalone"]

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
