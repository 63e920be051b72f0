# SPDX-License-Identifier: BSD-2-Clause
"""Attempts to execute code that a policy may refuse: exec, mappings, protections, dlopen.

Each probe makes its preparations, then one *act*, in a child of its own, and says exactly what
came of the act (see tests.vm.outcome).  What fails before the act is "could not be attempted".
Probes start no helper program, unless that is what they are about, and use no ctypes callback,
so they work while a policy is in force.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import struct
import time

from tests.vm import raw
from tests.vm.outcome import Expected, Outcome
from tests.vm.programs import EXIT_STATUS
from tests.vm.waiting import ATTEMPT_SECONDS, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Act = Callable[..., int]

__all__ = [
    "NOT_MAPPED",
    "Prober",
    "anonymous_once",
    "attempt",
    "check_executable",
    "dlopen",
    "executable_heap",
    "execute",
    "execute_fd",
    "execute_memfd",
    "execute_once",
    "map_anonymous",
    "map_file",
    "map_memfd",
    "map_readable_as_executable",
    "map_repeatedly",
    "protect_anonymous",
    "protect_file",
    "protect_file_by_key",
    "protect_modified",
    "protect_stack",
    "run",
    "shm_executable",
    "write_file",
]

_RX = raw.PROT_READ | raw.PROT_EXEC
_RW = raw.PROT_READ | raw.PROT_WRITE
_RWX = _RX | raw.PROT_WRITE


# What a dlopen that may not map its object comes to.
NOT_MAPPED = Expected("refused", 0, "failed to map segment from shared object")


class _Refusal(Exception):
    """The act failed with an errno."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail


def _report(fd: int, kind: str, code: int, seconds: float, detail: str) -> None:
    data = f"{kind}\0{code}\0{seconds}\0{detail}".encode("utf-8", "backslashreplace")
    os.write(fd, data[:4000])


def attempt(body: Callable[[Act], object]) -> Outcome:
    """Run *body* in a child; it calls ``act(function, *arguments)`` once, for the act itself.

    Allowed if the act returns, refused with the errno of its OSError.  Anything else that goes
    wrong, in the body, makes it an attempt that could not be made; a signal that comes after
    the act has begun is told as such.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        started = [0.0]

        def act(function: Callable[..., int], *arguments: object) -> int:
            started[0] = time.monotonic()
            os.write(writer, b"A")
            try:
                value = function(*arguments)
            except OSError as error:
                raise _Refusal(error.errno or 0, "" if error.errno else str(error)) from None
            started[0] = time.monotonic() - started[0]
            return value

        try:
            os.close(reader)
            try:
                detail = body(act)
                if started[0]:
                    _report(writer, "allowed", 0, started[0], "" if detail is None else str(detail))
                else:
                    _report(writer, "impossible", 0, 0, "the probe never came to its act")
            except _Refusal as refusal:
                taken = time.monotonic() - started[0]
                _report(writer, "refused", refusal.code, taken, refusal.detail)
            except BaseException as error:
                _report(writer, "impossible", 0, 0, f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    os.close(writer)
    data, status = _wait(child, reader)
    begun, report = data[:1] == b"A", data[1:] if data[:1] == b"A" else data
    if report:
        kind, code, seconds, detail = report.decode("utf-8", "replace").split("\0", 3)
        return Outcome(kind, int(code), detail, float(seconds))
    if status is None:
        return Outcome("impossible", 0, f"no end within {ATTEMPT_SECONDS:.0f} s")
    if os.WIFSIGNALED(status) and begun:
        return Outcome("killed", os.WTERMSIG(status), "during the act")
    return Outcome("impossible", 0, f"the probe's process ended with wait status {status:#x}")


def _wait(child: int, reader: int) -> tuple[bytes, int | None]:
    """All that comes through the pipe, and the child's wait status; None if it was too slow."""
    data = b""
    end = time.monotonic() + ATTEMPT_SECONDS
    status: int | None = None
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while True:
        left = end - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        piece = os.read(reader, 8192)
        if not piece:
            _, status = os.waitpid(child, 0)
            break
        data += piece
    os.close(reader)
    return data, status


def _exec(function: Callable[[], object]) -> Outcome:
    """Fork, and *function* replaces the program; the errno comes through a close-on-exec pipe."""
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            os.write(writer, b"A")
            function()
            os.write(writer, b"returned")
        except OSError as error:
            os.write(writer, struct.pack("<i", error.errno or 0))
        finally:
            os._exit(127)
    os.close(writer)
    # The pipe closes when the program has been replaced, or its process has died.
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    data = b""
    while poll.poll(ATTEMPT_SECONDS * 1000):
        piece = os.read(reader, 64)
        if not piece:
            break
        data += piece
    seconds = time.monotonic() - start
    os.close(reader)
    if data[:1] != b"A" or len(data) not in (1, 5):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return Outcome("impossible", 0, f"exec was not reached or returned: {data!r}")
    if len(data) == 5:
        os.waitpid(child, 0)
        return Outcome("refused", struct.unpack("<i", data[1:])[0], "", seconds)
    end = time.monotonic() + ATTEMPT_SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome("allowed", 0, f"still running after {ATTEMPT_SECONDS:.0f} s", seconds)
        time.sleep(0.005)
    if os.WIFSIGNALED(status):
        return Outcome("killed", os.WTERMSIG(status), "", seconds)
    return Outcome("allowed", 0, f"exited with {os.WEXITSTATUS(status)}", seconds)


def write_file(path: str, data: bytes, mode: int = 0o755) -> str:
    """Write an (executable) file and give its path back; no probe, a preparation."""
    os.makedirs(os.path.dirname(path) or "/", exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.write(fd, data)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
    return path


def execute(path: str, *arguments: str) -> Outcome:
    """execve(2) of *path*; the detail tells the exit status."""
    return _exec(lambda: os.execve(path, [path, *arguments], {}))


def run(*command: str) -> Outcome:
    """Run a program with arguments: allowed only if it starts *and* exits with status 0.

    For interpreters and loaders that are given a file: they start, and whether they accept
    the file shows in their status.
    """
    outcome = _exec(lambda: os.execve(command[0], list(command), {"PATH": "/usr/bin"}))
    if outcome.kind == "allowed" and outcome.detail != "exited with 0":
        return Outcome("refused", 0, outcome.detail, outcome.seconds)
    return outcome


def execute_fd(path: str) -> Outcome:
    """execveat(2) of a descriptor of *path* (AT_EMPTY_PATH)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return _exec(lambda: raw.execveat(fd, "", raw.AT_EMPTY_PATH))
    finally:
        os.close(fd)


def _memfd(data: bytes, flags: int = 0) -> int:
    fd = os.memfd_create("probe", flags)
    os.write(fd, data)
    return fd


def execute_memfd(data: bytes) -> Outcome:
    """execveat(2) of a memfd with the program *data*."""
    fd = _memfd(data, os.MFD_CLOEXEC)
    try:
        return _exec(lambda: raw.execveat(fd, "", raw.AT_EMPTY_PATH))
    finally:
        os.close(fd)


def check_executable(path: str) -> Outcome:
    """execveat(2) with AT_EXECVE_CHECK: would it be executed?  6.14; EINVAL before."""

    def body(act: Act) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        act(raw.execveat, fd, "", raw.AT_EMPTY_PATH | raw.AT_EXECVE_CHECK)

    return attempt(body)


def map_file(path: str, prot: int = _RX, shared: bool = False, mode: int = os.O_RDONLY) -> Outcome:
    """mmap(2) of one page of *path*."""

    def body(act: Act) -> None:
        fd = os.open(path, mode | os.O_CLOEXEC)
        act(raw.mmap, raw.PAGE, prot, raw.MAP_SHARED if shared else raw.MAP_PRIVATE, fd)

    return attempt(body)


def map_anonymous(prot: int = _RX, shared: bool = False) -> Outcome:
    """mmap(2) of anonymous memory."""
    flags = (raw.MAP_SHARED if shared else raw.MAP_PRIVATE) | raw.MAP_ANONYMOUS
    return attempt(lambda act: act(raw.mmap, raw.PAGE, prot, flags))


def map_memfd(prot: int = _RX) -> Outcome:
    """mmap(2) of a memfd."""

    def body(act: Act) -> None:
        fd = _memfd(b"\xc3" * raw.PAGE, os.MFD_CLOEXEC)
        act(raw.mmap, raw.PAGE, prot, raw.MAP_SHARED, fd)

    return attempt(body)


def map_repeatedly(count: int, prot: int = _RX, expected: int = 0) -> Outcome:
    """*count* anonymous mappings in a loop; allowed if each fails with the errno *expected*
    (or succeeds, for 0).  The loop is the act: it is for what a kernel does over time."""
    flags = raw.MAP_PRIVATE | raw.MAP_ANONYMOUS

    def loop() -> int:
        for number in range(count):
            code = 0
            try:
                address = raw.mmap(raw.PAGE, prot, flags)
            except OSError as error:
                code = error.errno or 0
            else:
                raw.call("munmap", address, raw.PAGE)
            if code != expected:
                raise OSError(code, f"attempt {number}")
        return count

    return attempt(lambda act: act(loop))


def protect_file(path: str, prot: int = _RX, first: int = raw.PROT_READ) -> Outcome:
    """Map one page of *path* with *first*, then mprotect(2) it to *prot*."""

    def body(act: Act) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        address = raw.mmap(raw.PAGE, first, raw.MAP_PRIVATE, fd)
        act(raw.mprotect, address, raw.PAGE, prot)

    return attempt(body)


def protect_file_by_key(path: str, prot: int = _RX) -> Outcome:
    """Map one page of *path* readable, then pkey_mprotect(2) it to *prot*, without a key."""

    def body(act: Act) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        address = raw.mmap(raw.PAGE, raw.PROT_READ, raw.MAP_PRIVATE, fd)
        act(raw.call, "pkey_mprotect", address, raw.PAGE, prot, -1)

    return attempt(body)


def protect_modified(path: str, prot: int = _RX) -> Outcome:
    """mprotect(2) of a private mapping of *path* that was written to (copy-on-write)."""

    def body(act: Act) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        address = raw.mmap(raw.PAGE, _RW, raw.MAP_PRIVATE, fd)
        raw.write_memory(address, b"\xc3")
        act(raw.mprotect, address, raw.PAGE, prot)

    return attempt(body)


def protect_anonymous(prot: int = _RX) -> Outcome:
    """mprotect(2) of anonymous memory that was written to."""

    def body(act: Act) -> None:
        address = raw.mmap(raw.PAGE, _RW, raw.MAP_PRIVATE | raw.MAP_ANONYMOUS)
        raw.write_memory(address, b"\xc3")
        act(raw.mprotect, address, raw.PAGE, prot)

    return attempt(body)


def _area(name: str) -> tuple[int, int, str]:
    """Start, end and permissions of the mapping *name* (``[heap]``, ``[stack]``)."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split()
            if len(fields) > 5 and fields[5] == name:
                start, end = (int(part, 16) for part in fields[0].split("-"))
                return start, end, fields[1]
    raise LookupError(f"no mapping {name}")


def protect_stack(prot: int = _RWX) -> Outcome:
    """mprotect(2) of the stack."""

    def body(act: Act) -> None:
        _start, end, _permissions = _area("[stack]")
        act(raw.mprotect, end - raw.PAGE, raw.PAGE, prot)

    return attempt(body)


def executable_heap() -> Outcome:
    """personality(READ_IMPLIES_EXEC), then brk(2): a heap that is writable and executable.

    The act is brk; ENOMEM stands for its refusal, as the call returns the old break.  It is
    allowed only if the new area really is executable.
    """

    def body(act: Act) -> str:
        current = raw.call("brk", 0)
        raw.call("personality", 0x0400000)

        def grow() -> int:
            # A break that is not page-aligned would extend the old, non-executable area.
            wanted = ((current + raw.PAGE - 1) & ~(raw.PAGE - 1)) + 4 * raw.PAGE
            if raw.call("brk", wanted) != wanted:
                raise OSError(12, "brk")
            return wanted

        end = act(grow)
        with open("/proc/self/maps") as maps:
            for line in maps:
                start, stop = (int(part, 16) for part in line.split()[0].split("-"))
                if start < end <= stop:
                    permissions = line.split()[1]
                    if "x" not in permissions:
                        raise RuntimeError(f"the new heap is {permissions}")
                    return f"heap {permissions}"
        raise RuntimeError("the new heap is in no mapping")

    return attempt(body)


def imply_exec(persona: int = 0x0400000) -> Outcome:
    """personality(READ_IMPLIES_EXEC), or another, in a child."""
    return attempt(lambda act: act(raw.call, "personality", persona))


def map_readable_as_executable() -> Outcome:
    """personality(READ_IMPLIES_EXEC), then a readable and writable anonymous mapping."""

    def body(act: Act) -> None:
        raw.call("personality", 0x0400000)
        act(raw.mmap, raw.PAGE, _RW, raw.MAP_PRIVATE | raw.MAP_ANONYMOUS)

    return attempt(body)


def shm_executable() -> Outcome:
    """shmat(2) with SHM_EXEC."""

    def body(act: Act) -> None:
        identity = raw.call("shmget", 0, raw.PAGE, 0o1700)  # IPC_PRIVATE, IPC_CREAT
        try:
            act(raw.call, "shmat", identity, 0, 0o100000)
        finally:
            raw.call("shmctl", identity, 0, 0)  # IPC_RMID

    return attempt(body)


def dlopen(path: str) -> Outcome:
    """dlopen(3) of a shared object.

    dlerror(3) has no errno for a mapping that failed: a refusal has errno 0 and the text
    ``failed to map segment from shared object`` (see ``NOT_MAPPED``).
    """

    def load() -> int:
        ctypes.CDLL(path)
        return 0

    return attempt(lambda act: act(load))


class Prober:
    """A process that repeats an attempt until it is stopped, and counts the outcomes.

    For moments that must not exist: while something is exchanged, no outcome but the expected
    one may come up.  *once* must be cheap: it returns 0 or an errno.  The first attempt is over
    when this returns; ``more`` waits for others, however slow the machine is.
    """

    def __init__(self, once: Callable[[], int]) -> None:
        reader, self._writer = os.pipe()
        self._reader, writer = os.pipe()
        self._made = mmap.mmap(-1, 8)  # shared with the child: how many attempts are over
        self._child = os.fork()
        if self._child == 0:
            try:
                os.close(self._writer)
                os.close(self._reader)
                counts: dict[int, int] = {}
                made = 0
                poll = select.poll()
                poll.register(reader, select.POLLIN | select.POLLHUP)
                while not poll.poll(0):
                    code = once()
                    counts[code] = counts.get(code, 0) + 1
                    made += 1
                    struct.pack_into("=Q", self._made, 0, made)
                text = " ".join(f"{code}:{count}" for code, count in counts.items())
                os.write(writer, text.encode())
            finally:
                os._exit(0)
        os.close(reader)
        os.close(writer)
        self.more(1)

    def _count(self) -> int:
        return int(struct.unpack_from("=Q", self._made)[0])

    def more(self, count: int) -> None:
        """Wait until *count* attempts more have been made, which began after this was called.

        Raises:
            TimeoutError: they were not; the process may have ended.
        """
        wanted = self._count() + count + (self._count() > 0)  # one may be under way
        wait(lambda: self._count() >= wanted, f"{count} attempts more")

    def stop(self) -> dict[int, int]:
        """End it; gives how often each errno came (0: allowed)."""
        os.close(self._writer)
        data = b""
        while piece := os.read(self._reader, 4096):
            data += piece
        os.close(self._reader)
        os.waitpid(self._child, 0)
        pairs: Sequence[str] = data.decode().split()
        return {int(code): int(count) for code, _, count in (p.partition(":") for p in pairs)}


def anonymous_once() -> int:
    """For :class:`Prober`: one anonymous executable mapping."""
    try:
        address = raw.mmap(raw.PAGE, _RX, raw.MAP_PRIVATE | raw.MAP_ANONYMOUS)
    except OSError as error:
        return error.errno or -1
    raw.call("munmap", address, raw.PAGE)
    return 0


def execute_once(path: str = "/tmp/program") -> int:
    """For :class:`Prober`: one execution of a program, in a child: 0, an errno, or 1000 + signal.

    By vfork: a fork of Python costs the emulated processor ten times as much.
    """
    try:
        pid = os.posix_spawn(path, [path], {})
    except OSError as error:
        return error.errno or 255
    status = os.waitpid(pid, 0)[1]
    # Refused by exec, or let pass by it and killed at its first mapping: then some generation
    # judged between the two; an exit by itself is execution.
    if os.WIFSIGNALED(status):
        return 1000 + os.WTERMSIG(status)
    code = os.WEXITSTATUS(status)
    return 0 if code == EXIT_STATUS else code
