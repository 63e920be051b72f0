# SPDX-License-Identifier: BSD-2-Clause
"""CO-RE's three relations between a local type and one of the target kernel.

Semantics: tools/lib/bpf/relo_core.c, which the kernel shares (since v5.17); "type matches"
since v6.0 (ec6209c8d42f). Recursion limits are libbpf's; the kernel's own are lower.
"""

from __future__ import annotations

from pybpf.btf.consts import (
    ENUM_KINDS,
    KIND_ARRAY,
    KIND_FLOAT,
    KIND_FUNC_PROTO,
    KIND_FWD,
    KIND_INT,
    KIND_PTR,
    KIND_STRUCT,
    KIND_UNION,
    KIND_VOID,
)
from pybpf.btf.model import Btf, Type, essential_name
from pybpf.errors import RelocationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Budget", "fields_compatible", "kinds_compatible", "types_compatible", "types_match"]

_MAX_DEPTH = 32
_MAX_ARRAY = 512
_COMPOSITE = (KIND_STRUCT, KIND_UNION)


class Budget:
    """Bounds the work of one comparison: crafted BTF can nest so that it never ends."""

    def __init__(self, steps: int = 50_000) -> None:
        self.steps = steps

    def take(self, steps: int = 1) -> None:
        """Use up steps. Raises RelocationError when there are none left."""
        self.steps -= steps
        if self.steps < 0:
            raise RelocationError("comparing the types takes more than 50,000 steps")


def kinds_compatible(a: int, b: int) -> bool:
    """Same kind; enum and enum64 count as one."""
    return a == b or (a in ENUM_KINDS and b in ENUM_KINDS)


def _same_name(a: Type, b: Type) -> bool:
    return essential_name(a.name) == essential_name(b.name)


def fields_compatible(local: Btf, local_id: int, target: Btf, target_id: int) -> bool:
    """Whether a field of the target may stand for the local one.

    Structs and unions mix freely, as do pointers, floats, and integers of any size; enums and
    forward declarations need the same name unless one is anonymous; arrays go by element.
    """
    for _ in range(_MAX_ARRAY):
        a, b = local.skip(local_id), target.skip(target_id)
        if a.kind in _COMPOSITE and b.kind in _COMPOSITE:
            return True
        if not kinds_compatible(a.kind, b.kind):
            return False
        kind = a.kind
        if kind in (KIND_PTR, KIND_FLOAT):
            return True
        if kind == KIND_FWD or kind in ENUM_KINDS:
            return not a.name or not b.name or _same_name(a, b)
        if kind == KIND_INT:
            return not a.int_offset and not b.int_offset
        if kind != KIND_ARRAY:
            return False
        local_id, target_id = a.array.type, b.array.type
    raise RelocationError(f"type [{local_id}] is an array nested more than {_MAX_ARRAY} deep")


def types_compatible(
    local: Btf,
    local_id: int,
    target: Btf,
    target_id: int,
    budget: Budget,
    level: int = _MAX_DEPTH,
) -> bool:
    """Whether two root types are of one kind all the way down their pointers and prototypes.

    The names of the roots were compared by whoever looked for candidates.
    """
    if not kinds_compatible(local.type(local_id).kind, target.type(target_id).kind):
        return False
    for _ in range(_MAX_DEPTH):
        budget.take()
        a, b = local.skip(local_id), target.skip(target_id)
        if not kinds_compatible(a.kind, b.kind):
            return False
        kind = a.kind
        if kind in (KIND_VOID, KIND_STRUCT, KIND_UNION, KIND_FWD) or kind in ENUM_KINDS:
            return True
        if kind == KIND_INT:
            return not a.int_offset and not b.int_offset
        if kind == KIND_PTR:
            local_id, target_id = a.size_or_type, b.size_or_type
        elif kind == KIND_ARRAY:
            local_id, target_id = a.array.type, b.array.type
        elif kind == KIND_FUNC_PROTO:
            if a.vlen != b.vlen:
                return False
            for p, q in zip(a.params, b.params, strict=True):
                if level <= 0:
                    raise _too_deep(a)
                if not types_compatible(
                    local, local.skip(p.type).id, target, target.skip(q.type).id, budget, level - 1
                ):
                    return False
            local_id, target_id = local.skip(a.size_or_type).id, target.skip(b.size_or_type).id
        else:
            return False
    raise _too_deep(local.type(local_id))


def types_match(
    local: Btf,
    local_id: int,
    target: Btf,
    target_id: int,
    budget: Budget,
    behind_pointer: bool = False,
    level: int = _MAX_DEPTH,
) -> bool:
    """Whether the target has everything the local type has, by name and shape.

    Members are matched recursively until a pointer is passed; enums by the names of their
    values; integers by name, size and signedness; a forward declaration stands for its struct
    behind a pointer only.
    """
    if level <= 0:
        raise _too_deep(local.type(local_id))
    for _ in range(_MAX_DEPTH):
        budget.take()
        a, b = local.skip(local_id), target.skip(target_id)
        if not _same_name(a, b):
            return False
        if a.kind in ENUM_KINDS:
            return b.kind in ENUM_KINDS and _enums_match(a, b)
        if behind_pointer and (a.kind in (*_COMPOSITE, KIND_FWD)):
            return _declarations_match(a, b)
        if a.kind != b.kind:
            return False
        kind = a.kind
        if kind == KIND_VOID:
            return True
        if kind == KIND_FWD:
            return a.kflag == b.kflag
        if kind in _COMPOSITE:
            return _composites_match(a, b, budget, behind_pointer, level)
        if kind == KIND_INT:
            return a.size == b.size and a.signed == b.signed
        if kind == KIND_PTR:
            behind_pointer = True
            local_id, target_id = a.size_or_type, b.size_or_type
        elif kind == KIND_ARRAY:
            if a.array.nelems != b.array.nelems:
                return False
            local_id, target_id = a.array.type, b.array.type
        elif kind == KIND_FUNC_PROTO:
            if a.vlen != b.vlen:
                return False
            for p, q in zip(a.params, b.params, strict=True):
                if not types_match(
                    local, p.type, target, q.type, budget, behind_pointer, level - 1
                ):
                    return False
            local_id, target_id = a.size_or_type, b.size_or_type
        else:
            return False
    raise _too_deep(local.type(local_id))


def _declarations_match(a: Type, b: Type) -> bool:
    """Struct, union or forward declaration, where only the tag matters."""
    if a.kind == b.kind:
        return a.kind != KIND_FWD or a.kflag == b.kflag
    # kflag of a forward declaration: 0 struct, 1 union
    if a.kind == KIND_FWD:
        return b.kind == (KIND_UNION if a.kflag else KIND_STRUCT)
    return b.kind == KIND_FWD and (a.kind == KIND_UNION) == b.kflag


def _enums_match(a: Type, b: Type) -> bool:
    if a.size != b.size or a.vlen > b.vlen:
        return False
    there = {essential_name(e.name) for e in b.enumerators}
    return all(essential_name(e.name) in there for e in a.enumerators)


def _composites_match(a: Type, b: Type, budget: Budget, behind_pointer: bool, level: int) -> bool:
    if a.vlen > b.vlen:
        return False
    budget.take(a.vlen + b.vlen)
    there: dict[str, list[int]] = {}
    for member in b.members:
        there.setdefault(essential_name(member.name), []).append(member.type)
    return all(
        _some_match(a.btf, member.type, b.btf, there, member.name, budget, behind_pointer, level)
        for member in a.members
    )


def _some_match(
    local: Btf,
    local_id: int,
    target: Btf,
    there: Mapping[str, list[int]],
    name: str,
    budget: Budget,
    behind_pointer: bool,
    level: int,
) -> bool:
    return any(
        types_match(local, local_id, target, target_id, budget, behind_pointer, level - 1)
        for target_id in there.get(essential_name(name), ())
    )


def _too_deep(found: Type) -> RelocationError:
    return RelocationError(
        f"comparing the types goes more than {_MAX_DEPTH} deep at [{found.id}] "
        f"{found.kind_name} {found.name or '(anon)'}"
    )
