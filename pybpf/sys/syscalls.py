# SPDX-License-Identifier: BSD-2-Clause
"""System calls by number through libc's syscall(2): what the standard library does not wrap.

Numbers: x86-64 and aarch64 (asm/unistd_64.h); another machine gives a UsageError. bpf(2) itself
is in ``pybpf.sys.bpf``.

No ctypes callback is made here or anywhere in pybpf: callbacks need memory that is writable and
executable, which the policies of ``restrict`` deny.
"""

from __future__ import annotations

import posix
import sys
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    addressof,
    dlopen,
    dlsym,
    get_errno,
    sizeof,
)

from pybpf.errors import KernelError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Buffer = bytes | bytearray | memoryview

__all__ = [
    "Pointer",
    "add_key",
    "errno_name",
    "errno_text",
    "fail",
    "finit_module",
    "ioctl",
    "keyctl",
    "machine",
    "mount",
    "number",
    "perf_event_open",
    "pivot_root",
    "pointer",
    "raw",
    "syscall",
    "umount2",
]

# The C core of ctypes: the package around it takes longer to import than a program to load.


class _Long(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class Char(_SimpleCData):  # type: ignore[type-arg]
    """One byte; ``Char.from_buffer(data)`` keeps a bytearray alive and from being resized."""

    _type_ = "c"


class _Text(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"  # const char *


class _Address(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"  # void *


class _Syscall(CFuncPtr):
    # errno is saved right after the call, before anything of the interpreter can change it.
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Long


# dlopen(None): the C library that the interpreter itself runs on.
_syscall = _Syscall(dlsym(dlopen(None, 0), "syscall"))  # type: ignore[arg-type]
# With declared types, Python ints go as longs: without them, as 32-bit ints.
_syscall.argtypes = [_Long] * 7

# errno values that the kernel lets out although user space has no names for them
# (include/linux/errno.h).
_KERNEL_ONLY = {512: "ERESTARTSYS", 517: "EPROBE_DEFER", 524: "ENOTSUPP"}

# Machine names of uname(2) that have a table pybpf.sys.numbers_….
_MACHINES = ("x86_64", "aarch64")


def machine() -> str:
    """The machine's name as uname(2) gives it, "x86_64" or "aarch64".

    A 32-bit interpreter on a 64-bit kernel is refused: its pointers do not fit the tables.
    """
    name: str = posix.uname().machine
    if name not in _MACHINES or sizeof(_Address) != 8:
        raise UsageError(
            f"pybpf knows the system calls of 64-bit x86_64 and aarch64, not of {name}.",
            hint="Compiling for another machine works everywhere; running does not.",
        )
    return name


_tables: dict[str, dict[str, int]] = {}


def number(name: str) -> int:
    """The number of system call ``name`` ("perf_event_open") on this machine."""
    arch = machine()
    table = _tables.get(arch)
    if table is None:
        if arch == "x86_64":
            from pybpf.sys.numbers_x86_64 import NUMBERS
        else:
            from pybpf.sys.numbers_aarch64 import NUMBERS
        table = _tables[arch] = NUMBERS
    if name not in table:
        raise UsageError(f"there is no system call {name!r} on {arch}")
    return table[name]


def errno_name(code: int) -> str:
    """ "EPERM" for 1; kernel-only values have their kernel names; unknown ones their number."""
    from errno import errorcode

    return errorcode.get(code) or _KERNEL_ONLY.get(code) or f"errno {code}"


def errno_text(code: int) -> str:
    """ "EPERM: Operation not permitted"."""
    if code in _KERNEL_ONLY:
        what = "Operation is not supported" if code == 524 else "Unknown error"
        return f"{_KERNEL_ONLY[code]}: {what} (errno {code})"
    return f"{errno_name(code)}: {posix.strerror(code)}"


def fail(call: str, code: int, *, hint: str | None = None, **where: object) -> KernelError:
    """The KernelError of a failed ``call``; the caller raises it."""
    return KernelError(
        f"{call} failed with {errno_text(code)}.", errno=code, call=call, hint=hint, **where
    )


def raw(nr: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0) -> int:
    """System call ``nr``; the result, or minus the errno. Retries nothing."""
    result: int = _syscall(nr, a, b, c, d, e, f)
    return result if result != -1 else -get_errno()


class Pointer:
    """The address of some bytes, which live at least as long as this object.

    ``address`` is 0 for None. bytes and read-write buffers are not copied; read-only memoryviews
    are. The holder of a bytearray's Pointer must not resize it.
    """

    __slots__ = ("_keep", "address")

    def __init__(self, data: Buffer | None) -> None:
        self._keep: Any = None
        self.address = 0
        if data is None:
            return
        if isinstance(data, bytes):
            # A char pointer is itself a buffer that holds the address of the bytes it keeps alive.
            self._keep = _Text(data)
            self.address = _Address.from_buffer(self._keep).value or 0
            return
        if isinstance(data, memoryview) and data.readonly:
            data = bytearray(data)
        # Nothing can be exported of an empty buffer; its address must not be 0 all the same.
        self._keep = Char.from_buffer(data) if len(data) else _Long()
        self.address = addressof(self._keep)


def pointer(data: Buffer | None) -> Pointer:
    """``Pointer(data)``: keep the result while the kernel may use the address."""
    return Pointer(data)


def syscall(name: str, *args: int | bytes | bytearray | str | Pointer | None) -> int:
    """Call system call ``name``; returns its result.

    Arguments: ints as they are; str is encoded as a path; bytes and str go as the address of
    their NUL-terminated bytes, a bytearray as the address of its contents, None as 0.
    Raises KernelError with ``call`` = name.
    """
    if len(args) > 6:
        raise UsageError(f"{name}: a system call has at most 6 arguments, not {len(args)}")
    keep = []
    words = []
    for arg in args:
        if isinstance(arg, int):
            words.append(arg)
            continue
        if isinstance(arg, str):
            arg = arg.encode(sys.getfilesystemencoding(), "surrogateescape")
        held = arg if isinstance(arg, Pointer) else Pointer(arg)
        keep.append(held)
        words.append(held.address)
    result = raw(number(name), *words)
    if result < 0:
        raise fail(name, -result)
    return result


def perf_event_open(attr: bytearray, pid: int, cpu: int, group: int = -1, flags: int = 0) -> int:
    """perf_event_open(2); ``attr`` is a struct perf_event_attr. Returns a close-on-exec fd."""
    close_on_exec = 8  # PERF_FLAG_FD_CLOEXEC
    return syscall("perf_event_open", attr, pid, cpu, group, flags | close_on_exec)


def ioctl(fd: int, request: int, arg: int | bytearray = 0) -> int:
    """ioctl(2) whose argument is a number or a buffer that the kernel may change."""
    return syscall("ioctl", fd, request, arg)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises KernelError that names the target."""
    try:
        syscall("mount", source, target, fstype, flags, data)
    except KernelError as error:
        raise error.at(target=target, fstype=fstype, source=source)  # noqa: B904


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2): MNT_FORCE 1, MNT_DETACH 2, MNT_EXPIRE 4, UMOUNT_NOFOLLOW 8."""
    try:
        syscall("umount2", target, flags)
    except KernelError as error:
        raise error.at(target=target)  # noqa: B904


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    syscall("pivot_root", new_root, put_old)


def finit_module(fd: int, params: str = "", flags: int = 0) -> None:
    """finit_module(2): load the kernel module in ``fd`` (compressed: flags 4, Linux 5.17)."""
    syscall("finit_module", fd, params, flags)


def add_key(key_type: str, description: str, payload: bytes, keyring: int) -> int:
    """add_key(2): the new key's serial number."""
    return syscall("add_key", key_type, description, payload, len(payload), keyring)


def keyctl(operation: int, *args: int | bytes | bytearray | str | None) -> int:
    """keyctl(2) with the numbers of linux/keyctl.h."""
    return syscall("keyctl", operation, *args)
