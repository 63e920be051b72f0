# SPDX-License-Identifier: BSD-2-Clause
"""What is tried against the execution policy, and what it must make of it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import struct

from tests.vm import fuse, probes, probes_bpf, probes_process, programs, raw
from tests.vm.outcome import Expected, Outcome, killed, refused, trial
from tests.vm.policy import Attempt, Denial, enable, plans_drive, policy_of, read_events
from tests.vm.scenario import Content, Drive, Guest, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ATTEMPTS",
    "CONTENT",
    "EXITS",
    "LARGE",
    "RX",
    "drives",
    "finish",
    "foreign_objects",
    "object_ids",
    "prepare",
    "replace_table",
    "unread_pages",
    "write_files",
]

RX = raw.PROT_READ | raw.PROT_EXEC
RW = raw.PROT_READ | raw.PROT_WRITE
RWX = RX | raw.PROT_WRITE
EXITS = Expected("allowed", 0, f"exited with {programs.EXIT_STATUS}")
FAILS = Expected("refused", 0, "exited with ")
PYTHON = "/usr/bin/python3"
PROGRAM = "fsaccess_setintegrity"
LOADER = "/lib64/ld-linux-x86-64.so.2"

CONTENT: dict[str, Content] = {
    "program": programs.program(),
    "copied": programs.program(),
    "library.so": programs.shared_object(),
    "execstack": programs.program(executable_stack=True),
    "execstack.so": programs.shared_object(executable_stack=True),
    "loaded": programs.program(interpreter="/tmp/program"),
    "script": programs.script("/tmp/program"),
    "zero": Node("c", 1, 5),
}


def drives() -> dict[str, Drive]:
    """The disks that ``prepare`` wants."""
    return {
        "good": Drive(CONTENT),
        "other": Drive({"program": programs.program(), "second": b"x" * 4096}),
        "squash": Drive(CONTENT, filesystem="squashfs"),
        "plans": plans_drive(),
    }


def write_files() -> None:
    """The untrusted files, all on tmpfs."""
    probes.write_file("/tmp/program", programs.program())
    probes.write_file("/tmp/library.so", programs.shared_object())
    probes.write_file("/tmp/script", programs.script("/bin/sh", "exit 42"))
    probes.write_file("/tmp/script.py", b"raise SystemExit(0)")
    shutil.copy("/usr/bin/busybox", "/tmp/sh")
    probes.write_file("/tmp/data", b"\xc3" * 8192)
    shutil.copy(PYTHON, "/tmp/python3")


def mount_all(guest: Guest) -> None:
    """Signed images, overlays of one, and a filesystem of a process on another's device."""
    guest.mount(guest.verity("good"), "/run/good")
    guest.mount(guest.verity("squash"), "/run/squash", "squashfs")
    guest.overlay("/run/overlay", "/run/good", "/tmp/layers")
    probes.write_file("/run/overlay/new", programs.program())
    os.close(os.open("/run/overlay/copied", os.O_RDWR))  # copies it up
    guest.state["fuse"] = fuse.serve(
        guest.mount, guest.verity("other"), "/run/fuse", "program", programs.program()
    )


def _raw_tracepoint_program() -> int:
    instructions = ctypes.create_string_buffer(bytes.fromhex("b7000000000000009500000000000000"))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQ28x", 17, 2, ctypes.addressof(instructions), ctypes.addressof(licence)
    )
    return probes_bpf.bpf_result(5, attributes)


def foreign_objects(guest: Guest) -> None:
    """A map, a program and a link that have nothing to do with the policy."""
    fds = [
        probes_bpf.bpf_result(0, struct.pack("<IIIII", 2, 4, 8, 1, 0)),
        _raw_tracepoint_program(),
    ]
    name = ctypes.create_string_buffer(b"sched_switch")
    fds.append(probes_bpf.bpf_result(17, struct.pack("<QI4x", ctypes.addressof(name), fds[1])))
    guest.state["foreign"] = {
        kind: max(probes_bpf.ids(kind)) for kind in ("map", "program", "link")
    }
    guest.state["foreign fds"] = fds


def object_ids(guest: Guest) -> dict[str, dict[str, int]]:
    """{kind: {name: id}} of the policy's maps, programs and links; for the owner only."""
    from pybpf.kernel.map import Map

    policy = policy_of(guest)
    with policy.globals() as values:
        listed = {kind: values.ids(f"guard_{kind}_ids") for kind in ("map", "program", "link")}
    found: dict[str, dict[str, int]] = {"map": {}}
    for number in listed["map"]:
        with Map.from_id(number) as item:
            found["map"][str(item.info()["name"])] = number
    links = dict(policy.links)
    if policy.status is not None:
        links["fsaccess_status"] = policy.status
    found["link"] = {name: link.id for name, link in links.items()}
    found["program"] = {name: link.prog_id for name, link in links.items()}
    for kind in ("link", "program"):
        assert sorted(found[kind].values()) == sorted(listed[kind]), kind
    return found


def prepare(guest: Guest) -> None:
    """The set-up of scenarios that make ``ATTEMPTS``; PID 1 is the owner."""
    write_files()
    foreign_objects(guest)
    enable(guest)
    finish(guest)


def finish(guest: Guest) -> None:
    """What comes after the policy is on."""
    guest.state["ids"] = object_ids(guest)
    mount_all(guest)


def _table(guest: Guest, name: str) -> str:
    """The table line of the signed drive *name*; its signature goes into the keyring."""
    from restrict.keyring import add_user_key

    image, node = guest.images[name], guest.node(name)
    add_user_key(f"table-{name}", bytes.fromhex(image["signature"]))
    blocks = image["blocks"]
    return (
        f"1 {node} {node} 4096 4096 {blocks} {blocks} sha256 {image['root_hash']} "
        f"{image['salt']} 2 root_hash_sig_key_desc table-{name}"
    )


def replace_table(guest: Guest, device: str, name: str, kind: str = "verity") -> Outcome:
    """Give *device* the table of the drive *name*; the act is the resume."""
    from restrict.devmapper import DeviceMapper, Target

    sectors = guest.images[name]["blocks"] * 8
    line = {"verity": lambda: _table(guest, name), "linear": lambda: f"{guest.node(name)} 0"}
    with DeviceMapper() as mapper:
        mapper.load(device, [Target(0, sectors, kind, line.get(kind, lambda: "")())])
        return trial(mapper.resume, device)


#: For ``unread_pages``: two images that differ in one file's bytes alone.
LARGE = {
    "large": Drive({"file": b"\xcc" * (16 << 20)}),
    "forged": Drive({"file": b"\x90" * (16 << 20)}, signature="none"),
}


def unread_pages(guest: Guest) -> None:
    """What a table swap leaves to root where nothing gates the device mapper: pages that are mapped
    executable, and not yet read, come from the new table. All that is judged later is refused."""
    guest.mount(guest.verity("large", device="unread"), "/run/unread")
    with open("/run/unread/file", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 16 << 20, mmap.MAP_PRIVATE, RX)
    assert mapped[:4] == b"\xcc" * 4  # and what is read ahead of it, which is less than the file
    for name, kind in (("large", "error"), ("forged", "linear")):  # verity replaces only verity
        guest.expect(replace_table(guest, "unread", name, kind), Expected("allowed"))
    read, unread = mapped[:4], mapped[-4:]
    guest.note(f"{read!r}, {unread!r}; {mapped[:].count(0x90) >> 12} pages of the other device")
    assert (read, unread) == (b"\xcc" * 4, b"\x90" * 4)
    mapped.close()
    guest.expect(probes.map_file("/run/unread/file"), refused())
    assert [(e.operation, e.reason) for e in read_events(guest)] == [("mmap", "table_changed")]
    guest.expect(replace_table(guest, "unread", "large"), Expected("allowed"))
    guest.umount("/run/unread")
    guest.remove("unread")


def _id(kind: str, name: str) -> Callable[[Guest], int]:
    return lambda guest: guest.state["ids"][kind][name]


def _foreign(kind: str) -> Callable[[Guest], int]:
    return lambda guest: guest.state["foreign"][kind]


def shm_read_only() -> Outcome:
    """shmat(2) with SHM_EXEC and SHM_RDONLY."""

    def body(act: Callable[..., int]) -> None:
        number = raw.call("shmget", 0, raw.PAGE, 0o1700)  # IPC_PRIVATE, IPC_CREAT
        try:
            act(raw.call, "shmat", number, 0, 0o110000)
        finally:
            raw.call("shmctl", number, 0, 0)  # IPC_RMID

    return probes.attempt(body)


def write_sysctl(path: str, value: bytes) -> Outcome:
    """Write to a file of /proc/sys."""

    def write() -> int:
        fd = os.open(path, os.O_WRONLY)
        try:
            return os.write(fd, value)
        finally:
            os.close(fd)

    return trial(write)


_ON_TMPFS = Denial("exec", "filesystem", file="/tmp/program", filesystem="tmpfs")
_OWNER = Denial("ptrace", "ptrace_owner", object=1)
# mm_access() makes EACCES of it (kernel/fork.c).
_OWNER_MEMORY = Denial("ptrace", "ptrace_owner", code=errno.EACCES, object=1)

#: Programs and scripts.
EXECUTE = [
    Attempt("exec_root", "a program of the signed root", probes.execute, "/bin/true",
            control=Expected("allowed", 0, "exited with 0")),
    Attempt("exec_signed", "a program on a signed image", probes.execute, "/run/good/program",
            control=EXITS),
    Attempt("exec_squashfs", "a program on a signed squashfs", probes.execute,
            "/run/squash/program", control=EXITS),
    Attempt("exec_tmpfs", "a program copied to tmpfs", probes.execute, "/tmp/program",
            control=EXITS, denied=_ON_TMPFS),
    Attempt("exec_shell", "a shell copied to tmpfs", probes.run, "/tmp/sh", "-c", ":",
            outcome=refused(), denied=Denial("exec", "filesystem", file="/tmp/sh")),
    Attempt("exec_fd", "the same by execveat of its descriptor", probes.execute_fd, "/tmp/program",
            control=EXITS, denied=_ON_TMPFS),
    Attempt("exec_memfd", "a program in a memfd", probes.execute_memfd, programs.program(),
            control=EXITS,
            denied=Denial("exec", "filesystem", file="/memfd:probe (deleted)", data="",
                          filesystem="tmpfs")),
    Attempt("exec_script", "a script on tmpfs with a trusted shell", probes.execute,
            "/tmp/script", control=EXITS,
            denied=Denial("exec", "filesystem", file="/tmp/script", filesystem="tmpfs")),
    Attempt("exec_interpreter", "a trusted script with a shell on tmpfs", probes.execute,
            "/run/good/script", control=EXITS, denied=_ON_TMPFS),
    Attempt("exec_elf_interpreter", "a trusted program, PT_INTERP on tmpfs",
            probes.execute, "/run/good/loaded", control=EXITS, outcome=killed(signal.SIGSEGV),
            denied=Denial("mmap", "filesystem", file="/tmp/program", filesystem="tmpfs")),
    Attempt("exec_loader", "trusted ld.so given a program on tmpfs", probes.run,
            LOADER, "/tmp/python3", "-IS", "-c", "pass", outcome=FAILS,
            denied=Denial("mmap", "filesystem", file="/tmp/python3", filesystem="tmpfs")),
    Attempt("exec_fuse", "a fuse mount of a trusted device", probes.execute,
            "/run/fuse/program", control=EXITS,
            denied=Denial("exec", "filesystem", file="/run/fuse/program", filesystem="fuse")),
    # What an execution policy cannot see: the interpreter is trusted, its input is data.
    Attempt("limit_python", "limit: trusted python given a file on tmpfs", probes.run, PYTHON,
            "-IS", "/tmp/script.py"),
    Attempt("limit_shell", "limit: trusted sh given a script on tmpfs", probes.execute,
            "/bin/sh", "/tmp/script", control=EXITS),
    Attempt("exec_execstack", "a signed program with an executable stack", probes.execute,
            "/run/good/execstack", control=EXITS, outcome=killed(signal.SIGSEGV),
            denied=Denial("exec", "exec_stack", file="/run/good/execstack")),
    Attempt("check_trusted", "AT_EXECVE_CHECK of a signed program", probes.check_executable,
            "/run/good/program", lanes=["7.3"]),
    Attempt("check_tmpfs", "AT_EXECVE_CHECK of a program on tmpfs", probes.check_executable,
            "/tmp/program", lanes=["7.3"],
            denied=Denial("exec_check", "filesystem", file="/tmp/program", filesystem="tmpfs")),
]  # fmt: skip

#: Overlays: the layer that has the data decides, where the kernel can tell it (7.2).
OVERLAY = [
    Attempt("overlay_lower", "an overlay's lower file, signed", probes.execute,
            "/run/overlay/program", control=EXITS, lanes=["7.3"]),
    Attempt("overlay_lower_denied", "an overlay's lower file, signed", probes.execute,
            "/run/overlay/program", control=EXITS, lanes=["6.12"],
            denied=Denial("exec", "overlay", file="/run/overlay/program", data="",
                          filesystem="overlay")),
    Attempt("overlay_new", "a new file on an overlay", probes.execute, "/run/overlay/new",
            control=EXITS, lanes=["7.3"],
            denied=Denial("exec", "filesystem", file="/run/overlay/new",
                          data="/tmp/layers/upper/new", filesystem="tmpfs")),
    Attempt("overlay_new_denied", "a new file on an overlay", probes.execute,
            "/run/overlay/new", control=EXITS, lanes=["6.12"],
            denied=Denial("exec", "overlay", file="/run/overlay/new", data="",
                          filesystem="overlay")),
    Attempt("overlay_copied", "a lower file that was copied up", probes.execute,
            "/run/overlay/copied", control=EXITS, lanes=["7.3"],
            denied=Denial("exec", "filesystem", file="/run/overlay/copied",
                          data="/tmp/layers/upper/copied", filesystem="tmpfs")),
    Attempt("overlay_copied_denied", "a lower file that was copied up", probes.execute,
            "/run/overlay/copied", control=EXITS, lanes=["6.12"],
            denied=Denial("exec", "overlay", file="/run/overlay/copied", data="",
                          filesystem="overlay")),
    Attempt("overlay_map", "mmap of an overlay's lower file", probes.map_file,
            "/run/overlay/library.so", lanes=["7.3"]),
    Attempt("overlay_map_denied", "mmap of an overlay's lower file", probes.map_file,
            "/run/overlay/library.so", lanes=["6.12"],
            denied=Denial("mmap", "overlay", file="/run/overlay/library.so", data="",
                          filesystem="overlay")),
    Attempt("overlay_map_new", "mmap of a new file on an overlay", probes.map_file,
            "/run/overlay/new", lanes=["7.3"],
            denied=Denial("mmap", "filesystem", file="/run/overlay/new",
                          data="/tmp/layers/upper/new", filesystem="tmpfs")),
    # A mapped overlay file has its layer's own file, so here even 6.12 can tell.
    Attempt("overlay_protect", "mprotect of an overlay's lower file", probes.protect_file,
            "/run/overlay/library.so"),
    Attempt("overlay_protect_new", "mprotect of a new file on an overlay", probes.protect_file,
            "/run/overlay/new",
            denied=Denial("mprotect", "filesystem", file="/run/overlay/new",
                          data="/tmp/layers/upper/new", filesystem="tmpfs")),
]  # fmt: skip

#: Memory.
MEMORY = [
    Attempt("map_signed", "mmap of a signed file", probes.map_file, "/run/good/library.so"),
    Attempt("map_tmpfs", "mmap of a tmpfs file", probes.map_file, "/tmp/data",
            denied=Denial("mmap", "filesystem", file="/tmp/data", filesystem="tmpfs")),
    Attempt("map_shared", "shared mmap of a tmpfs file", probes.map_file, "/tmp/data", RX, True,
            denied=Denial("mmap", "filesystem", file="/tmp/data", filesystem="tmpfs")),
    Attempt("map_anonymous", "anonymous executable mmap", probes.map_anonymous,
            denied=Denial("mmap", "anonymous")),
    Attempt("map_write_exec", "anonymous mmap, writable and executable", probes.map_anonymous,
            RWX, denied=Denial("mmap", "write_exec")),
    Attempt("map_signed_write_exec", "the same of a signed file", probes.map_file,
            "/run/good/library.so", RWX,
            denied=Denial("mmap", "write_exec", file="/run/good/library.so")),
    Attempt("map_node", "mmap of a device node on a signed image", probes.map_file,
            "/run/good/zero",
            denied=Denial("mmap", "not_regular", file="/run/good/zero", filesystem="erofs")),
    Attempt("map_memfd", "mmap of a memfd", probes.map_memfd,
            denied=Denial("mmap", "filesystem", file="/memfd:probe (deleted)", data="",
                          filesystem="tmpfs")),
    Attempt("map_fuse", "mmap of a file of that fuse mount", probes.map_file,
            "/run/fuse/program",
            denied=Denial("mmap", "filesystem", file="/run/fuse/program", filesystem="fuse")),
    Attempt("map_implied", "readable mmap with READ_IMPLIES_EXEC",
            probes.map_readable_as_executable, denied=Denial("mmap", "write_exec")),
    Attempt("heap_implied", "brk with READ_IMPLIES_EXEC", probes.executable_heap,
            control=Expected("allowed", 0, "heap rwxp"),
            denied=Denial("brk", "implied_exec", code=errno.ENOMEM)),
    Attempt("shm", "shmat with SHM_EXEC", shm_read_only,
            denied=Denial("mmap", "filesystem", filesystem="tmpfs")),
    Attempt("shm_write_exec", "the same, writable", probes.shm_executable,
            denied=Denial("mmap", "write_exec", filesystem="tmpfs")),
    Attempt("dlopen_signed", "dlopen of a signed library", probes.dlopen,
            "/run/good/library.so"),
    # glibc's answer has no errno; the event has all of it.
    Attempt("dlopen", "dlopen of a library on tmpfs", probes.dlopen, "/tmp/library.so",
            outcome=Expected("refused", 0, "failed to map segment from shared object"),
            denied=Denial("mmap", "filesystem", file="/tmp/library.so", filesystem="tmpfs")),
    Attempt("dlopen_execstack", "dlopen of one with an executable stack",
            probes.dlopen, "/run/good/execstack.so",
            outcome=Expected("refused", 0, "cannot enable executable stack"),
            denied=Denial("mprotect", "write_exec")),
    Attempt("protect_signed", "mprotect of a signed file's mapping", probes.protect_file,
            "/run/good/library.so"),
    Attempt("protect_tmpfs", "mprotect of a tmpfs file's mapping", probes.protect_file,
            "/tmp/data",
            denied=Denial("mprotect", "filesystem", file="/tmp/data", filesystem="tmpfs")),
    Attempt("protect_key", "the same by pkey_mprotect", probes.protect_file_by_key, "/tmp/data",
            denied=Denial("mprotect", "filesystem", file="/tmp/data", filesystem="tmpfs")),
    Attempt("protect_modified", "mprotect of a signed file after COW",
            probes.protect_modified, "/run/good/library.so",
            denied=Denial("mprotect", "modified", file="/run/good/library.so")),
    Attempt("protect_write_exec", "mprotect of a signed file to W+X",
            probes.protect_file, "/run/good/library.so", RWX,
            denied=Denial("mprotect", "write_exec", file="/run/good/library.so")),
    Attempt("protect_anonymous", "mprotect of written anonymous memory",
            probes.protect_anonymous, denied=Denial("mprotect", "modified")),
    Attempt("protect_stack", "mprotect of the stack to W+X", probes.protect_stack,
            denied=Denial("mprotect", "write_exec")),
]  # fmt: skip

#: The owner, other processes, and memory that is not writable.
PROCESSES = [
    Attempt("attach_owner", "ptrace attach to PID 1", probes_process.ptrace_attach, 1,
            denied=_OWNER),
    Attempt("seize_owner", "ptrace seize of PID 1", probes_process.ptrace_seize, 1,
            denied=_OWNER),
    Attempt("read_owner", "reading /proc/1/mem", probes_process.read_memory_of, 1,
            denied=_OWNER_MEMORY),
    Attempt("write_owner", "writing /proc/1/mem", probes_process.write_memory_of, 1,
            denied=_OWNER_MEMORY),
    Attempt("vm_read_owner", "process_vm_readv of PID 1", probes_process.vm_read, 1,
            denied=_OWNER),
    Attempt("vm_write_owner", "process_vm_writev of PID 1", probes_process.vm_write, 1,
            denied=_OWNER),
    Attempt("get_fd_of_owner", "a descriptor of PID 1 (pidfd_getfd)", probes_process.get_fd, 1,
            lambda guest: policy_of(guest).bss.fileno(), denied=_OWNER),
    Attempt("status_of_owner", "reading /proc/1/status", probes_process.read_status, 1),
    Attempt("attach_other", "ptrace attach to another process", probes_process.ptrace_stranger),
    Attempt("traceme", "PTRACE_TRACEME", probes_process.traceme),
    Attempt("peek", "PTRACE_PEEKTEXT", probes_process.peek),
    # No hook sees a poke: the seccomp filter refuses it, armed or not, and no event reports it.
    # That it succeeds without the filter is shown from before PID 1 installed it (before_filter).
    Attempt("poke_text", "PTRACE_POKETEXT into a child's text", probes_process.poke,
            control=refused()),
    Attempt("poke_data", "PTRACE_POKEDATA into a child's text", probes_process.poke, True,
            control=refused()),
    # It respects the protection of pages, so that it takes no hook and no filter.
    Attempt("vm_write_text", "process_vm_writev into a child's text",
            probes_process.vm_write_text, control=refused(errno.EFAULT)),
    Attempt("own_text", "own text through /proc/self/mem",
            probes_process.write_own_text, control=refused(errno.EIO)),
    Attempt("ftrace", "writing kernel.ftrace_enabled", write_sysctl,
            "/proc/sys/kernel/ftrace_enabled", b"1",
            denied=Denial("sysctl", "switches_off")),
    Attempt("other_sysctl", "writing another sysctl", write_sysctl,
            "/proc/sys/kernel/panic_on_oops", b"0"),
]  # fmt: skip

#: bpf(2).
BPF = [
    Attempt("steal_map", "bpf(): an fd of the map of trusted devices",
            probes_bpf.fd_by_id, "map", _id("map", "verity_devices"),
            denied=Denial("bpf_map", "guard_map", object=_id("map", "verity_devices"))),
    Attempt("steal_program", "bpf(): an fd of a program of the policy",
            probes_bpf.fd_by_id, "program", _id("program", PROGRAM),
            denied=Denial("bpf_program", "guard_program",
                          object=_id("program", PROGRAM))),
    Attempt("steal_link", "bpf(): an fd of a link of the policy", probes_bpf.fd_by_id,
            "link", _id("link", PROGRAM),
            denied=Denial("bpf_link", "guard_link", object=_id("link", PROGRAM))),
    Attempt("forge_device", "bpf(): forging a trusted device in the map",
            probes_bpf.map_update_by_id, _id("map", "verity_devices"),
            struct.pack("<I", 0xFFFFFFFF), bytes(256),
            control=Expected("allowed"),
            denied=Denial("bpf_map", "guard_map", object=_id("map", "verity_devices"))),
    Attempt("detach_link", "bpf(): BPF_LINK_DETACH of a link of it",
            probes_bpf.link_detach, _id("link", PROGRAM),
            control=refused(errno.EOPNOTSUPP),
            denied=Denial("bpf_link", "guard_link", object=_id("link", PROGRAM))),
    Attempt("update_link", "bpf(): BPF_LINK_UPDATE of a link of it",
            probes_bpf.link_update, _id("link", "fsaccess_status"),
            lambda guest: guest.state["foreign fds"][1],
            control=refused(errno.EINVAL),
            denied=Denial("bpf_link", "guard_link", object=_id("link", "fsaccess_status"))),
    Attempt("list_maps", "listing all maps", probes_bpf.list_objects, "map"),
    Attempt("list_programs", "listing all programs", probes_bpf.list_objects, "program"),
    Attempt("list_links", "listing all links", probes_bpf.list_objects, "link"),
    Attempt("foreign_map", "an fd of somebody else's map", probes_bpf.fd_by_id, "map",
            _foreign("map")),
    Attempt("foreign_program", "an fd of somebody else's program", probes_bpf.fd_by_id,
            "program", _foreign("program")),
    Attempt("foreign_link", "an fd of somebody else's link", probes_bpf.fd_by_id, "link",
            _foreign("link")),
    Attempt("new_map", "creating a map", probes_bpf.create_map),
    Attempt("new_program", "loading a program", probes_bpf.load_program),
]  # fmt: skip

ATTEMPTS = [*EXECUTE, *OVERLAY, *MEMORY, *PROCESSES, *BPF]
