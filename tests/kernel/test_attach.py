# SPDX-License-Identifier: BSD-2-Clause
"""Every way of attaching, shown by its effect: a real event is seen by the program.

This module has iterators and struct_ops, what is told where nothing can be attached, and undoing;
test_attach_tracing and test_attach_network have the others. They run on the development host as
far as its kernel goes, and in both guests, where nothing may be skipped but what that kernel
lacks (tests/vm/test_attach.py).
"""

from __future__ import annotations

import socket

import pytest

import pybpf
from pybpf.errors import KernelError, PlanError, UsageError
from pybpf.kernel.link import Link
from pybpf.sys import abi, bpf, syscalls
from tests.kernel.attaching import FILE, counts, load, udp
from tests.kernel.helpers import fds_to_begin_with, open_fds, settle

pytestmark = pytest.mark.kernel


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
    with pybpf.load(FILE.parent / "struct_ops.bpf.o") as obj:
        obj.attach()
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
    with pybpf.load(spec.with_map("old_control", autocreate=True)) as obj:
        with pytest.raises(FileNotFoundError):
            send_with(b"pybpf_old")
        if end == "failure":
            # The other one, which comes after, cannot be put into force: somebody else's is.
            with pybpf.load(FILE.parent / "struct_ops.bpf.o").attach():
                with pytest.raises(KernelError, match="EEXIST"):
                    obj.attach()
                send_with(b"pybpf_test")
        else:
            obj.attach()
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
