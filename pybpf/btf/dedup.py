# SPDX-License-Identifier: BSD-2-Clause
"""The types of several BTFs together, each of them once.

Objects that include the same headers describe the same types over and over. Two types are the
same if nothing that can be reached from them tells them apart: neither names, sizes and offsets
nor, through pointers in circles, the types they refer to. The classes of such types are found by
refinement: all types start out by what stands in their own record, and as long as two of one
class refer to types of different classes they are parted (R. Paige, R. Tarjan, "Three partition
refinement algorithms", 1987).

A forward declaration, and an enum without values, is taken for the full type of its name where
there is only one such. Variables and data sections are kept one by one, as libbpf keeps them: two
of the same name are two variables.
"""

from __future__ import annotations

from array import array

from pybpf.btf.consts import (
    ENUM_KINDS,
    KIND_ARRAY,
    KIND_DATASEC,
    KIND_DECL_TAG,
    KIND_ENUM,
    KIND_ENUM64,
    KIND_FUNC,
    KIND_FUNC_PROTO,
    KIND_FWD,
    KIND_PTR,
    KIND_STRUCT,
    KIND_TYPEDEF,
    KIND_UNION,
    KIND_VAR,
    MODIFIERS,
    RECORD_WORDS,
)
from pybpf.btf.model import Btf, Type
from pybpf.btf.write import BtfWriter
from pybpf.errors import FormatError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["dedup"]

_REFERS = MODIFIERS | {
    KIND_PTR, KIND_TYPEDEF, KIND_FUNC, KIND_VAR, KIND_DECL_TAG, KIND_FUNC_PROTO,
}  # fmt: skip
# Kind → words of an entry that are a name and a type.
_ENTRIES: dict[int, tuple[int | None, int | None]] = {
    KIND_STRUCT: (0, 1), KIND_UNION: (0, 1), KIND_ENUM: (0, None),
    KIND_ENUM64: (0, None), KIND_FUNC_PROTO: (0, 1), KIND_DATASEC: (None, 0),
}  # fmt: skip
_FULL = {KIND_STRUCT: 0, KIND_UNION: 1}  # kind → the flag of a forward declaration of it


class _Record:
    """One type. words: its record, names by their number among all names, references zero;
    refs: (word, type) of each reference, types counted through all BTFs, 0 is void."""

    __slots__ = ("kind", "names", "refs", "vlen", "words")

    def __init__(
        self, kind: int, vlen: int, words: list[int], names: list[int],
        refs: list[tuple[int, int]],
    ) -> None:  # fmt: skip
        self.kind = kind
        self.vlen = vlen
        self.words = words
        self.names = names
        self.refs = refs


def dedup(parts: Sequence[Btf]) -> tuple[bytes, list[list[int]]]:
    """(BTF with every type of ``parts`` once, new ids: ids[part][old id] → id).

    Raises UsageError for split BTF and for parts of different byte orders, FormatError for a
    malformed one.
    """
    if not parts:
        raise UsageError("there is no BTF to take types from.")
    for part in parts:
        if part.base is not None:
            raise UsageError(f"{part.label} is split BTF; merge it with its base first.")
        if part.byteorder != parts[0].byteorder:
            raise UsageError(f"{part.label} is {part.byteorder}-endian, {parts[0].label} is not.")
    texts: dict[str, int] = {"": 0}
    records: list[_Record] = []
    starts = []
    for part in parts:
        starts.append(len(records))
        shift = len(records)
        for found in part:
            records.append(_record(found, shift, texts))
    full: dict[int, int] = {}
    while True:
        classes = _refine(records, full)
        new = _resolve(records, classes, full)
        if not new:
            break
        full |= new
    return _write(parts[0].byteorder, records, classes, full, list(texts), starts)


def _record(found: Type, shift: int, texts: dict[str, int]) -> _Record:
    btf, kind = found.btf, found.kind
    if kind not in RECORD_WORDS:
        # Its layout may be known (kernel 7.x), but not which of its words are types and names.
        raise FormatError(f"type [{found.id}] is of an unknown kind, {kind}.", btf=btf.label)
    fixed, width = RECORD_WORDS[kind]
    name_at, type_at = _ENTRIES.get(kind, (None, None))
    first = 3 + fixed
    words = list(btf.words[found.pos : found.pos + first + width * found.vlen])
    names, refs = [0], []
    if kind in _REFERS:
        refs.append(2)
    elif kind == KIND_ARRAY:
        refs += (3, 4)
    for at in range(first, len(words), width or 1):
        if name_at is not None:
            names.append(at + name_at)
        if type_at is not None:
            refs.append(at + type_at)
    for at in names:
        words[at] = texts.setdefault(btf.name(words[at]), len(texts))
    if any(words[at] >= btf.count for at in refs):
        raise FormatError(f"type [{found.id}] refers to one that does not exist.", btf=btf.label)
    targets = [(at, words[at] + shift if words[at] else 0) for at in refs]
    for at in refs:
        words[at] = 0
    return _Record(kind, found.vlen, words, names, targets)


def _refine(records: list[_Record], full: dict[int, int]) -> array[int]:
    """The class of each type, by its number; that of void is 0.

    Only those are looked at again whose targets have come into another class, and of a class
    that falls apart the largest part keeps its number: a chain of N types takes N steps, not N².
    """
    numbers: dict[object, int] = {}
    classes = array("I", bytes(4 * (len(records) + 1)))
    sizes = [0]
    said: dict[int, tuple[int, ...]] = {}  # class → the classes that its members refer to
    for number, record in enumerate(records, 1):
        alone = number if record.kind in (KIND_VAR, KIND_DATASEC) else 0
        own = (alone, *record.words)
        classes[number] = numbers.setdefault(own, len(sizes))
        if classes[number] == len(sizes):
            sizes.append(0)
        sizes[classes[number]] += 1
    targets = [[], *([full.get(t, t) for _, t in r.refs] for r in records)]
    users: list[list[int]] = [[] for _ in targets]
    for number, refs in enumerate(targets):
        for target in refs:
            users[target].append(number)
    again = set(range(1, len(targets)))
    while again:
        suspects: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for number in sorted(again):
            told = tuple([classes[target] for target in targets[number]])
            suspects.setdefault(classes[number], {}).setdefault(told, []).append(number)
        again = set()
        for old, groups in suspects.items():
            if sum(map(len, groups.values())) == sizes[old]:
                said[old] = max(groups, key=lambda told: len(groups[told]))
            # Else there are others in it, which still refer to what they did.
            for told, group in groups.items():
                if told == said[old]:
                    continue
                said[len(sizes)] = told
                sizes[old] -= len(group)
                for number in group:
                    classes[number] = len(sizes)
                    again.update(users[number])
                sizes.append(len(group))
    return classes


def _resolve(records: list[_Record], classes: array[int], full: dict[int, int]) -> dict[int, int]:
    """Declaration → the only full type of its name, for those that have none yet."""
    kept: dict[tuple[int, int], dict[int, int]] = {}
    waiting: list[tuple[int, tuple[int, int]]] = []
    for number, record in enumerate(records, 1):
        name = record.words[0]
        flag = record.words[1] >> 31
        if not name:
            continue
        if record.kind == KIND_FWD:
            waiting.append((number, (KIND_FWD, name << 1 | flag)))
        elif record.kind in _FULL:
            group = kept.setdefault((KIND_FWD, name << 1 | _FULL[record.kind]), {})
            group.setdefault(classes[number], number)
        elif record.kind in ENUM_KINDS and not record.vlen:
            waiting.append((number, (KIND_ENUM, name)))
        elif record.kind in ENUM_KINDS:
            kept.setdefault((KIND_ENUM, name), {}).setdefault(classes[number], number)
    out = {}
    for number, key in waiting:
        found = kept.get(key, {})
        if len(found) == 1 and number not in full:
            out[number] = next(iter(found.values()))
    return out


def _write(
    byteorder: str, records: list[_Record], classes: array[int], full: dict[int, int],
    texts: list[str], starts: list[int],
) -> tuple[bytes, list[list[int]]]:  # fmt: skip
    first: dict[int, int] = {}  # class → the type that stands for it
    for number in range(1, len(records) + 1):
        if number not in full:
            first.setdefault(classes[number], number)
    new = {number: place for place, number in enumerate(sorted(first.values()), 1)}
    ids = [0] * (len(records) + 1)
    for number in range(1, len(records) + 1):
        ids[number] = new[first[classes[full.get(number, number)]]]
    writer = BtfWriter(byteorder)
    for number in new:
        record = records[number - 1]
        words = list(record.words)
        for at in record.names:
            words[at] = writer.string(texts[words[at]])
        for at, target in record.refs:
            words[at] = ids[target]
        writer.raw(words[0], words[1], words[2], *words[3:])
    ends = [*starts[1:], len(records)]
    return writer.build(), [
        [0, *ids[start + 1 : end + 1]] for start, end in zip(starts, ends, strict=True)
    ]
