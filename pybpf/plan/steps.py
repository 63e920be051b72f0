# SPDX-License-Identifier: BSD-2-Clause
"""What each operation of a Plan does when it is executed (pybpf.plan.run).

A step makes its system calls, puts the fd that it made into its slot and, where more is to be
undone than closing that fd, writes it into the executor's journal at once.
"""

from __future__ import annotations

import posix  # all that is used of os, which takes 1 ms to import
import struct

from pybpf.errors import KernelError, PlanError, PybpfError, SymbolNotFoundError
from pybpf.kernel import create as _create
from pybpf.kernel.cpus import possible_cpus
from pybpf.plan import ops as _ops
from pybpf.sys import abi, bpf
from pybpf.sys.syscalls import Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pybpf.plan.run import Executor

__all__ = [
    "btf_load", "kconfig_fill", "link_create", "lookup", "map_create", "map_fill", "map_freeze",
    "pin", "prog_load", "require_kernel", "struct_ops_fill",
]  # fmt: skip

# What mapping an arena a second time fails with: EBUSY, EEXIST, EINVAL.
_MAPPED_ALREADY = frozenset((16, 17, bpf.EINVAL))


def btf_load(executor: Executor, op: _ops.BtfLoad) -> None:
    try:
        executor.fill_slot(op.dst, _create.btf_fd(op.data, executor.token))
    except KernelError as error:
        if not op.optional:
            raise
        executor.notes.append(f"went on without BTF: {error}")


def lookup(executor: Executor, op: _ops.Lookup) -> None:
    from pybpf.kernel import btf_lookup

    answers = btf_lookup.resolve([(name, kind, mod) for _, name, kind, mod, _ in op.names])
    missing = []
    for (number, name, kind, module, weak), answer in zip(op.names, answers, strict=True):
        executor.symbols[number] = answer
        if answer is None and not weak:
            where = f" (module {module})" if module else ""
            missing.append(f"{btf_lookup.KIND_NAMES.get(kind, f'kind {kind}')} {name}{where}")
    if missing:
        # Their fds, if any, go with the others at the end of the run or with an undo.
        raise SymbolNotFoundError(
            f"the running kernel ({posix.uname().release}) has no {', '.join(missing)}.",
            names=tuple(missing),
        )


def map_create(executor: Executor, op: _ops.MapCreate) -> None:
    entries = op.max_entries
    if entries == _ops.NR_CPUS:
        entries = possible_cpus()
    reuse = executor.reuse.get(op.dst)
    if reuse is not None:
        _reuse_map(executor, op, posix.dup(reuse), entries, "the fd given")
        return
    if op.pin_path is not None:
        try:
            fd = bpf.obj_get(op.pin_path)
        except KernelError as error:
            if error.errno != bpf.ENOENT:
                raise error.at(map=op.name, path=op.pin_path)  # noqa: B904
        else:
            _reuse_map(executor, op, fd, entries, op.pin_path)
            return
    btf = executor.slots[op.btf] if op.btf is not None else -1
    with_btf = (
        btf >= 0
        and op.type not in _create.MAPS_WITHOUT_BTF
        and bool(op.key_type_id or op.value_type_id)
    )
    attributes: dict[str, int | None] = {}
    if op.inner is not None:
        attributes["inner_map_fd"] = executor.fd(op.inner, "inner map")
    if op.value_symbol is not None:
        symbol = executor.symbol(op.value_symbol)
        if symbol is None:
            raise PlanError("the type of its value is not in the kernel", map=op.name)
        attributes["vmlinux_value_type_id"] = symbol[1]
        attributes["value_type_btf_obj_fd"] = symbol[0]
        with_btf = False
        attributes["btf_fd"] = max(btf, 0)
    if op.numa_node is not None:
        attributes["numa_node"] = op.numa_node
    if with_btf:
        attributes["btf_fd"] = btf
        attributes["key_type_id"] = op.key_type_id
        attributes["value_type_id"] = op.value_type_id
    fd = _new_map(executor, op, entries, attributes)
    executor.fill_slot(op.dst, fd)
    if op.type == abi.BPF_MAP_TYPE_ARENA:
        _map_arena(executor, op.dst, entries, op.extra)
    elif op.type == abi.BPF_MAP_TYPE_PERCPU_ARRAY:
        executor.percpu.add(op.dst)
    if op.pin_path is not None:
        _pin_path(executor, fd, op.pin_path, map=op.name)


def _map_arena(executor: Executor, slot: int, pages: int, address: int) -> None:
    """An arena needs its address before a program of it is loaded."""
    from pybpf.kernel import arena

    try:
        where, size = arena.map_fd(executor.slots[slot], pages, address)
    except KernelError as error:
        raise error.at(map=_slot_name(executor, slot))  # noqa: B904
    executor.journal.append(("arena", slot, where, size))


def _new_map(
    executor: Executor, op: _ops.MapCreate, entries: int, attributes: dict[str, int | None]
) -> int:
    all_of_it: dict[str, Any] = {
        "name": op.name, "flags": op.flags, "extra": op.extra, **attributes
    }  # fmt: skip
    if executor.token:
        all_of_it["token_fd"] = executor.token
    if isinstance(op, _ops.ExclusiveMapCreate):
        all_of_it["excl_prog_hash"] = op.program_hash
    try:
        return _create.map_fd(op.type, op.key_size, op.value_size, entries, **all_of_it)
    except KernelError as error:
        older = _older(error)
        fd: int = older.create_map(op, entries, all_of_it, error, executor.notes)
        return fd


def _reuse_map(executor: Executor, op: _ops.MapCreate, fd: int, entries: int, where: str) -> None:
    executor.fill_slot(op.dst, fd)
    executor.reused.add(op.dst)
    from pybpf.plan import premises

    premises.same_map(op, fd, entries, where)
    if op.type == abi.BPF_MAP_TYPE_ARENA:
        try:
            _map_arena(executor, op.dst, entries, op.extra)
        except KernelError as error:
            # Whoever made it may have mapped it, in this process or another; then it has the
            # address that its programs need. The errno depends on where and on map_extra.
            if error.errno not in _MAPPED_ALREADY:
                raise


def map_fill(executor: Executor, op: _ops.MapFill) -> None:
    if op.map in executor.reused:
        return
    fd = executor.fd(op.map, "map")
    for entry in executor.journal:
        if entry[0] == "arena" and entry[1] == op.map:
            from pybpf.kernel import arena

            arena.fill(entry[2], entry[3], op.entries)  # type: ignore[arg-type]
            return
    for key, value in op.entries:
        if isinstance(value, int):
            value = struct.pack("=i", executor.fd(value))
        elif op.map in executor.percpu:
            # One value for all of them. The kernel takes that as it is only since
            # BPF_F_ALL_CPUS (7.0); padded and repeated it is what every kernel takes.
            from pybpf.kernel.cpus import possible_cpus

            value = value.ljust(-(-len(value) // 8) * 8, b"\0") * possible_cpus()
        try:
            bpf.map_update(fd, key, value)
        except KernelError as error:
            raise error.at(map=_slot_name(executor, op.map), key=key.hex())  # noqa: B904


def kconfig_fill(executor: Executor, op: _ops.KconfigFill) -> None:
    if op.map in executor.reused:
        return
    from pybpf.plan import kconfig

    version = kconfig.parse_release(posix.uname().release)
    data = kconfig.contents(op.values, version, kconfig.running_config)
    try:
        bpf.map_update(executor.fd(op.map, "map"), bytes(4), data)
    except KernelError as error:
        raise error.at(map=_slot_name(executor, op.map))  # noqa: B904


def struct_ops_fill(executor: Executor, op: _ops.StructOpsFill) -> None:
    data = bytearray(op.data)
    for offset, slot in op.programs:
        struct.pack_into("=Q", data, offset, executor.fd(slot, "program"))
    # An fd of its own: the map's may be closed by the user before the value is deleted.
    fd = posix.dup(executor.fd(op.map, "map"))
    try:
        bpf.map_update(fd, bytes(4), data)
        if op.register:
            executor.journal.append(("registered", fd))
            fd = -1
    except KernelError as error:
        raise error.at(map=_slot_name(executor, op.map))  # noqa: B904
    finally:
        if fd >= 0:
            posix.close(fd)


def map_freeze(executor: Executor, op: _ops.MapFreeze) -> None:
    if op.map in executor.reused:
        return
    try:
        bpf.map_freeze(executor.fd(op.map, "map"))
    except KernelError as error:
        raise error.at(map=_slot_name(executor, op.map))  # noqa: B904


def _slot_name(executor: Executor, slot: int) -> str:
    return executor.map_names.get(slot) or executor.program_names.get(slot) or f"in slot {slot}"


def prog_load(executor: Executor, op: _ops.ProgLoad) -> None:
    try:
        _load(executor, op)
    except PybpfError as error:
        if isinstance(error, KernelError) and error.errno == bpf.E2BIG and op.core_relos:
            error.hint = error.hint or (
                f"Linux {posix.uname().release}, if older than 5.17, does no relocations "
                'itself: make the Plan on this kernel with relocate="python".'
            )
        raise error.at(program=op.name, section=op.section or None)  # noqa: B904


def _load(executor: Executor, op: _ops.ProgLoad) -> None:
    fd_array = [executor.fd(slot, "fd_array") for slot in op.fd_array]
    code: bytes | bytearray = op.insns
    if op.patches:
        code = bytearray(code)
        from pybpf.plan import patch

        patch.apply(executor, code, op.patches, fd_array)
    fields: dict[str, int | bytes] = {
        "prog_type": op.type,
        "expected_attach_type": op.expected_attach_type,
        "prog_flags": op.flags,
        "kern_version": op.kern_version,
        "prog_ifindex": op.ifindex,
        "prog_name": bpf.object_name(op.name),
        "insn_cnt": len(code) // 8,
    }
    if executor.token:
        fields["prog_token_fd"] = executor.token
        fields["prog_flags"] = op.flags | abi.BPF_F_TOKEN_FD
    # Pointers are kept in this list until the load is over.
    held = []
    for field, data in (("insns", code), ("license", op.license.encode() + b"\0")):
        held.append(Pointer(data))
        fields[field] = held[-1].address
    if fd_array:
        held.append(Pointer(struct.pack(f"={len(fd_array)}I", *fd_array)))
        fields["fd_array"] = held[-1].address
    if op.btf is not None and executor.slots[op.btf] >= 0:
        fields["prog_btf_fd"] = executor.slots[op.btf]
        if op.core_relos and not op.func_info and not op.line_info:
            # Up to 6.12 at least, check_btf_info returns early then and leaves the
            # relocations undone (kernel/bpf/verifier.c).
            raise PlanError("core_relos are ignored without func_info or line_info")
        for name, data, size in (
            ("func_info", op.func_info, op.func_info_size),
            ("line_info", op.line_info, op.line_info_size),
            ("core_relo", op.core_relos, op.core_relo_size),
        ):
            if data:
                held.append(Pointer(data))
                fields["core_relos" if name == "core_relo" else name] = held[-1].address
                fields[name + "_cnt"] = len(data) // size
                fields[name + "_rec_size"] = size
    elif op.core_relos:
        raise PlanError("its CO-RE relocations need the object's BTF, which was not loaded")
    if op.name in executor.targets:
        from pybpf.kernel.btf import function_of

        target = executor.targets[op.name]
        fields["attach_prog_fd"] = target
        fields["attach_btf_id"] = function_of(target, op.section.rpartition("/")[2])
    elif op.attach_symbol is not None:
        symbol = executor.symbol(op.attach_symbol)
        if symbol is None:
            raise PlanError("what it attaches to is not in the kernel")
        fields["attach_btf_obj_fd"], fields["attach_btf_id"] = symbol
    elif op.attach_btf_id:
        fields["attach_btf_id"] = op.attach_btf_id
    if op.attach_prog is not None:
        fields["attach_prog_fd"] = executor.fd(op.attach_prog, "program")
    log: list[str] = []
    try:
        fd = _create.program_fd(fields, log_level=executor.log_level, log_out=log)
    except KernelError as error:
        older = _older(error)
        fd = older.load_program(op, fields, code, error, executor.log_level, log, executor.notes)
    del held
    if log:
        executor.logs[op.name] = log[0]
    executor.fill_slot(op.dst, fd)


def link_create(executor: Executor, op: _ops.LinkCreate) -> None:
    try:
        program = executor.fd(op.prog, "program")
        if op.how == "link" and (op.target is None or isinstance(op.target, int)):
            fd = bpf.link_create(
                program, op.target or 0, op.attach_type, flags=op.flags, **dict(op.extra)
            )
        elif op.how == "raw_tracepoint" and not isinstance(op.target, int):
            cookie = dict(op.extra).get("raw_tracepoint.cookie", 0)
            fd = bpf.raw_tracepoint_open(program, op.target, cookie)
        else:
            from pybpf.plan import attach

            attach.create(executor, op, program)
            return
    except PybpfError as error:
        raise error.at(link=op.name)  # noqa: B904
    executor.fill_slot(op.dst, fd)


def pin(executor: Executor, op: _ops.Pin) -> None:
    _pin_path(executor, executor.fd(op.src), op.path)


def _pin_path(executor: Executor, fd: int, path: str, **where: str) -> None:
    try:
        bpf.obj_pin(fd, path)
    except KernelError as error:
        from pybpf.kernel.object import pin_hint

        error.hint = pin_hint(path) or error.hint
        raise error.at(**where, path=path)  # noqa: B904
    executor.journal.append(("pin", path))


def require_kernel(_executor: Executor, op: _ops.RequireKernel) -> None:
    from pybpf.plan import premises

    premises.this_kernel(op)


def _older(error: KernelError) -> Any:
    """pybpf.plan.older; ``error`` where it cannot be imported, as when the initramfs is gone."""
    try:
        from pybpf.plan import older
    except ImportError:
        raise error from None
    return older
