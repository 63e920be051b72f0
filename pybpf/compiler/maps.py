# SPDX-License-Identifier: BSD-2-Clause
"""MapSpecs → operations: create, fill, freeze."""

from __future__ import annotations

import struct
import sys

from pybpf.compiler.places import Places
from pybpf.compiler.target import Target
from pybpf.elf.fixup import KCONFIG
from pybpf.elf.jump_tables import JUMP_TABLES
from pybpf.errors import CompileError
from pybpf.plan import ops
from pybpf.plan.frozen import sha256
from pybpf.record import replace
from pybpf.reloc.finish import arena_data_offset
from pybpf.spec import MapSpec, ObjectSpec
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PIN_ROOT", "arena_at_end", "create", "exclusive", "fill", "jump_table", "late_fill"]

PIN_ROOT = "/sys/fs/bpf"

_NO_SIZE = frozenset(  # max_entries must be 0, or means nothing
    (
        abi.BPF_MAP_TYPE_SK_STORAGE,
        abi.BPF_MAP_TYPE_INODE_STORAGE,
        abi.BPF_MAP_TYPE_TASK_STORAGE,
        abi.BPF_MAP_TYPE_CGRP_STORAGE,
        abi.BPF_MAP_TYPE_CGROUP_STORAGE_DEPRECATED,
        abi.BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE,
        abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY,
        abi.BPF_MAP_TYPE_STRUCT_OPS,
    )
)


def needs_size(spec: MapSpec) -> bool:
    """Whether max_entries is 0 where the kernel wants a number (MAP_CREATE gives EINVAL)."""
    return spec.max_entries == 0 and spec.type not in _NO_SIZE


def create(
    spec: ObjectSpec,
    places: Places,
    btf: int | None,
    pin_root: str | None,
    value_symbols: Mapping[str, int],
) -> list[ops.Op]:
    """Operations that create every map that is to be created, in the order of the file.

    value_symbols: struct_ops map → symbol of its value's type in the kernel.
    """
    out: list[ops.Op] = []
    for found in spec.maps.values():
        if not found.autocreate:
            continue
        inner = None
        if found.inner is not None:
            template = found.inner
            if needs_size(template):
                template = replace(template, max_entries=1)
            inner = places.slot("inner", found.name)
            out.append(_create(template, inner, btf, None, None))
        elif found.type in (abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, abi.BPF_MAP_TYPE_HASH_OF_MAPS):
            raise CompileError(
                "a map of maps needs to know what its inner maps look like.",
                hint="Define `values` in the map, or give the spec an inner MapSpec "
                "(with_map(name, inner=…)).",
                map=found.name,
            )
        made = _create(found, places.slot("map", found.name), btf, inner, pin_root)
        made.value_symbol = value_symbols.get(found.name)
        out.append(made)
    return out


def _create(
    spec: MapSpec, slot: int, btf: int | None, inner: int | None, pin_root: str | None
) -> ops.MapCreate:
    entries = spec.max_entries
    if spec.type == abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY and entries == 0:
        entries = ops.NR_CPUS
    path = spec.pin_path
    if path is None and spec.pin:
        path = f"{pin_root or PIN_ROOT}/{spec.name}"
    return ops.MapCreate(
        dst=slot,
        name=spec.kernel_name or spec.name,
        type=spec.type,
        key_size=spec.key_size,
        value_size=spec.value_size,
        max_entries=entries,
        flags=spec.flags,
        extra=spec.extra,
        numa_node=spec.numa_node,
        btf=btf,
        key_type_id=spec.key_type_id,
        value_type_id=spec.value_type_id,
        inner=inner,
        pin_path=path,
    )


def exclusive(
    spec: ObjectSpec, operations: list[ops.Op], loads: list[ops.Op]
) -> list[ops.Op]:
    """``operations`` in which maps of one program alone name it by its hash.

    Raises CompileError where what is loaded is not known before: a program that the kernel
    relocates, or that refers to what only the running kernel has.
    """
    wanted = {m.kernel_name or m.name: m for m in spec.maps.values() if m.exclusive is not None}
    if not wanted:
        return operations
    programs = {op.name: op for op in loads if isinstance(op, ops.ProgLoad)}
    out = []
    for op in operations:
        found = wanted.get(op.name) if isinstance(op, ops.MapCreate) else None
        if isinstance(op, ops.MapCreate) and found is not None:
            load = programs.get(found.exclusive or "")
            if load is None:
                raise CompileError(
                    f"it is for program {found.exclusive!r} alone, which is not loaded.",
                    map=found.name,
                )
            fields = {name: getattr(op, name) for name in op.FIELDS}
            op = ops.ExclusiveMapCreate(**fields, program_hash=_program_hash(load, found.name))
        out.append(op)
    return out


def _program_hash(load: ops.ProgLoad, name: str) -> bytes:
    """SHA-256 of the instructions with map fds zeroed (kernel: bpf_prog_calc_tag)."""
    if load.core_relos or any(kind != ops.PATCH_MAP_FD for _, kind, _ in load.patches):
        raise CompileError(
            f"it is for program {load.name!r} alone, whose instructions only the running kernel "
            "knows.",
            hint='Compile it with relocate="python", and use no symbols of modules.',
            map=name,
        )
    code = bytearray(load.insns)
    at = 0
    while at < len(code):
        wide = code[at] == 0x18
        source = code[at + 1] >> 4 if sys.byteorder == "little" else code[at + 1] & 15
        if wide and source in (abi.BPF_PSEUDO_MAP_FD, abi.BPF_PSEUDO_MAP_VALUE):
            code[at + 4 : at + 8] = code[at + 12 : at + 16] = bytes(4)
        at += 16 if wide else 8
    return sha256(bytes(code))


def arena_at_end(spec: ObjectSpec, target: Target) -> bool:
    """Where an arena's variables go (see reloc.finish.arena_data_offset). As in libbpf the kernel
    underneath is asked, also for another kernel's BTF, and only if there are such variables."""
    if not any(m.type == abi.BPF_MAP_TYPE_ARENA and m.data for m in spec.maps.values()):
        return False
    from pybpf.kernel.features import wide_offsets

    return wide_offsets() is True


def fill(spec: ObjectSpec, places: Places, *, arena_at_end: bool) -> list[ops.Op]:
    """Initial contents known before programs are loaded, and freezing what is read-only.

    arena_at_end: see reloc.finish.arena_data_offset. The values of .kconfig come from the kernel,
    not from the spec.
    """
    out: list[ops.Op] = []
    for found in spec.maps.values():
        if not found.autocreate or found.name == KCONFIG:
            continue
        slot = places.slot("map", found.name)
        if found.struct_ops:
            continue
        if found.type == abi.BPF_MAP_TYPE_ARENA:
            start = arena_data_offset(found, arena_at_end)
            if found.data is not None and found.data.strip(b"\0"):
                # The key is the place: the executor writes into the arena's memory.
                out.append(
                    ops.MapFill(map=slot, entries=((struct.pack("=I", start), found.data),))
                )
            continue
        if found.data is not None:
            # A new array is all zeroes: nothing to write for .bss.
            if found.data.strip(b"\0"):
                data = found.data.ljust(found.value_size, b"\0")
                out.append(ops.MapFill(map=slot, entries=((bytes(4), data),)))
            if found.frozen:
                out.append(ops.MapFreeze(map=slot))
            continue
        entries = tuple(
            (key, _inner_slot(spec, places, found, value) if isinstance(value, str) else value)
            for key, value in found.initial
            if not isinstance(value, str) or value in spec.maps
        )
        if entries:
            out.append(ops.MapFill(map=slot, entries=entries))
    return out


def _inner_slot(spec: ObjectSpec, places: Places, outer: MapSpec, name: str) -> int:
    if not spec.maps[name].autocreate:
        raise CompileError(f"its element {name!r} is not created.", map=outer.name)
    return places.slot("map", name)


def jump_table(slot: int, targets: tuple[int, ...]) -> list[ops.Op]:
    """The map of a program's jump table, whose entries are slots of that program (6.19).

    The verifier takes it only frozen (b4ce5923e780).
    """
    # struct bpf_insn_array_value: orig_off; the kernel fills in where it went.
    entries = tuple(
        (struct.pack("=I", index), struct.pack("=I12x", target))
        for index, target in enumerate(targets)
    )
    return [
        ops.MapCreate(
            dst=slot, name=JUMP_TABLES, type=abi.BPF_MAP_TYPE_INSN_ARRAY, key_size=4,
            value_size=16, max_entries=len(targets),
        ),
        ops.MapFill(map=slot, entries=entries),
        ops.MapFreeze(map=slot),
    ]  # fmt: skip


def late_fill(spec: ObjectSpec, places: Places, loaded: frozenset[str]) -> list[ops.Op]:
    """Program arrays: their entries are programs, which must be loaded first."""
    out: list[ops.Op] = []
    for found in spec.maps.values():
        if not found.autocreate or found.type != abi.BPF_MAP_TYPE_PROG_ARRAY:
            continue
        entries = tuple(
            (key, places.slot("program", value))
            for key, value in found.initial
            if isinstance(value, str) and value in loaded
        )
        if entries:
            out.append(ops.MapFill(map=places.slot("map", found.name), entries=entries))
    return out
