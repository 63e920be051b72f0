# SPDX-License-Identifier: BSD-2-Clause
"""Every way of attaching, shown by its effect: a real event is seen by the program.

Runs on the development host as far as its kernel goes, and in both guests, where nothing may be
skipped but what that kernel lacks (tests/vm/test_attach.py).
"""

from __future__ import annotations

import functools
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pybpf
from pybpf.errors import KernelError, PlanError, PybpfError, SymbolNotFoundError, UsageError
from pybpf.kernel.link import Link
from pybpf.plan.live import Object
from pybpf.plan.run import run
from pybpf.spec import ObjectSpec
from pybpf.sys import abi, bpf, layouts, syscalls
from tests.kernel.helpers import fds_to_begin_with, open_fds, plan, prog, returns, settle

pytestmark = pytest.mark.kernel

FILE = Path(__file__).parent.parent / "objects" / "attach.bpf.o"
# Errnos of a kernel that was built without the hook, or is locked down, or is too old.
ABSENT = (1, 2, 13, 22, 95, 524)


@functools.cache
def read_spec() -> ObjectSpec:
    return pybpf.read(FILE)


def load(*programs: str, **more: Any) -> Object:
    """The object with these programs only, which count for this process."""
    spec = read_spec()
    for name in spec.programs:
        if name not in programs:
            spec = spec.with_program(name, autoload=False)
    return pybpf.load(spec.with_variables(pid=os.getpid()), **more)


def kernel_may_lack(what: str, error: PybpfError) -> None:
    """Skip on kernels that say they cannot; fail everywhere else."""
    code = getattr(error, "errno", 2)
    if code not in ABSENT:
        raise error
    pytest.skip(f"no {what} here: {error}")


def counts(obj: Object, act: Callable[[], object]) -> int:
    """How far the counter goes while ``act`` runs."""
    before = int(obj.vars["count"])
    act()
    return int(obj.vars["count"]) - before


def open_null() -> None:
    with open("/dev/null", "rb"):
        pass


def getpriority() -> None:
    os.getpriority(os.PRIO_PROCESS, 0)


def udp(address: str = "127.0.0.1") -> None:
    """A datagram to ourselves, received."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as a, socket.socket(family, 2) as b:
        a.bind((address, 0))
        a.settimeout(5)
        b.sendto(b"x", a.getsockname())
        assert a.recvfrom(8)[0] == b"x"


def tcp(address: str = "127.0.0.1") -> None:
    """A TCP connection to ourselves, with its names asked for."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server, socket.socket(family, 1) as client:
        server.bind((address, 0))
        server.listen()
        client.connect(server.getsockname())
        assert client.getpeername()[1] == server.getsockname()[1]
        server.accept()[0].close()


# --- probes and tracing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "act", "times"),
    [
        ("kprobe_open", open_null, 1),
        ("kretprobe_open", open_null, 1),
        ("ksyscall_prio", getpriority, 1),
        ("kretsyscall_prio", getpriority, 1),
        ("kprobe_multi", open_null, 1),
        ("kretprobe_multi", open_null, 1),
        ("kprobe_session", open_null, 2),
        ("tracepoint", getpriority, 1),
        ("raw_tp", getpriority, 1),
        ("tp_btf", getpriority, 1),
        ("fentry", open_null, 1),
        ("fexit", open_null, 1),
        ("fsession", open_null, 2),
        ("fentry_multi", open_null, 1),
        ("fexit_multi", open_null, 1),
        ("uprobe_auto", os.getppid, 1),
        ("uprobe_multi_auto", os.getppid, 1),
    ],
)
def test_attaching_by_the_section_alone(
    program: str, act: Callable[[], object], times: int, prefix: str
) -> None:
    try:
        obj = load(program)
    except PybpfError as error:
        kernel_may_lack(program, error)
    with obj:
        try:
            obj.attach()
        except PybpfError as error:
            kernel_may_lack(program, error)
        assert counts(obj, act) >= times
        link = obj.links[program]
        assert link.info()["prog_id"] == obj.programs[program].id
        obj.detach()
        assert settle(lambda: counts(obj, act) == 0)


@pytest.mark.parametrize("program", ["on_uprobe", "on_uretprobe", "uprobe_multi",
                                     "uretprobe_multi", "uprobe_session"])  # fmt: skip
def test_user_probes_with_a_cookie(program: str, prefix: str) -> None:
    try:
        obj = load(program)
    except PybpfError as error:
        kernel_may_lack(program, error)
    with obj:
        try:
            obj.attach_program(program, "libc.so.6:getppid", cookie=77)
        except KernelError as error:
            kernel_may_lack(program, error)
        assert counts(obj, os.getppid) == (2 if program == "uprobe_session" else 1)
        assert obj.vars["cookie"] == 77
        assert counts(obj, os.getpid) == 0
        obj.detach()
        assert counts(obj, os.getppid) == 0


def test_a_session_of_many_functions(prefix: str) -> None:
    """One link, two functions, entry and return of each; the cookie is seen."""
    try:
        obj = load("fsession_multi")
    except PybpfError as error:
        kernel_may_lack("fsession.multi", error)
    with obj:
        try:
            link = obj.attach_program("fsession_multi", "__x64_sys_getres?id", cookie=78)
        except PybpfError as error:
            kernel_may_lack("fsession.multi", error)
        assert link is not None
        assert link.info()["count"] == 2
        assert counts(obj, os.getresuid) == 2
        assert obj.vars["cookie"] == 78
        assert counts(obj, os.getegid) == 0
        assert counts(obj, os.getresgid) == 2
        with pytest.raises(PlanError, match="describes no function"):
            obj.attach_program("fsession_multi", "no_such_function_at_all")
        with pytest.raises(PlanError, match="0 functions"):
            obj.attach_program("fsession_multi", "no_such_function_*")


def test_a_user_probe_of_one_process(prefix: str) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        with load("on_uprobe") as obj:
            obj.attach_program("on_uprobe", "libc.so.6:getppid", pid=child.pid)
            assert counts(obj, os.getppid) == 0
            obj.attach_program("on_uprobe", "libc.so.6:getppid", pid=os.getpid())
            assert counts(obj, os.getppid) == 1
            assert sorted(obj.links) == ["on_uprobe", "on_uprobe.2"]
    finally:
        child.kill()
        child.wait()


def test_places_in_programs_that_do_not_exist(prefix: str, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\x7fELF" + bytes(40))
    with load("on_uprobe") as obj:
        for target, told in (
            ("libc.so.6:no_such_function_at_all", "defines no function"),
            ("no_such_library.so:f", "there is no file"),
            ("/no/such/file:f", "ENOENT"),
            (f"{rubbish}:f", "no usable ELF"),
            ("nothing", "'path:function'"),
            ("libc.so.6:getppid+x", "no number"),
            ("libc.so.6:getp*", "pattern"),
        ):
            with pytest.raises(PybpfError, match=told):
                obj.attach_program("on_uprobe", target)
        assert obj.links == {}
        assert not obj.attached


def test_a_perf_event(prefix: str) -> None:
    """A clock of this process: PERF_TYPE_SOFTWARE, CPU clock, every 100 microseconds."""
    attr = bpf.pack(
        layouts.ATTR_PERF_EVENT,
        layouts.SIZE_PERF_EVENT,
        {"type": abi.PERF_TYPE_SOFTWARE, "size": 112, "sample_period": 100_000},
    )
    event = syscalls.perf_event_open(attr, 0, -1)
    try:
        with load("on_perf_event") as obj:
            obj.attach_program("on_perf_event", event, cookie=5)
            assert settle(lambda: counts(obj, lambda: sum(range(100_000))) > 0)
            assert obj.vars["cookie"] == 5
    finally:
        os.close(event)


@pytest.mark.parametrize("program", ["fmod_ret", "lsm"])
def test_a_changed_result(program: str, prefix: str) -> None:
    try:
        obj = load(program)
    except PybpfError as error:
        kernel_may_lack(program, error)
    with obj:
        assert os.getsid(os.getpid())
        obj.attach()
        with pytest.raises(PermissionError):
            os.getsid(os.getpid())
        assert obj.vars["count"] == 1
        obj.detach()
        assert settle(lambda: bool(os.getsid(os.getpid())), 1)


# --- network interfaces -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "program", ["on_xdp", "xdp_frags", "tcx_ingress", "tcx_egress", "tc_plain"]
)
def test_an_interface(program: str, prefix: str) -> None:
    with load(program) as obj:
        attach_type = abi.BPF_TCX_EGRESS if program == "tc_plain" else None
        flags = 1 << 1 if "xdp" in program else 0  # XDP_FLAGS_SKB_MODE: lo has no other
        link = obj.attach_program(program, "lo", attach_type=attach_type, flags=flags)
        assert isinstance(link, Link)
        assert link.info()["ifindex"] == socket.if_nametoindex("lo")
        assert counts(obj, udp) > 0
        obj.detach()
        assert counts(obj, udp) == 0


def test_a_tc_program_needs_a_direction(prefix: str) -> None:
    with load("tc_plain") as obj:
        with pytest.raises(PlanError, match="BPF_TCX_INGRESS"):
            obj.attach_program("tc_plain", "lo")
        with pytest.raises(KernelError, match=r"ENODEV.*no such interface"):
            obj.attach_program("tc_plain", "no_such0", attach_type=abi.BPF_TCX_INGRESS)


@pytest.mark.parametrize("program", ["netkit_primary", "netkit_peer"])
def test_netkit(program: str, prefix: str) -> None:
    name = f"nk{os.getpid() % 100000}"
    done = subprocess.run(["ip", "link", "add", name, "type", "netkit"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    if done.returncode:
        pytest.skip(f"no netkit here: {done.stderr}")
    try:
        peer = next(
            path.name for path in Path("/sys/class/net").iterdir()
            if path.name != name
            and int((path / "iflink").read_text()) == socket.if_nametoindex(name)
        )  # fmt: skip
        for device in (name, peer):
            subprocess.run(["ip", "link", "set", device, "up"], check=True)
        sender = name if program == "netkit_primary" else peer
        with load(program) as obj, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((sender, 0x0800))
            # Both programs are attached to the primary device.
            obj.attach_program(program, name)
            assert counts(obj, lambda: raw.send(bytes(12) + b"\x08\0" + bytes(46))) > 0
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def test_netfilter(prefix: str) -> None:
    try:
        obj = load("on_netfilter")
    except PybpfError as error:
        kernel_may_lack("netfilter programs", error)
    with obj:
        link = obj.attach_program("on_netfilter", "ipv4/local_in", netfilter__priority=-77)
        assert isinstance(link, Link)
        assert struct.unpack("i", struct.pack("I", link.info()["priority"])) == (-77,)
        assert counts(obj, udp) > 0
        with pytest.raises(PlanError, match="local_out"):
            obj.attach_program("on_netfilter", "ipv4/nowhere")


# --- namespaces and sockets -------------------------------------------------------------------


def test_sk_lookup(prefix: str) -> None:
    with load("on_sk_lookup") as obj:
        obj.attach_program("on_sk_lookup", "/proc/self/ns/net")
        assert counts(obj, udp) > 0
        obj.detach()
        assert counts(obj, udp) == 0


def test_flow_dissector(prefix: str) -> None:
    """Dissected for a packet socket: the kernel looks for the transport header of what it sends."""
    with load("on_flow_dissector") as obj:
        try:
            obj.attach_program("on_flow_dissector", "/proc/self/ns/net")
        except KernelError as error:
            kernel_may_lack("flow dissector", error)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("lo", 0x0800))
            frame = bytes(12) + b"\x08\0" + b"\x45" + bytes(50)
            assert counts(obj, lambda: raw.send(frame)) > 0


def test_socket_filter_and_reuseport(prefix: str) -> None:
    with load("socket_filter") as obj, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a:
        a.bind(("127.0.0.1", 0))
        obj.programs["socket_filter"].attach_socket(a.fileno())
        assert counts(obj, lambda: a.sendto(b"x", a.getsockname())) == 1
        with pytest.raises(KernelError, match=r"EBADF|ENOTSOCK"):
            obj.programs["socket_filter"].attach_socket(10**6)
    with load("on_sk_reuseport") as obj, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a:
        a.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        obj.programs["on_sk_reuseport"].attach_socket(a.fileno(), reuseport=True)
        a.bind(("127.0.0.1", 0))
        assert counts(obj, lambda: a.sendto(b"x", a.getsockname())) > 0


@pytest.mark.parametrize("program", ["on_sk_msg", "sk_skb_verdict"])
def test_socket_maps(program: str, prefix: str) -> None:
    with load(program) as obj, socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        peer = server.accept()[0]
        with peer:
            obj.attach_program(program, "sockets")
            sender = peer if program == "sk_skb_verdict" else client
            obj.maps["sockets"][0] = client.fileno()
            assert counts(obj, lambda: (sender.send(b"hello"), settle(
                lambda: obj.vars["count"] > 0, 5))) > 0  # fmt: skip


# --- cgroups ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cgroup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cgroup of our own, with this process in it."""
    root = tmp_path_factory.mktemp("cgroup")
    subprocess.run(["mount", "-t", "cgroup2", "none", str(root)], check=True)
    with open("/proc/self/cgroup", encoding="ascii") as file:
        (old,) = [line[4:].strip() for line in file if line.startswith("0::/")]
    group = root / f"pybpf{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield group
        (root / old.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()
    finally:
        subprocess.run(["umount", str(root)], check=True)


def tcp6() -> None:
    tcp("::1")


def udp_connected() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as a:
        a.connect(("127.0.0.1", 9))


def unix() -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(b"\0pybpf" + str(os.getpid()).encode())
        server.listen()
        client.connect(server.getsockname())


def sysctl() -> None:
    Path("/proc/sys/kernel/ostype").read_text()


def options() -> None:
    with socket.socket() as a:
        a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        a.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize(
    ("program", "act"),
    [
        ("skb_ingress", udp), ("skb_egress", udp), ("sock_create", udp), ("sock_release", udp),
        ("post_bind4", udp), ("post_bind6", tcp6), ("bind4", udp), ("bind6", tcp6),
        ("connect4", udp_connected), ("connect6", tcp6), ("connect_unix", unix),
        ("sendmsg4", udp), ("recvmsg4", udp), ("getsockname4", udp), ("getpeername4", tcp),
        ("sysctl", sysctl), ("getsockopt", options), ("setsockopt", options),
        ("device", open_null), ("on_sockops", tcp),
    ],
)  # fmt: skip
def test_a_cgroup(program: str, act: Callable[[], None], cgroup: Path, prefix: str) -> None:
    for how in ("cgroup", "prog_attach"):
        try:
            obj = load(program)
        except PybpfError as error:
            kernel_may_lack(program, error)
        with obj:
            link = obj.attach_program(program, str(cgroup), how=how)
            assert (link is not None) == (how == "cgroup")
            assert counts(obj, act) > 0
            obj.detach()
            assert counts(obj, act) == 0


def test_lsm_cgroup(cgroup: Path, prefix: str) -> None:
    try:
        obj = load("lsm_cgroup")
    except PybpfError as error:
        kernel_may_lack("lsm_cgroup", error)
    with obj:
        try:
            obj.attach_program("lsm_cgroup", str(cgroup))
        except KernelError as error:
            kernel_may_lack("lsm_cgroup", error)
        with pytest.raises(PermissionError):
            udp()
        assert obj.vars["count"] == 1
        obj.detach()
        udp()


# --- iterators and struct_ops -----------------------------------------------------------------


def test_iterators(prefix: str) -> None:
    with load("iter_task") as obj:
        obj.attach()
        assert counts(obj, lambda: obj.links["iter_task"].read()) > 10
    with load("iter_elements") as obj:
        assert obj.attach().links == {}  # nobody has said which map
        elements = obj.maps["elements"]
        elements[5], elements[9] = 50, 90
        link = obj.attach_program("iter_elements", "elements")
        assert isinstance(link, Link)
        assert sorted(link.read().split()) == [b"5=50", b"9=90"]
        assert link.info()["map_id"] == elements.id
        other = obj.attach_program("iter_elements", elements)
        assert isinstance(other, Link)
        assert len(other.read().split()) == 2


def test_struct_ops_are_used(prefix: str) -> None:
    """The congestion control that the object brings is chosen for a connection."""
    try:
        obj = pybpf.load(FILE.parent / "struct_ops.bpf.o")
    except PybpfError as error:
        kernel_may_lack("struct_ops", error)
    with obj:
        try:
            obj.attach()
        except KernelError as error:
            kernel_may_lack("struct_ops", error)
        send_with(b"pybpf_test")
        assert settle(lambda: obj.vars["calls"] > 0, 5)


def send_with(control: bytes) -> None:
    """A TCP connection with this congestion control; OSError if there is none."""
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control)
        client.connect(server.getsockname())
        with server.accept()[0] as peer:
            client.sendall(bytes(1 << 16))
            peer.recv(1 << 16, socket.MSG_WAITALL)


@pytest.mark.parametrize("end", ["detach", "close", "failure"])
def test_struct_ops_without_a_link(end: str, prefix: str) -> None:
    """In force from attach to detach, and gone after a failure to attach the rest."""
    spec = pybpf.read(FILE.parent / "struct_ops.bpf.o")
    spec = spec.with_map("test_control", autocreate=end == "failure")
    try:
        obj = pybpf.load(spec.with_map("old_control", autocreate=True))
    except PybpfError as error:
        kernel_may_lack("struct_ops", error)
    with obj:
        with pytest.raises(FileNotFoundError):
            send_with(b"pybpf_old")
        if end == "failure":
            # The other one, which comes after, cannot be put into force: somebody else's is.
            with pybpf.load(FILE.parent / "struct_ops.bpf.o").attach():
                with pytest.raises(KernelError, match="EEXIST"):
                    obj.attach()
                send_with(b"pybpf_test")
        else:
            try:
                obj.attach()
            except KernelError as error:
                kernel_may_lack("struct_ops", error)
            assert obj.attached
            assert obj.links == {}
            send_with(b"pybpf_old")
            assert settle(lambda: obj.vars["calls"] > 0, 5)
            obj.maps["old_control"].close()  # what is in force does not hang on the user's fd
            if end == "detach":
                obj.detach()
                assert not obj.attached
            else:
                obj.close()
        with pytest.raises(FileNotFoundError):
            send_with(b"pybpf_old")


@pytest.mark.parametrize(
    ("program", "retval"), [("replacement", 42), ("of_program", 1), ("after_program", 1)]
)
def test_a_function_of_a_loaded_program(program: str, retval: int, prefix: str) -> None:
    """freplace: the program goes on with the new function until the link is closed. fentry and
    fexit trace it."""
    five = struct.pack("=Q", 5)
    with load("call_replaceable") as obj:
        target = obj.programs["call_replaceable"]
        assert target.test_run(ctx=five).retval == 1
        try:
            other = load(program, targets={program: target})
        except PybpfError as error:
            kernel_may_lack(program, error)
        with other.attach():
            assert target.test_run(ctx=five).retval == retval
            assert other.vars["seen"] == 5
            assert other.vars["count"] == 1
            other.detach()
            assert settle(lambda: target.test_run(ctx=five).retval == 1)
            settle(lambda: counts(other, lambda: target.test_run(ctx=five)) == 0, 5)
            assert counts(other, lambda: target.test_run(ctx=five)) == 0


def test_functions_that_the_loaded_program_lacks(prefix: str) -> None:
    with run(plan(prog(0, f"{prefix}_p", returns(0)))) as obj:
        loaded = obj.programs[f"{prefix}_p"]
        with pytest.raises(SymbolNotFoundError, match="without BTF, so it has no function"):
            load("replacement", targets={"replacement": loaded})
        with pytest.raises(UsageError, match="no program 'x'"):
            load("replacement", targets={"x": loaded})
        with pytest.raises(PybpfError, match="targets="):
            load("replacement")


def test_what_is_not_attached_is_told(prefix: str) -> None:
    with load("call_replaceable") as obj:
        with pytest.raises(UsageError, match="not attached by a link"):
            obj.attach_program("call_replaceable")
        with pytest.raises(UsageError, match="no program 'nothing'"):
            obj.attach_program("nothing", "lo")
        with pytest.raises(PlanError, match="no way to attach"):
            obj.attach_program("call_replaceable", how="magic")


# --- undoing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "target"),
    [("on_sk_msg", "sockets"), ("iter_elements", "elements"), ("on_xdp", "lo"),
     ("on_sk_lookup", "/proc/self/ns/net"), ("on_uprobe", "libc.so.6:getppid"),
     ("uprobe_multi", "libc.so.6:getppid")],
)  # fmt: skip
def test_a_failed_attachment_leaves_nothing(
    program: str, target: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bpf.call

    def refuse(cmd: int, attr: bytearray, **more: bytearray | None) -> int:
        if cmd == abi.BPF_LINK_CREATE:
            raise syscalls.fail("BPF_LINK_CREATE", 12)
        return real(cmd, attr, **more)

    with load(program) as obj:
        fds = fds_to_begin_with()
        monkeypatch.setattr(bpf, "call", refuse)
        with pytest.raises(KernelError, match="ENOMEM") as caught:
            obj.attach_program(program, target)
        assert caught.value.where["link"] == program
        assert open_fds() == fds
        assert not obj.attached
        monkeypatch.undo()
        assert obj.attach_program(program, target) is not None
        # A second failure leaves the first attachment as it is.
        monkeypatch.setattr(bpf, "call", refuse)
        fds = fds_to_begin_with()
        with pytest.raises(KernelError):
            obj.attach_program(program, target)
        assert open_fds() == fds
        assert list(obj.links) == [program]
        assert obj.links[program].prog_id == obj.programs[program].id


def test_socket_maps_before_links(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel before 6.10: attached without a link, with the same effect, and detached."""

    def old(program: int, target: int, attach_type: int, **fields: int) -> int:
        raise syscalls.fail("BPF_LINK_CREATE", 22)

    monkeypatch.setattr(bpf, "link_create", old)
    with load("on_sk_msg") as obj, socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        with server.accept()[0]:
            assert obj.attach_program("on_sk_msg", "sockets") is None
            assert obj.attached
            obj.maps["sockets"][0] = client
            assert counts(obj, lambda: client.send(b"hello")) == 1
            obj.detach()
            assert not obj.attached
            del obj.maps["sockets"][0]


def test_links_that_the_user_closes(prefix: str) -> None:
    with load("on_sk_lookup") as obj:
        obj.attach_program("on_sk_lookup", "/proc/self/ns/net")
        once = counts(obj, udp)
        assert once > 0
        for _ in range(2):
            obj.attach_program("on_sk_lookup", "/proc/self/ns/net")
        assert sorted(obj.links) == ["on_sk_lookup", "on_sk_lookup.2", "on_sk_lookup.3"]
        assert counts(obj, udp) == 3 * once
        obj.links["on_sk_lookup.2"].close()
        assert counts(obj, udp) == 2 * once
        obj.detach()
        assert obj.links == {}
        assert counts(obj, udp) == 0
