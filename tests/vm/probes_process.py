# SPDX-License-Identifier: BSD-2-Clause
"""Attempts on other processes and on memory that is not writable: ptrace, /proc/PID/mem, fds."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

from tests.vm import raw
from tests.vm.outcome import Outcome
from tests.vm.probes import attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Act = Callable[..., int]

__all__ = [
    "get_fd",
    "kill",
    "peek",
    "poke",
    "ptrace_attach",
    "ptrace_by_int80",
    "ptrace_seize",
    "ptrace_stranger",
    "read_memory_of",
    "read_status",
    "traceme",
    "vm_read",
    "vm_write",
    "vm_write_text",
    "write_memory_of",
    "write_own_text",
]

_TRACEME, _PEEKTEXT, _POKETEXT, _POKEDATA = 0, 1, 4, 5
_ATTACH, _DETACH, _SEIZE = 16, 17, 0x4206


def _mapping(pid: int | str, permissions: str) -> int:
    """The start of the first mapping of a process with exactly these permissions."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            fields = line.split()
            if fields[1] == permissions:
                return int(fields[0].split("-")[0], 16)
    raise LookupError(f"process {pid} has no mapping {permissions}")


def _sleeper() -> int:
    """A process that waits to be killed; it is no descendant's tracer and traces nobody."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                signal.pause()
        finally:
            os._exit(0)
    return child


def ptrace_attach(pid: int) -> Outcome:
    """PTRACE_ATTACH to *pid*, which is let go again."""

    def body(act: Act) -> None:
        act(raw.call, "ptrace", _ATTACH, pid, 0, 0)
        os.waitpid(pid, 0)
        raw.call("ptrace", _DETACH, pid, 0, 0)

    return attempt(body)


def ptrace_seize(pid: int) -> Outcome:
    """PTRACE_SEIZE of *pid*; the tracer's end lets it go."""
    return attempt(lambda act: act(raw.call, "ptrace", _SEIZE, pid, 0, 0))


def ptrace_stranger() -> Outcome:
    """PTRACE_ATTACH to a process that is neither PID 1 nor our own child."""
    other = _sleeper()
    try:
        return ptrace_attach(other)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


def traceme() -> Outcome:
    """PTRACE_TRACEME."""
    return attempt(lambda act: act(raw.call, "ptrace", _TRACEME, 0, 0, 0))


def _traced_child() -> int:
    child = os.fork()
    if child == 0:
        try:
            raw.call("ptrace", _TRACEME, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise RuntimeError(f"the traced child did not stop: wait status {status:#x}")
    return child


def peek() -> Outcome:
    """PTRACE_PEEKTEXT in the read-only text of a traced child."""

    def body(act: Act) -> None:
        child = _traced_child()
        word = ctypes.c_long()
        try:
            act(raw.call, "ptrace", _PEEKTEXT, child, _mapping(child, "r-xp"), ctypes.byref(word))
        finally:
            os.kill(child, signal.SIGKILL)

    return attempt(body)


def poke(data: bool = False, permissions: str = "r-xp") -> Outcome:
    """PTRACE_POKETEXT (POKEDATA with *data*) in a traced child's mapping of these permissions.

    The word is written back as it was.  proc_mem.force_override=never is about /proc/PID/mem
    alone: a tracer may still write a mapping that is not writable (6.12, 7.3).
    """

    def body(act: Act) -> None:
        child = _traced_child()
        try:
            where = _mapping(child, permissions)
            word = ctypes.c_long()
            raw.call("ptrace", _PEEKTEXT, child, where, ctypes.byref(word))
            act(raw.call, "ptrace", _POKEDATA if data else _POKETEXT, child, where, word.value)
        finally:
            os.kill(child, signal.SIGKILL)

    return attempt(body)


def ptrace_by_int80(request: int) -> bytes:
    """Code for programs.program: the 32-bit ptrace(request, 0, 0, 0); it exits with the errno.

    ESRCH if the request is let pass, as there is no process 0.
    """
    return (
        b"\xb8\x1a\x00\x00\x00"  # mov eax, ptrace (of i386)
        + b"\xbb" + struct.pack("<I", request)  # mov ebx, request
        + b"\x31\xc9\x31\xd2\x31\xf6\xcd\x80"  # xor ecx, edx, esi; int 0x80
        b"\xf7\xd8\x89\xc3"  # neg eax; mov ebx, eax
        b"\xb8\x01\x00\x00\x00\xcd\x80"  # mov eax, exit; int 0x80
    )  # fmt: skip


def _open_and(pid: int | str, flags: int, where: int, data: bytes) -> int:
    fd = os.open(f"/proc/{pid}/mem", flags | os.O_CLOEXEC)
    try:
        if data:
            return os.pwrite(fd, data, where)
        return len(os.pread(fd, 8, where))
    finally:
        os.close(fd)


def read_memory_of(pid: int) -> Outcome:
    """Open /proc/PID/mem and read eight bytes of text."""

    def body(act: Act) -> None:
        # The maps of a process that may not be looked at are refused too; any address will do
        # then, as the open is what must fail.
        try:
            where = _mapping(pid, "r-xp")
        except PermissionError:
            where = 0x400000
        act(_open_and, pid, os.O_RDONLY, where, b"")

    return attempt(body)


def write_memory_of(pid: int) -> Outcome:
    """Open /proc/PID/mem for writing and write nothing new into its writable data."""

    def body(act: Act) -> None:
        try:
            where = _mapping(pid, "rw-p")
            fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(fd, 8, where)
            os.close(fd)
        except PermissionError:
            where, data = 0x400000, bytes(8)
        act(_open_and, pid, os.O_RDWR, where, data)

    return attempt(body)


def write_own_text() -> Outcome:
    """Rewrite our own read-only text through /proc/self/mem, with the bytes it has."""

    def body(act: Act) -> None:
        where = _mapping("self", "r-xp")
        act(_open_and, "self", os.O_RDWR, where, raw.read_memory(where, 8))

    return attempt(body)


def _vectors(address: int, length: int) -> tuple[object, object, object]:
    local = ctypes.create_string_buffer(length)
    ours = ctypes.create_string_buffer(struct.pack("<QQ", ctypes.addressof(local), length), 16)
    theirs = ctypes.create_string_buffer(struct.pack("<QQ", address, length), 16)
    return local, ours, theirs


def vm_read(pid: int) -> Outcome:
    """process_vm_readv(2) of eight bytes."""

    def body(act: Act) -> None:
        try:
            where = _mapping(pid, "r-xp")
        except PermissionError:
            where = 0x400000
        _keep, ours, theirs = _vectors(where, 8)
        act(raw.call, "process_vm_readv", pid, ours, 1, theirs, 1, 0)

    return attempt(body)


def vm_write(pid: int) -> Outcome:
    """process_vm_writev(2) of nothing new."""

    def body(act: Act) -> None:
        where = _mapping(pid, "rw-p")
        _keep, ours, theirs = _vectors(where, 8)
        try:
            raw.call("process_vm_readv", pid, ours, 1, theirs, 1, 0)
        except PermissionError:
            pass  # then the act is refused as well, before it would write the zeros
        act(raw.call, "process_vm_writev", pid, ours, 1, theirs, 1, 0)

    return attempt(body)


def vm_write_text() -> Outcome:
    """process_vm_writev(2) of the first bytes of a child's text, with what they are."""

    def body(act: Act) -> None:
        child = _sleeper()
        try:
            where = _mapping(child, "r-xp")
            _keep, ours, theirs = _vectors(where, 8)
            raw.call("process_vm_readv", child, ours, 1, theirs, 1, 0)
            act(raw.call, "process_vm_writev", child, ours, 1, theirs, 1, 0)
        finally:
            os.kill(child, signal.SIGKILL)

    return attempt(body)


def read_status(pid: int) -> Outcome:
    """Open /proc/PID/status and read it: what every process may know of another."""

    def read() -> int:
        with open(f"/proc/{pid}/status", "rb") as status:
            return len(status.read())

    return attempt(lambda act: act(read))


def get_fd(pid: int, fd: int) -> Outcome:
    """pidfd_getfd(2): a duplicate of another process's descriptor."""

    def body(act: Act) -> None:
        pidfd = raw.call("pidfd_open", pid, 0)
        act(raw.call, "pidfd_getfd", pidfd, fd, 0)

    return attempt(body)


def kill(pid: int, number: int = 0) -> Outcome:
    """kill(2); signal 0 only asks whether it would be allowed."""

    def send() -> int:
        os.kill(pid, number)
        return 0

    return attempt(lambda act: act(send))
