# SPDX-License-Identifier: BSD-2-Clause
"""bpf(2): one function through which every call goes, and a thin wrapper for each command.

``call`` is the only place that enters the kernel; the wrappers look it up at run time, so that
a test that replaces ``pybpf.sys.bpf.call`` sees every operation. Wrappers take and return plain
ints and bytes; the live objects are in ``pybpf.kernel``. Those that loading a Plan does not need
are in ``pybpf.sys.bpf_more``, which is imported when one of them is asked for. Every fd that the
kernel returns is close-on-exec (the kernel sets it, since 3.18).

Source of numbers and layouts: ``pybpf.sys.abi`` and ``pybpf.sys.layouts`` (generated).
"""

from __future__ import annotations

import posix
import struct
from _ctypes import addressof

from pybpf.errors import KernelError, UsageError
from pybpf.sys import abi, layouts
from pybpf.sys.syscalls import Char, Pointer, fail, machine, raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pybpf.sys.bpf_more import enable_stats as enable_stats
    from pybpf.sys.bpf_more import fd_by_id as fd_by_id
    from pybpf.sys.bpf_more import iter_create as iter_create
    from pybpf.sys.bpf_more import link_detach as link_detach
    from pybpf.sys.bpf_more import link_update as link_update
    from pybpf.sys.bpf_more import map_batch as map_batch
    from pybpf.sys.bpf_more import map_delete as map_delete
    from pybpf.sys.bpf_more import map_lookup as map_lookup
    from pybpf.sys.bpf_more import map_lookup_and_delete as map_lookup_and_delete
    from pybpf.sys.bpf_more import map_next_key as map_next_key
    from pybpf.sys.bpf_more import next_id as next_id
    from pybpf.sys.bpf_more import prog_attach as prog_attach
    from pybpf.sys.bpf_more import prog_bind_map as prog_bind_map
    from pybpf.sys.bpf_more import prog_detach as prog_detach
    from pybpf.sys.bpf_more import prog_query as prog_query
    from pybpf.sys.bpf_more import prog_run as prog_run
    from pybpf.sys.bpf_more import token_create as token_create

    Buffer = bytes | bytearray | memoryview
    Layout = dict[str, tuple[int, int]]

_pack_into = struct.pack_into
_unpack_from = struct.unpack_from
_FORMATS = {1: "=B", 2: "=H", 4: "=I", 8: "=Q", 16: "=16s"}
_MASKS = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}

EAGAIN, EINTR, ENOENT, ENOSPC = 11, 4, 2, 28
E2BIG, EFAULT, EINVAL, EPERM, ENOTSUPP = 7, 14, 22, 1, 524

# BPF_PROG_LOAD gives EAGAIN when a signal arrives during verification; libbpf also tries 5 times.
_LOAD_ATTEMPTS = 5
LOG_START = 1 << 16
LOG_LIMIT = (1 << 30) - 1  # the kernel takes at most UINT_MAX >> 2 (kernel/bpf/log.c)

# Commands that return an fd. A 0, 1 or 2 among them (a process started without standard streams,
# as PID 1 may be) would read as "none" in attributes where 0 is no fd.
_FD_COMMANDS = frozenset(
    (
        abi.BPF_MAP_CREATE, abi.BPF_PROG_LOAD, abi.BPF_OBJ_GET, abi.BPF_PROG_GET_FD_BY_ID,
        abi.BPF_MAP_GET_FD_BY_ID, abi.BPF_BTF_GET_FD_BY_ID, abi.BPF_LINK_GET_FD_BY_ID,
        abi.BPF_RAW_TRACEPOINT_OPEN, abi.BPF_BTF_LOAD, abi.BPF_LINK_CREATE, abi.BPF_ITER_CREATE,
        abi.BPF_ENABLE_STATS, abi.BPF_TOKEN_CREATE,
    )
)  # fmt: skip

_number = 0


def _bpf_number() -> int:
    global _number
    _number = {"x86_64": 321, "aarch64": 280}[machine()]  # a test holds them to numbers_*.py
    return _number


def command_name(cmd: int) -> str:
    """ "BPF_MAP_CREATE" for 0."""
    from pybpf.sys.abi_names import CMD_NAMES

    return CMD_NAMES.get(cmd, f"bpf command {cmd}")


def call(cmd: int, attr: bytearray, *, common: bytearray | None = None) -> int:
    """bpf(cmd, attr, len(attr)); the result.

    common: a struct bpf_common_attr: the five-argument form with BPF_COMMON_ATTRS (7.x; an older
    kernel refuses it with EINVAL). Raises KernelError (errno, call); EPERM carries a hint that
    was probed, not guessed. EINTR is retried, it changes nothing.
    """
    address = addressof(Char.from_buffer(attr))
    nr = _number or _bpf_number()
    while True:
        if common is None:
            result = raw(nr, cmd, address, len(attr))
        else:
            extra = addressof(Char.from_buffer(common))
            result = raw(
                nr, cmd | abi.BPF_COMMON_ATTRS, address, len(attr), extra, len(common)
            )
        if result != -EINTR:
            break
    if result >= 0:
        return _above_stdio(result) if result < 3 and cmd in _FD_COMMANDS else result
    code = -result
    hint = None
    if code == EPERM:
        from pybpf.sys.diagnose import permission_hint

        hint = permission_hint(cmd)
    raise fail(command_name(cmd), code, hint=hint)


def _above_stdio(fd: int) -> int:
    """Move an fd that landed on a standard stream's number out of the way."""
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    try:
        return fcntl(fd, F_DUPFD_CLOEXEC, 3)
    finally:
        posix.close(fd)


def pack(layout: Layout, size: int, fields: dict[str, int | bytes]) -> bytearray:
    """A zeroed struct of ``size`` bytes with ``fields`` put in at the layout's places."""
    attr = bytearray(size)
    for name, value in fields.items():
        if value:
            put(attr, layout, name, value)
    return attr


def put(attr: bytearray, layout: Layout, name: str, value: int | bytes) -> None:
    """Store one field, an unsigned int or a negative one of its width (-1 where that means none).

    Raises UsageError for what does not fit: cut, it would mean something else.
    """
    offset, width = layout[name]
    if isinstance(value, int):
        mask = _MASKS[width]
        if not -(mask >> 1) - 1 <= value <= mask:
            raise UsageError(f"{name} has {width} bytes, and {value} does not fit")
        _pack_into(_FORMATS[width], attr, offset, value & mask)
    elif not isinstance(value, (bytes, bytearray, memoryview)):
        raise UsageError(f"{name} is a number or bytes, not {type(value).__name__}")
    elif len(value) > width:
        raise UsageError(f"{name} takes {width} bytes, not {len(value)}")
    else:
        attr[offset : offset + len(value)] = value


def get(attr: Buffer, layout: Layout, name: str) -> int:
    """Read one unsigned integer field."""
    offset, width = layout[name]
    value: int = _unpack_from(_FORMATS[width], attr, offset)[0]
    return value


def object_name(name: str) -> bytes:
    """``name`` as the kernel takes names: at most 15 bytes of [A-Za-z0-9_.], others become "_"."""
    raw_name = name.encode("utf-8", "replace")[: abi.BPF_OBJ_NAME_LEN - 1]
    if raw_name.replace(b"_", b"a").replace(b".", b"a").isalnum():
        return raw_name
    keep = b"_.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return bytes(c if c in keep else 0x5F for c in raw_name)


# --- maps -------------------------------------------------------------------------------------


def map_create(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    name: str = "",
    flags: int = 0,
    extra: int = 0,
    numa_node: int | None = None,
    btf_fd: int = 0,
    key_type_id: int = 0,
    value_type_id: int = 0,
    inner_map_fd: int = 0,
    vmlinux_value_type_id: int = 0,
    value_type_btf_obj_fd: int = 0,
    token_fd: int = 0,
    excl_prog_hash: bytes = b"",
    log: bytearray | None = None,
) -> int:
    """BPF_MAP_CREATE: the new map's fd.

    log: a buffer for the kernel's words on a refusal, by the five-argument form (7.x; an older
    kernel refuses that form with EINVAL and leaves the buffer empty).

    numa_node sets BPF_F_NUMA_NODE; value_type_btf_obj_fd and token_fd set their flags.
    excl_prog_hash: SHA-256 of the only program that may use the map (6.18).
    """
    if numa_node is not None:
        flags |= abi.BPF_F_NUMA_NODE
    if value_type_btf_obj_fd:
        flags |= abi.BPF_F_VTYPE_BTF_OBJ_FD
    if token_fd:
        flags |= abi.BPF_F_TOKEN_FD
    digest = Pointer(excl_prog_hash or None)
    attr = pack(
        layouts.ATTR_MAP_CREATE,
        layouts.SIZE_MAP_CREATE,
        {
            "map_type": map_type,
            "key_size": key_size,
            "value_size": value_size,
            "max_entries": max_entries,
            "map_flags": flags,
            "inner_map_fd": inner_map_fd,
            "numa_node": numa_node or 0,
            "map_name": object_name(name) if name else b"",
            "btf_fd": btf_fd,
            "btf_key_type_id": key_type_id,
            "btf_value_type_id": value_type_id,
            "btf_vmlinux_value_type_id": vmlinux_value_type_id,
            "map_extra": extra,
            "value_type_btf_obj_fd": value_type_btf_obj_fd,
            "map_token_fd": token_fd,
            "excl_prog_hash": digest.address,
            "excl_prog_hash_size": len(excl_prog_hash),
        },
    )
    if log is None:
        return call(abi.BPF_MAP_CREATE, attr)
    held = Pointer(log)
    common = bytearray(layouts.SIZE_COMMON)
    _pack_into("=QII", common, 0, held.address, len(log), 1)
    return call(abi.BPF_MAP_CREATE, attr, common=common)


def _element(cmd: int, fd: int, key: Buffer | None, value: Buffer | None, flags: int) -> None:
    held_key, held_value = Pointer(key), Pointer(value)
    attr = bytearray(layouts.SIZE_MAP_ELEM)
    try:
        _pack_into("=I4xQQQ", attr, 0, fd, held_key.address, held_value.address, flags)
    except struct.error:
        raise UsageError(f"fd {fd} or flags {flags} is no such number") from None
    call(cmd, attr)


def map_update(fd: int, key: Buffer | None, value: Buffer, flags: int = 0) -> None:
    """BPF_MAP_UPDATE_ELEM; flags BPF_ANY, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK."""
    _element(abi.BPF_MAP_UPDATE_ELEM, fd, key, value, flags)


def map_freeze(fd: int) -> None:
    """BPF_MAP_FREEZE (5.2): no more writes from user space, also through maps already mmapped:
    EBUSY while a writable mapping exists."""
    attr = bytearray(layouts.SIZE_MAP_ELEM)
    _pack_into("=I", attr, 0, fd)
    call(abi.BPF_MAP_FREEZE, attr)


# --- programs ---------------------------------------------------------------------------------


def prog_load(attr_fields: dict[str, int | bytes], log: bytearray | None = None) -> int:
    """BPF_PROG_LOAD: the new program's fd; fields as in ``layouts.ATTR_PROG_LOAD``.

    log: a buffer for the verifier's log (field log_level says how much). Addresses in the fields
    must be kept alive by the caller. ``pybpf.kernel.create.program_fd`` grows the log.
    EAGAIN (a signal during verification) is retried.
    """
    held = Pointer(log)
    if log is not None:
        attr_fields = {**attr_fields, "log_buf": held.address, "log_size": len(log)}
    attr = pack(layouts.ATTR_PROG_LOAD, layouts.SIZE_PROG_LOAD, attr_fields)
    for _ in range(_LOAD_ATTEMPTS - 1):
        try:
            return call(abi.BPF_PROG_LOAD, attr)
        except KernelError as error:
            if error.errno != EAGAIN:
                raise
    return call(abi.BPF_PROG_LOAD, attr)


# --- BTF --------------------------------------------------------------------------------------


def btf_load(data: Buffer, log: bytearray | None = None, token_fd: int = 0) -> int:
    """BPF_BTF_LOAD (4.18): the BTF object's fd. log: a buffer for the kernel's complaints."""
    held, held_log = Pointer(data), Pointer(log)
    attr = pack(
        layouts.ATTR_BTF_LOAD,
        layouts.SIZE_BTF_LOAD,
        {
            "btf": held.address,
            "btf_size": len(data),
            "btf_log_buf": held_log.address,
            "btf_log_size": len(log or b""),
            "btf_log_level": 1 if log else 0,
            "btf_flags": abi.BPF_F_TOKEN_FD if token_fd else 0,
            "btf_token_fd": token_fd,
        },
    )
    return call(abi.BPF_BTF_LOAD, attr)


# --- links ------------------------------------------------------------------------------------


def link_create(prog_fd: int, target_fd: int, attach_type: int, **fields: int) -> int:
    """BPF_LINK_CREATE (5.7; tracing and LSM programs 5.18-5.20: see raw_tracepoint_open): the
    link's fd. fields: further ones of ``layouts.ATTR_LINK_CREATE``; a dot is written "__"
    (``perf_event__bpf_cookie=1``)."""
    attr = pack(
        layouts.ATTR_LINK_CREATE,
        layouts.SIZE_LINK_CREATE,
        {"prog_fd": prog_fd, "target_fd": target_fd, "attach_type": attach_type},
    )
    for name, value in fields.items():
        put(attr, layouts.ATTR_LINK_CREATE, name.replace("__", "."), value)
    return call(abi.BPF_LINK_CREATE, attr)


def raw_tracepoint_open(prog_fd: int, name: str | None = None, cookie: int = 0) -> int:
    """BPF_RAW_TRACEPOINT_OPEN (4.17): the link's fd.

    name None: a program whose target was given at load time (tp_btf, fentry, LSM)."""
    held = Pointer(None if name is None else name.encode() + b"\0")
    attr = bytearray(layouts.SIZE_RAW_TRACEPOINT)
    _pack_into("=QI4xQ", attr, 0, held.address, prog_fd, cookie)
    return call(abi.BPF_RAW_TRACEPOINT_OPEN, attr)


# --- objects of every kind --------------------------------------------------------------------


def _path(path: str) -> Pointer:
    if "\0" in path:
        raise UsageError(f"a path ends at a NUL byte, and {path!r} goes on")
    return Pointer(path.encode("utf-8", "surrogateescape") + b"\0")


def obj_pin(fd: int, path: str) -> None:
    """BPF_OBJ_PIN (4.4): ``path`` must be on a bpf filesystem, without dots in the last name."""
    held = _path(path)
    attr = bytearray(layouts.SIZE_OBJ)
    _pack_into("=QI", attr, 0, held.address, fd)
    call(abi.BPF_OBJ_PIN, attr)


def obj_get(path: str, flags: int = 0) -> int:
    """BPF_OBJ_GET: an fd of what is pinned at ``path``."""
    held = _path(path)
    attr = bytearray(layouts.SIZE_OBJ)
    _pack_into("=QII", attr, 0, held.address, 0, flags)
    return call(abi.BPF_OBJ_GET, attr)


def obj_get_info(fd: int, info: bytearray) -> int:
    """BPF_OBJ_GET_INFO_BY_FD (4.13) into ``info``; returns how many bytes the kernel knows."""
    held = Pointer(info)
    attr = bytearray(layouts.SIZE_INFO)
    _pack_into("=IIQ", attr, 0, fd, len(info), held.address)
    call(abi.BPF_OBJ_GET_INFO_BY_FD, attr)
    return get(attr, layouts.ATTR_INFO, "info_len")


def __getattr__(name: str) -> Any:
    """The other commands (PEP 562)."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pybpf.sys import bpf_more

    value = globals()[name] = getattr(bpf_more, name)
    return value
