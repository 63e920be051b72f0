# SPDX-License-Identifier: BSD-2-Clause
"""The seccomp filter in this kernel, each time in a child, which takes it with it when it ends."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pybpf.errors import KernelError
from restrict import seccomp
from tests.vm import probes, probes_process
from tests.vm.programs import program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64"),
]

_X32 = 0x40000000
EPERM, ESRCH, ENOSYS = 1, 3, 38


def in_child(function: Callable[[], object]) -> str:
    """What the function returns in a child, as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                answer = str(function())
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(writer, answer.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        answer = file.read()
    os.waitpid(child, 0)
    return answer


def _errno_of(nr: int, request: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    arguments = [ctypes.c_ulong(n) for n in (nr, request, 0, 0, 0)]
    return 0 if libc.syscall(*arguments) != -1 else ctypes.get_errno()


def _outcomes() -> tuple[str, ...]:
    return tuple(
        str(outcome).partition(" (")[0]
        for outcome in (
            probes_process.peek(),
            probes_process.ptrace_stranger(),
            probes_process.poke(),
            probes_process.poke(True),
            probes_process.poke(False, "rw-p"),
        )
    )


def test_pokes_end_and_the_rest_goes_on() -> None:
    def body() -> str:
        before = _outcomes()
        seccomp.install()
        return f"{before} {_outcomes()}"

    yes, no = "allowed", "refused with EPERM"
    assert in_child(body) == f"{(yes,) * 5} {(yes, yes, no, no, no)}"


@pytest.mark.parametrize("upper", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_every_entry(upper: int) -> None:
    """x32's calls get to the filter whether the kernel knows x32 or not."""

    def body() -> object:
        numbers = (101, _X32 | 101, 521, _X32 | 521)
        before = [_errno_of(nr, upper | 4) for nr in numbers]
        seccomp.install()
        pokes = [_errno_of(nr, upper | request) for nr in numbers for request in (4, 5)]
        return before, pokes, [_errno_of(nr, 1) for nr in numbers]

    before, pokes, peeks = eval(in_child(body))
    assert before[0] == ESRCH
    assert set(before[1:]) <= {ESRCH, ENOSYS}
    assert pokes == [EPERM] * 8
    # A call that the kernel lacks fails the same way as before.
    assert peeks == before


@pytest.mark.parametrize(("request_", "expected"), [(4, EPERM), (5, EPERM), (1, ESRCH)])
def test_the_32_bit_entry(tmp_path: Path, request_: int, expected: int) -> None:
    path = tmp_path / "int80"
    path.write_bytes(program(code=probes_process.ptrace_by_int80(request_)))
    path.chmod(0o755)

    def body() -> object:
        before = probes.execute(str(path))
        seccomp.install()
        return f"{before.detail}; {probes.execute(str(path)).detail}"

    answer = in_child(body)
    if "killed" in answer or ";" not in answer:
        pytest.skip(f"this kernel has no 32-bit system calls: {answer}")
    assert answer == f"exited with {ESRCH}; exited with {expected}"


def test_a_second_one_is_not_stacked_and_exec_keeps_it() -> None:
    code = (
        "from restrict import seccomp\n"
        "print(seccomp.install(), seccomp.poke_refused(), seccomp.filters_of('self'))"
    )

    def body() -> str:
        before = seccomp.filters_of("self")
        assert before is not None
        first, second = seccomp.install(), seccomp.install()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return f"{before[1]} {first} {second} {done.stdout.strip()}"

    count = (seccomp.filters_of("self") or (0, 0))[1]
    assert count is not None
    assert in_child(body) == f"{count} True False False True (2, {count + 1})"


def test_no_new_privs_is_not_set() -> None:
    def body() -> object:
        seccomp.install()
        return ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)  # PR_GET_NO_NEW_PRIVS

    assert in_child(body) == "0"


def test_threads_get_it_too() -> None:
    def body() -> object:
        found: list[int] = []
        ready, go = threading.Event(), threading.Event()

        def work() -> None:
            ready.set()
            go.wait()
            found.append(_errno_of(101, 4))

        thread = threading.Thread(target=work)
        thread.start()
        ready.wait()
        seccomp.install()
        go.set()
        thread.join()
        return found

    assert in_child(body) == f"[{EPERM}]"


def test_without_privilege_it_is_told() -> None:
    def body() -> str:
        os.setresuid(65534, 65534, 65534)
        before = seccomp.filters_of("self")
        try:
            seccomp.install()
        except KernelError as error:
            return f"{error} {seccomp.filters_of('self') == before}"
        return "it was installed"

    assert in_child(body) == "seccomp failed with EACCES: Permission denied. True"


def test_a_filter_that_kills_is_survived() -> None:
    """Whether another's filter refuses pokes is asked by a child, which may be killed for it."""
    import struct

    kills = struct.pack("=HBBI", 0x20, 0, 0, 0)  # nr
    kills += struct.pack("=HBBI", 0x15, 0, 1, 101)
    kills += struct.pack("=HBBI", 0x06, 0, 0, 0x80000000)  # SECCOMP_RET_KILL_PROCESS
    kills += struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)

    def body() -> object:
        from pybpf.sys.syscalls import pointer, syscall

        keep = pointer(kills)
        syscall("seccomp", 1, 0, bytearray(struct.pack("@HP", 4, keep.address)))
        return seccomp.poke_refused(), seccomp.report()[0]

    assert in_child(body) == "(None, None)"
