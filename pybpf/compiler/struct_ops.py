# SPDX-License-Identifier: BSD-2-Clause
"""struct_ops maps fitted to a kernel: its own struct, member by member, by name."""

from __future__ import annotations

from pybpf.btf.consts import KIND_FUNC_PROTO, KIND_PTR, KIND_STRUCT
from pybpf.btf.model import Btf, Member, essential_name
from pybpf.compiler.target import Target
from pybpf.errors import PybpfError, RelocationError
from pybpf.record import replace
from pybpf.spec import MapSpec, ObjectSpec
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
    for found in spec.maps.values():
        if not found.struct_ops or not found.autocreate:
            continue
        for _, program in found.members:
            out.users.setdefault(program, found.name)
        try:
            fitted = out.maps[found.name] = _fit(spec, found, target)
        except PybpfError as exc:
            out.errors[found.name] = exc.at(map=found.name)
            continue
        flags = found.flags | (abi.BPF_F_VTYPE_BTF_OBJ_FD if fitted.module else 0)
        changed = {found.name: replace(found, value_size=len(fitted.data), flags=flags)}
        programs = {
            name: replace(spec.programs[name], expected_attach_type=index)
            for name, _, index in fitted.programs
            if name in spec.programs
        }
        spec = replace(
            spec,
            maps={**spec.maps, **changed},
            programs={**spec.programs, **programs},
        )
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


def _fit(spec: ObjectSpec, found: MapSpec, target: Target) -> Fitted:
    assert spec.btf is not None
    local = spec.btf.type(found.value_type_id)
    name = essential_name(local.name)
    types = target.types()
    value = types.find(PREFIX + name, KIND_STRUCT)
    if value is None:
        raise RelocationError(
            f"the kernel has no struct {PREFIX}{name}: it takes no BPF in place of struct {name}.",
            hint="It needs a kernel, or a loaded module, that offers it.",
            target=name,
        ).numbered(3)
    kernel, resolved = value
    value_type = kernel.type(resolved.id)
    inner = next(
        (
            (m, t)
            for m in value_type.members
            if (t := kernel.skip(m.type)).kind == KIND_STRUCT and t.name == name
        ),
        None,
    )
    if inner is None:
        raise RelocationError(f"the kernel's struct {PREFIX}{name} does not hold a struct {name}.")
    outer, kernel_type = inner
    theirs = {m.name: (index, m) for index, m in enumerate(kernel_type.members)}
    base = outer.bit_offset // 8
    data = bytearray(value_type.size_or_type)
    programs = []
    members = dict(found.members)
    for member in local.members:
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
        if spec.btf.skip(member.type).kind == KIND_PTR:
            if program is not None:
                _check_pointer(kernel, other, name)
                programs.append((program, place, index))
            continue
        if other.bit_size or member.bit_size or kernel.size(other.type) != size:
            raise RelocationError(
                f"member {member.name!r} has {size} bytes, in the kernel's struct {name} another "
                "size."
            ).numbered(_NOT_SUPPORTED)
        data[place : place + size] = mine
    return Fitted(
        name, kernel_type.id, PREFIX + name, resolved.module, bytes(data), tuple(programs)
    )


def _check_pointer(kernel: Btf, member: Member, name: str) -> None:
    pointer = kernel.skip(member.type)
    if pointer.kind != KIND_PTR or kernel.skip(pointer.type).kind != KIND_FUNC_PROTO:
        raise RelocationError(
            f"member {member.name!r} of the kernel's struct {name} is no pointer to a function."
        ).numbered(_NOT_SUPPORTED)
