# SPDX-License-Identifier: BSD-2-Clause
"""C declarations of BTF types: one type, or everything a set of types needs, in order.

declare() gives "struct file *f" for any type; definition() the text of one named type; dump()
a header that compiles, and vmlinux_h() one for BPF programs: what a type needs by value comes
before it, what it only points to is declared forward. Kernels from v6.19 on need -fms-extensions
(members "struct name;").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pybpf.btf.consts import (
    ENUM_KINDS,
    KIND_ARRAY,
    KIND_CONST,
    KIND_DATASEC,
    KIND_ENUM64,
    KIND_FLOAT,
    KIND_FUNC,
    KIND_FUNC_PROTO,
    KIND_FWD,
    KIND_INT,
    KIND_PTR,
    KIND_RESTRICT,
    KIND_STRUCT,
    KIND_TYPE_TAG,
    KIND_TYPEDEF,
    KIND_UNION,
    KIND_VAR,
    KIND_VOID,
    KIND_VOLATILE,
)
from pybpf.btf.model import Btf, Member, Type
from pybpf.errors import FormatError

__all__ = ["CDump", "declare", "definition", "dump", "vmlinux_h"]

_COMPOSITE = (KIND_STRUCT, KIND_UNION)
_QUALIFIERS = {KIND_CONST: "const", KIND_VOLATILE: "volatile", KIND_RESTRICT: "restrict"}
_MAX_DEPTH = 64
# What stands in a header many times over, types without a name, may take a few times what the BTF
# has: 6.18's vmlinux takes 156,544 steps for 126,611 types and 22,553 lines for 1.4 million words.
_STEPS, _STEPS_A_TYPE = 20_000, 8
_LINES = 20_000
_MAX_LINES = 50_000  # of one definition; the kernel's longest has 2,000
_LONG_GAP = 64 * 64
_TRANSPARENT = frozenset((*_QUALIFIERS, KIND_TYPE_TAG, KIND_TYPEDEF, KIND_PTR, KIND_VAR))
_WRITTEN_ONCE = frozenset(
    (*_COMPOSITE, *ENUM_KINDS, KIND_TYPEDEF, KIND_FUNC, KIND_VAR, KIND_DATASEC)
)
_BEGUN, _WRITTEN = 1, 2


def declare(btf: Btf, type_id: int, name: str = "") -> str:
    """A C declaration of ``name`` with this type (no name: the type alone)."""
    return CDump(btf).declare(type_id, name)


def definition(btf: Btf, type_id: int) -> str:
    """The C text that defines one struct, union, enum, typedef, function or variable."""
    return CDump(btf).define(btf.type(type_id))


def dump(btf: Btf, type_ids: Iterable[int] | None = None) -> str:
    """A C header with ``type_ids`` (None: all own types) and all they need."""
    return "".join(CDump(btf).header(type_ids))


def vmlinux_h(btf: Btf, type_ids: Iterable[int] | None = None) -> str:
    """``dump`` as a header for BPF programs: what they access of its structs is relocated (CO-RE)
    unless BPF_NO_PRESERVE_ACCESS_INDEX is defined before, as in bpftool's vmlinux.h."""
    return _VMLINUX_H.format(dump(btf, type_ids))


_VMLINUX_H = """\
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

#if defined(__bpf__) && !defined(BPF_NO_PRESERVE_ACCESS_INDEX)
#pragma clang attribute push (__attribute__((preserve_access_index)), apply_to = record)
#endif

{}#if defined(__bpf__) && !defined(BPF_NO_PRESERVE_ACCESS_INDEX)
#pragma clang attribute pop
#endif

#endif
"""


class CDump:
    """Writes C. Two types of one name get ___2, ___3 … (a CO-RE flavour) in one dump."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self._names: dict[int, str] = {}
        self._used: dict[tuple[bool, str], int] = {}
        self._state: dict[int, int] = {}
        self._forward: set[int] = set()
        self._lines = 0
        self._steps = _STEPS + _STEPS_A_TYPE * btf.count
        self._left = _LINES + len(btf.data) // 4
        self._shapes: dict[int, tuple[int, bool]] = {}

    # -- declarators -----------------------------------------------------------------------

    def declare(self, type_id: int, name: str = "", depth: int = 0) -> str:
        """As the function declare()."""
        if not depth:
            self._lines = 0
        text = name
        quals: list[str] = []
        previous = -1
        for _ in range(_MAX_DEPTH):
            found = self.btf.type(type_id)
            kind = found.kind
            if kind in _QUALIFIERS:
                # GCC qualifies an array as well as its elements (its bug 8354): once is enough.
                if _QUALIFIERS[kind] not in quals:
                    quals.append(_QUALIFIERS[kind])
                type_id = found.size_or_type
                continue
            if kind == KIND_TYPE_TAG:
                type_id = found.size_or_type
                continue
            if kind == KIND_PTR:
                marks = " ".join(reversed(quals))
                text = f"*{marks + ' ' if marks and text else marks}{text}"
                quals = []
                type_id = found.size_or_type
            elif kind == KIND_ARRAY:
                if previous == KIND_PTR:
                    text = f"({text})"
                text = f"{text}[{found.array.nelems}]"
                type_id = found.array.type
            elif kind == KIND_FUNC_PROTO:
                if previous == KIND_PTR:
                    text = f"({text})"
                text = f"{text}({self._params(found, depth)})"
                type_id = found.size_or_type
            else:
                base = self._base(found, depth)
                words = [*reversed(quals), base, text] if text else [*reversed(quals), base]
                return " ".join(words)
            previous = kind
        raise FormatError(f"type [{type_id}] is declared with more than {_MAX_DEPTH} steps",
                          btf=self.btf.label)

    def _params(self, proto: Type, depth: int) -> str:
        if depth > _MAX_DEPTH // 4:
            raise FormatError(f"prototype [{proto.id}] is nested too deep", btf=self.btf.label)
        params = proto.params
        if not params:
            return "void"
        self._count(len(params), proto)
        words = [
            "..." if not p.type and not p.name else self.declare(p.type, p.name, depth + 1)
            for p in params
        ]
        return ", ".join(words)

    def _base(self, found: Type, depth: int) -> str:
        kind = found.kind
        if kind == KIND_VOID:
            return "void"
        if kind in _COMPOSITE or kind in ENUM_KINDS:
            if not found.name:
                return self._body(found, depth + 1)
            return f"{_keyword(found)} {self.name(found)}"
        if kind == KIND_FWD:
            return f"{'union' if found.kflag else 'struct'} {found.name}"
        if kind in (KIND_INT, KIND_FLOAT):
            return _C_INTS.get(found.name, found.name)
        if kind == KIND_TYPEDEF:
            return self.name(found)
        raise FormatError(
            f"[{found.id}] {found.kind_name} {found.name} cannot be the type of anything",
            btf=self.btf.label,
        )

    def name(self, found: Type) -> str:
        """The name of a type in this dump, made unique."""
        if found.id not in self._names:
            # Struct, union and enum tags share one name space, typedefs and functions another.
            key = (found.kind == KIND_TYPEDEF, found.name)
            count = self._used[key] = self._used.get(key, 0) + 1
            self._names[found.id] = found.name if count == 1 else f"{found.name}___{count}"
        return self._names[found.id]

    def _values(self, found: Type) -> list[tuple[str, int]]:
        """Enumerators with names made unique: they share the name space of typedefs. An enum
        without a name that two structs are made of is written twice, and has other names then."""
        rows = []
        for name, value in found.enumerators:
            count = self._used[True, name] = self._used.get((True, name), 0) + 1
            rows.append((name if count == 1 else f"{name}___{count}", value))
        return rows

    # -- definitions -----------------------------------------------------------------------

    def _count(self, lines: int, found: Type) -> None:
        """Bound a definition: what it embeds may embed the next twice, and so on."""
        self._lines += lines
        self._left -= lines
        if self._lines > _MAX_LINES or self._left < 0:
            raise FormatError(f"[{found.id}] {found.name or '(anon)'} takes too many lines",
                              btf=self.btf.label)

    def define(self, found: Type) -> str:
        """As the function definition()."""
        self._lines = 0
        kind = found.kind
        if kind in _COMPOSITE or kind in ENUM_KINDS:
            return f"{self._body(found, 0)};\n"
        if kind == KIND_TYPEDEF:
            return f"typedef {self.declare(found.size_or_type, self.name(found))};\n"
        if kind == KIND_FWD:
            return f"{'union' if found.kflag else 'struct'} {found.name};\n"
        if kind == KIND_FUNC:
            text = self.declare(found.size_or_type, found.name)
            return f"{('static ', '', 'extern ')[min(found.linkage, 2)]}{text};\n"
        if kind == KIND_VAR:
            text = self.declare(found.size_or_type, found.name)
            return f"{('static ', '', 'extern ')[min(found.linkage, 2)]}{text};\n"
        if kind == KIND_DATASEC:
            variables = ((v.offset, self.btf.type(v.type)) for v in found.variables)
            rows = [
                f"/* {offset:#x} */ {self.define(var)}"
                for offset, var in variables
                if var.kind in (KIND_VAR, KIND_FUNC)
            ]
            return f"/* section {found.name}, {found.size} bytes */\n" + "".join(rows)
        return f"/* {self.declare(found.id)} */\n"

    def _body(self, found: Type, depth: int) -> str:
        if depth > _MAX_DEPTH // 4:
            raise FormatError(f"[{found.id}] is nested more than {depth - 1} deep",
                              btf=self.btf.label)
        if depth:
            self._count(found.vlen, found)
        tag = f" {self.name(found)}" if found.name else ""
        head = _keyword(found) + tag
        inner = "\t" * (depth if not found.name else 0)
        pad = "\t" * max(depth, 1)
        if found.kind in ENUM_KINDS:
            if not found.vlen:
                return head  # declared only: C has no empty enums
            values = [
                f"{pad}{name} = {_number(value, found)},\n"
                for name, value in self._values(found)
            ]
            packed = " __attribute__((packed))" if found.size < 4 else ""
            if found.size == 8 and found.kind != KIND_ENUM64:
                packed = " __attribute__((mode(DI)))"
            end = "\t" * (depth - 1) if depth else ""
            return f"{head} {{\n{''.join(values)}{end}}}{packed}"
        rows = [f"{pad}{line}\n" for line in self._members(found, max(depth, 1))]
        packed = " __attribute__((packed))" if self._packed(found) else ""
        end = "\t" * (depth - 1) if depth else inner
        return f"{head} {{\n{''.join(rows)}{end}}}{packed}"

    def _members(self, found: Type, depth: int) -> Iterator[str]:
        """Members, with unnamed bit-fields where bits are left out and at the end."""
        bit = 0
        packed = self._packed(found)
        for member in found.members:
            if found.kind == KIND_STRUCT:
                yield from self._padding(bit, member, packed)
            text = self.declare(member.type, member.name, depth)
            yield f"{text} : {member.bit_size};" if member.bit_size else f"{text};"
            if found.kind == KIND_STRUCT:
                size = member.bit_size or self.btf.size(member.type) * 8
                bit = member.bit_offset + size
        if found.kind == KIND_STRUCT:
            natural = 8 if packed else self._align(found) * 8
            end = found.size * 8
            if end - bit >= natural and bit:
                yield from _gap(-(-bit // natural) * natural if bit % natural else bit, end)

    def _padding(self, bit: int, member: Member, packed: bool) -> Iterator[str]:
        """What stands between ``bit`` and the member, unless alignment puts it there."""
        if member.bit_size:
            if member.bit_offset > bit:
                yield from _gap(bit, member.bit_offset)
            return
        align = 1 if packed else self._align(self.btf.type(member.type))
        natural = -(-bit // (align * 8)) * align * 8
        if member.bit_offset > natural:
            yield from _gap(natural, member.bit_offset)

    def _align(self, found: Type) -> int:
        """Alignment in bytes that C gives the type by itself (1 where it must be packed)."""
        return self._shape(found, 0)[0]

    def _packed(self, found: Type) -> bool:
        """Whether its layout is only possible with __attribute__((packed))."""
        return self._shape(found, 0)[1]

    def _shape(self, found: Type, depth: int) -> tuple[int, bool]:
        """(alignment, packed), worked out once for each type."""
        known = self._shapes.get(found.id)
        if known is not None:
            return known
        asked = found.id
        found = self.btf.skip(asked)
        if found.id != asked:
            shape = self._shapes[asked] = self._shape(found, depth)
            return shape
        if depth > _MAX_DEPTH:
            raise FormatError(f"[{found.id}] is nested too deep", btf=self.btf.label)
        kind = found.kind
        shape = (1, False)
        if kind == KIND_PTR:
            shape = (self.btf.ptr_size, False)
        elif kind in ENUM_KINDS or kind in (KIND_INT, KIND_FLOAT):
            shape = (min(found.size, 16) or 1, False)
        elif kind == KIND_ARRAY:
            shape = self._shape(self.btf.type(found.array.type), depth + 1)
        elif kind in _COMPOSITE:
            widest = 1
            packed = False
            for member in found.members:
                align = self._shape(self.btf.type(member.type), depth + 1)[0]
                widest = max(widest, align)
                packed |= not member.bit_size and member.bit_offset % (align * 8) != 0
            packed |= bool(found.vlen) and found.size % widest != 0
            shape = (1 if packed else widest, packed)
        self._shapes[found.id] = shape
        return shape

    # -- whole headers ---------------------------------------------------------------------

    def header(self, type_ids: Iterable[int] | None = None) -> Iterator[str]:
        """Pieces of the header (see dump())."""
        if type_ids is not None:
            for type_id in type_ids:
                yield from self._need(type_id, strong=True)
            return
        used = self._used_inside()
        for found in self.btf:
            if found.kind in ENUM_KINDS and not found.name:
                # Constants: those of no use elsewhere would be lost.
                if found.id not in used:
                    yield self.define(found) + "\n"
            elif (found.kind in _COMPOSITE and found.name) or found.kind in (
                KIND_TYPEDEF, *ENUM_KINDS
            ):
                yield from self._need(found.id, strong=True)

    def _used_inside(self) -> set[int]:
        """Ids of the types that another type is made of."""
        used: set[int] = set()
        for found in self.btf:
            if found.kind in _COMPOSITE:
                used.update(found.btf.words[found.pos + 4 : found.pos + 3 + 3 * found.vlen : 3])
            elif found.kind in (KIND_ARRAY, KIND_FUNC_PROTO):
                used.update(type_id for type_id, _whole in self._needs(found, True))
            elif found.kind in _TRANSPARENT:
                used.add(found.size_or_type)
        return used

    def _need(self, type_id: int, *, strong: bool) -> Iterator[str]:
        """What has to be written so that the type can be used: whole, or (weak) its name.

        An explicit stack: chains of types are longer than Python may recurse.
        """
        stack = [(self.btf.type(type_id), strong, False)]
        while stack:
            found, whole, ready = stack.pop()
            state = self._state.get(found.id, 0)
            if ready:
                if not found.name or found.kind not in _WRITTEN_ONCE:
                    self._state.pop(found.id, None)  # it is written wherever it is used
                elif state != _WRITTEN:
                    self._state[found.id] = _WRITTEN
                    yield self.define(found) + "\n"
                continue
            self._steps -= 1
            if self._steps < 0:
                raise FormatError(f"[{type_id}] needs too many types", btf=self.btf.label)
            named = bool(found.name) and found.kind in _COMPOSITE
            if found.kind == KIND_FWD or (named and not whole):
                if state != _WRITTEN:
                    yield from self._declare_forward(found)
                continue
            if state == _WRITTEN and found.kind != KIND_TYPEDEF:
                continue
            if state == _BEGUN:
                if found.kind != KIND_TYPEDEF:
                    raise FormatError(f"[{found.id}] {found.name or '(anon)'} contains itself",
                                      btf=self.btf.label)
                continue
            if found.kind == KIND_TYPEDEF:
                # The name first, with its target declared only: the target may use the name.
                target = self.btf.type(found.size_or_type)
                if whole:
                    stack.append((target, True, False))
                if state != _WRITTEN and found.name != "__builtin_va_list":
                    self._state[found.id] = _BEGUN
                    stack.append((found, whole, True))
                    stack.append((target, False, False))
                continue
            needs = self._needs(found, whole)
            if needs or found.kind in ENUM_KINDS or found.kind in _COMPOSITE:
                self._state[found.id] = _BEGUN
                stack.append((found, whole, True))
            stack.extend((self.btf.type(i), strength, False) for i, strength in reversed(needs))

    def _declare_forward(self, found: Type) -> Iterator[str]:
        if found.id not in self._forward and self._state.get(found.id) != _WRITTEN:
            self._forward.add(found.id)
            keyword = "union" if found.kind == KIND_UNION or (
                found.kind == KIND_FWD and found.kflag) else "struct"
            name = found.name if found.kind == KIND_FWD else self.name(found)
            yield f"{keyword} {name};\n\n"

    def _needs(self, found: Type, whole: bool) -> list[tuple[int, bool]]:
        """(type, whole?) that must be there before this one."""
        kind = found.kind
        if kind in _COMPOSITE:
            return [(m.type, True) for m in found.members]
        if kind == KIND_ARRAY:
            return [(found.array.type, True)]
        if kind == KIND_PTR:
            return [(found.size_or_type, False)]
        if kind == KIND_FUNC_PROTO:
            return [(found.size_or_type, False), *((p.type, False) for p in found.params)]
        if kind in _QUALIFIERS or kind in (KIND_TYPE_TAG, KIND_FUNC, KIND_VAR):
            return [(found.size_or_type, whole)]
        if kind == KIND_DATASEC:
            return [(v.type, True) for v in found.variables]
        return []


def _keyword(found: Type) -> str:
    return "enum" if found.kind in ENUM_KINDS else found.kind_name


def _gap(start: int, end: int) -> Iterator[str]:
    """Unnamed bit-fields over the bits [start, end); a long gap is one array."""
    while start < end:
        if end - start >= _LONG_GAP and start % 8 == 0:
            yield f"char _pad_{start // 8}[{(end - start) // 8}];"
            start += (end - start) // 8 * 8
            continue
        room = 64 - start % 64
        for width, name in ((64, "long long"), (32, "int"), (16, "short"), (8, "char")):
            if start % width == 0 and end - start >= width:
                yield f"{name} : {width};"
                start += width
                break
        else:
            width = min(room, end - start, 8 - start % 8)
            yield f"char : {width};"
            start += width


def _number(value: int, found: Type) -> str:
    if found.kind == KIND_ENUM64:
        return f"{value}LL" if found.kflag else f"{value}ULL"
    return str(value)


# pahole's and compilers' spellings that are no C
_C_INTS = {
    "_Bool": "_Bool",
    "__int128 unsigned": "unsigned __int128",
    "char unsigned": "unsigned char",
    "char signed": "signed char",
    "short unsigned int": "short unsigned int",
}
