# SPDX-License-Identifier: BSD-2-Clause
"""Interfaces, network namespaces, sockets and cgroups.

As in test_attach, each way is shown by its effect.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pybpf.errors import KernelError, PlanError
from pybpf.kernel.link import Link
from pybpf.sys import abi
from tests.kernel.attaching import counts, load, open_null, tcp, udp
from tests.kernel.helpers import settle

pytestmark = pytest.mark.kernel


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
        assert "Unknown device type" in done.stderr
        pytest.skip("no netkit here")
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
    with load("on_netfilter") as obj:
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
        obj.attach_program("on_flow_dissector", "/proc/self/ns/net")
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
                lambda: obj.vars["count"] > 0))) > 0  # fmt: skip


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
        with load(program) as obj:
            link = obj.attach_program(program, str(cgroup), how=how)
            assert (link is not None) == (how == "cgroup")
            assert counts(obj, act) > 0
            obj.detach()
            assert counts(obj, act) == 0


def test_lsm_cgroup(cgroup: Path, prefix: str) -> None:
    with load("lsm_cgroup") as obj:
        obj.attach_program("lsm_cgroup", str(cgroup))
        with pytest.raises(PermissionError):
            udp()
        assert obj.vars["count"] == 1
        obj.detach()
        udp()
