# SPDX-License-Identifier: BSD-2-Clause
"""BTF, read lazily: a type is decoded when it is asked for, the data is never copied.

``Btf`` keeps a view of the bytes (mmap, bytes or memoryview) and the position of each type it
has walked past, 4 bytes a type. The walk goes no further than the highest id asked for, and a
name is looked for in the string section before any type is touched: vmlinux BTF has 120,000
types, and a relocation needs a few of them. Data in the other byte order is converted once
(that one is a copy).

Source: include/uapi/linux/btf.h, Documentation/bpf/btf.rst. All errors in the data raise
FormatError, also when they are found late.
"""

from __future__ import annotations

import os
import sys
from array import array

from pybpf.btf import scan
from pybpf.btf.consts import (
    KIND_ARRAY,
    KIND_DECL_TAG,
    KIND_INT,
    KIND_PTR,
    KIND_TYPEDEF,
    KIND_VAR,
    MODIFIERS,
)
from pybpf.btf.header import Header
from pybpf.btf.types import (
    SIZED,
    ArrayInfo,
    Enumerator,
    Member,
    Param,
    SecVar,
    Type,
    essential_name,
)
from pybpf.errors import FormatError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Collection, Iterable, Iterator

    Buffer = bytes | bytearray | memoryview | mmap.mmap

__all__ = [
    "SYSFS",
    "ArrayInfo",
    "Btf",
    "Enumerator",
    "Member",
    "Param",
    "SecVar",
    "Type",
    "essential_name",
]

SYSFS = "/sys/kernel/btf"

_REFERRING = MODIFIERS | {KIND_TYPEDEF}
_RESOLVED_THROUGH = _REFERRING | {KIND_VAR, KIND_DECL_TAG}
# A chain of modifiers and typedefs as long as this is a loop: compilers nest a handful.
_MAX_CHAIN = 512
# libbpf's bound on the depth of a size (MAX_RESOLVE_DEPTH).
_MAX_SIZE_DEPTH = 32
_CACHE = 4096
# So many names are looked for one by one; then all are put into an index, which takes as long.
_SEARCHES = 256


def _again(data: bytes, base: Btf | None, name: str, byteorder: str) -> Btf:
    return Btf(data, base=base, name=name, byteorder=byteorder)


class Btf:
    """A BTF blob, or a split BTF on top of ``base``.

    name: where it comes from ("vmlinux", a module, an object), for messages.
    start_id: id of its first own type; base ids are below it. byteorder: "little" or "big".
    """

    ptr_size = 8

    def __init__(self, data: Buffer, *, base: Btf | None, name: str, byteorder: str | None) -> None:
        self.base = base
        self.label = name
        self.data = data
        self.header = Header.parse(data, byteorder=byteorder, name=name, split=base is not None)
        self.byteorder = self.header.byteorder
        self.kind_words = self.header.kind_words
        if base is not None and base.byteorder != self.byteorder:
            raise FormatError(
                f"its byte order is {self.byteorder}, that of {base.label} is {base.byteorder}",
                btf=name,
            )
        start, end = self.header.type_range
        with memoryview(data) as view:
            if self.byteorder == sys.byteorder:
                self.words: memoryview | array[int] = view[start:end].cast("B").cast("I")
            else:
                self.words = array("I", view[start:end].tobytes())
                self.words.byteswap()
        self.start_id = base.count if base is not None else 1
        self.start_str = base.str_end if base is not None else 0
        self._strings = self.header.str_range
        if base is None and self._strings[0] == self._strings[1]:
            raise FormatError("its string section is empty", btf=name)
        self._walk = scan.Walk(self.words, self.kind_words, name)
        self._types: dict[int, Type] = {}
        self._names: dict[int, str] = {}
        self._candidates: dict[str, tuple[int, ...]] = {}
        self._by_name: dict[str, tuple[int, ...]] = {}
        self._index: dict[str, list[int]] | None = None  # by name without flavour
        self._searched = 0
        # As it is loaded (pybpf.compiler), by what else that depends on: compiling the programs of
        # an object one by one asks for it each time.
        self.loadable: dict[tuple[int, ...], bytes] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle and copy: the bytes, read again (views of them cannot be pickled)."""
        return _again, (self.raw(), self.base, self.label, self.byteorder)

    @classmethod
    def parse(
        cls,
        data: Buffer,
        *,
        base: Btf | None = None,
        name: str = "vmlinux",
        byteorder: str | None = None,
    ) -> Btf:
        """Read BTF from ``data``, which must stay as it is while the Btf is used.

        byteorder: None takes the order the magic number shows. Raises FormatError.
        """
        return cls(data, base=base, name=name, byteorder=byteorder)

    @classmethod
    def open(cls, path: str, *, base: Btf | None = None, name: str | None = None) -> Btf:
        """Map (else read) a file of raw BTF; no fd stays open. Raises FormatError, OSError."""
        from pybpf.sys.mapped import map_file  # an object's own BTF needs neither it nor ctypes

        return cls.parse(map_file(path), base=base, name=name or os.path.basename(path))

    @classmethod
    def vmlinux(cls) -> Btf:
        """The running kernel's BTF (CONFIG_DEBUG_INFO_BTF). Raises FormatError, OSError.

        It cannot change, so that a process has one: what was looked up stays known (some
        100 KB; the data itself belongs to the kernel where it can be mapped).
        """
        global _vmlinux
        if _vmlinux is None:
            _vmlinux = cls.open(f"{SYSFS}/vmlinux")
        return _vmlinux

    @classmethod
    def module(cls, name: str, vmlinux: Btf) -> Btf:
        """BTF of a loaded module (v5.11), split on top of ``vmlinux``."""
        if "/" in name or name in ("", ".", ".."):
            raise UsageError(f"{name!r} is no module name")
        return cls.open(f"{SYSFS}/{name}", base=vmlinux, name=name)

    def raw(self) -> bytes:
        """The whole blob as bytes (a copy), for BPF_BTF_LOAD."""
        with memoryview(self.data) as view:
            return view.tobytes()

    # -- strings ---------------------------------------------------------------------------

    @property
    def str_end(self) -> int:
        """First string offset past this BTF's strings, its base's included."""
        return self.start_str + self._strings[1] - self._strings[0]

    def name(self, offset: int) -> str:
        """The string at ``offset``. Raises FormatError when it lies outside."""
        found = self._names.get(offset)
        if found is not None:
            return found
        if offset < self.start_str and self.base is not None:
            return self.base.name(offset)
        start, end = self._strings
        at = start + offset - self.start_str
        if not start <= at < end:
            raise FormatError(f"string offset {offset} is outside the string section",
                              btf=self.label)
        size = 48
        while True:
            piece = bytes(self.data[at : min(at + size, end)])
            stop = piece.find(0)
            if stop >= 0:
                break
            # The header check has seen the NUL that ends the section.
            size *= 8
        if len(self._names) >= _CACHE:
            self._names.clear()
        # Identifiers are ASCII; a tag's text may be anything, and must not break a message.
        text = self._names[offset] = piece[:stop].decode("utf-8", "backslashreplace")
        return text

    def name_is(self, offset: int, name: bytes) -> bool:
        """Whether the string at ``offset`` equals ``name``, which ends in one NUL byte."""
        if offset < self.start_str:
            assert self.base is not None
            return self.base.name_is(offset, name)
        start, end = self._strings
        at = start + offset - self.start_str
        return at + len(name) <= end and bytes(self.data[at : at + len(name)]) == name

    # -- types -----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Number of ids, void and the base's included (walks the whole section once)."""
        return self.start_id + self._walk.total()

    def __len__(self) -> int:
        return self.count

    def type(self, type_id: int) -> Type:
        """The type with this id. Raises FormatError when there is none."""
        found = self._types.get(type_id)
        if found is not None:
            return found
        if type_id < self.start_id:
            if self.base is not None:
                return self.base.type(type_id)
            if type_id == 0:
                return Type(self, 0, 0, 0, 0, 0)
            raise FormatError(f"type id {type_id} is negative", btf=self.label)
        pos = self._walk.position(type_id - self.start_id)
        if pos < 0:
            raise FormatError(
                f"there is no type [{type_id}] (there are {self.count})", btf=self.label
            )
        if len(self._types) >= _CACHE:
            self._types.clear()
        name_off, info, value = self.words[pos : pos + 3]
        found = self._types[type_id] = Type(self, type_id, pos, name_off, info, value)
        return found

    def __iter__(self) -> Iterator[Type]:
        """Own types in id order (without the base's)."""
        for type_id in range(self.start_id, self.count):
            yield self.type(type_id)

    def positions(self) -> Iterator[int]:
        """Where each own type begins in ``words``, in id order."""
        return self._walk.positions()

    def of_kind(self, *kinds: int) -> Iterator[Type]:
        """Own types of these kinds, in id order; the others are passed over, not decoded."""
        for index in self._walk.of_kind(kinds):
            yield self.type(self.start_id + index)

    def skip(self, type_id: int) -> Type:
        """Follow modifiers and typedefs. Raises FormatError on a loop."""
        for _ in range(_MAX_CHAIN):
            found = self.type(type_id)
            if found.kind not in _REFERRING:
                return found
            type_id = found.size_or_type
        raise FormatError(f"modifiers and typedefs at type [{type_id}] form a loop",
                          btf=self.label)

    def size(self, type_id: int) -> int:
        """Size in bytes of any type that has one, arrays and typedefs included.

        Raises FormatError for void, functions, forward declarations, loops, and sizes of
        2**32 bytes and more.
        """
        elements = 1
        first = type_id
        for _ in range(_MAX_SIZE_DEPTH):
            found = self.type(type_id)
            kind = found.kind
            if kind in SIZED:
                total = elements * found.size_or_type
            elif kind == KIND_PTR:
                total = elements * self.ptr_size
            elif kind in _RESOLVED_THROUGH:
                type_id = found.size_or_type
                continue
            elif kind == KIND_ARRAY:
                type_id, _index, nelems = found.array
                elements *= nelems
                if elements < 1 << 32:
                    continue
                total = elements
            else:
                raise FormatError(
                    f"type [{first}] has no size: it leads to [{found.id}] {found.kind_name} "
                    f"{found.name or '(anon)'}",
                    btf=self.label,
                )
            if total >= 1 << 32:
                raise FormatError(f"type [{first}] is larger than 4 GiB", btf=self.label)
            return total
        raise FormatError(f"the size of type [{first}] is nested more than {_MAX_SIZE_DEPTH} deep",
                          btf=self.label)

    def int_bitfield_size(self, type_id: int) -> int:
        """Bits of a member in a struct without kflag: those of an int narrower than its size.

        Compilers before kflag (v4.20) wrote bit-fields as such ints; 0: no bit-field.
        """
        found = self.type(type_id)
        if found.kind == KIND_INT:
            bits = found.int_bits
            if bits != found.size_or_type * 8 or found.int_offset:
                return bits
        return 0

    # -- names -----------------------------------------------------------------------------

    def find(self, name: str, kinds: int | Collection[int] = ()) -> list[int]:
        """Ids of the types called exactly ``name``, of any of ``kinds`` (none given: any).

        The base's come first. An empty list when there is none.
        """
        wanted = (kinds,) if isinstance(kinds, int) else kinds
        found = self.base.find(name, wanted) if self.base is not None else []
        ids = self._by_name.get(name)
        if ids is None:
            self.prefetch(names=(name,))
            ids = self._by_name[name]
        own = [i for i in ids if not wanted or self.type(i).kind in wanted]
        return found + own

    def candidates(self, name: str) -> tuple[int, ...]:
        """Own ids of named types whose name without flavour is that of ``name``.

        Ascending; the kind is not looked at. Types of the base are not among them.
        """
        essential = essential_name(name)
        ids = self._candidates.get(essential)
        if ids is None:
            self.prefetch(essentials=(essential,))
            ids = self._candidates[essential]
        return ids

    def prefetch(self, *, names: Iterable[str] = (), essentials: Iterable[str] = ()) -> None:
        """Look up many names in one pass; find() and candidates() then answer from memory."""
        exact = [n for n in dict.fromkeys(names) if n not in self._by_name]
        flavours = [n for n in dict.fromkeys(essentials) if n not in self._candidates]
        if len(self._by_name) + len(exact) > _CACHE:
            self._by_name.clear()
        if len(self._candidates) + len(flavours) > _CACHE:
            self._candidates.clear()
        self._searched += len(exact) + len(flavours)
        if self._searched > _SEARCHES:
            self._from_index(exact, flavours)
            return
        offsets: dict[int, None] = {}
        for name in dict.fromkeys(exact + flavours):
            offsets.update(dict.fromkeys(self._name_offsets(name, name in flavours)))
        by_name: dict[str, list[int]] = {name: [] for name in exact}
        candidates: dict[str, list[int]] = {name: [] for name in flavours}
        for type_id, offset in self._ids_of(offsets):
            text = self.name(offset)
            if text in by_name:
                by_name[text].append(type_id)
            essential = essential_name(text)
            if essential in candidates:
                candidates[essential].append(type_id)
        self._by_name.update((name, tuple(ids)) for name, ids in by_name.items())
        self._candidates.update((name, tuple(ids)) for name, ids in candidates.items())

    def _from_index(self, exact: Iterable[str], flavours: Iterable[str]) -> None:
        if self._index is None:
            self._index = self._all_names()
        for name in flavours:
            self._candidates[name] = tuple(self._index.get(name, ()))
        for name in exact:
            alike = self._index.get(essential_name(name), ())
            self._by_name[name] = tuple(i for i in alike if self.type(i).name == name)

    def _all_names(self) -> dict[str, list[int]]:
        """Own ids by name without flavour."""
        found: dict[str, list[int]] = {}
        for type_id, at in enumerate(self._walk.positions(), self.start_id):
            try:
                text = self.name(self.words[at])
            except FormatError:  # told where it matters: when this type is looked at
                continue
            if text:
                found.setdefault(essential_name(text), []).append(type_id)
        return found

    def _name_offsets(self, name: str, flavours: bool) -> list[int]:
        """String offsets, the base's included, of ``name`` and if wanted of its flavours."""
        found = self.base._name_offsets(name, flavours) if self.base is not None else []
        if not name or "\0" in name:
            return found
        encoded = b"\0" + name.encode("utf-8", "surrogatepass")
        start, end = self._strings
        size = len(encoded)
        for at in scan.find_all(self.data, encoded, start, end):
            # One search for the name and for its flavours: what follows tells.
            after = bytes(self.data[at + size : at + size + 3])
            if after[:1] == b"\0" or (flavours and after == b"___"):
                found.append(at - start + 1 + self.start_str)
        return found

    def _ids_of(self, offsets: Collection[int]) -> list[tuple[int, int]]:
        """(id, name offset) of the own types that have one of these name offsets, ascending."""
        if not offsets:
            return []
        return [
            (index + self.start_id, offset)
            for index, offset in self._walk.named(offsets)
        ]


_vmlinux: Btf | None = None
