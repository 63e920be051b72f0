# SPDX-License-Identifier: BSD-2-Clause
"""A seccomp filter that refuses PTRACE_POKETEXT and PTRACE_POKEDATA, for PID 1 and all it starts.

A tracer writes its tracee's memory with these two requests whatever the page's protection is
(FOLL_FORCE, kernel/ptrace.c), so untrusted code gets into a trusted program's text. No LSM hook
sees it, and proc_mem.force_override is about /proc/PID/mem alone. The filter answers EPERM; the
kernel's audit (its log, where no auditd runs) gets a record of type 1326. There is no event in
the policy's ring buffer. PTRACE_PEEKTEXT, attaching, registers and stepping work as before.

Left alone, because they bring in no code: PTRACE_POKEUSR, SETREGS and SETREGSET change
registers; process_vm_writev(2) respects the protection of pages (text is refused with EFAULT)
and is judged by the policy as an attachment.

It may also refuse personality(2) with READ_IMPLIES_EXEC, under which brk(2) makes an executable
heap: no program can be attached without a link that would refuse that (keep = ownerless).

A filter is inherited by every descendant, survives exec and cannot be removed. It covers the
process that installs it and what that one starts later, nothing else: not processes that exist
already, and not user-mode helpers, which the kernel starts (core_pattern, request-key, modprobe).

no_new_privs is not set, as set-user-ID programs must go on working; CAP_SYS_ADMIN is needed
instead. Linux 4.17 (SECCOMP_FILTER_FLAG_SPEC_ALLOW), CONFIG_SECCOMP_FILTER.
Sources: seccomp(2), include/uapi/linux/{seccomp,filter,audit,ptrace}.h, the tables of system
calls arch/x86/entry/syscalls/*.tbl, arch/arm/tools/syscall.tbl, scripts/syscall.tbl.
"""

from __future__ import annotations

import errno
import os
import struct

from pybpf.sys.syscalls import machine, number, pointer, raw, syscall
from restrict.errors import KernelError, RestrictError

__all__ = ["filters_of", "install", "poke_refused", "program", "report"]

PTRACE_POKETEXT, PTRACE_POKEDATA = 4, 5
READ_IMPLIES_EXEC = 0x0400000  # include/uapi/linux/personality.h
_ASK = 0xFFFFFFFF  # personality(2): changes nothing

AUDIT_ARCH_X86_64, AUDIT_ARCH_I386 = 0xC000003E, 0x40000003
AUDIT_ARCH_AARCH64, AUDIT_ARCH_ARM = 0xC00000B7, 0x40000028
_EVERY_BIT = 0xFFFFFFFF
_NOT_X32 = _EVERY_BIT & ~0x40000000  # __X32_SYSCALL_BIT, which x32 calls carry in their number

# machine → its architectures, the usual one first: (AUDIT_ARCH, mask of nr, numbers of ptrace,
# number of personality).
# x32 reports itself as x86-64 and has an entry of its own for ptrace, 521; on kernels where it
# shares the 64-bit table, 101 with its bit is ptrace too, and 521 without it.
_ARCHITECTURES: dict[str, tuple[tuple[int, int, tuple[int, ...], int], ...]] = {
    "x86_64": (
        (AUDIT_ARCH_X86_64, _NOT_X32, (101, 521), 135),
        (AUDIT_ARCH_I386, _EVERY_BIT, (26,), 136),
    ),
    "aarch64": (
        (AUDIT_ARCH_AARCH64, _EVERY_BIT, (117,), 92),
        (AUDIT_ARCH_ARM, _EVERY_BIT, (26,), 136),
    ),
}

# Offsets in struct seccomp_data. Both machines are little-endian here (pybpf.sys.syscalls.machine
# knows no other), so the low half of a 64-bit argument comes first.
_NR, _ARCH, _FIRST = 0, 4, 16

_LD, _AND, _JEQ, _RET = 0x20, 0x54, 0x15, 0x06  # LD|W|ABS, ALU|AND|K, JMP|JEQ|K, RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SECCOMP_RET_…

_SET_MODE_FILTER = 1
# All threads; and no speculation mitigations, which this is no sandbox to want: a kernel booted
# with spec_store_bypass_disable=seccomp would else slow down every process of the system.
_TSYNC, _LOG, _SPEC_ALLOW = 1, 2, 4
_MODE_FILTER = 2


def program(arch: str, *, implied_exec: bool = False) -> bytes:
    """The filter for a machine ("x86_64", "aarch64"): an array of struct sock_filter.

    implied_exec: refuse READ_IMPLIES_EXEC, too.

    The request is told by the low 32 bits of the argument alone. The entries for x32, i386 and
    arm cut it to those (compat_ptrace), and a 64-bit request with other bits set is none that
    any kernel knows, so nothing is lost by refusing it.

    A call of an architecture that is not one of the machine's gets EPERM whatever it is: its
    number for ptrace is not known, and letting all of it pass would leave a way round. These
    machines' kernels have no such calls. (Killing would be worse than refusing: this is PID 1.)

    Other calls are decided by arch and nr, by instructions that the kernel can
    evaluate beforehand, so that it remembers them and runs no filter (5.11, "seccomp cache").
    """
    entries = _ARCHITECTURES[arch]
    # (code, k, label if equal, label if not); "" is the next instruction.
    code: list[tuple[int, int, str, str]] = [(_LD, _ARCH, "", "")]
    labels: dict[str, int] = {}
    for known, *_ in entries:
        code.append((_JEQ, known, hex(known), ""))
    code.append((_RET, _ERRNO | errno.EPERM, "", ""))
    for known, mask, numbers, personality in entries:
        labels[hex(known)] = len(code)
        code.append((_LD, _NR, "", ""))
        if mask != _EVERY_BIT:
            code.append((_AND, mask, "", ""))
        for nr in numbers:
            code.append((_JEQ, nr, "ptrace", ""))
        if implied_exec:
            code.append((_JEQ, personality, "personality", ""))
        code.append((_RET, _ALLOW, "", ""))
    if implied_exec:
        labels["personality"] = len(code)
        code.append((_LD, _FIRST, "", ""))  # an unsigned int: the kernel, too, cuts it to 32 bits
        code.append((_JEQ, _ASK, "allow", ""))
        code.append((_AND, READ_IMPLIES_EXEC, "", ""))
        code.append((_JEQ, READ_IMPLIES_EXEC, "deny", "allow"))
    labels["ptrace"] = len(code)
    code.append((_LD, _FIRST, "", ""))
    for request in (PTRACE_POKETEXT, PTRACE_POKEDATA):
        code.append((_JEQ, request, "deny", ""))
    labels["allow"] = len(code)
    code.append((_RET, _ALLOW, "", ""))
    labels["deny"] = len(code)
    code.append((_RET, _ERRNO | errno.EPERM, "", ""))

    data = b""
    for i, (op, k, yes, no) in enumerate(code):
        offsets = [labels[label] - i - 1 if label else 0 for label in (yes, no)]
        data += struct.pack("=HBBI", op, *offsets, k)
    return data


def install(*, implied_exec: bool = False) -> bool:
    """Put this process, all its threads and all it will start under the filter.

    implied_exec: refuse READ_IMPLIES_EXEC, too. Returns False, and changes nothing, if all of it is
    refused here already: a successor of an init that did this, in the same process, must not stack
    a second one. Raises KernelError (EACCES without CAP_SYS_ADMIN), and RestrictError if the
    requests are not refused afterwards. It cannot be undone.
    """

    def refused() -> bool:
        return bool(poke_refused() and (not implied_exec or _implied_exec_refused()))

    if refused():
        return False
    filters = program(machine(), implied_exec=implied_exec)
    keep = pointer(filters)
    prog = bytearray(struct.pack("@HP", len(filters) // 8, keep.address))  # struct sock_fprog
    try:
        other = syscall("seccomp", _SET_MODE_FILTER, _TSYNC | _LOG | _SPEC_ALLOW, prog)
    except KernelError as e:
        if e.errno in (errno.EINVAL, errno.ENOSYS):
            e.hint = "Use a kernel with CONFIG_SECCOMP_FILTER, or configure ptrace_poke = allow."
        raise
    if other:
        raise RestrictError(
            f"thread {other} of this process has seccomp filters of its own, so the one for "
            "PTRACE_POKETEXT cannot be given to all threads; none has it now.",
        )
    if not refused():
        raise RestrictError("the seccomp filter is installed, but does not refuse what it should.")
    return True


def poke_refused() -> bool | None:
    """Whether a filter refuses PTRACE_POKETEXT to this process; None if that cannot be told.

    Asks for a poke into process 0, which there is none of: ESRCH if the request got as far as
    ptrace(2). A child asks, since there are filters that kill.
    """
    mode = filters_of("self")
    if mode is not None and mode[0] == 0:
        return False
    code = _errno_of("ptrace", PTRACE_POKETEXT, 0, 0, 0)
    return None if code is None else {errno.EPERM: True, errno.ESRCH: False}.get(code)


def _implied_exec_refused() -> bool:
    return _errno_of("personality", READ_IMPLIES_EXEC) == errno.EPERM


def _errno_of(name: str, *arguments: int) -> int | None:
    """What a child gets for a call: an errno, 0 for success; None if it was killed."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            code = max(0, -raw(number(name), *arguments))
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def filters_of(pid: int | str) -> tuple[int, int | None] | None:
    """(mode, number of filters) of a process; the number is None before 5.9.

    None if /proc/PID/status cannot be read. Mode 0 is none, 1 strict, 2 filters. What filters
    refuse is not to be had: PTRACE_SECCOMP_GET_FILTER wants an attached and stopped process.
    """
    fields: dict[str, int] = {}
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                key, _, value = line.partition(b":")
                if key.startswith(b"Seccomp"):
                    fields[key.decode()] = int(value)
    except OSError:
        return None
    if "Seccomp" not in fields:
        return None
    return fields["Seccomp"], fields.get("Seccomp_filters")


def report() -> tuple[bool | None, str]:
    """(whether the requests are refused on this system, what is known of it), for people.

    It is known exactly for this process. Of PID 1 it is only known whether it has filters; that
    they are what refuses it here is a conclusion.
    """
    mine, init = poke_refused(), filters_of(1)
    name = "PTRACE_POKETEXT and PTRACE_POKEDATA are"
    if init is None:
        of_init = "the seccomp filters of PID 1 cannot be read"
    elif init[0] != _MODE_FILTER:
        of_init = "PID 1 has no seccomp filter"
    else:
        of_init = "PID 1 has " + (
            "a seccomp filter" if init[1] is None else f"{init[1]} seccomp filters"
        )
    if mine is None:
        return None, f"whether {name} refused to this process cannot be told; {of_init}."
    if not mine:
        return False, (
            f"{name} allowed to this process, so a tracer can write code into its tracee; {of_init}"
            + (
                ", but this process was not started under one that refuses them."
                if init is not None and init[0] == _MODE_FILTER
                else "."
            )
        )
    if init is None or init[0] != _MODE_FILTER:
        return None if init is None else False, (
            f"{name} refused to this process, but not to all others: {of_init}."
        )
    return True, f"{name} refused to this process; {of_init}."
