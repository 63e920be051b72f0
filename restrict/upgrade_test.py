# SPDX-License-Identifier: BSD-2-Clause
"""Does a generation that is attached and not yet armed refuse what it must, and nothing else?

Asked of the kernel. The new generation is switched on in audit mode for a moment, in which its
hooks are asked first (a trampoline runs the program attached last first, kernel/bpf/trampoline.c)
and report; the generation in force goes on refusing behind it. At that time nothing of the new one
is pinned, so that a kill ends it, audit mode and all. Once armed, ``confirm`` makes the same
attempts again and wants the refusals themselves.

The attempts are harmless: mappings of this process' own, and the execution of a file that is no
program, by a child.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct

from pybpf.errors import PybpfError
from pybpf.kernel.ringbuf import RingBuffer
from pybpf.sys import abi as bpf_abi
from pybpf.sys import bpf
from pybpf.sys.syscalls import syscall
from restrict import abi
from restrict.errors import KernelError, LockoutError, RestrictError
from restrict.events import Event
from restrict.guard import Globals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pybpf.kernel.map import Map
    from pybpf.plan.live import Object
    from restrict.fsaccess import Policy

__all__ = ["ATTEMPTS", "confirm", "rehearse"]

_R, _W, _X = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
_MFD_CLOEXEC, _MFD_EXEC = 1, 0x10  # MFD_EXEC: 6.3
_PAGE = mmap.PAGESIZE
_PID = 20  # offset in struct policy_event
_TRIES = 50


class Refused(RestrictError):
    """The new generation did not pass its test; the one before stays in force."""


def _try(act: Callable[[], object]) -> int:
    """The errno of what was tried; 0 if it was allowed."""
    try:
        act()
    except (OSError, KernelError) as e:
        return e.errno or errno.EIO
    return 0


def _memfd() -> int:
    try:
        fd = os.memfd_create("restrict-test", _MFD_CLOEXEC | _MFD_EXEC)
    except OSError as e:
        if e.errno != errno.EINVAL:  # before 6.3
            raise
        fd = os.memfd_create("restrict-test", _MFD_CLOEXEC)
    os.write(fd, b"no program\n".ljust(_PAGE, b"\0"))
    return fd


def _map(protection: int, fd: int = -1) -> int:
    flags = mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
    return syscall("mmap", 0, _PAGE, protection, flags, fd, 0)


def _mapping(protection: int, fd: int = -1) -> None:
    syscall("munmap", _map(protection, fd), _PAGE)


def _protect(fd: int) -> None:
    address = _map(_R, fd)
    try:
        syscall("mprotect", address, _PAGE, _R | _X)
    finally:
        syscall("munmap", address, _PAGE)


def _in_child(act: Callable[[], object]) -> tuple[int, int]:
    """(pid, errno) of what a child tries, which has another tgid and so no right of the owner."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = min(_try(act), 254)
        finally:
            os._exit(code)
    return pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _execute(fd: int) -> None:
    os.execve(fd, ["restrict-test"], {})


def _open_map(ident: int) -> None:
    os.close(bpf.fd_by_id(bpf_abi.BPF_MAP_GET_FD_BY_ID, ident))


# (operation, reason, in a child, what it does with a memfd and a map's id, errno if allowed)
ATTEMPTS: tuple[tuple[str, str, bool, Callable[[int, int], object], int], ...] = (
    ("mmap", "anonymous", False, lambda fd, ident: _mapping(_R | _X), 0),
    ("mmap", "write_exec", False, lambda fd, ident: _mapping(_R | _W | _X), 0),
    ("mmap", "filesystem", False, lambda fd, ident: _mapping(_R | _X, fd), 0),
    ("mprotect", "filesystem", False, lambda fd, ident: _protect(fd), 0),
    ("exec", "filesystem", True, lambda fd, ident: _execute(fd), errno.ENOEXEC),
    ("bpf_map", "guard_map", True, lambda fd, ident: _open_map(ident), 0),
)


def _attempt(index: int, fd: int, ident: int) -> tuple[int, int]:
    """(pid, errno) of one of ATTEMPTS."""
    _, _, child, act, _ = ATTEMPTS[index]
    if child:
        return _in_child(lambda: act(fd, ident))
    return os.getpid(), _try(lambda: act(fd, ident))


class _Ears:
    """Our own events among everybody's: nothing is kept of the others, who may write them as fast
    as they are read, and no call reads longer than what waits when it begins."""

    def __init__(self, events: Map) -> None:
        self._ring = RingBuffer(events)

    def close(self) -> None:
        self._ring.close()

    def heard(self, pids: tuple[int, ...] = ()) -> list[Event]:
        found: list[Event] = []

        def keep(record: memoryview) -> None:
            if struct.unpack_from("=I", record, _PID)[0] in pids:
                found.append(Event(record))

        self._ring.consume(keep, limit=self._ring.pending // (abi.EVENT.size + 8) + 1)
        return found

    def after(self, act: Callable[[], int], operation: str, reason: str) -> list[Event] | None:
        """Our events of an act that gives the pid it is done by; the wanted one is among them, or
        None: a full ring has no room for it, so it is tried a few times."""
        for _ in range(_TRIES):
            self.heard()
            mine = self.heard((act(), os.getpid()))
            if any((e.operation, e.reason) == (operation, reason) for e in mine):
                return mine
        return None


def _acts(index: int, fd: int, ident: int) -> Callable[[], int]:
    return lambda: _attempt(index, fd, ident)[0]


def _maps(path: str) -> Callable[[], int]:
    """Map a file that must stay executable, then memory that must not be: where the second is
    reported, the ring had room for the first."""

    def act() -> int:
        with open(path, "rb") as file:
            _try(lambda: _mapping(_R | _X, file.fileno()))
        _try(lambda: _mapping(_R | _X))
        return os.getpid()

    return act


def rehearse(
    obj: Object, size: int, places: Mapping[str, tuple[int, int]], *, refuse: bool = True
) -> list[str]:
    """Try the attached, inert object; returns what was seen to be refused, "mmap anonymous" ….

    refuse: look for a lock-out too. Leaves it inert, with its counters at zero and ``audit`` set
    (see lockout.would_deny). Raises RestrictError for what it would let pass, LockoutError for what
    must run and would not.
    """
    from restrict.lockout import must_run, reset_counters

    bss = obj.maps[".bss"].fileno()
    ident = obj.maps[".bss"].id
    missed, locked = [], []
    fd = _memfd()
    ears = _Ears(obj.maps["events"])
    try:
        with Globals(bss, size, places) as values:
            values.set_ids("guard_map_ids", [ident])
            values.set("audit", 1)
            values.set("armed", 1)
        try:
            for index, (operation, reason, *_) in enumerate(ATTEMPTS):
                if ears.after(_acts(index, fd, ident), operation, reason) is None:
                    missed.append(f"{operation} {reason}")
            for what, path in must_run().items() if refuse and not missed else ():
                mine = ears.after(_maps(path), "mmap", "anonymous")
                if mine is None or any(e.reason != "anonymous" for e in mine):
                    locked.append(f"{what} ({os.path.realpath(path)})")
        finally:
            with Globals(bss, size, places) as values:
                values.set("armed", 0)
        ears.heard()
        reset_counters(obj)
    except PybpfError as e:
        raise e.at(check="rehearsal") from None
    finally:
        ears.close()
        os.close(fd)
    if missed:
        raise Refused(
            "the new generation did not notice what it must refuse: " + ", ".join(missed) + ".",
            hint="It is not armed; the generation before stays in force.",
        )
    if locked:
        raise LockoutError(
            "the new generation would lock this machine out: " + ", ".join(locked) + ".",
            hint="It is not armed; the generation before stays in force.",
        )
    return [f"{operation} {reason}" for operation, reason, *_ in ATTEMPTS]


def _counter(counters: Map, operation: str, verdict: int) -> int:
    key = abi.OPERATIONS.index(operation).to_bytes(4, "little")
    value = counters.lookup(key)
    return int.from_bytes(value[8 * verdict : 8 * verdict + 8], "little")


def confirm(policy: Policy, counters: Map, *, audit: bool) -> list[str]:
    """The same of a generation that is armed: each is refused, and it was this one that did it
    (its counters); this program's own code may still be mapped. In audit mode the guard alone
    refuses, the rest is counted. Raises RestrictError.
    """
    wrong = []
    ident = policy.bss.id
    fd = _memfd()
    try:
        for index, (operation, reason, _, _, otherwise) in enumerate(ATTEMPTS):
            denies = not audit or operation == "bpf_map"
            before = _counter(counters, operation, 1 if denies else 2)
            code = _attempt(index, fd, ident)[1]
            after = _counter(counters, operation, 1 if denies else 2)
            if code != (errno.EPERM if denies else otherwise):
                wrong.append(f"{operation} {reason} gave {errno.errorcode.get(code, code)}")
            elif after <= before:
                wrong.append(f"{operation} {reason} was not judged by it")
    finally:
        os.close(fd)
    with open("/proc/self/exe", "rb") as file:
        code = _try(lambda: _mapping(_R | _X, file.fileno()))
    if code and not audit:
        wrong.append(f"this program's own code cannot be mapped ({errno.errorcode.get(code)})")
    if wrong:
        raise Refused(
            "the new generation does not do what it must: " + ", ".join(wrong) + ".",
            hint="It was switched off; the generation before stays in force.",
        )
    return [f"{operation} {reason}" for operation, reason, *_ in ATTEMPTS]
