# SPDX-License-Identifier: BSD-2-Clause
"""The probes without a policy: what is allowed then, and refusals by the kernel's own means.

A probe that cannot fail proves nothing, and one that cannot succeed neither.  Here each meets
a kernel that lets it through, and noexec mounts, memory-deny-write-execute and Yama, which
refuse for reasons that have nothing to do with BPF.
"""

from __future__ import annotations

import ctypes
import errno
import os

from tests.vm import fuse, probes, probes_bpf, probes_process, programs, raw
from tests.vm.outcome import ALLOWED, Expected, Outcome, killed, refused, trial
from tests.vm.scenario import Content, Drive, Guest, Node, Scenario

RX = raw.PROT_READ | raw.PROT_EXEC
RW = raw.PROT_READ | raw.PROT_WRITE
RWX = RX | raw.PROT_WRITE
EXITS = Expected("allowed", 0, f"exited with {programs.EXIT_STATUS}")
MS_NOEXEC = 8
MS_REMOUNT = 32

CONTENT: dict[str, Content] = {
    "program": programs.program(),
    "library.so": programs.shared_object(),
    "execstack": programs.program(executable_stack=True),
    "zero": Node("c", 1, 5),
}

baseline = Scenario("baseline", drives={"good": Drive(CONTENT), "other": Drive(CONTENT)})


@baseline.setup
def prepare(guest: Guest) -> None:
    """Programs on tmpfs, on the drive and on overlays of it."""
    probes.write_file("/tmp/program", programs.program())
    probes.write_file("/tmp/library.so", programs.shared_object())
    probes.write_file("/tmp/script", programs.script("/bin/sh", "exit 42"))
    probes.write_file("/tmp/good.py", b"raise SystemExit(0)")
    probes.write_file("/tmp/loaded", programs.program(interpreter="/tmp/program"))
    probes.write_file("/tmp/data", b"\xc3" * 8192)
    node = guest.verity("good")
    guest.mount(node, "/run/good")
    guest.overlay("/run/overlay", "/run/good", "/tmp/layers")
    probes.write_file("/run/overlay/new", programs.program())
    # fuseblk claims its device for itself: one that no other filesystem is mounted from.
    guest.state["fuse"] = fuse.serve(
        guest.mount, guest.verity("other"), "/run/fuse", "program", programs.program()
    )


for name, path in (
    ("tmpfs", "/tmp/program"),
    ("drive", "/run/good/program"),
    ("overlay_lower", "/run/overlay/program"),
    ("overlay_new", "/run/overlay/new"),
    ("fuse", "/run/fuse/program"),
    ("script", "/tmp/script"),
    ("interpreter", "/tmp/loaded"),
    ("execstack", "/run/good/execstack"),
):
    baseline.probe(f"exec_{name}", EXITS, probes.execute, path)

baseline.probe("exec_root", Expected("allowed", 0, "exited with 0"), probes.execute, "/bin/true")
baseline.probe("exec_fd", EXITS, probes.execute_fd, "/tmp/program")
baseline.probe("exec_memfd", EXITS, probes.execute_memfd, programs.program())
baseline.probe("exec_absent", refused(errno.ENOENT), probes.execute, "/tmp/absent")
baseline.probe("exec_garbage", refused(errno.ENOEXEC), probes.execute, "/tmp/data")
baseline.probe("exec_node", refused(errno.EACCES), probes.execute, "/run/good/zero")
baseline.probe("check", ALLOWED, probes.check_executable, "/tmp/program", lanes=["7.3"])
baseline.probe(
    "check_old", refused(errno.EINVAL), probes.check_executable, "/tmp/program", lanes=["6.12"]
)
baseline.probe("run_python", ALLOWED, probes.run, "/usr/bin/python3", "-IS", "/tmp/good.py")
baseline.probe(
    "run_status", refused(0), probes.run, "/usr/bin/python3", "-IS", "-c", "raise SystemExit(3)"
)
baseline.probe("map_file", ALLOWED, probes.map_file, "/tmp/data")
baseline.probe("map_node", ALLOWED, probes.map_file, "/run/good/zero")
baseline.probe("map_anonymous", ALLOWED, probes.map_anonymous)
baseline.probe("map_write_exec", ALLOWED, probes.map_anonymous, RWX)
baseline.probe("map_memfd", ALLOWED, probes.map_memfd)
baseline.probe("map_often", ALLOWED, probes.map_repeatedly, 1000)
baseline.probe("map_absent", Expected("impossible"), probes.map_file, "/tmp/absent")
baseline.probe("protect_file", ALLOWED, probes.protect_file, "/tmp/data")
baseline.probe("protect_key", ALLOWED, probes.protect_file_by_key, "/tmp/data")
baseline.probe("protect_modified", ALLOWED, probes.protect_modified, "/tmp/data")
baseline.probe("protect_anonymous", ALLOWED, probes.protect_anonymous)
baseline.probe("protect_stack", ALLOWED, probes.protect_stack)
baseline.probe("heap", Expected("allowed", 0, "heap rwxp"), probes.executable_heap)
baseline.probe("implied", ALLOWED, probes.map_readable_as_executable)
baseline.probe("shm", ALLOWED, probes.shm_executable)
baseline.probe("dlopen", ALLOWED, probes.dlopen, "/tmp/library.so")
baseline.probe("dlopen_drive", ALLOWED, probes.dlopen, "/run/good/library.so")
baseline.probe("attach_init", ALLOWED, probes_process.ptrace_attach, 1)
baseline.probe("seize_init", ALLOWED, probes_process.ptrace_seize, 1)
baseline.probe("attach_stranger", ALLOWED, probes_process.ptrace_stranger)
baseline.probe("traceme", ALLOWED, probes_process.traceme)
baseline.probe("peek", ALLOWED, probes_process.peek)
baseline.probe("poke_text", ALLOWED, probes_process.poke)
baseline.probe("poke_data", ALLOWED, probes_process.poke, True)
baseline.probe("poke_writable", ALLOWED, probes_process.poke, False, "rw-p")
baseline.probe("read_init", ALLOWED, probes_process.read_memory_of, 1)
baseline.probe("write_init", ALLOWED, probes_process.write_memory_of, 1)
baseline.probe("vm_read_init", ALLOWED, probes_process.vm_read, 1)
baseline.probe("vm_write_init", ALLOWED, probes_process.vm_write, 1)
baseline.probe("vm_write_text", refused(errno.EFAULT), probes_process.vm_write_text)
baseline.probe("status_init", ALLOWED, probes_process.read_status, 1)
baseline.probe("own_text", refused(errno.EIO), probes_process.write_own_text)
baseline.probe("get_fd", ALLOWED, probes_process.get_fd, 1, 0)
baseline.probe("signal_init", ALLOWED, probes_process.kill, 1)
baseline.probe("bpf_map", ALLOWED, probes_bpf.create_map)
baseline.probe("bpf_program", ALLOWED, probes_bpf.load_program)
baseline.probe("bpf_list", ALLOWED, probes_bpf.list_objects, "map")
baseline.probe("bpf_absent", refused(errno.ENOENT), probes_bpf.fd_by_id, "map", 1 << 30)
baseline.probe("pin_absent", refused(errno.ENOENT), probes_bpf.object_get, "/sys/fs/bpf/absent")


@baseline.case()
def bpf_by_id(guest: Guest) -> None:
    fd = probes_bpf.bpf_result(0, b"".join(n.to_bytes(4, "little") for n in (2, 4, 8, 1, 0)))
    number = max(probes_bpf.ids("map"))
    guest.expect(probes_bpf.fd_by_id("map", number), ALLOWED)
    guest.expect(probes_bpf.map_update_by_id(number, bytes(4), b"changed!"), ALLOWED)
    guest.expect(probes_bpf.lookup_by_id(number, bytes(4), 8), ALLOWED)
    os.close(fd)


@baseline.case()
def answer_of_shared_object(guest: Guest) -> None:
    assert ctypes.CDLL("/run/good/library.so").answer() == programs.EXIT_STATUS


@baseline.case()
def prober_counts(guest: Guest) -> None:
    prober = probes.Prober(probes.anonymous_once)
    prober.more(10)
    counts = prober.stop()
    assert set(counts) == {0}, counts
    assert counts[0] > 10


@baseline.case()
def a_crash_is_told(guest: Guest) -> None:
    def body(act: probes.Act) -> None:
        act(os.abort)

    guest.expect(probes.attempt(body), killed(6))
    guest.expect(probes.attempt(lambda act: os.abort()), Expected("impossible"))
    guest.expect(probes.attempt(lambda act: None), Expected("impossible"))


refusals = Scenario("refusals")


@refusals.setup
def refuse(guest: Guest) -> None:
    """A noexec mount, and Yama that forbids every ptrace."""
    guest.mount("tmpfs", "/run/noexec", "tmpfs", MS_NOEXEC)
    probes.write_file("/run/noexec/program", programs.program())
    probes.write_file("/run/noexec/library.so", programs.shared_object())
    with open("/proc/sys/kernel/yama/ptrace_scope", "w") as scope:
        scope.write("3")


def deny_write_execute(probe: object, *arguments: object) -> Outcome:
    """Run a probe under prctl(PR_SET_MDWE) (6.3)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(65, 1, 0, 0, 0):
        return Outcome("impossible", 0, os.strerror(ctypes.get_errno()))
    assert callable(probe)
    outcome = probe(*arguments)
    assert isinstance(outcome, Outcome)
    return outcome


refusals.probe("exec", refused(errno.EACCES), probes.execute, "/run/noexec/program")
refusals.probe("exec_fd", refused(errno.EACCES), probes.execute_fd, "/run/noexec/program")
refusals.probe(
    "check", refused(errno.EACCES), probes.check_executable, "/run/noexec/program", lanes=["7.3"]
)
refusals.probe("map", refused(errno.EPERM), probes.map_file, "/run/noexec/program")
refusals.probe("protect", refused(errno.EACCES), probes.protect_file, "/run/noexec/program")
refusals.probe("dlopen", probes.NOT_MAPPED, probes.dlopen, "/run/noexec/library.so")
refusals.probe(
    "loader", refused(0), probes.run, "/lib64/ld-linux-x86-64.so.2", "/run/noexec/program"
)
refusals.probe("attach_init", refused(errno.EPERM), probes_process.ptrace_attach, 1)
refusals.probe("seize_init", refused(errno.EPERM), probes_process.ptrace_seize, 1)
refusals.probe("attach_stranger", refused(errno.EPERM), probes_process.ptrace_stranger)
refusals.probe("traceme", refused(errno.EPERM), probes_process.traceme)


@refusals.case()
def write_execute(guest: Guest) -> None:
    def mdwe(probe: object, *arguments: object) -> Outcome:
        return deny_write_execute(probe, *arguments)

    guest.expect(mdwe(probes.map_anonymous, RWX), refused(errno.EACCES))
    guest.expect(mdwe(probes.protect_anonymous), refused(errno.EACCES))
    guest.expect(mdwe(probes.protect_modified, "/tmp/data"), Expected("impossible"))
    guest.expect(mdwe(probes.map_repeatedly, 100, RWX, errno.EACCES), ALLOWED)
    guest.expect(mdwe(probes.protect_stack, RWX), refused(errno.EACCES))


@refusals.case()
def prober_sees_a_change(guest: Guest) -> None:
    path = probes.write_file("/run/noexec/data", bytes(4096))
    fd = os.open(path, os.O_RDONLY)

    def once() -> int:
        return trial(raw.mmap, 4096, RX, raw.MAP_PRIVATE, fd).code

    prober = probes.Prober(once)
    guest.mount("tmpfs", "/run/noexec", "", MS_REMOUNT)
    prober.more(1)
    counts = prober.stop()
    assert set(counts) == {0, errno.EPERM}, counts
