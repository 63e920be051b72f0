# SPDX-License-Identifier: BSD-2-Clause
"""What the tests of attaching share: the object, counting what its programs see, real events."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pybpf
from pybpf.plan.live import Object
from pybpf.spec import ObjectSpec
from tests.kernel.lacks import need

FILE = Path(__file__).parent.parent / "objects" / "attach.bpf.o"


_read = functools.cache(pybpf.read)


def only(*programs: str) -> ObjectSpec:
    """The object with these programs only, which count for this process."""
    spec = _read(FILE)
    for name in spec.programs:
        if name not in programs:
            spec = spec.with_program(name, autoload=False)
    return spec.with_variables(pid=os.getpid())


def load(*programs: str, **more: Any) -> Object:
    """``only`` these, loaded; the test is skipped where the kernel lacks what one needs."""
    for name in programs:
        need(name)
    return pybpf.load(only(*programs), **more)


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
        a.settimeout(120)
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
