# SPDX-License-Identifier: BSD-2-Clause
"""The seccomp filter, run by an interpreter of classic BPF over every call that matters."""

from __future__ import annotations

import errno
import re
import struct

import pytest

from restrict import preflight, seccomp

X86_64, I386, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028
X32 = 0x40000000
ALLOW, EPERM = 0x7FFF0000, 0x00050000 | errno.EPERM
#: (machine, architecture, number): every way into ptrace(2).
ENTRIES = [
    ("x86_64", X86_64, 101),
    ("x86_64", X86_64, X32 | 101),
    ("x86_64", X86_64, 521),
    ("x86_64", X86_64, X32 | 521),
    ("x86_64", I386, 26),
    ("aarch64", AARCH64, 117),
    ("aarch64", ARM, 26),
]
#: What the bits above the request's 32 may be.
UPPER = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def run(program: bytes, nr: int, arch: int, *args: int, constant: bool = False) -> int:
    """What the filter answers, by the rules of linux/filter.h and seccomp(2).

    constant: only instructions that the kernel evaluates beforehand, to remember that a call is
    always allowed (seccomp_is_const_allow in kernel/seccomp.c); -1 where it gives up.
    """
    words = [*args, *[0] * (6 - len(args))]
    data = struct.pack("<IIQ6Q", nr & 0xFFFFFFFF, arch, 0x401000, *words)
    code = list(struct.iter_unpack("<HBBI", program))
    a = at = 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            assert k % 4 == 0
            assert k <= len(data) - 4
            if constant and k not in (0, 4):
                return -1
            (a,) = struct.unpack_from("<I", data, k)
        elif op == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            a &= k
        elif op == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            at += yes if a == k else no
        elif op == 0x06:  # BPF_RET | BPF_K
            return int(k)
        else:
            raise AssertionError(f"instruction {at - 1} has the code {op:#x}")


@pytest.mark.parametrize(("machine", "arch", "nr"), ENTRIES)
@pytest.mark.parametrize("upper", UPPER)
def test_pokes_are_refused_and_nothing_else(machine: str, arch: int, nr: int, upper: int) -> None:
    program = seccomp.program(machine)
    # Every request of linux/ptrace.h and asm/ptrace.h is below 0x100 or in 0x4200-0x42ff.
    requests = [*range(0x100), *range(0x4200, 0x4300), 0x7FFFFFFF, 0x80000004, 0xFFFFFFFF]
    for request in requests:
        expected = EPERM if request in (4, 5) else ALLOW
        assert run(program, nr, arch, upper << 32 | request, 7, 8, 9) == expected, hex(request)


@pytest.mark.parametrize(("machine", "arch", "nr"), ENTRIES)
def test_only_the_request_decides(machine: str, arch: int, nr: int) -> None:
    """Not the pid, the address or the data."""
    program = seccomp.program(machine)
    for other in (0, 1, 4, 5, 2**64 - 1):
        assert run(program, nr, arch, 4, other, other, other) == EPERM
        assert run(program, nr, arch, 1, other, other, other) == ALLOW


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_other_call_is_allowed_and_remembered(machine: str) -> None:
    program = seccomp.program(machine)
    found = set()
    for arch in {a for m, a, _ in ENTRIES if m == machine}:
        for bit in (0, X32):
            for nr in range(2048):
                answers = {run(program, bit | nr, arch, request) for request in (0, 4, 5, 101)}
                if answers != {ALLOW}:
                    found.add((machine, arch, bit | nr))
                    assert run(program, bit | nr, arch, constant=True) == -1
                else:
                    assert run(program, bit | nr, arch, constant=True) == ALLOW
        # A tracer, or another filter, skips a call by making its number -1.
        assert run(program, -1, arch, 4) == ALLOW
    expected = {entry for entry in ENTRIES if entry[0] == machine}
    assert found == expected


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_unknown_architectures_are_refused_whole(machine: str) -> None:
    program = seccomp.program(machine)
    own = {arch for m, arch, _ in ENTRIES if m == machine}
    others = {0, 3, 40, 62, 183, 0xFFFFFFFF, 0xC00000F3, 0xC0000015, 0x80000016, X86_64 ^ 1}
    others |= {arch for _, arch, _ in ENTRIES} - own
    for arch in others - own:
        for nr in (0, 1, 26, 39, 101, 117, 521):
            assert run(program, nr, arch, 0) == EPERM


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_kernel_takes_its_form(machine: str) -> None:
    """As bpf_check_classic() in net/core/filter.c: jumps go forward and stay inside."""
    for implied_exec, most in ((False, 20), (True, 26)):
        program = seccomp.program(machine, implied_exec=implied_exec)
        code = list(struct.iter_unpack("<HBBI", program))
        assert 0 < len(code) <= 4096
        assert code[-1][0] == 0x06
        for i, (op, yes, no, _) in enumerate(code):
            if op == 0x15:
                assert i + 1 + max(yes, no) < len(code)
        # What it costs a usual call: only this many are run, and from 5.11 on not even those.
        assert len(code) < most


PERSONALITY = [
    ("x86_64", X86_64, 135), ("x86_64", X86_64, X32 | 135), ("x86_64", I386, 136),
    ("aarch64", AARCH64, 92), ("aarch64", ARM, 136),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "arch", "nr"), PERSONALITY)
@pytest.mark.parametrize("upper", UPPER)
def test_implied_exec_is_refused_if_asked_for(machine: str, arch: int, nr: int, upper: int) -> None:
    implied = 0x0400000
    usual, more = seccomp.program(machine), seccomp.program(machine, implied_exec=True)
    for persona in (0, 8, 0x0040000, 0x0020000, implied, implied | 8, 0xFFFFFFFE, 0xFFFFFFFF):
        # All bits set asks for the present one and changes nothing.
        refused = bool(persona & implied) and persona != 0xFFFFFFFF
        given = upper << 32 | persona
        assert run(more, nr, arch, given) == (EPERM if refused else ALLOW), hex(persona)
        assert run(usual, nr, arch, given) == ALLOW


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_that_filter_does_what_the_other_does(machine: str) -> None:
    usual, more = seccomp.program(machine), seccomp.program(machine, implied_exec=True)
    changed = set()
    for arch in {a for m, a, _ in ENTRIES if m == machine} | {0}:
        for bit in (0, X32):
            for nr in range(1024):
                for first in (0, 1, 4, 5, 0x0400000):
                    if run(usual, bit | nr, arch, first) != run(more, bit | nr, arch, first):
                        changed.add((machine, arch, bit | nr))
    assert changed == {entry for entry in PERSONALITY if entry[0] == machine}


def test_a_process_without_filters_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "filters_of", lambda pid: (0, 0))
    monkeypatch.setattr("os.fork", lambda: pytest.fail("it forked"))
    assert seccomp.poke_refused() is False


@pytest.mark.parametrize(
    ("mine", "init", "ok", "message"),
    [
        (False, (0, 0), False, "allowed to this process, .*PID 1 has no seccomp filter"),
        (False, (2, 3), False, "PID 1 has 3 seccomp filters, but this process was not started"),
        (False, None, False, "cannot be read"),
        (True, (2, 1), True, "refused to this process; PID 1 has 1 seccomp filters"),
        (True, (2, None), True, "PID 1 has a seccomp filter"),
        (True, (0, 0), False, "not to all others: PID 1 has no seccomp filter"),
        (True, None, None, "cannot be read"),
        (None, (2, 1), None, "cannot be told"),
    ],
)
def test_report_says_no_more_than_is_known(
    monkeypatch: pytest.MonkeyPatch,
    mine: bool | None,
    init: tuple[int, int | None] | None,
    ok: bool | None,
    message: str,
) -> None:
    monkeypatch.setattr(seccomp, "poke_refused", lambda: mine)
    monkeypatch.setattr(seccomp, "filters_of", lambda pid: init)
    finding = preflight._ptrace_poke()
    assert finding.ok is ok
    assert not finding.blocks
    assert re.search(message, finding.message), finding.message
