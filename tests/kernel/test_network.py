# SPDX-License-Identifier: BSD-2-Clause
"""Programs that no link attaches, shown by effect: entries of device and CPU maps, and programs
that routes and traffic control take by their pin.

Everything happens in a network namespace of the test's own.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pybpf
from pybpf.errors import KernelError
from pybpf.plan.live import Object
from tests.kernel.helpers import settle
from tests.kernel.lacks import need

pytestmark = pytest.mark.kernel

FILE = Path(__file__).parent.parent / "objects" / "network.bpf.o"
SKB_MODE = 1 << 1  # XDP_FLAGS_SKB_MODE
PLAIN = ("action", "cgroup/skb", "cgroup/sock", "classifier", "lirc_mode2", "lwt_in", "lwt_out",
         "lwt_seg6local", "lwt_xmit", "raw_tracepoint.w/nbd_send_request", "sk_reuseport/migrate",
         "sk_skb", "sk_skb/stream_parser", "sk_skb/verdict", "syscall", "xdp.frags/cpumap",
         "xdp.frags/devmap", "xdp/cpumap", "xdp/devmap")  # fmt: skip


def load(*programs: str) -> Object:
    spec = pybpf.read(FILE)
    for name in spec.programs:
        if name not in programs:
            spec = spec.with_program(name, autoload=False)
    return pybpf.load(spec)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


CLONE_NEWNET = 0x40000000
PEER = "02:00:00:00:00:01"
SEGMENT_ROUTING = 4  # IPV6_SRCRT_TYPE_4


def _libc(name: str, *arguments: int) -> None:
    """unshare and setns, which Python has since 3.12 only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name} failed")


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network namespace with the pairs a0-a1 and b0-b1, all up."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        _libc("unshare", CLONE_NEWNET)
        try:
            ip("link", "set", "lo", "up")
            for pair in "ab":
                ip("link", "add", f"{pair}0", "type", "veth", "peer", "name", f"{pair}1")
                for end in "01":
                    ip("link", "set", f"{pair}{end}", "up")
            yield
        finally:
            _libc("setns", before, 0)
    finally:
        os.close(before)


def send_frame(device: str) -> None:
    """A broadcast frame out of ``device``: its peer receives it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0x0800))
        raw.send(b"\xff" * 6 + bytes(6) + b"\x08\0" + b"\x45" + bytes(59))


@pytest.mark.parametrize("program", sorted(pybpf.read(FILE).programs))
def test_every_section_loads(program: str, prefix: str) -> None:
    spec = pybpf.read(FILE)
    section = spec.programs[program].section
    assert section == "xdp" or section in PLAIN
    if program == "remote_control":
        need("lirc")
    with load(program) as obj:
        assert obj.programs[program].type == spec.programs[program].type
        if program != "writable":  # that is for a tracepoint of a driver
            obj.attach()
            assert obj.links == {}  # nothing says where to


@pytest.mark.parametrize(("sender", "table"), [("to_port", "ports"),
                                               ("to_port_of_table", "port_table")])  # fmt: skip
def test_a_program_in_a_device_map(
    sender: str, table: str, namespace: None, prefix: str
) -> None:
    """A frame that a1 receives is redirected to b0, where the entry's program sees it."""
    with load(sender, "at_port") as obj:
        ports = obj.maps[table]
        key = 7 if table == "port_table" else 0
        program = obj.programs["at_port"]
        index = socket.if_nametoindex("b0")
        ports[key] = {"ifindex": index, "bpf_prog": {"fd": program.fileno()}}
        assert ports[key] == {"ifindex": index, "bpf_prog": {"fd": program.id}}
        obj.attach_program(sender, "a1", flags=SKB_MODE)
        send_frame("a0")
        assert settle(lambda: obj.vars["arrived"] >= 1, 10)
        assert obj.vars["redirected"] >= obj.vars["arrived"]
        with pytest.raises(KernelError):  # a program for another place
            ports[key] = {"ifindex": index, "bpf_prog": {"fd": obj.programs[sender].fileno()}}


def test_a_program_in_a_cpu_map(namespace: None, prefix: str) -> None:
    with load("to_processor", "at_processor") as obj:
        program = obj.programs["at_processor"]
        obj.maps["processors"][0] = {"qsize": 64, "bpf_prog": {"fd": program.fileno()}}
        obj.attach_program("to_processor", "a1", flags=SKB_MODE)
        send_frame("a0")
        assert settle(lambda: obj.vars["arrived"] >= 1, 10)


@pytest.mark.parametrize(("program", "hook"), [("route_in", "in"), ("route_out", "out"),
                                               ("route_xmit", "xmit")])  # fmt: skip
def test_a_route(program: str, hook: str, namespace: None, bpffs: Path, prefix: str) -> None:
    """Lightweight tunnels: ``ip route … encap bpf`` takes a program by its pin."""
    pin = bpffs / "program"
    with load(program) as obj:
        obj.programs[program].pin(str(pin))
        route = ["route", "add", "10.77.0.1/32", "encap", "bpf", hook, "pinned", str(pin)]
        if hook == "in":
            ip("addr", "add", "10.77.0.1/32", "dev", "lo")
            route = ["route", "replace", "local", *route[2:], "table", "local"]
        done = subprocess.run(["ip", *route, "dev", "lo"], capture_output=True, text=True,
                              check=False)  # fmt: skip
        if done.returncode:
            assert "not supported" in done.stderr or "unknown" in done.stderr, done.stderr
            pytest.skip(f"no lwt here: {done.stderr}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.1", 0))
            sender.sendto(b"x", ("10.77.0.1", 9))
        assert settle(lambda: obj.vars["arrived"] >= 1, 10)


def test_a_segment(namespace: None, bpffs: Path, prefix: str) -> None:
    """``ip route … encap seg6local action End.BPF``: a packet that is routed by its segments."""
    need("seg6local")
    pin, segment, last = bpffs / "program", "fd00:77::1", "fd00:77::2"
    with load("route_segment") as obj:
        obj.programs["route_segment"].pin(str(pin))
        ip("-6", "route", "add", f"{segment}/128", "encap", "seg6local", "action", "End.BPF",
           "endpoint", "pinned", str(pin), "dev", "a0")  # fmt: skip
        ip("-6", "addr", "add", f"{last}/128", "dev", "a0", "nodad")
        ip("link", "set", "a1", "address", PEER)
        ip("-6", "neigh", "add", segment, "lladdr", PEER, "dev", "a0")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            # RFC 8754: the last segment comes first, and the kernel fills it in.
            header = bytes((0, 4, SEGMENT_ROUTING, 1, 1, 0, 0, 0)) + bytes(16)
            header += socket.inet_pton(socket.AF_INET6, segment)
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
            sender.sendto(b"x", (last, 9))
        assert settle(lambda: obj.vars["arrived"] >= 1, 10)


@pytest.mark.parametrize("program", ["classify", "act"])
def test_traffic_control(program: str, namespace: None, bpffs: Path, prefix: str) -> None:
    """The classic way, by ``tc`` and a pin; tcx links are in test_attach_network."""
    pin = bpffs / "program"
    with load(program) as obj:
        obj.programs[program].pin(str(pin))
        subprocess.run(["tc", "qdisc", "add", "dev", "a1", "clsact"], check=True)
        if program == "classify":
            rest = ["bpf", "direct-action", "object-pinned", str(pin)]
        else:
            rest = ["matchall", "action", "bpf", "object-pinned", str(pin)]
        done = subprocess.run(["tc", "filter", "add", "dev", "a1", "ingress", *rest],
                              capture_output=True, text=True, check=False)  # fmt: skip
        if done.returncode:
            assert program == "act", done.stderr
            assert "classifier not found" in done.stderr, done.stderr  # CONFIG_NET_CLS_MATCHALL
            pytest.skip("no actions of tc here")
        send_frame("a0")
        assert settle(lambda: obj.vars["arrived"] >= 1, 10)
