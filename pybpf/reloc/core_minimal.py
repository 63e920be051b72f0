# SPDX-License-Identifier: BSD-2-Clause
"""Minimal BTF: of a kernel's types, only what an object's relocations have touched.

For kernels without BTF of their own: relocating against the few kilobytes gives the same
instructions as against the whole (type ids of the target excepted, as types are renumbered).
What is kept: types that relocations chose, of structs only the members they went through, and
what is needed to tell sizes and kinds. What nothing needs becomes void.
"""

from __future__ import annotations

from collections.abc import Iterable

from pybpf.btf.consts import (
    ENUM_KINDS,
    KIND_ARRAY,
    KIND_DECL_TAG,
    KIND_ENUM,
    KIND_FUNC,
    KIND_FUNC_PROTO,
    KIND_INT,
    KIND_PTR,
    KIND_STRUCT,
    KIND_TYPEDEF,
    KIND_UNION,
    KIND_VAR,
    MODIFIERS,
)
from pybpf.btf.model import Btf, Type
from pybpf.btf.write import BtfWriter
from pybpf.errors import UsageError
from pybpf.reloc import core_spec as cs
from pybpf.reloc.core import Outcome
from pybpf.reloc.core_spec import Spec

__all__ = ["minimal"]

_COMPOSITE = (KIND_STRUCT, KIND_UNION)
_THROUGH = MODIFIERS | {KIND_TYPEDEF}


def minimal(target: Btf, outcomes: Iterable[Outcome]) -> bytes:
    """BTF with what ``outcomes``, all relocated against ``target``, need of it.

    target: a kernel's BTF without its modules. Raises UsageError for split BTF and for
    outcomes that chose a type of another BTF.
    """
    if target.base is not None:
        raise UsageError(f"{target.label} is split BTF; give that of the kernel")
    marks = _Marks(target)
    for outcome in outcomes:
        for candidate in outcome.candidates:
            if candidate.spec is None:
                continue
            if candidate.btf is not target:
                raise UsageError(
                    f"{outcome.local.expression()} was found in {candidate.btf.label}, "
                    f"not in {target.label}"
                )
            marks.spec(candidate.spec)
    return marks.build()


class _Marks:
    """Which types, and which members of them, stay."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self.members: dict[int, set[int]] = {}

    def spec(self, spec: Spec) -> None:
        """What one access went through."""
        if spec.kind == cs.TYPE_MATCHES:
            self._shape(spec.root)
        elif spec.kind in cs.TYPE_KINDS:
            self._type(spec.root, follow=True)
        else:
            self._type(spec.root, follow=False)
            if spec.kind in cs.FIELD_KINDS:
                self._path(spec)

    def _path(self, spec: Spec) -> None:
        current = self.btf.skip(spec.root)
        for index in spec.raw[1:]:
            if current.kind in _COMPOSITE:
                self.members[current.id].add(index)
                inner = cs.member_words(current, index)[1]
                self._type(inner, follow=False)
            else:
                inner = current.array.type
            current = self.btf.skip(inner)

    def _type(self, type_id: int, *, follow: bool) -> None:
        """A type with all it consists of, but no members; pointers are followed or not."""
        pending = [type_id]
        seen: set[int] = set()
        while pending:
            found = self.btf.type(pending.pop())
            if not found.id or found.id in seen:
                continue
            seen.add(found.id)
            self.members.setdefault(found.id, set())
            if found.kind in _THROUGH or (follow and found.kind == KIND_PTR):
                pending.append(found.size_or_type)
            elif found.kind == KIND_ARRAY:
                pending += (found.array.type, found.array.index_type)
            elif found.kind == KIND_FUNC_PROTO:
                pending += (found.size_or_type, *(p.type for p in found.params))

    def _shape(self, type_id: int) -> None:
        """A type with members, down to the first pointers, as "matches" compares it."""
        pending = [(type_id, False)]
        seen: set[tuple[int, bool]] = set()
        while pending:
            one = pending.pop()
            found = self.btf.type(one[0])
            if not found.id or one in seen:
                continue
            seen.add(one)
            behind = one[1]
            marked = self.members.setdefault(found.id, set())
            if found.kind in _COMPOSITE and not behind:
                marked.update(range(found.vlen))
                pending += ((m.type, False) for m in found.members)
            elif found.kind in _THROUGH:
                pending.append((found.size_or_type, behind))
            elif found.kind == KIND_PTR:
                pending.append((found.size_or_type, True))
            elif found.kind == KIND_ARRAY:
                pending += ((found.array.type, behind), (found.array.index_type, behind))
            elif found.kind == KIND_FUNC_PROTO:
                pending += ((found.size_or_type, behind), *((p.type, behind) for p in found.params))

    def build(self) -> bytes:
        """The blob, types in their old order."""
        ids = {old: new for new, old in enumerate(sorted(self.members), start=1)}
        writer = BtfWriter(self.btf.byteorder)
        for old in ids:
            self._write(writer, self.btf.type(old), ids)
        return writer.build()

    def _write(self, w: BtfWriter, found: Type, ids: dict[int, int]) -> None:
        kind = found.kind
        value = found.size_or_type
        entries: list[tuple[int, ...]] = []
        extra: tuple[int, ...] = ()
        vlen: int | None = None
        if kind in _COMPOSITE:
            for i in sorted(self.members[found.id]):
                name_off, member_type, _bits = cs.member_words(found, i)
                word = found.btf.words[found.pos + 5 + 3 * i]  # offset with the bit-field size
                entries.append(
                    (w.string(self.btf.name(name_off)), ids.get(member_type, 0), word)
                )
        elif kind in ENUM_KINDS:
            for row in found.raw_entries(2 if kind == KIND_ENUM else 3):
                entries.append((w.string(self.btf.name(row[0])), *row[1:]))
        elif kind == KIND_FUNC_PROTO:
            value = ids.get(value, 0)
            entries = [(w.string(p.name), ids.get(p.type, 0)) for p in found.params]
        elif kind == KIND_ARRAY:
            element, index, nelems = found.array
            extra = (ids.get(element, 0), ids.get(index, 0), nelems)
        elif kind == KIND_INT:
            extra = (found.btf.words[found.pos + 3],)
        elif kind in (KIND_VAR, KIND_DECL_TAG):
            extra = (found.btf.words[found.pos + 3],)
            value = ids.get(value, 0)
        elif kind in _THROUGH or kind in (KIND_PTR, KIND_FUNC):
            value = ids.get(value, 0)
            vlen = found.vlen
        w.add(kind, found.name, value, entries, extra=extra, kflag=found.kflag, vlen=vlen)
