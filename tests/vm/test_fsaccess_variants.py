# SPDX-License-Identifier: BSD-2-Clause
"""The execution policy with other settings, alternatives, generations, and its end.

Here each case enables a policy of its own and is its owner: it ends with the case's process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct

from tests.vm import probes, probes_bpf, probes_process, programs
from tests.vm.attempts import CONTENT, EXITS
from tests.vm.outcome import ALLOWED, Expected, Outcome, refused, trial
from tests.vm.policy import (
    Attempt,
    Denial,
    adopt,
    build_plan,
    check,
    enable,
    load_plan,
    plans_drive,
    policy_of,
    read_events,
)
from tests.vm.scenario import Drive, Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DM = struct.Struct("<3I2I I i I I I Q 128s 129s 7x")  # struct dm_ioctl
_TABLE_LOAD, _DEV_SUSPEND, _TARGET_MSG = 9, 6, 14


def _with_alternative() -> bytes:
    """First a plan whose judge of exec reads a register that was never written; then the real."""
    from pybpf.compiler import compile_alternatives
    from pybpf.plan.frozen import to_bytes
    from pybpf.record import replace
    from restrict import bundle

    spec = bundle.spec()
    functions = list(spec.functions)
    number = spec.programs["fsaccess_exec"].function
    entry = functions[number]
    # The last instruction is exit; before it, r0 = r8 is put over what was there.
    broken = bytearray(entry.insns)
    broken[-16:-8] = bytes.fromhex("bf80000000000000")
    functions[number] = replace(entry, insns=bytes(broken))
    return to_bytes(
        compile_alternatives(
            [("refused", replace(spec, functions=tuple(functions))), ("accepted", spec)],
            label="exec",
            relocate="kernel",
        )
    )


def _ioctl_by_int80() -> bytes:
    """A program that loads a device-mapper table by a 32-bit system call.

    It exits with the errno.  ioctl(2) gets to the table's check, where it fails with EFAULT:
    the kernel writes its version into the request, which lies in read-only memory here.
    """
    path = b"/dev/mapper/control\0"
    code = (
        b"\x48\x8d\x1d\x2e\x00\x00\x00"  # lea rbx, path
        b"\xb8\x05\x00\x00\x00"  # mov eax, open
        b"\xb9\x02\x00\x00\x00"  # mov ecx, O_RDWR
        b"\x31\xd2\xcd\x80"  # xor edx, edx; int 0x80
        b"\x89\xc3"  # mov ebx, eax
        b"\x48\x8d\x15\x2b\x00\x00\x00"  # lea rdx, request
        + b"\xb9" + struct.pack("<I", 3 << 30 | _DM.size << 16 | 0xFD << 8 | _TABLE_LOAD)
        + b"\xb8\x36\x00\x00\x00\xcd\x80"  # mov eax, ioctl; int 0x80
        b"\xf7\xd8\x89\xc3"  # neg eax; mov ebx, eax
        b"\xb8\x01\x00\x00\x00\xcd\x80"  # mov eax, exit; int 0x80
    )  # fmt: skip
    return programs.program(code=code + path + _request("absent"))


def _request(name: str) -> bytes:
    return _DM.pack(4, 0, 0, _DM.size, _DM.size, 0, 0, 0, 0, 0, 0, name.encode(), b"")


variants = Scenario(
    "variants",
    drives={
        "good": Drive({**CONTENT, "int80": _ioctl_by_int80()}),
        "squash": Drive(CONTENT, filesystem="squashfs"),
        "plans": plans_drive(
            deny_ptrace=lambda: build_plan(deny_ptrace=True),
            erofs_only=lambda: build_plan(filesystems=("erofs",)),
            gate=lambda: build_plan(gate_device_mapper=True),
            alternative=_with_alternative,
        ),
    },
)


@variants.setup
def prepare(guest: Guest) -> None:
    """Files and devices; no policy."""
    probes.write_file("/tmp/program", programs.program())
    guest.mount(guest.verity("good"), "/run/good")
    guest.mount(guest.verity("squash"), "/run/squash", "squashfs")


@contextlib.contextmanager
def enabled(guest: Guest, plan: str = "") -> Iterator[None]:
    """The policy, owned by this process, until the end of the block."""
    enable(guest, plan)
    try:
        yield
    finally:
        policy_of(guest).close()


TMPFS = Attempt(
    "", "", probes.execute, "/tmp/program", control=EXITS,
    denied=Denial("exec", "filesystem", file="/tmp/program", filesystem="tmpfs"),
)  # fmt: skip
SIGNED = Attempt("", "", probes.execute, "/run/good/program", control=EXITS)


@variants.case()
def end_of_the_owner(guest: Guest) -> None:
    """It is in force as long as the owner holds it, and not a moment longer."""
    guest.expect(probes.execute("/tmp/program"), EXITS)
    with enabled(guest):
        check(guest, TMPFS)
        check(guest, SIGNED)
    guest.expect(probes.execute("/tmp/program"), EXITS)
    guest.expect(probes.map_anonymous(), ALLOWED)


@variants.case()
def owner_killed(guest: Guest) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enable(guest)
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(reader, 1) == b"x"
    guest.expect(probes.execute("/tmp/program"), refused())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    guest.wait(lambda: probes.execute("/tmp/program").kind == "allowed", "the end of enforcement")


@variants.case()
def nobody_is_traced(guest: Guest) -> None:
    """deny_ptrace: no attach to any process, so nobody's text is written."""
    with enabled(guest, "deny_ptrace"):
        for probe in (probes_process.ptrace_stranger, probes_process.traceme):
            check(guest, Attempt("", "", probe, denied=Denial("ptrace", "ptrace")))
        check(guest, TMPFS)
        # Its preparation, to be traced, is what is refused.
        outcome = probes_process.poke()
        assert outcome.kind == "impossible", outcome


@variants.case()
def no_filter_comes_with_the_policy(guest: Guest) -> None:
    """An owner that is not PID 1 has none, and says so; its own would cover its children only."""
    from restrict import seccomp, status

    with enabled(guest):
        guest.expect(probes_process.poke(), ALLOWED)
        found = status.read()
        assert found is not None
        assert found.poke_refused is False
        assert "PID 1 has no seccomp filter" in found.poke
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                seccomp.install()
                os.write(writer, str(seccomp.report()).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        text = os.read(reader, 1000).decode()
        guest.note(text)
        assert "(False, " in text
        assert "not to all others: PID 1 has no seccomp filter" in text
        guest.expect(probes_process.poke(), ALLOWED)


@variants.case()
def other_filesystems(guest: Guest) -> None:
    """A filesystem type that is not in the list is not trusted on a signed device either."""
    path = "/run/squash/program"
    with enabled(guest):
        check(guest, Attempt("", "", probes.execute, path, control=EXITS))
    with enabled(guest, "erofs_only"):
        denied = Denial("exec", "filesystem", file=path, filesystem="squashfs")
        check(guest, Attempt("", "", probes.execute, path, control=EXITS, denied=denied))
        check(guest, SIGNED)


@variants.case()
def refused_by_the_verifier(guest: Guest) -> None:
    """The plan's next alternative is taken, nothing is left of the first, and it enforces."""
    from pybpf.plan.run import run

    plan = load_plan(guest, "alternative")
    before = {kind: probes_bpf.ids(kind) for kind in ("map", "program", "link")}
    with run(plan) as loaded:
        assert loaded.choices == {"exec": "accepted"}
        new = {kind: len({*probes_bpf.ids(kind)} - {*before[kind]}) for kind in before}
        assert new == {"map": 6, "program": len(loaded.programs), "link": 0}, new
    with enabled(guest, "alternative"):
        check(guest, TMPFS)
        check(guest, SIGNED)


@variants.case()
def plan_without_its_hooks(guest: Guest) -> None:
    """enable() does not take it for the policy, and leaves nothing behind."""
    from restrict import fsaccess
    from restrict.errors import RestrictError

    before = {kind: probes_bpf.ids(kind) for kind in ("map", "program", "link")}
    message = "it was enabled"
    try:
        fsaccess.enable(load_plan(guest, "toothless"))
    except RestrictError as error:
        message = str(error)
    assert "not the whole policy" in message, message

    def undone() -> bool:
        return all(set(probes_bpf.ids(kind)) <= set(before[kind]) for kind in before)

    # Objects go after a grace period; those of the case before may have gone meanwhile.
    guest.wait(undone, "everything undone")


@variants.case()
def next_generation(guest: Guest) -> None:
    """The owner enables a second policy under the first and lets the first go: no gap."""
    from restrict import fsaccess, lockout

    plan = load_plan(guest)
    enable(guest)
    prober = probes.Prober(probes.anonymous_once)
    first = policy_of(guest)
    second = fsaccess.enable(plan, before_arm=lockout.before_arm(plan, resumed=True))
    try:
        first.close()
        adopt(guest, second)
        prober.more(1)
        counts = prober.stop()
        guest.note(f"anonymous mappings tried meanwhile, by errno: {counts}")
        assert set(counts) == {errno.EPERM}, counts
        check(guest, TMPFS)
        check(guest, SIGNED)
    finally:
        second.close()
    guest.expect(probes.execute("/tmp/program"), EXITS)


def device_mapper(number: int) -> Outcome:
    """A device-mapper call on a device that does not exist."""

    def body(act: Callable[..., int]) -> None:
        fd = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
        request = 3 << 30 | _DM.size << 16 | 0xFD << 8 | number
        act(fcntl.ioctl, fd, request, bytearray(_request("absent")))

    return probes.attempt(body)


@variants.case()
def device_mapper_gate(guest: Guest) -> None:
    """With the gate, nobody but the owner changes a table, whatever the way in."""
    denial = Denial("device_mapper", "not_owner")
    with enabled(guest, "gate"):
        for number in (_TABLE_LOAD, _DEV_SUSPEND, _TARGET_MSG):
            control = refused(errno.ENXIO)
            check(guest, Attempt("", "", device_mapper, number, control=control, denied=denial))
        check(
            guest,
            Attempt("", "", probes.execute, "/run/good/int80",
                    control=Expected("allowed", 0, "exited with 14"),
                    outcome=Expected("allowed", 0, "exited with 1"), denied=denial),
        )  # fmt: skip
        # Asking is free, and so is everything for the owner.
        assert device_mapper(12).code == errno.ENXIO  # DM_TABLE_STATUS
        read_events(guest)
        guest.expect(trial(lambda: guest.verity("good", device="second")), ALLOWED)
        guest.remove("second")
        assert not read_events(guest)
