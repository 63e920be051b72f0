# SPDX-License-Identifier: BSD-2-Clause
"""The two bulk operations on BTF: walking the records, and finding those with given names.

Both run over 100,000 records of vmlinux BTF, so they work on 32-bit words with as little
Python a record as possible. Memory: 2 bytes a record walked past, and one chunk.
"""

from __future__ import annotations

import _thread
import sys
from array import array
from bisect import bisect_left, bisect_right

from pybpf.btf.consts import KIND_MASK, KIND_SHIFT, VLEN_MASK
from pybpf.errors import FormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["Walk", "find_all"]

# Words a chunk: positions in a chunk fit 16 bits, and the chunk fits the cache.
_CHUNK = 1 << 15
# From this many names on, one pass over the records is cheaper than a search for each name.
_MANY = 8
# Words searched at a time.
_SEARCHED = 1 << 18
# Places of bytes, in the machine's order: the two low ones of a word; the one of the info word,
# counted from the record's first byte, that holds the kind.
_LOW, _MIDDLE, _KIND_BYTE = (0, 1, 7) if sys.byteorder == "little" else (3, 2, 4)


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
        self.count = 0  # records walked past
        self._next = 0
        self._lock = _thread.allocate_lock()
        self._kind_words = kind_words
        # Info word → words of the whole record; a few hundred different ones occur.
        self._sizes: dict[int, int] = {}
        # Per chunk: index of its first record, its first word, positions in it.
        self._first: list[int] = []
        self._base: list[int] = []
        self._starts: list[array[int]] = []

    def position(self, index: int) -> int:
        """Word position of record ``index``, -1 where there is none."""
        while index >= self.count:
            if self._next >= self.end:
                return -1
            self._step()
        chunk = bisect_right(self._first, index) - 1
        return self._base[chunk] + self._starts[chunk][index - self._first[chunk]]

    def total(self) -> int:
        """Number of records."""
        while self._next < self.end:
            self._step()
        return self.count

    def positions(self) -> Iterator[int]:
        """The first word of each record."""
        self.total()
        for base, starts in zip(self._base, self._starts, strict=True):
            for at in starts:
                yield base + at

    def of_kind(self, kinds: Collection[int]) -> Iterator[int]:
        """Indices of the records of these kinds."""
        self.total()
        words = self.words
        for first, base, starts in zip(self._first, self._base, self._starts, strict=True):
            for index, at in enumerate(starts, first):
                if (words[base + at + 1] >> KIND_SHIFT) & KIND_MASK in kinds:
                    yield index

    def index_at(self, position: int) -> int:
        """Index of the record that starts at word ``position``, -1 when none starts there."""
        while self._next <= position and self._next < self.end:
            self._step()
        chunk = bisect_right(self._base, position) - 1
        if chunk < 0:
            return -1
        starts = self._starts[chunk]
        at = position - self._base[chunk]
        index = bisect_left(starts, at)
        if index < len(starts) and starts[index] == at:
            return self._first[chunk] + index
        return -1

    def _step(self) -> None:
        """Walk through one chunk more. Threads may share a walk: vmlinux has one."""
        with self._lock:
            if self._next < self.end:
                self._walk_chunk()

    def _walk_chunk(self) -> None:
        base = self._next
        end = min(base + _CHUNK, self.end)
        # From the second word on: info[at] is then the info word of the record at ``at``.
        info = array("I")
        info.frombytes(self.words[base + 1 : end].tobytes())
        starts: list[int] = []
        append = starts.append
        sizes = self._sizes
        at = 0
        while True:
            # Errors end the inner loop: that costs nothing where there are none.
            try:
                while True:
                    size = sizes[info[at]]
                    append(at)
                    at += size
            except KeyError:
                sizes[info[at]] = self._size(info[at])
            except IndexError:
                break
        if base + at > self.end or (base + at < self.end == end) or not starts:
            where = (base + starts[-1]) * 4 if starts else base * 4
            raise FormatError(
                f"the type at byte {where} of the type section is cut short", btf=self.label
            )
        # A record that begins at the chunk's very end, or passes it, starts the next chunk.
        self._first.append(self.count)
        self._base.append(base)
        self._starts.append(array("H", starts))
        self.count += len(starts)
        self._next = base + at

    def _size(self, info: int) -> int:
        kind = (info >> KIND_SHIFT) & KIND_MASK
        if kind not in self._kind_words:
            raise FormatError(
                f"type kind {kind} is not known, and the header has no layout for it",
                btf=self.label,
            )
        fixed, per_entry = self._kind_words[kind]
        return 3 + fixed + per_entry * (info & VLEN_MASK)

    def named(self, offsets: Collection[int]) -> list[tuple[int, int]]:
        """(index, name offset) of every record whose name offset is one of ``offsets``."""
        if len(offsets) < _MANY and isinstance(self.words, memoryview):
            return self._named_by_search(offsets)
        self.total()
        wanted = frozenset(offsets)
        found: list[tuple[int, int]] = []
        for first, base, starts in zip(self._first, self._base, self._starts, strict=True):
            words = array("I")
            words.frombytes(self.words[base : base + starts[-1] + 1].tobytes())
            if not wanted.isdisjoint(map(words.__getitem__, starts)):
                found.extend(
                    (first + i, words[at]) for i, at in enumerate(starts) if words[at] in wanted
                )
        return found

    def _named_by_search(self, offsets: Collection[int]) -> list[tuple[int, int]]:
        """As named(), by looking for the bytes of each offset.

        Most hits are members and parameters: what follows them is a type id, and those are
        below 2**24, so their kind bits are zero. index_at() settles what remains.
        """
        words = self.words
        assert isinstance(words, memoryview)
        found: list[int] = []
        for start in range(0, self.end, _SEARCHED):
            piece = words[start : start + _SEARCHED].tobytes()
            kinds = words.cast("B")[4 * start + _KIND_BYTE : 4 * (start + _SEARCHED) + 8 : 4]
            # One byte of each word, so that a hit is aligned and the search is memchr().
            planes = (piece[_LOW::4], piece[_MIDDLE::4])
            for offset in offsets:
                plane, byte = min(
                    zip(planes, (offset & 0xFF, offset >> 8 & 0xFF), strict=True),
                    key=lambda pair: pair[0].count(pair[1]),
                )
                at = plane.find(byte)
                while at >= 0:
                    if words[start + at] == offset and at < len(kinds) and kinds[at] & KIND_MASK:
                        found.append(start + at)
                    at = plane.find(byte, at + 1)
        found.sort()
        hits = ((self.index_at(position), position) for position in found)
        return [(index, words[position]) for index, position in hits if index >= 0]


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
