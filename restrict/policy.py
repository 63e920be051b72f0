# SPDX-License-Identifier: BSD-2-Clause
"""What user space does alike for every policy: its plan, its pins, its status, one of its guards.

The counterpart of bpf/common/.
"""

from __future__ import annotations

import errno
import os
import stat

from pybpf.errors import PybpfError
from pybpf.kernel.link import Link
from pybpf.sys import abi, bpf
from restrict.errors import KernelError, RestrictError, system_error
from restrict.mounts import root_cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan

__all__ = [
    "attach_sysctl",
    "default_plan",
    "load_plan",
    "make_folder",
    "pin_name",
    "pin_status",
    "read_status",
    "trusted_folder",
]


def default_plan(name: str) -> str:
    """The frozen plan of a policy ("fsaccess", "userns", "pins"): the administrator's, else the
    one that came with restrict. It need not exist."""
    here = os.path.dirname(os.path.abspath(__file__))
    first = f"/usr/lib/restrict/{name}.plan"
    for path in (first, f"{here}/objects/{name}.plan", f"{here}/../bpf/objects/{name}.plan"):
        if os.path.exists(path):
            return os.path.normpath(path)
    return first


def load_plan(path: str) -> Plan:
    """Read a frozen Plan (``restrict bundle``). Raises FormatError or KernelError."""
    from pybpf.plan.frozen import from_bytes
    from pybpf.sys.files import read_file

    try:
        return from_bytes(read_file(path))
    except OSError as e:
        hint = "Make it with `restrict bundle -o FILE`."
        raise system_error("the plan cannot be read", e, "open", hint=hint, file=path) from None
    except PybpfError as e:
        raise e.at(file=path) from None


def attach_sysctl(obj: Object, name: str) -> Link:
    """Attach the guard of kernel.ftrace_enabled, program ``name``, to the root cgroup."""
    cgroup = root_cgroup()
    try:
        program = obj.programs[name].fileno()
        return Link(bpf.link_create(program, cgroup, abi.BPF_CGROUP_SYSCTL), name)
    except KernelError as e:
        raise e.at(program=name, cgroup="/") from None
    finally:
        os.close(cgroup)


# ── in bpffs ──


def pin_name(name: str) -> str:
    """A map's name as a file's: bpffs takes no dots (kernel/bpf/inode.c, bpf_lookup)."""
    return name.lstrip(".").replace(".", "_")


def trusted_folder(folder: str, *, above: bool = False) -> None:
    """Refuse a directory in which somebody else may put files: bpffs lets everybody make one,
    and a symbolic link there would show another status. Raises RestrictError, OSError.

    above: of a directory that only has such a one in it, it is enough that nobody else can move
    that away (the root of a bpffs is sticky).
    """
    info = os.lstat(folder)
    others = info.st_mode & 0o022 and not (above and info.st_mode & stat.S_ISVTX)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != 0 or others:
        raise RestrictError(
            "it is no directory that root alone can write to.", path=folder, hint="Remove it."
        )


def make_folder(path: str, mode: int, *, above: bool = False) -> None:
    """Make a directory of pins, or see that the one that is there is a ``trusted_folder``. Raises
    RestrictError, OSError."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        trusted_folder(path, above=above)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def read_status(path: str) -> str | None:
    """The text of the pinned status iterator; None if nothing is pinned there.

    Raises RestrictError where another than root could have put the file there.
    """
    try:
        trusted_folder(os.path.dirname(path))
        with open(path, "rb", opener=_no_link) as file:
            return file.read().decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise RestrictError(f"the status cannot be read: {e.strerror}.", file=path) from None


def pin_status(obj: Object, name: str, path: str) -> Link:
    """Create the link of the status iterator, program ``name``, and pin it where everybody may
    read it. Raises KernelError, RestrictError."""
    link = Link(bpf.link_create(obj.programs[name].fileno(), 0, abi.BPF_TRACE_ITER), name)
    try:
        make_folder(os.path.dirname(path), 0o711)
        # A pin of an earlier owner that is gone shows a policy that is no longer attached.
        if os.path.lexists(path):
            os.unlink(path)
        link.pin(path)
        os.chmod(path, 0o444)
    except BaseException as e:
        link.close()
        if isinstance(e, OSError):
            hint = None
            if e.errno in (errno.ENOENT, errno.EPERM, errno.ENOTDIR):
                hint = "Mount bpffs: mount -t bpf bpf /sys/fs/bpf."
            raise system_error(
                "the status cannot be pinned", e, "BPF_OBJ_PIN", hint=hint, path=path
            ) from None
        raise
    return link
