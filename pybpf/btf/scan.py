# SPDX-License-Identifier: BSD-2-Clause
"""The two bulk operations on BTF: walking the records, and finding those with given names.

Both run over 100,000 records of vmlinux BTF, so they work on 32-bit words with as little
Python a record as possible. Memory: 4 bytes a record walked past, and one chunk.
"""

from __future__ import annotations

import mmap
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping

from pybpf.btf.consts import KIND_MASK, KIND_SHIFT, VLEN_MASK
from pybpf.errors import FormatError

__all__ = ["Walk", "find_all"]

_CHUNK = 1 << 15  # words; small enough for the cache, large enough to forget the overhead
# From this many names on, one pass over the records is cheaper than a search for each name.
_MANY = 8


class _Sizes(dict[int, int]):
    """Info word → words of the whole record, worked out once for each word that occurs."""

    def __init__(self, kind_words: Mapping[int, tuple[int, int]], label: str) -> None:
        super().__init__()
        self.kind_words = kind_words
        self.label = label

    def __missing__(self, info: int) -> int:
        kind = (info >> KIND_SHIFT) & KIND_MASK
        try:
            fixed, per_entry = self.kind_words[kind]
        except KeyError:
            raise FormatError(
                f"type kind {kind} is not known, and the header has no layout for it",
                btf=self.label,
            ) from None
        size = self[info] = 3 + fixed + per_entry * (info & VLEN_MASK)
        return size


class Walk:
    """Positions of records, found on demand in one forward walk.

    words: the type section. Positions are word indices, indices count records from 0.
    """

    def __init__(
        self,
        words: memoryview | array[int],
        kind_words: Mapping[int, tuple[int, int]],
        label: str,
    ) -> None:
        self.words = words
        self.label = label
        self.end = len(words)
        self._positions = array("I")
        self._next = 0
        self._sizes = _Sizes(kind_words, label)

    def position(self, index: int) -> int:
        """Word position of record ``index``, -1 where there is none."""
        while index >= len(self._positions):
            if self._next >= self.end:
                return -1
            self._step()
        return self._positions[index]

    def total(self) -> int:
        """Number of records."""
        while self._next < self.end:
            self._step()
        return len(self._positions)

    def index_at(self, position: int) -> int:
        """Index of the record that starts at word ``position``, -1 when none starts there."""
        while self._next <= position and self._next < self.end:
            self._step()
        index = bisect_left(self._positions, position)
        if index < len(self._positions) and self._positions[index] == position:
            return index
        return -1

    def _step(self) -> None:
        """Walk through one chunk more."""
        base = self._next
        chunk = array("I")
        chunk.frombytes(self.words[base : base + _CHUNK].tobytes())
        last = len(chunk) - 2
        append = self._positions.append
        sizes = self._sizes
        at = 0
        while at < last:
            append(base + at)
            at += sizes[chunk[at + 1]]
        self._next = base + at
        # What is left of the last chunk is a record's beginning at most.
        if self._next > self.end or (at < len(chunk) and base + len(chunk) == self.end):
            raise FormatError(
                f"type [+{len(self._positions)}] at byte {self._positions[-1] * 4 if at else 0} "
                "of the type section is cut short",
                btf=self.label,
            )

    def named(self, offsets: Collection[int]) -> list[tuple[int, int]]:
        """(index, name offset) of every record whose name offset is one of ``offsets``."""
        words = self.words
        if len(offsets) < _MANY and isinstance(words, memoryview):
            return self._named_by_search(offsets)
        self.total()
        return [
            (index, words[at]) for index, at in enumerate(self._positions) if words[at] in offsets
        ]

    def _named_by_search(self, offsets: Collection[int]) -> list[tuple[int, int]]:
        """As named(), by looking for the 4 bytes of each offset.

        Most hits are members and parameters: what follows them is a type id, and those are
        below 2**24, so their kind bits are zero. index_at() settles what remains.
        """
        words = self.words
        assert isinstance(words, memoryview)
        found: list[int] = []
        data = words.cast("B")
        for offset in offsets:
            pattern = array("I", (offset,)).tobytes()
            for at in find_all(data, pattern, 0, len(data)):
                if at & 3 == 0 and at + 8 < len(data) and data[at + self._kind_byte] & KIND_MASK:
                    found.append(at >> 2)
        found.sort()
        hits = ((self.index_at(position), position) for position in found)
        return [(index, words[position]) for index, position in hits if index >= 0]

    # The byte of the info word that holds the kind, in the machine's own order.
    _kind_byte = 4 + array("I", (0xFF << KIND_SHIFT,)).tobytes().index(0xFF)


def find_all(
    data: bytes | bytearray | memoryview | mmap.mmap, text: bytes, start: int, end: int
) -> Iterator[int]:
    """Offsets in [start, end) at which ``text`` lies wholly inside, ascending."""
    if isinstance(data, memoryview):
        size = 1 << 16
        for chunk_start in range(start, end, size):
            # Overlap by one less than the text: a hit belongs to the chunk it starts in.
            piece = data[chunk_start : min(chunk_start + size + len(text) - 1, end)].tobytes()
            at = piece.find(text)
            while at >= 0:
                yield chunk_start + at
                at = piece.find(text, at + 1)
        return
    at = data.find(text, start, end)
    while at >= 0:
        yield at
        at = data.find(text, at + 1, end)
