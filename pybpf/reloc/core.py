# SPDX-License-Identifier: BSD-2-Clause
"""CO-RE relocation: make a program fit the types of a kernel, any kernel whose BTF is at hand.

All thirteen kinds of enum bpf_core_relo_kind, with the semantics of libbpf and of the kernel
(tools/lib/bpf/relo_core.c): the results are meant to be equal bit for bit. What libbpf decides
silently is kept in an Outcome: the access in the program's own types, every candidate looked
at, the one chosen, the value before and after, and why an instruction was poisoned.

One difference is the kernel's: as it looks for candidates of exactly the same kind
(bpf_core_add_cands() in kernel/bpf/btf.c, seen on v6.18), an enum of the program does not find
an enum64 of the kernel there; with libbpf and here it does.
"""

from __future__ import annotations

import os

from pybpf.btf.consts import ENUM_KINDS, KIND_ARRAY, KIND_ENUM64, KIND_INT, KIND_PTR, kind_name
from pybpf.btf.model import SYSFS, Btf, Type, essential_name
from pybpf.errors import FormatError, RelocationError
from pybpf.reloc import core_spec as cs
from pybpf.reloc.core_patch import POISON, Value, patch
from pybpf.reloc.core_spec import RELO_NAMES, Spec
from pybpf.reloc.core_types import fields_compatible, kinds_compatible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import NamedTuple

    from pybpf.spec import CoreRelo
else:
    from pybpf.record import NamedTuple

__all__ = ["POISON", "Candidate", "CoreRelocator", "CoreTarget", "Outcome", "relocate"]

_U32 = 0xFFFFFFFF
_U64 = (1 << 64) - 1


class CoreTarget:
    """The kernel to relocate against.

    vmlinux: its BTF, or a function that opens it (called when a relocation needs it).
    modules: BTF of its modules by name, or a function that loads them; asked only for types
    that vmlinux does not have.
    """

    def __init__(
        self,
        vmlinux: Btf | Callable[[], Btf],
        modules: Mapping[str, Btf] | Callable[[], Mapping[str, Btf]] | None = None,
    ) -> None:
        self._vmlinux = vmlinux
        self._modules = modules

    @classmethod
    def running(cls) -> CoreTarget:
        """The running kernel, its BTF opened and its modules listed when needed.

        Reading either then raises FormatError or OSError.
        """
        return cls(Btf.vmlinux, _running_modules)

    @property
    def vmlinux(self) -> Btf:
        """The kernel's own BTF."""
        if not isinstance(self._vmlinux, Btf):
            self._vmlinux = self._vmlinux()
        return self._vmlinux

    @property
    def modules(self) -> Mapping[str, Btf]:
        """BTF of the modules, by name."""
        if self._modules is None:
            return {}
        if callable(self._modules):
            self._modules = self._modules()
        return self._modules


def _running_modules() -> Mapping[str, Btf]:
    vmlinux = Btf.vmlinux()
    names = sorted(name for name in os.listdir(SYSFS) if name != "vmlinux")
    return {name: Btf.module(name, vmlinux) for name in names}


class Candidate(NamedTuple):
    """A type of the target with the right name: which, and the access in it if it has it."""

    btf: Btf
    type_id: int
    spec: Spec | None

    def text(self) -> str:
        """One line: where the type is, and what came of it."""
        if self.spec is not None:
            return f"{self.btf.label}: {self.spec.text()}"
        found = self.btf.type(self.type_id)
        return (
            f"{self.btf.label}: [{found.id}] {found.kind_name} {found.name} does not have it"
        )


class Outcome(NamedTuple):
    """One relocation, decided.

    insn: slot in the code given to relocate(). old, new: the relocated values (64-bit).
    poisoned: None, or why the instruction was made invalid.
    before, after: the instruction's bytes (16 for a ldimm64).
    """

    insn: int
    kind: int
    local: Spec
    candidates: tuple[Candidate, ...]
    target: Candidate | None
    old: int
    new: int
    poisoned: str | None
    before: bytes
    after: bytes

    @property
    def kind_name(self) -> str:
        """The relocation's kind in libbpf's words."""
        return RELO_NAMES[self.kind]

    def text(self) -> str:
        """One line for the audit."""
        if self.poisoned:
            there, where = "poisoned", self.poisoned
        else:
            there = f"{_signed(self.old)} -> {_signed(self.new)}"
            where = self.target.text() if self.target else self.absent()
        return f"insn {self.insn}: {self.kind_name} {self.local.text()}: {there}; {where}"

    def absent(self) -> str:
        """What the kernel has instead of what was asked for, in one clause."""
        return _absent(self.local, self.candidates)


class CoreRelocator:
    """Relocates the functions of one object. Candidates are looked for once for each type.

    As in libbpf, a candidate that once lost against another of its name is out for the rest
    of the object.
    """

    def __init__(self, local: Btf, target: CoreTarget) -> None:
        self.local = local
        self.target = target
        self._candidates: dict[int, list[tuple[Btf, int]]] = {}

    def prepare(self, relos: Iterable[CoreRelo]) -> None:
        """Look up the types of many relocations in one pass over the target's names."""
        names = set()
        for relo in relos:
            if relo.kind != cs.TYPE_ID_LOCAL and relo.type_id not in self._candidates:
                name = self.local.type(relo.type_id).name
                if name:
                    names.add(essential_name(name))
        if names:
            self.target.vmlinux.prefetch(essentials=sorted(names))

    def relocate(self, insns: bytearray, relos: Sequence[CoreRelo]) -> list[Outcome]:
        """Patch ``insns`` in place. Raises RelocationError, FormatError.

        relos: slots relative to ``insns``. The object's byte order is that of its BTF.
        """
        self.prepare(relos)
        return [self._relocate_one(insns, relo) for relo in relos]

    def _relocate_one(self, insns: bytearray, relo: CoreRelo) -> Outcome:
        at = relo.insn * 8
        if relo.insn < 0 or at + 8 > len(insns):
            raise RelocationError(
                f"a CO-RE relocation is for instruction {relo.insn}, there are {len(insns) // 8}"
            )
        if not 0 <= relo.kind < len(RELO_NAMES):
            raise RelocationError(
                f"CO-RE relocation kind {relo.kind} is not known (a newer compiler?)",
                insn=relo.insn,
            )
        local: Spec | None = None
        try:
            root = self.local.type(relo.type_id)
            local = cs.parse(self.local, relo.type_id, relo.access, relo.kind)
            if relo.kind == cs.TYPE_ID_LOCAL:
                value = Value(relo.type_id, relo.type_id, validate=False)
                tried: tuple[Candidate, ...] = ()
                chosen = None
            else:
                if not root.name:
                    raise RelocationError(
                        f"[{root.id}] is an anonymous {root.kind_name}: only types with a name "
                        "can be looked for in the kernel."
                    )
                value, chosen, tried = self._decide(local, root)
            size = 16 if insns[at] == 0x18 else 8
            before = bytes(insns[at : at + size])
            why = patch(insns, at, value, self.local.byteorder)
        except (RelocationError, FormatError) as e:
            if local is not None:
                e.at(relocation=f"{RELO_NAMES[relo.kind]} {local.expression()}")
            raise e.at(insn=relo.insn)  # noqa: B904 (the same exception, with its place)
        if why is not None and value.poison:
            why = _absent(local, tried)
        return Outcome(
            relo.insn, relo.kind, local, tried, chosen, value.old, value.new, why,
            before, bytes(insns[at : at + size]),
        )

    def _decide(
        self, local: Spec, root: Type
    ) -> tuple[Value, Candidate | None, tuple[Candidate, ...]]:
        """The value all matching candidates agree on."""
        pool = self._candidates.get(root.id)
        if pool is None:
            pool = self._candidates[root.id] = self._search(root)
        tried: list[Candidate] = []
        kept: list[tuple[Btf, int]] = []
        value: Value | None = None
        chosen: Candidate | None = None
        for btf, type_id in pool:
            spec = cs.match(local, btf, type_id)
            candidate = Candidate(btf, type_id, spec)
            tried.append(candidate)
            if spec is None:
                continue
            found = _values(local, spec)
            if value is None or chosen is None or chosen.spec is None:
                value, chosen = found, candidate
            elif (
                spec.bit_offset != chosen.spec.bit_offset
                or found.poison != value.poison
                or found.new != value.new
            ):
                raise RelocationError(
                    f"the kernel has several types of this name, and they disagree: "
                    f"{chosen.text()} gives {_signed(value.new)}, {candidate.text()} gives "
                    f"{_signed(found.new)}.",
                    hint="Use a flavour (struct name___x) with fields that only the right one has.",
                )
            kept.append((btf, type_id))
        if value is None:
            return _values(local, None), None, tuple(tried)
        pool[:] = kept
        return value, chosen, tuple(tried)

    def _search(self, root: Type) -> list[tuple[Btf, int]]:
        """Candidates in vmlinux, else in all modules."""
        vmlinux = self.target.vmlinux
        found = _named(vmlinux, root)
        if not found:
            for module in self.target.modules.values():
                found.extend(_named(module, root))
        return found


def _named(btf: Btf, root: Type) -> list[tuple[Btf, int]]:
    return [
        (btf, i)
        for i in btf.candidates(root.name)
        if kinds_compatible(btf.type(i).kind, root.kind)
    ]


def relocate(
    insns: bytearray, relos: Sequence[CoreRelo], local: Btf, target: CoreTarget
) -> list[Outcome]:
    """Relocate one function in place (see CoreRelocator, which is for a whole object)."""
    return CoreRelocator(local, target).relocate(insns, relos)


# -- values -----------------------------------------------------------------------------------


def _values(local: Spec, target: Spec | None) -> Value:
    """Old and new value for a pair of specs (bpf_core_calc_relo)."""
    if local.kind in cs.FIELD_KINDS:
        if local.kind == cs.FIELD_EXISTS:
            return Value(1, int(target is not None))
        old, old_size, old_type, validate = _field(local)
        if target is None:
            return Value(old, 0, poison=True, validate=validate)
        new, new_size, new_type, _validate = _field(target)
        resizable = True
        if old_size != new_size:
            a, b = local.btf.type(old_type), target.btf.type(new_type)
            # Zero-extension keeps the value of these and of no others.
            resizable = (a.kind == KIND_PTR == b.kind) or (
                a.kind == KIND_INT == b.kind and a.int_encoding != 1 and b.int_encoding != 1
            )
        return Value(old, new, False, validate, old_size, new_size, resizable)
    if local.kind in cs.TYPE_KINDS:
        # Ids change when objects are linked, so the id in the instruction proves nothing.
        validate = local.kind != cs.TYPE_ID_TARGET
        return Value(_type_value(local), 0 if target is None else _type_value(target),
                     validate=validate)
    if local.kind == cs.ENUMVAL_EXISTS:
        return Value(1, int(target is not None))
    old = _enum_value(local)
    if target is None:
        return Value(old, 0, poison=True)
    return Value(old, _enum_value(target))


def _type_value(spec: Spec) -> int:
    if spec.kind == cs.TYPE_ID_TARGET:
        return spec.root
    if spec.kind == cs.TYPE_SIZE:
        return spec.btf.size(spec.root)
    return 1


def _enum_value(spec: Spec) -> int:
    step = spec.steps[0]
    found = spec.btf.type(step.type_id)
    at = found.pos + 3
    if found.kind == KIND_ENUM64:  # low word, high word
        _name, low, high = found.btf.words[at + 3 * step.idx : at + 3 * step.idx + 3]
        return high << 32 | low
    value = found.btf.words[at + 2 * step.idx + 1]
    # The 32-bit value is an s32 in struct btf_enum, whatever the enum's sign.
    return value | (_U64 ^ _U32) if value >> 31 else value


def _field(spec: Spec) -> tuple[int, int, int, bool]:
    """(value, size for loads, its type, validate) of a field relocation."""
    btf = spec.btf
    kind = spec.kind
    step = spec.steps[-1]
    if step.name is None:
        if kind == cs.FIELD_BYTE_OFFSET:
            return (spec.bit_offset // 8, _element_size(btf, step.type_id), step.type_id, True)
        if kind == cs.FIELD_BYTE_SIZE:
            return (btf.size(step.type_id), 0, 0, True)
        raise RelocationError(
            f"{RELO_NAMES[kind]} cannot be asked of an array element ({spec.expression()})."
        )
    of = btf.type(step.type_id)
    field = btf.skip(cs.member_words(of, step.idx)[1])
    bit_off = spec.bit_offset
    bits = cs.member_bits(of, step.idx)
    bitfield = bits > 0
    if bitfield:
        byte_off, byte_sz = _storage(spec, field, bit_off, bits)
    else:
        byte_off, byte_sz = bit_off // 8, btf.size(field.id)
        bits = byte_sz * 8
    if kind == cs.FIELD_BYTE_OFFSET:
        if bitfield:
            return (byte_off, 0, 0, False)
        return (byte_off, _element_size(btf, field.id), field.id, True)
    if kind == cs.FIELD_BYTE_SIZE:
        return (byte_sz, 0, 0, not bitfield)
    if kind == cs.FIELD_SIGNED:
        signed = (field.kind in ENUM_KINDS and field.kflag) or field.int_encoding & 1
        return (int(bool(signed)), 0, 0, True)
    if kind == cs.FIELD_LSHIFT_U64:
        if btf.byteorder == "little":
            shift = 64 - (bit_off + bits - byte_off * 8)
        else:
            shift = (8 - byte_sz) * 8 + (bit_off - byte_off * 8)
        return (shift & _U32, 0, 0, not bitfield)
    return ((64 - bits) & _U32, 0, 0, True)  # FIELD_RSHIFT_U64


def _storage(spec: Spec, field: Type, bit_off: int, bits: int) -> tuple[int, int]:
    """(byte offset, size) of the smallest aligned load that holds a bit-field."""
    size = field.size_or_type
    if not size or size > 8:
        raise RelocationError(f"{spec.expression()} is a bit-field in a {kind_name(field.kind)} "
                              f"of {size} bytes")
    start = bit_off // 8 // size * size
    while bit_off + bits - start * 8 > size * 8:
        if size >= 8:
            raise RelocationError(
                f"the bit-field {spec.expression()} cannot be read with one 64-bit load."
            )
        size *= 2
        start = bit_off // 8 // size * size
    return start, size


def _element_size(btf: Btf, type_id: int) -> int:
    """Size of a type, of an array's innermost element (libbpf 1.6, 06096d19ee38)."""
    found = btf.skip(type_id)
    for _ in range(512):
        if found.kind != KIND_ARRAY:
            return btf.size(found.id)
        found = btf.skip(found.array.type)
    raise FormatError(f"type [{type_id}] is an array nested without end", btf=btf.label)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# -- explanations -----------------------------------------------------------------------------


def _absent(local: Spec, tried: Sequence[Candidate]) -> str:
    """What of ``local`` the target lacks, and what it has in its place."""
    root = local.btf.type(local.root)
    wanted = f"{root.kind_name} {essential_name(root.name)}"
    if not tried:
        return f"the kernel has no {wanted}"
    candidate = tried[0]
    found = candidate.btf.skip(candidate.type_id)
    where = f"{candidate.btf.label}'s {wanted}"
    if local.kind in cs.ENUM_KINDS_OF_RELO:
        name = local.steps[0].name or ""
        return f"{where} has no value {name}" + _nearest(
            essential_name(name), [e.name for e in found.enumerators]
        )
    if local.kind in cs.TYPE_KINDS:
        return f"{where} is of another shape"
    try:
        return _absent_field(local, candidate, where)
    except (FormatError, RelocationError) as e:
        return f"{where} cannot be read: {e.message}"


def _absent_field(local: Spec, candidate: Candidate, where: str) -> str:
    """Find the first step that the candidate cannot follow."""
    btf = candidate.btf
    current = candidate.type_id
    for i, step in enumerate(local.steps):
        found = btf.skip(current)
        here = where if i <= 1 else f"{btf.label}'s {found.kind_name} {found.name or '(anon)'}"
        if step.name is None:
            if i:
                if found.kind != KIND_ARRAY:
                    return f"{_path(local, i)} is no array in {btf.label}"
                if step.idx >= found.array.nelems:
                    return f"{_path(local, i)} has {found.array.nelems} elements in {btf.label}"
                current = found.array.type
            continue
        members = dict(_all_members(btf, found, 16))
        if step.name not in members:
            return f"{here} has no member {step.name}" + _nearest(step.name, list(members))
        current = members[step.name]
        last = btf.skip(current)
        mine = local.btf.skip(
            cs.member_words(local.btf.type(step.type_id), step.idx)[1]
        )
        if not fields_compatible(local.btf, mine.id, btf, current):
            return (
                f"{here} has member {step.name} as {last.kind_name} {last.name or '(anon)'}, "
                f"the program has it as {mine.kind_name} {mine.name or '(anon)'}"
            )
    return f"{where} does not match"


def _path(local: Spec, steps: int) -> str:
    part = Spec(local.btf, local.root, local.kind)
    part.steps = local.steps[:steps]
    return part.expression()


def _all_members(btf: Btf, of: Type, depth: int) -> list[tuple[str, int]]:
    """(name, type) of the members, those of anonymous structs and unions included."""
    found: list[tuple[str, int]] = []
    for index, name in enumerate(of.member_names):
        member_type = cs.member_words(of, index)[1]
        if name:
            found.append((name, member_type))
        elif depth and len(found) < 10_000:
            found.extend(_all_members(btf, btf.skip(member_type), depth - 1))
    return found


def _nearest(name: str, names: list[str]) -> str:
    """"; it has …" with the names most like ``name``, or how many there are."""
    import difflib

    near = difflib.get_close_matches(name, sorted(set(names))[:5000], n=3, cutoff=0.6)
    if near:
        return f" (it has {', '.join(near)})"
    return f" (it has {len(names)} others, none with a similar name)" if names else ""


