# SPDX-License-Identifier: BSD-2-Clause
"""The last relocation pass: references to maps, data and externs become instruction fields.

What is known now is written into the instructions; what only the running kernel knows (a map's
fd, a module's BTF fd, an address) becomes a patch that the executor of a Plan applies.
"""

from __future__ import annotations

import os

from pybpf.errors import RelocationError
from pybpf.plan import ops
from pybpf.reloc.externs import POISON_MAP, Resolved, is_typeless, poison_numbers
from pybpf.reloc.insn import CALL, Code
from pybpf.reloc.link import Linked
from pybpf.spec import ExternSpec, MapSpec, ObjectSpec, Ref
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol
else:
    Protocol = object

__all__ = ["Binding", "Patch", "arena_data_offset", "finish", "finish_shared"]

Patch = tuple[int, str, int | str]


class Binding(Protocol):
    """Decides what a reference becomes. Each method writes into ``code`` or gives a patch.

    arena_at_end: see arena_data_offset.
    """

    arena_at_end: bool

    def map(self, code: Code, slot: int, name: str, offset: int | None) -> Patch | None:
        """A 64-bit load of a map (offset None) or of an address in its value."""

    def typed(self, code: Code, slot: int, extern: ExternSpec) -> Patch | None:
        """A 64-bit load of a typed kernel symbol."""

    def address(self, code: Code, slot: int, extern: ExternSpec) -> Patch | None:
        """A 64-bit load of a typeless kernel symbol's address."""

    def kfunc(self, code: Code, slot: int, extern: ExternSpec) -> Patch | None:
        """A call of a kernel function."""

    def table(self, code: Code, slot: int, place: int, targets: tuple[int, ...]) -> Patch | None:
        """A 64-bit load of a jump table: its place in .jumptables, and the slots of the program
        that its entries jump to."""


def finish(spec: ObjectSpec, linked: Linked, binding: Binding) -> tuple[Patch, ...]:
    """Resolve what ``linked`` still refers to. Raises RelocationError."""
    patches = []
    for ref in linked.refs:
        if ref.kind == "table":
            patch = binding.table(linked.code, ref.insn, ref.offset, _targets(spec, linked, ref))
        else:
            patch = _one(spec, linked.code, ref, binding)
        if patch is not None:
            patches.append(patch)
    return tuple(patches)


def _targets(spec: ObjectSpec, linked: Linked, ref: Ref) -> tuple[int, ...]:
    """The slots of the program that a jump table's entries stand for."""
    number, start = linked.holder(ref.insn)
    function = spec.functions[number]
    where: dict[str, Any] = {
        "function": function.name, "insn": ref.insn - start, "table": ref.name,
    }  # fmt: skip
    entries = spec.jump_tables.get(ref.offset)
    if entries is None:
        raise RelocationError(f"no jump table begins at byte {ref.offset} of .jumptables.", **where)
    out = []
    for entry in entries:
        slot, odd = divmod(entry - function.offset, 8)
        if odd or not 0 <= slot < len(function.insns) // 8:
            raise RelocationError(
                f"its jump table leads to byte {entry} of section {function.section!r}, which is "
                "no instruction of the function.",
                **where,
            )
        out.append(start + slot)
    return tuple(out)


def finish_shared(spec: ObjectSpec, linked: Linked, binding: FixedBinding) -> None:
    """As ``finish``, for a listing: what programs share behind their entry functions is resolved
    once, where the result is the same for all of them. Raises RelocationError."""
    tail = linked.tail
    if tail.final is None:
        tail.final = _shared(spec, linked, binding) if tail.refs else tail.code
    if tail.final or not tail.code:
        linked.code.raw[8 * linked.base :] = tail.final
        refs = linked.own_refs
    else:
        refs = linked.refs
    code = linked.code
    for ref in refs:
        if ref.kind == "table":
            binding.table(code, ref.insn, ref.offset, _targets(spec, linked, ref))
        else:
            _one(spec, code, ref, binding)


def _shared(spec: ObjectSpec, linked: Linked, binding: FixedBinding) -> bytes:
    """The tail's instructions with its references resolved; b"" if that depends on the program,
    or cannot be done: the failure is then each program's own."""
    tail = linked.tail
    code = Code(tail.code, spec.byteorder)
    alone = FixedBinding(
        spec, binding.resolved, binding.handles, binding.addresses,
        arena_at_end=binding.arena_at_end,
    )  # fmt: skip
    try:
        for ref in tail.refs:
            if ref.kind == "table":
                return b""
            _one(spec, code, ref, alone)
    except RelocationError:
        return b""
    return b"" if alone.modules else bytes(code.raw)


def arena_data_offset(found: MapSpec, at_end: bool) -> int:
    """Where an arena's variables begin.

    at_end: they fill its last pages, so that programs find free ones at its start, and address 0
    is no variable's. libbpf does so since 1.7 where the kernel takes any offset into a map's
    value in an instruction (kernel commit 12a1fe6e12db), and otherwise puts them at the start.
    Raises RelocationError if the arena is too small for them.
    """
    page = os.sysconf("SC_PAGESIZE")
    size = found.max_entries * page
    start = size - -(-len(found.data or b"") // page) * page
    if start < 0:
        raise RelocationError(
            f"an arena of {found.max_entries} pages cannot hold {len(found.data or b'')} bytes of "
            "variables.",
            hint="Give it more max_entries.",
            map=found.name,
        )
    return start if at_end else 0


def _one(spec: ObjectSpec, code: Code, ref: Ref, binding: Binding) -> Patch | None:
    if ref.kind in ("map", "data"):
        if not spec.maps[ref.name].autocreate:
            code.poison(ref.insn, 2, POISON_MAP + list(spec.maps).index(ref.name))
            return None
        if ref.kind == "map":
            return binding.map(code, ref.insn, ref.name, None)
        found = spec.maps[ref.name]
        start = 0
        if found.type == abi.BPF_MAP_TYPE_ARENA:
            start = arena_data_offset(found, binding.arena_at_end)
        return binding.map(code, ref.insn, ref.name, start + ref.offset)
    extern = spec.externs[ref.name]
    call = code.opcode(ref.insn) == CALL
    if extern.kind == "kconfig":
        if call:
            raise RelocationError("a kconfig value is called.", extern=ref.name, insn=ref.insn)
        return binding.map(code, ref.insn, ".kconfig", extern.offset)
    if call:
        if extern.kind != "kfunc":
            raise RelocationError("a kernel variable is called.", extern=ref.name, insn=ref.insn)
        return binding.kfunc(code, ref.insn, extern)
    if is_typeless(spec, extern):
        return binding.address(code, ref.insn, extern)
    return binding.typed(code, ref.insn, extern)


class _Base:
    """Ids decided now: resolved gives the answer for an extern, Resolved(0) for a missing one."""

    def __init__(
        self, spec: ObjectSpec, resolved: Callable[[ExternSpec], Resolved], arena_at_end: bool
    ) -> None:
        self.spec = spec
        self.arena_at_end = arena_at_end
        self.resolved = resolved
        self._poison = poison_numbers(spec)

    def missing(self, code: Code, slot: int, extern: ExternSpec) -> None:
        """A weak extern that the kernel does not have: a poisoned call, or the address 0."""
        if code.opcode(slot) == CALL:
            code.poison(slot, 1, self._poison[extern.name])
        else:
            code.set_wide(slot, 0)


class FixedBinding(_Base):
    """Everything written out: for listings. handles: map name → the number in its fd's place;
    addresses: typeless symbol → address; table_handle: the number for the first jump table, the
    others count on from it. Modules are numbered from 1 as they are met."""

    def __init__(
        self,
        spec: ObjectSpec,
        resolved: Callable[[ExternSpec], Resolved],
        handles: Mapping[str, int],
        addresses: Callable[[str], int],
        table_handle: int = 0,
        *,
        arena_at_end: bool = False,
    ) -> None:
        super().__init__(spec, resolved, arena_at_end)
        self.table_handle = table_handle
        self.tables: dict[int, tuple[int, ...]] = {}
        self._numbers: dict[int, int] = {}
        self.handles = handles
        self.addresses = addresses
        self.modules: list[str] = []

    def map(self, code: Code, slot: int, name: str, offset: int | None) -> None:
        """See Binding."""
        write_map(code, slot, offset, index=False)
        code.set_imm(slot, self.handles[name])

    def table(self, code: Code, slot: int, place: int, targets: tuple[int, ...]) -> None:
        """See Binding."""
        write_map(code, slot, code.imm(slot + 1), index=False)
        if place not in self.tables:
            self.tables[place] = targets
            self._numbers[place] = len(self._numbers)
        code.set_imm(slot, self.table_handle + self._numbers[place])

    def typed(self, code: Code, slot: int, extern: ExternSpec) -> None:
        """See Binding."""
        found = self.resolved(extern)
        if not found.id:
            self.missing(code, slot, extern)
            return
        code.set_source(slot, abi.BPF_PSEUDO_BTF_ID)
        code.set_imm(slot, found.id)
        code.set_imm(slot + 1, 0)

    def address(self, code: Code, slot: int, extern: ExternSpec) -> None:
        """See Binding."""
        code.set_wide(slot, self.addresses(extern.name))

    def kfunc(self, code: Code, slot: int, extern: ExternSpec) -> None:
        """See Binding."""
        found = self.resolved(extern)
        if not found.id:
            self.missing(code, slot, extern)
            return
        code.set_source(slot, abi.BPF_PSEUDO_KFUNC_CALL)
        code.set_imm(slot, found.id)
        if found.module is not None:
            if found.module not in self.modules:
                self.modules.append(found.module)
            code.set_off(slot, self.modules.index(found.module) + 1)


class PlanBinding(_Base):
    """For a Plan. slot_of: fd slot of a map; symbol_of: number of a kernel symbol; table_slot:
    fd slot of a jump table by its place in .jumptables.

    by_index: maps are named by their place in ``fd_array`` (kernel 5.14), so that the
    instructions are the same in every load; otherwise their fds are patched in.
    resolved None: every id is looked up in the kernel when the Plan runs.
    """

    def __init__(
        self,
        spec: ObjectSpec,
        resolved: Callable[[ExternSpec], Resolved] | None,
        slot_of: Callable[[str], int],
        symbol_of: Callable[[ExternSpec, str | None], int],
        table_slot: Callable[[int], int],
        *,
        by_index: bool,
        arena_at_end: bool = False,
    ) -> None:
        super().__init__(spec, resolved or _unresolved, arena_at_end)
        self.late = resolved is None
        self.slot_of = slot_of
        self.symbol_of = symbol_of
        self.by_index = by_index
        self.fd_array: dict[int, int] = {}  # fd slot → its place, in order
        self.table_slot = table_slot
        self.tables: dict[int, tuple[int, ...]] = {}

    def map(self, code: Code, slot: int, name: str, offset: int | None) -> Patch | None:
        """See Binding."""
        return self._map(code, slot, self.slot_of(name), offset)

    def table(self, code: Code, slot: int, place: int, targets: tuple[int, ...]) -> Patch | None:
        """See Binding. The tables met are in ``tables``, by place."""
        self.tables.setdefault(place, targets)
        return self._map(code, slot, self.table_slot(place), code.imm(slot + 1))

    def _map(self, code: Code, slot: int, fd: int, offset: int | None) -> Patch | None:
        write_map(code, slot, offset, index=self.by_index)
        if not self.by_index:
            code.set_imm(slot, 0)
            return slot, ops.PATCH_MAP_FD, fd
        code.set_imm(slot, self.fd_array.setdefault(fd, len(self.fd_array)))
        return None

    def typed(self, code: Code, slot: int, extern: ExternSpec) -> Patch | None:
        """See Binding."""
        found = Resolved(-1) if self.late else self.resolved(extern)
        if not found.id:
            self.missing(code, slot, extern)
            return None
        code.set_wide(slot, 0)
        code.set_source(slot, abi.BPF_PSEUDO_BTF_ID)
        if self.late or found.module is not None:
            return slot, ops.PATCH_KSYM, self.symbol_of(extern, found.module)
        code.set_imm(slot, found.id)
        return None

    def address(self, code: Code, slot: int, extern: ExternSpec) -> Patch | None:
        """See Binding."""
        code.set_wide(slot, 0)
        kind = ops.PATCH_ADDR_WEAK if extern.weak else ops.PATCH_ADDR
        return slot, kind, extern.name

    def kfunc(self, code: Code, slot: int, extern: ExternSpec) -> Patch | None:
        """See Binding."""
        found = Resolved(-1) if self.late else self.resolved(extern)
        if not found.id:
            self.missing(code, slot, extern)
            return None
        code.set_source(slot, abi.BPF_PSEUDO_KFUNC_CALL)
        code.set_off(slot, 0)
        if self.late or found.module is not None:
            code.set_imm(slot, 0)
            return slot, ops.PATCH_KFUNC, self.symbol_of(extern, found.module)
        code.set_imm(slot, found.id)
        return None


def _unresolved(extern: ExternSpec) -> Resolved:
    raise AssertionError(f"{extern.name} is resolved late")


def write_map(code: Code, slot: int, offset: int | None, *, index: bool) -> None:
    """Mark a 64-bit load as one of a map or of an address in a map's value."""
    if offset is None:
        code.set_source(slot, abi.BPF_PSEUDO_MAP_IDX if index else abi.BPF_PSEUDO_MAP_FD)
        return
    code.set_source(slot, abi.BPF_PSEUDO_MAP_IDX_VALUE if index else abi.BPF_PSEUDO_MAP_VALUE)
    code.set_imm(slot + 1, offset)
