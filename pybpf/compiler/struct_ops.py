# SPDX-License-Identifier: BSD-2-Clause
"""struct_ops maps fitted to a kernel: its own struct, member by member, by name."""

from __future__ import annotations

from pybpf.btf.consts import KIND_FUNC_PROTO, KIND_PTR, KIND_STRUCT, kind_name
from pybpf.btf.model import Btf, Member, Type, essential_name
from pybpf.compiler.target import Target
from pybpf.errors import PybpfError, RelocationError
from pybpf.record import replace
from pybpf.spec import MapSpec, ObjectSpec, ProgramSpec
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = ["Fitted", "StructOps", "fit"]

PREFIX = "bpf_struct_ops_"
_NOT_SUPPORTED = 95  # EOPNOTSUPP


class Fitted(NamedTuple):
    """One map for one kernel.

    type, value_type: names of the kernel's structs; module: where they are, None for vmlinux;
    data: the value without programs; programs: (program, byte offset of its fd, member index).
    """

    type: str
    type_id: int
    value_type: str
    module: str | None
    data: bytes
    programs: tuple[tuple[str, int, int], ...]


class StructOps:
    """A spec in which struct_ops maps and programs are as the kernel wants them.

    maps: by name; users: program → the map it is in; errors: map → why it does not fit.
    """

    __slots__ = ("errors", "maps", "spec", "users")

    def __init__(self, spec: ObjectSpec) -> None:
        self.spec = spec
        self.maps: dict[str, Fitted] = {}
        self.users: dict[str, str] = {}
        self.errors: dict[str, PybpfError] = {}


def fit(spec: ObjectSpec, target: Target) -> StructOps:
    """Fit every struct_ops map of ``spec`` that is to be created to the kernel's types."""
    out = StructOps(spec)
    placed: dict[str, tuple[str, int]] = {}
    for found in spec.maps.values():
        if not found.struct_ops or not found.autocreate:
            continue
        for _, program in found.members:
            out.users.setdefault(program, found.name)
        try:
            kernel = _find(spec, found, target)
            flags = found.flags | (abi.BPF_F_VTYPE_BTF_OBJ_FD if kernel.module else 0)
            changed = replace(found, value_size=kernel.value_type.size_or_type, flags=flags)
            spec = replace(spec, maps={**spec.maps, found.name: changed})
            fitted = out.maps[found.name] = _fill(spec, found, kernel)
            programs = _placed(spec, fitted, placed)
        except PybpfError as exc:
            out.errors[found.name] = exc.at(map=found.name)
            continue
        spec = replace(spec, programs={**spec.programs, **programs})
    # A program that only maps left out use is not loaded either.
    idle = {
        program
        for found in spec.maps.values()
        if found.struct_ops and not found.autocreate
        for _, program in found.members
        if program not in out.users
    }
    if idle:
        programs = {
            n: replace(p, autoload=False) if n in idle else p for n, p in spec.programs.items()
        }
        spec = replace(spec, programs=programs)
    out.spec = spec
    return out


class _Kernel(NamedTuple):
    """The kernel's structs for one map: ``outer`` is the member of value_type that is a type."""

    btf: Btf
    module: str | None
    value_type: Type
    outer: Member
    type: Type


def _find(spec: ObjectSpec, found: MapSpec, target: Target) -> _Kernel:
    assert spec.btf is not None
    name = essential_name(spec.btf.type(found.value_type_id).name)
    value = target.types().find(PREFIX + name, KIND_STRUCT)
    if value is None:
        raise RelocationError(
            f"the kernel has no struct {PREFIX}{name}: it takes no BPF in place of struct {name}.",
            hint="It needs a kernel, or a loaded module, that offers it.",
            target=name,
        ).numbered(3)
    kernel, resolved = value
    value_type = kernel.type(resolved.id)
    for outer in value_type.members:
        inner = kernel.skip(outer.type)
        if inner.kind == KIND_STRUCT and inner.name == name:
            return _Kernel(kernel, resolved.module, value_type, outer, inner)
    raise RelocationError(f"the kernel's struct {PREFIX}{name} does not hold a struct {name}.")


def _fill(spec: ObjectSpec, found: MapSpec, kernel: _Kernel) -> Fitted:
    assert spec.btf is not None
    name = kernel.type.name
    theirs = {m.name: (index, m) for index, m in enumerate(kernel.type.members)}
    base = kernel.outer.bit_offset // 8
    data = bytearray(kernel.value_type.size_or_type)
    programs = []
    members = dict(found.members)
    for member in spec.btf.type(found.value_type_id).members:
        at = member.bit_offset // 8
        size = spec.btf.size(member.type)
        mine = (found.data or b"")[at : at + size]
        program = members.get(member.name)
        if member.name not in theirs:
            if mine.strip(b"\0") or program is not None:
                raise RelocationError(
                    f"the kernel's struct {name} has no member {member.name!r}, which is set.",
                    hint="Leave it unset for this kernel.",
                ).numbered(_NOT_SUPPORTED)
            continue
        index, other = theirs[member.name]
        place = base + other.bit_offset // 8
        kind, wanted = spec.btf.skip(member.type).kind, kernel.btf.skip(other.type).kind
        if kind != wanted:
            raise RelocationError(
                f"member {member.name!r} is of kind {kind_name(kind)}, in the kernel's struct "
                f"{name} of kind {kind_name(wanted)}."
            ).numbered(_NOT_SUPPORTED)
        if kind == KIND_PTR:
            if program is not None:
                _check_pointer(kernel.btf, other, name)
                programs.append((program, place, index))
            continue
        if other.bit_size or member.bit_size or kernel.btf.size(other.type) != size:
            raise RelocationError(
                f"member {member.name!r} has {size} bytes, in the kernel's struct {name} another "
                "size."
            ).numbered(_NOT_SUPPORTED)
        data[place : place + size] = mine
    return Fitted(name, kernel.type.id, PREFIX + name, kernel.module, bytes(data), tuple(programs))


def _placed(
    spec: ObjectSpec, fitted: Fitted, placed: dict[str, tuple[str, int]]
) -> dict[str, ProgramSpec]:
    """The programs of a map, each for its member; placed: those of earlier maps."""
    out = {}
    for name, _, index in fitted.programs:
        if placed.setdefault(name, (fitted.type, index)) != (fitted.type, index):
            raise RelocationError(
                "a program that is in two maps must be the same member of the same struct in both.",
                program=name,
            )
        if name in spec.programs:
            out[name] = replace(spec.programs[name], expected_attach_type=index)
    return out


def _check_pointer(kernel: Btf, member: Member, name: str) -> None:
    if kernel.skip(kernel.skip(member.type).type).kind != KIND_FUNC_PROTO:
        raise RelocationError(
            f"member {member.name!r} of the kernel's struct {name} is no pointer to a function."
        ).numbered(_NOT_SUPPORTED)
