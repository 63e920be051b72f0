# SPDX-License-Identifier: BSD-2-Clause
"""Attempts by bpf(2): reaching objects by id or pin, and using the kernel's BPF at all.

Written with raw attributes (include/uapi/linux/bpf.h), so that they do not depend on the
library that is under test.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from tests.vm import raw
from tests.vm.outcome import Outcome
from tests.vm.probes import attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Act = Callable[..., int]

__all__ = [
    "bpf",
    "bpf_result",
    "create_map",
    "fd_by_id",
    "ids",
    "link_detach",
    "link_update",
    "list_objects",
    "load_program",
    "lookup_by_id",
    "map_update_by_id",
    "object_get",
]

_NEXT_ID = {"program": 11, "map": 12, "btf": 23, "link": 31}
_FD_BY_ID = {"program": 13, "map": 14, "btf": 19, "link": 30}
_SOCKET_FILTER = 1


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """bpf(2): its result and the attributes afterwards.

    Raises:
        OSError: the call failed.
    """
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return raw.call("bpf", command, buffer, len(attributes)), buffer.raw


def _address(buffer: object) -> int:
    return ctypes.addressof(buffer)  # type: ignore[arg-type]


def _open_by_id(kind: str, number: int) -> int:
    return bpf(_FD_BY_ID[kind], struct.pack("<III", number, 0, 0))[0]


def ids(kind: str) -> list[int]:
    """The ids of all objects of a kind (``program``, ``map``, ``link``, ``btf``)."""
    found: list[int] = []
    number = 0
    while True:
        try:
            _, answer = bpf(_NEXT_ID[kind], struct.pack("<III", number, 0, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return found
            raise
        number = struct.unpack_from("<I", answer, 4)[0]
        found.append(number)


def fd_by_id(kind: str, number: int) -> Outcome:
    """BPF_{PROG,MAP,LINK,BTF}_GET_FD_BY_ID."""
    return attempt(lambda act: act(_open_by_id, kind, number))


def list_objects(kind: str) -> Outcome:
    """Walk all ids of a kind; the detail has their number."""

    def body(act: Act) -> str:
        count = act(lambda: len(ids(kind)))
        return f"{count} ids"

    return attempt(body)


def object_get(path: str) -> Outcome:
    """BPF_OBJ_GET of a pin."""

    def body(act: Act) -> None:
        name = ctypes.create_string_buffer(path.encode() + b"\0")
        act(bpf_result, 7, struct.pack("<QIIi", _address(name), 0, 0, 0))

    return attempt(body)


def bpf_result(command: int, attributes: bytes) -> int:
    """bpf(2), without the attributes."""
    return bpf(command, attributes)[0]


def lookup_by_id(number: int, key: bytes, value_size: int) -> Outcome:
    """A map's descriptor by id, then BPF_MAP_LOOKUP_ELEM; the act is both."""

    def both() -> int:
        fd = _open_by_id("map", number)
        where = ctypes.create_string_buffer(key, len(key))
        value = ctypes.create_string_buffer(value_size)
        return bpf_result(1, struct.pack("<IIQQQ", fd, 0, _address(where), _address(value), 0))

    return attempt(lambda act: act(both))


def map_update_by_id(number: int, key: bytes, value: bytes) -> Outcome:
    """A map's descriptor by id, then BPF_MAP_UPDATE_ELEM; the act is both."""

    def both() -> int:
        fd = _open_by_id("map", number)
        where = ctypes.create_string_buffer(key, len(key))
        what = ctypes.create_string_buffer(value, len(value))
        return bpf_result(2, struct.pack("<IIQQQ", fd, 0, _address(where), _address(what), 0))

    return attempt(lambda act: act(both))


def create_map() -> Outcome:
    """BPF_MAP_CREATE of an array: others may go on using BPF."""
    return attempt(lambda act: act(bpf_result, 0, struct.pack("<IIIII", 2, 4, 4, 1, 0)))


def load_program() -> Outcome:
    """BPF_PROG_LOAD of a socket filter that returns 0: others may go on using BPF."""

    def body(act: Act) -> None:
        instructions = ctypes.create_string_buffer(
            bytes.fromhex("b700000000000000 9500000000000000".replace(" ", "")), 16
        )
        licence = ctypes.create_string_buffer(b"GPL\0")
        attributes = struct.pack(
            "<IIQQ28x", _SOCKET_FILTER, 2, _address(instructions), _address(licence)
        )
        act(bpf_result, 5, attributes)

    return attempt(body)


def link_detach(number: int) -> Outcome:
    """A link's descriptor by id, then BPF_LINK_DETACH; the act is both."""

    def both() -> int:
        return bpf_result(34, struct.pack("<I", _open_by_id("link", number)))

    return attempt(lambda act: act(both))


def link_update(number: int, program: int) -> Outcome:
    """A link's descriptor by id, then BPF_LINK_UPDATE to the program fd; the act is both."""

    def both() -> int:
        link = _open_by_id("link", number)
        return bpf_result(29, struct.pack("<IIII", link, program, 0, 0))

    return attempt(lambda act: act(both))
