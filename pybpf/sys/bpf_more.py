# SPDX-License-Identifier: BSD-2-Clause
"""The other half of ``pybpf.sys.bpf``: commands that loading a Plan does not need.

They are used through ``pybpf.sys.bpf``, which gets them here when one is first asked for.
"""

from __future__ import annotations

import struct

from pybpf.errors import KernelError
from pybpf.sys import abi, bpf, layouts
from pybpf.sys.syscalls import Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    Buffer = bytes | bytearray | memoryview

__all__ = [
    "enable_stats", "fd_by_id", "iter_create", "link_detach", "link_update", "map_batch",
    "map_delete", "map_lookup", "map_lookup_and_delete", "map_next_key", "next_id", "prog_attach",
    "prog_bind_map", "prog_detach", "prog_query", "prog_run", "token_create",
]  # fmt: skip

_pack_into = struct.pack_into
_unpack_from = struct.unpack_from


def _found(cmd: int, fd: int, key: Buffer | None, value: Buffer | None, flags: int = 0) -> bool:
    """A command on one element; False where ENOENT says that it is not there."""
    try:
        bpf._element(cmd, fd, key, value, flags)
    except KernelError as error:
        if error.errno == bpf.ENOENT:
            return False
        raise
    return True


def map_lookup(fd: int, key: Buffer | None, value: bytearray, flags: int = 0) -> bool:
    """BPF_MAP_LOOKUP_ELEM into ``value`` (its length is the kernel's value size, for per-CPU maps
    the rounded size times the possible CPUs). False: no such element."""
    return _found(abi.BPF_MAP_LOOKUP_ELEM, fd, key, value, flags)


def map_lookup_and_delete(fd: int, key: Buffer | None, value: bytearray, flags: int = 0) -> bool:
    """BPF_MAP_LOOKUP_AND_DELETE_ELEM (queues and stacks 4.20, hash maps 5.14)."""
    return _found(abi.BPF_MAP_LOOKUP_AND_DELETE_ELEM, fd, key, value, flags)


def map_delete(fd: int, key: Buffer) -> bool:
    """BPF_MAP_DELETE_ELEM. False: no such element."""
    return _found(abi.BPF_MAP_DELETE_ELEM, fd, key, None)


def map_next_key(fd: int, key: Buffer | None, next_key: bytearray) -> bool:
    """BPF_MAP_GET_NEXT_KEY; key None: the first one (4.12). False: there is no further key."""
    return _found(abi.BPF_MAP_GET_NEXT_KEY, fd, key, next_key)


def map_batch(
    cmd: int,
    fd: int,
    count: int,
    *,
    in_batch: Buffer | None = None,
    out_batch: bytearray | None = None,
    keys: Buffer | None = None,
    values: Buffer | None = None,
    elem_flags: int = 0,
) -> tuple[int, bool]:
    """BPF_MAP_LOOKUP_BATCH and its three sisters (5.6): (elements done, end reached).

    end reached: the kernel answered ENOENT after the last element of a look-up.
    A KernelError has a ``count`` place: how many elements were done before it.
    """
    held = [Pointer(part) for part in (in_batch, out_batch, keys, values)]
    attr = bytearray(layouts.SIZE_MAP_BATCH)
    _pack_into(
        "=QQQQIIQQ", attr, 0, *(part.address for part in held), count, fd, elem_flags, 0
    )  # fmt: skip
    try:
        bpf.call(cmd, attr)
    except KernelError as error:
        done = bpf.get(attr, layouts.ATTR_MAP_BATCH, "count")
        if error.errno == bpf.ENOENT and out_batch is not None:
            return done, True
        raise error.at(count=done)  # noqa: B904
    return bpf.get(attr, layouts.ATTR_MAP_BATCH, "count"), False


def prog_run(
    fd: int,
    *,
    data_in: Buffer | None = None,
    data_out: bytearray | None = None,
    ctx_in: Buffer | None = None,
    ctx_out: bytearray | None = None,
    repeat: int = 0,
    flags: int = 0,
    cpu: int = 0,
    batch_size: int = 0,
) -> tuple[int, int, int, int]:
    """BPF_PROG_RUN: (return value, nanoseconds per run, bytes of data out, bytes of ctx out).

    BPF_PROG_TYPE_SYSCALL: ctx_in only (5.14).
    """
    # An address without a size is refused (kernel/bpf/syscall.c: bpf_prog_test_run).
    held = [Pointer(part or None) for part in (data_in, data_out, ctx_in, ctx_out)]
    layout = layouts.ATTR_PROG_RUN
    attr = bpf.pack(
        layout,
        layouts.SIZE_PROG_RUN,
        {
            "prog_fd": fd,
            "data_size_in": len(data_in or b""),
            "data_size_out": len(data_out or b""),
            "data_in": held[0].address,
            "data_out": held[1].address,
            "repeat": repeat,
            "ctx_size_in": len(ctx_in or b""),
            "ctx_size_out": len(ctx_out or b""),
            "ctx_in": held[2].address,
            "ctx_out": held[3].address,
            "flags": flags,
            "cpu": cpu,
            "batch_size": batch_size,
        },
    )
    bpf.call(abi.BPF_PROG_RUN, attr)
    return (
        bpf.get(attr, layout, "retval"),
        bpf.get(attr, layout, "duration"),
        bpf.get(attr, layout, "data_size_out"),
        bpf.get(attr, layout, "ctx_size_out"),
    )


def prog_attach(
    prog_fd: int, target_fd: int, attach_type: int, flags: int = 0, replace_fd: int = 0
) -> None:
    """BPF_PROG_ATTACH: without a link; lasts until detached or until the target goes."""
    attr = bytearray(layouts.SIZE_PROG_ATTACH)
    _pack_into("=IIIII", attr, 0, target_fd, prog_fd, attach_type, flags, replace_fd)
    bpf.call(abi.BPF_PROG_ATTACH, attr)


def prog_detach(prog_fd: int, target_fd: int, attach_type: int) -> None:
    """BPF_PROG_DETACH."""
    attr = bytearray(layouts.SIZE_PROG_ATTACH)
    _pack_into("=III", attr, 0, target_fd, prog_fd, attach_type)
    bpf.call(abi.BPF_PROG_DETACH, attr)


def prog_query(target_fd: int, attach_type: int, flags: int = 0) -> list[int]:
    """BPF_PROG_QUERY (4.15): ids of the programs attached to ``target_fd``."""
    count = 64
    # LSM programs of a cgroup are not told without each one's flags (kernel/bpf/cgroup.c,
    # __cgroup_bpf_query, 6.0), and flags are not told of effective ones.
    lsm = attach_type == abi.BPF_LSM_CGROUP and not flags & abi.BPF_F_QUERY_EFFECTIVE
    while True:
        ids, each = bytearray(4 * count), bytearray(4 * count if lsm else 0)
        held, held_flags = Pointer(ids), Pointer(each) if lsm else None
        attr = bpf.pack(
            layouts.ATTR_PROG_QUERY,
            layouts.SIZE_PROG_QUERY,
            {
                "target_fd": target_fd,
                "attach_type": attach_type,
                "query_flags": flags,
                "prog_ids": held.address,
                "prog_cnt": count,
                "prog_attach_flags": held_flags.address if held_flags else 0,
            },
        )
        try:
            bpf.call(abi.BPF_PROG_QUERY, attr)
        except KernelError as error:
            if error.errno != bpf.ENOSPC:
                raise
            count = max(2 * count, bpf.get(attr, layouts.ATTR_PROG_QUERY, "prog_cnt"))
            continue
        found = bpf.get(attr, layouts.ATTR_PROG_QUERY, "prog_cnt")
        return list(_unpack_from(f"={found}I", ids))


def prog_bind_map(prog_fd: int, map_fd: int) -> None:
    """BPF_PROG_BIND_MAP (5.10): the program keeps the map alive."""
    attr = bytearray(layouts.SIZE_PROG_BIND_MAP)
    _pack_into("=II", attr, 0, prog_fd, map_fd)
    bpf.call(abi.BPF_PROG_BIND_MAP, attr)


def link_update(link_fd: int, new_prog_fd: int, old_prog_fd: int | None = None) -> None:
    """BPF_LINK_UPDATE (5.7); old_prog_fd: fail unless this is the present one. Tracing and LSM
    links cannot be updated."""
    flags = 0 if old_prog_fd is None else abi.BPF_F_REPLACE
    attr = bytearray(layouts.SIZE_LINK_UPDATE)
    _pack_into("=IIII", attr, 0, link_fd, new_prog_fd, flags, old_prog_fd or 0)
    bpf.call(abi.BPF_LINK_UPDATE, attr)


def link_detach(link_fd: int) -> None:
    """BPF_LINK_DETACH (5.9). Tracing and LSM links cannot be detached: close their fds."""
    attr = bytearray(layouts.SIZE_LINK_DETACH)
    _pack_into("=I", attr, 0, link_fd)
    bpf.call(abi.BPF_LINK_DETACH, attr)


def iter_create(link_fd: int) -> int:
    """BPF_ITER_CREATE (5.8): an fd to read(2) the iterator's output from."""
    attr = bytearray(layouts.SIZE_ITER_CREATE)
    _pack_into("=I", attr, 0, link_fd)
    return bpf.call(abi.BPF_ITER_CREATE, attr)


def next_id(cmd: int, start: int) -> int | None:
    """BPF_{PROG,MAP,BTF,LINK}_GET_NEXT_ID: the next id above ``start``, None after the last."""
    attr = bytearray(layouts.SIZE_GET_ID)
    _pack_into("=I", attr, 0, start)
    try:
        bpf.call(cmd, attr)
    except KernelError as error:
        if error.errno == bpf.ENOENT:
            return None
        raise
    return bpf.get(attr, layouts.ATTR_GET_ID, "next_id")


def fd_by_id(cmd: int, ident: int, flags: int = 0) -> int:
    """BPF_{PROG,MAP,BTF,LINK}_GET_FD_BY_ID; flags BPF_F_RDONLY or BPF_F_WRONLY (maps)."""
    attr = bytearray(layouts.SIZE_GET_ID)
    _pack_into("=III", attr, 0, ident, 0, flags)
    return bpf.call(cmd, attr)


def enable_stats() -> int:
    """BPF_ENABLE_STATS (5.8): run time and run count of programs are kept while the fd is open."""
    attr = bytearray(layouts.SIZE_ENABLE_STATS)
    _pack_into("=I", attr, 0, abi.BPF_STATS_RUN_TIME)
    return bpf.call(abi.BPF_ENABLE_STATS, attr)


def token_create(bpffs_fd: int) -> int:
    """BPF_TOKEN_CREATE (6.9) from a bpf filesystem mounted with delegation options."""
    attr = bytearray(layouts.SIZE_TOKEN_CREATE)
    _pack_into("=II", attr, 0, 0, bpffs_fd)
    return bpf.call(abi.BPF_TOKEN_CREATE, attr)
