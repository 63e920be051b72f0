# SPDX-License-Identifier: BSD-2-Clause
"""``restrict initramfs install``: our part of another generator, put where that looks for it.

The files are in integrations/ of the sources, and go along with the package.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from restrict.errors import RestrictError

__all__ = ["GENERATORS", "install"]

_DRACUT = "usr/lib/dracut/modules.d"
_SCRIPTS = ("module-setup.sh", "restrict-open.sh", "restrict-opened.sh")
# generator: what tells that it is there, then (file of ours, place) …
GENERATORS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "initramfs-tools": (
        "usr/share/initramfs-tools",
        (
            ("initramfs-tools/hook", "etc/initramfs-tools/hooks/restrict"),
            ("initramfs-tools/local-top", "etc/initramfs-tools/scripts/local-top/restrict"),
        ),
    ),
    "dracut": (
        _DRACUT,
        tuple((f"dracut/70restrict/{n}", f"{_DRACUT}/70restrict/{n}") for n in _SCRIPTS),
    ),
}


def _folder() -> Path:
    here = Path(__file__).resolve().parent
    installed = here / "integrations"
    return installed if installed.is_dir() else here.parent / "integrations"


def install(generator: str, root: str | Path = "/") -> list[str]:
    """Install for ``generator`` below ``root``; gives the files that were written.

    Files of an earlier version are replaced. Raises RestrictError where the generator is not
    installed or a file cannot be written.
    """
    sign, files = GENERATORS[generator]
    top = Path(root)
    if not (top / sign).is_dir():
        raise RestrictError(f"{generator} is not installed: there is no /{sign}.", folder=str(root))
    written = []
    for source, name in files:
        target = top / name
        scratch = ""
        try:
            data = (_folder() / source).read_bytes()
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            # With a dot in front: initramfs-tools and dracut pass over such names.
            fd, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            with open(fd, "wb") as file:
                file.write(data)
                os.fchmod(fd, 0o755)  # they are executed, also by mere name
            os.replace(scratch, target)
        except OSError as e:
            if scratch and os.path.exists(scratch):
                os.unlink(scratch)
            raise RestrictError(
                f"the file cannot be written: {e.strerror}.", file=str(target)
            ) from None
        written.append(str(target))
    return written
