# SPDX-License-Identifier: BSD-2-Clause
"""Files that commands make: whole or not there, and where they were asked for, not where a link
leads. For the machine that builds images."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from restrict.errors import RestrictError, system_error

__all__ = ["beside", "inside", "replace"]


def beside(target: Path, data: bytes, mode: int) -> str:
    """A new file in the folder of ``target``, on the disk, to be renamed to it; its path. The name
    begins with a dot: generators pass over such files. Raises OSError; nothing is left then."""
    fd, scratch = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
            os.fchmod(fd, mode)
    except BaseException:
        os.unlink(scratch)
        raise
    return scratch


def replace(path: str | os.PathLike[str], data: bytes) -> None:
    """Make the file, in place of one that is there; its mode is what the umask leaves.

    Raises RestrictError for what is no regular file (a device, a link, which are not written to and
    not replaced), KernelError where it cannot be written; what was there stays then.
    """
    target = Path(path)
    try:
        if os.path.lexists(target) and not stat.S_ISREG(os.lstat(target).st_mode):
            raise RestrictError(
                "it is there already, and no regular file, so it is not replaced.",
                hint="Give the name of a file of its own.",
                file=str(path),
            )
        mask = os.umask(0)
        os.umask(mask)
        scratch = beside(target, data, 0o666 & ~mask)
        try:
            os.replace(scratch, target)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as e:
        raise system_error("the file cannot be written", e, "rename", file=str(path)) from None


def inside(root: str | os.PathLike[str], name: str) -> Path:
    """The place of ``name`` in the tree ``root``, which somebody else made.

    Links may lead about in the tree, not out of it: an absolute one is right once the tree is
    somebody's root, and means this machine's own files until then. Raises RestrictError for that,
    and where there is no such tree.
    """
    top = Path(root)
    if not top.is_dir():
        raise RestrictError(
            "there is no such folder.", hint="It is the tree that goes into the image.",
            folder=str(root),
        )  # fmt: skip
    target = top / name
    real, parent = os.path.realpath(top), os.path.realpath(target.parent)
    if os.path.commonpath((real, parent)) != real:
        raise RestrictError(
            f"a symbolic link on the way leads out of the tree, to {parent}.",
            hint="Make it a relative one, or choose another --prefix.",
            file=str(target),
            folder=str(root),
        )
    return target
