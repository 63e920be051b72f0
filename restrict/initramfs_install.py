# SPDX-License-Identifier: BSD-2-Clause
"""``restrict initramfs install``: our part of another generator, put where that looks for it.

The files are in integrations/ of the sources, and go along with the package.
"""

from __future__ import annotations

import os
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise RestrictError(
            f"a file of restrict's own cannot be read: {e.strerror}.",
            hint="Install restrict again.",
            file=str(path),
        ) from None


def install(generator: str, root: str | Path = "/") -> list[str]:
    """Install for ``generator`` below ``root``; gives the files that were written.

    Files of an earlier version are replaced; it is all of them, or none where one cannot be
    written. Raises RestrictError for that, where a link leads out of ``root``, and where the
    generator is not installed.
    """
    # Not at the top: the parser of all commands imports this module.
    from restrict.files import beside, inside

    sign, files = GENERATORS[generator]
    top = Path(root)
    if not (top / sign).is_dir():
        raise RestrictError(
            f"{generator} is not installed: there is no /{sign}.",
            hint="Install its package, or name its tree with --root.",
            folder=str(root),
        )
    found = [(inside(top, name), _read(_folder() / source)) for source, name in files]
    scratch: list[str] = []
    target = top
    try:
        for target, data in found:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            scratch.append(beside(target, data, 0o755))  # they are executed, also by mere name
        for target, _data in found:
            os.replace(scratch[0], target)
            del scratch[0]
    except OSError as e:
        raise RestrictError(
            f"the file cannot be written: {e.strerror}.", file=str(target)
        ) from None
    finally:
        for path in scratch:
            os.unlink(path)
    return [str(target) for target, _data in found]
