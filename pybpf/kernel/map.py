# SPDX-License-Identifier: BSD-2-Clause
"""Live maps: elements, batches, freezing, mapping into memory, information."""

from __future__ import annotations

import mmap
import struct
import sys

from pybpf.errors import KernelError, UsageError
from pybpf.kernel import layout as _layout
from pybpf.kernel.cpus import possible_cpus
from pybpf.kernel.create import map_fd
from pybpf.kernel.object import KernelObject
from pybpf.sys import abi, bpf, layouts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pybpf.kernel.program import Program

    Layout = tuple[Any, ...]

__all__ = ["PER_CPU", "Map", "create"]

# Types whose value is one slot a CPU.
PER_CPU = frozenset(
    (
        abi.BPF_MAP_TYPE_PERCPU_HASH, abi.BPF_MAP_TYPE_PERCPU_ARRAY,
        abi.BPF_MAP_TYPE_LRU_PERCPU_HASH, abi.BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE,
    )
)  # fmt: skip
# Types whose values go in as fds and come out as ids of maps and programs.
_OF_MAPS = frozenset((abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, abi.BPF_MAP_TYPE_HASH_OF_MAPS))
_OF_FDS = _OF_MAPS | {
    abi.BPF_MAP_TYPE_PROG_ARRAY, abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY, abi.BPF_MAP_TYPE_CGROUP_ARRAY,
    abi.BPF_MAP_TYPE_SOCKMAP, abi.BPF_MAP_TYPE_SOCKHASH, abi.BPF_MAP_TYPE_REUSEPORT_SOCKARRAY,
    abi.BPF_MAP_TYPE_XSKMAP,
}  # fmt: skip
# Types whose keys are the numbers from 0 on: none can vanish while they are listed.
_ARRAYS = frozenset(
    (
        abi.BPF_MAP_TYPE_ARRAY, abi.BPF_MAP_TYPE_PERCPU_ARRAY, abi.BPF_MAP_TYPE_PROG_ARRAY,
        abi.BPF_MAP_TYPE_ARRAY_OF_MAPS, abi.BPF_MAP_TYPE_PERF_EVENT_ARRAY,
        abi.BPF_MAP_TYPE_CGROUP_ARRAY, abi.BPF_MAP_TYPE_SOCKMAP, abi.BPF_MAP_TYPE_DEVMAP,
        abi.BPF_MAP_TYPE_CPUMAP, abi.BPF_MAP_TYPE_XSKMAP,
    )
)  # fmt: skip
# What a map type or kernel without batches answers (EINVAL before 5.6, ENOTSUPP for the type).
_NO_BATCH = (bpf.EINVAL, bpf.ENOTSUPP, 95)
# Types that take no key at all: queues, stacks, Bloom filters, ring buffers.
_KEYLESS = frozenset(
    (
        abi.BPF_MAP_TYPE_QUEUE, abi.BPF_MAP_TYPE_STACK, abi.BPF_MAP_TYPE_BLOOM_FILTER,
        abi.BPF_MAP_TYPE_RINGBUF, abi.BPF_MAP_TYPE_USER_RINGBUF,
    )
)  # fmt: skip
_BATCH = 256
# Layouts of numbers that struct has a letter for.
_CODES = {
    ("int", size, signed): code.lower() if signed else code
    for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
    for signed in (False, True)
}


def create(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    name: str = "",
    key_layout: Layout | None = None,
    value_layout: Layout | None = None,
    **attributes: Any,
) -> Map:
    """BPF_MAP_CREATE; ``attributes`` as ``pybpf.sys.bpf.map_create`` takes them."""
    fd = map_fd(map_type, key_size, value_size, max_entries, name=name, **attributes)
    made = Map(fd, name or None, key_layout=key_layout, value_layout=value_layout)
    made._set_shape(map_type, key_size, value_size, max_entries, attributes.get("flags", 0))
    return made


class Map(KernelObject):
    """An open map.

    ``m[key]``, ``m[key] = value``, ``del m[key]``, ``key in m`` and iteration over the keys work
    as in a dict. Keys and values are bytes, or Python values if the map has layouts
    (``pybpf.kernel.layout``); without a layout an int stands for itself where the size is 1, 2, 4
    or 8 bytes. A value of a per-CPU map is a list with one item for each possible CPU.

    Iteration gives each key once, also if the current one is deleted meanwhile; of what others
    add or delete while it runs, an element may be missed. ``items`` reads by batches where kernel
    and type have them (5.6).

    Maps of maps, of programs and of sockets take a Map, a Program or anything with a fileno() as a
    value, and give the number that the kernel shows (an id of a map or program, a socket's cookie);
    ``open(key)`` opens the map or program that an element holds. Of a Bloom filter only
    ``value in m`` can be asked.

    A map that ``from_pin`` or ``from_id`` opened has no layouts: ``pybpf.typed`` gives it those of
    its BTF.
    """

    __slots__ = (
        "_flags",
        "_key_size",
        "_max_entries",
        "_type",
        "_value_size",
        "key_layout",
        "value_layout",
    )
    KIND = "map"
    INFO = layouts.INFO_MAP
    INFO_SIZE = layouts.SIZE_INFO_MAP
    INFO_OMITTED = frozenset(("hash", "hash_size"))
    GET_FD = abi.BPF_MAP_GET_FD_BY_ID

    def __init__(
        self,
        fd: int,
        name: str | None = None,
        *,
        key_layout: Layout | None = None,
        value_layout: Layout | None = None,
    ) -> None:
        super().__init__(fd, name)
        self.key_layout = key_layout
        self.value_layout = value_layout
        self._type = -1

    # --- shape --------------------------------------------------------------------------------

    def _set_shape(self, map_type: int, key: int, value: int, entries: int, flags: int) -> None:
        self._type = map_type
        self._key_size, self._value_size = key, value
        self._max_entries, self._flags = entries, flags

    def _shape(self) -> None:
        info, layout = self._raw_info(), layouts.INFO_MAP
        self._set_shape(
            *(
                bpf.get(info, layout, field)
                for field in ("type", "key_size", "value_size", "max_entries", "map_flags")
            )
        )

    @property
    def type(self) -> int:
        """BPF_MAP_TYPE_… number."""
        if self._type < 0:
            self._shape()
        return self._type

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return self._key_size if self.type >= 0 else 0

    @property
    def value_size(self) -> int:
        """Bytes of a value (of one CPU's slot, for per-CPU maps)."""
        return self._value_size if self.type >= 0 else 0

    @property
    def max_entries(self) -> int:
        """Most elements the map holds; for a ring buffer its size in bytes."""
        return self._max_entries if self.type >= 0 else 0

    @property
    def flags(self) -> int:
        """BPF_F_… flags that the map was made with."""
        return self._flags if self.type >= 0 else 0

    @property
    def per_cpu(self) -> bool:
        """Whether a value is one slot a possible CPU."""
        return self.type in PER_CPU

    # --- keys and values ----------------------------------------------------------------------

    def _key(self, key: Any) -> bytes | None:
        """The key's bytes; None for types that take none, whose key is None."""
        if self.type in _KEYLESS:
            if key is not None:
                raise UsageError("its elements have no keys: give None", map=self._name)
            return None
        return self._plain_key(key)

    def _plain_key(self, key: Any) -> bytes:
        return self._bytes(key, self.key_size, self.key_layout, "key")

    def _bytes(self, value: Any, size: int, layout: Layout | None, what: str) -> bytes:
        try:
            return _layout.encode_sized(value, size, layout)
        except UsageError as error:
            raise _layout.named(error, "in", what).at(map=self._name)  # noqa: B904

    def _value(self, value: Any) -> bytes:
        if self.type in _OF_FDS and hasattr(value, "fileno"):
            return int(value.fileno()).to_bytes(self.value_size, sys.byteorder)
        if not self.per_cpu:
            return self._bytes(value, self.value_size, self.value_layout, "value")
        cpus = possible_cpus()
        slots = list(value) if isinstance(value, (list, tuple)) else [value] * cpus
        if len(slots) != cpus:
            raise UsageError(
                f"a value of a per-CPU map has {cpus} items, not {len(slots)}", map=self._name
            )
        pad = b"\0" * (-self.value_size % 8)
        return b"".join(
            self._bytes(slot, self.value_size, self.value_layout, "value") + pad for slot in slots
        )

    def _buffer(self) -> bytearray:
        if self.per_cpu:
            return bytearray((self.value_size + 7) // 8 * 8 * possible_cpus())
        return bytearray(self.value_size)

    def _decode(self, data: bytearray | memoryview) -> Any:
        if self.type in _OF_FDS:
            return int.from_bytes(data, sys.byteorder)
        if not self.per_cpu:
            return self._python(data, self.value_layout)
        size, stride = self.value_size, (self.value_size + 7) // 8 * 8
        return [
            self._python(data[i : i + size], self.value_layout)
            for i in range(0, len(data), stride)
        ]

    @staticmethod
    def _python(data: bytearray | memoryview | bytes, layout: Layout | None) -> Any:
        if layout is None:
            return bytes(data)
        return _layout.decode(layout, data, 0, sys.byteorder)

    def _told_key(self, data: bytes) -> Any:
        if self.key_layout is None and self.type in _ARRAYS:
            return int.from_bytes(data, sys.byteorder)
        return self._python(data, self.key_layout)

    def _refused(self, error: KernelError, flags: int = 0) -> KernelError:
        """The error with the map's name, and what to do where that can be told."""
        from pybpf.kernel.explain_map import element_hint

        error.hint = error.hint or element_hint(self, error.call, error.errno, flags)
        error.at(map=self._name)
        return error

    # --- elements -----------------------------------------------------------------------------

    def lookup(self, key: Any, default: Any = None, *, flags: int = 0) -> Any:
        """The value of ``key``, or ``default``. flags: BPF_F_LOCK (5.1). For a queue or stack
        (key None) the next element, which stays."""
        self._not_a_filter()
        value = self._buffer()
        raw = self._key(key)
        try:
            found = bpf.map_lookup(self.fileno(), raw, value, flags)
        except KernelError as error:
            raise self._refused(error, flags)  # noqa: B904
        return self._decode(value) if found else default

    def _not_a_filter(self) -> None:
        if self.type == abi.BPF_MAP_TYPE_BLOOM_FILTER:
            raise UsageError(
                "a Bloom filter gives no elements.", hint="Ask it `value in m`.", map=self._name
            )

    def update(self, key: Any, value: Any, flags: int = abi.BPF_ANY) -> None:
        """Store ``value``; BPF_NOEXIST: only a new key (else EEXIST), BPF_EXIST: only a present
        one (else ENOENT). key None: push (queue, stack) or add (Bloom filter)."""
        raw = self._key(key)
        try:
            bpf.map_update(self.fileno(), raw, self._value(value), flags)
        except KernelError as error:
            raise self._refused(error, flags)  # noqa: B904

    def delete(self, key: Any) -> bool:
        """Remove ``key``; False if it was not there. Elements of arrays cannot go: EINVAL."""
        try:
            return bpf.map_delete(self.fileno(), self._plain_key(key))
        except KernelError as error:
            raise self._refused(error)  # noqa: B904

    def pop(self, key: Any = None, default: Any = None) -> Any:
        """Look up and delete in one step (queue and stack 4.20, hash maps 5.14)."""
        self._not_a_filter()
        value = self._buffer()
        raw = self._key(key)
        try:
            found = bpf.map_lookup_and_delete(self.fileno(), raw, value)
        except KernelError as error:
            raise self._refused(error)  # noqa: B904
        return self._decode(value) if found else default

    def open(self, key: Any) -> Map | Program:
        """The map or program that an element of a map of maps or a program array holds; the
        caller closes it. Raises KeyError where the element is empty. Needs CAP_SYS_ADMIN."""
        if self.type not in _OF_MAPS and self.type != abi.BPF_MAP_TYPE_PROG_ARRAY:
            raise UsageError("its elements are neither maps nor programs", map=self.name)
        number = bytearray(self.value_size)
        try:
            found = bpf.map_lookup(self.fileno(), self._plain_key(key), number)
        except KernelError as error:
            raise error.at(map=self._name)  # noqa: B904
        if not found:
            raise KeyError(key)
        ident = int.from_bytes(number, sys.byteorder)
        if self.type in _OF_MAPS:
            return Map.from_id(ident)
        from pybpf.kernel.program import Program

        return Program.from_id(ident)

    def raw_keys(self) -> Iterator[bytes]:
        """The keys as bytes, in the kernel's order, each once.

        The key behind the current one is fetched before that is handed out, so the current one
        may be deleted. If the fetched one vanishes instead, the kernel starts again at the first:
        then those that were handed out already are passed over.
        Raises KernelError, UsageError for a type without keys (a queue: see ``pop``).
        """
        if self.type in _KEYLESS:
            raise UsageError(
                "its elements have no keys, and cannot be listed.",
                hint="A queue and a stack give them by pop(), a ring to its RingBuffer.",
                map=self._name,
            )
        seen: set[bytes] | None = None if self.type in _ARRAYS else set()
        key: bytes | None = None
        waiting: bytes | None = None
        for _ in range(self._iteration_limit()):
            following = bytearray(self.key_size)
            try:
                more = bpf.map_next_key(self.fileno(), key, following)
            except KernelError as error:
                raise self._refused(error)  # noqa: B904
            if waiting is not None:
                yield waiting
                waiting = None
            if not more:
                return
            key = bytes(following)
            if seen is None or key not in seen:
                waiting = key
                if seen is not None:
                    seen.add(key)
        if waiting is not None:
            yield waiting

    def _iteration_limit(self) -> int:
        # A hash map from which the current key vanishes starts again at its first bucket; a
        # bound keeps a busy map from holding the reader for ever.
        return 4 * self.max_entries + 1024

    def keys(self) -> Iterator[Any]:
        """The keys, each once; see ``raw_keys``."""
        for key in self.raw_keys():
            yield self._told_key(key)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """(key, value) pairs; a key that vanishes meanwhile is left out."""
        if self.max_entries > 1 and self.type not in _OF_FDS and self.type not in _KEYLESS:
            batch = self.lookup_batch()
            try:
                first = next(batch, None)
            except KernelError as error:
                if error.errno not in _NO_BATCH:
                    raise
            else:
                if first is not None:
                    yield first
                    yield from batch
                return
        missing = object()
        for key in self.raw_keys():
            value = self.lookup(key, missing)
            if value is not missing:
                yield self._told_key(key), value

    def values(self) -> Iterator[Any]:
        """The values, as ``items`` gives them."""
        for _, value in self.items():
            yield value

    def clear(self) -> None:
        """Delete every element (hash-like maps)."""
        for key in list(self.raw_keys()):
            self.delete(key)

    def __getitem__(self, key: Any) -> Any:
        missing = object()
        value = self.lookup(key, missing)
        if value is missing:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.update(key, value)

    def __delitem__(self, key: Any) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: Any) -> bool:
        if self.type == abi.BPF_MAP_TYPE_BLOOM_FILTER:  # here it is a value
            try:
                return bpf.map_lookup(self.fileno(), None, bytearray(self._value(key)))
            except KernelError as error:
                raise self._refused(error)  # noqa: B904
        missing = object()
        return self.lookup(key, missing) is not missing

    def __iter__(self) -> Iterator[Any]:
        return self.keys()

    # --- batches (5.6) ------------------------------------------------------------------------

    def lookup_batch(self, *, delete: bool = False) -> Iterator[tuple[Any, Any]]:
        """All (key, value) pairs by batches, and deleted at the same time if asked.

        Raises KernelError EINVAL or ENOTSUPP where the map type or kernel has no batches.
        """
        cmd = abi.BPF_MAP_LOOKUP_AND_DELETE_BATCH if delete else abi.BPF_MAP_LOOKUP_BATCH
        width = len(self._buffer())
        count = min(_BATCH, max(self.max_entries, 1))
        cursor: bytearray | None = None
        while True:
            # The cursor of a hash map is a bucket number of 4 bytes, of an array its key.
            following = bytearray(max(self.key_size, 4))
            keys, values = bytearray(self.key_size * count), bytearray(width * count)
            try:
                done, end = bpf.map_batch(
                    cmd, self.fileno(), count, in_batch=cursor, out_batch=following,
                    keys=keys, values=values,
                )  # fmt: skip
            except KernelError as error:
                # ENOSPC: one bucket holds more than fits; nothing was taken, so ask for more.
                if error.errno == bpf.ENOSPC and count < self.max_entries:
                    count = min(4 * count, self.max_entries)
                    continue
                raise error.at(map=self._name)  # noqa: B904
            codes = [
                _CODES.get(layout[:3]) if layout else None
                for layout in (self.key_layout, self.value_layout)
            ]
            if codes[0] and codes[1] and not self.per_cpu:
                yield from zip(
                    struct.unpack_from(f"={done}{codes[0]}", keys),
                    struct.unpack_from(f"={done}{codes[1]}", values),
                    strict=True,
                )
                if end:
                    return
                cursor = following
                continue
            view = memoryview(values)
            for i in range(done):
                key = bytes(keys[i * self.key_size : (i + 1) * self.key_size])
                yield (
                    self._told_key(key),
                    self._decode(view[i * width : (i + 1) * width]),
                )
            if end:
                return
            cursor = following

    def update_batch(self, pairs: Any) -> int:
        """Store many (key, value) pairs, or a dict, in one call; returns their number."""
        items = list(pairs.items() if isinstance(pairs, dict) else pairs)
        keys = self._many(
            [key for key, _ in items], self.key_size, self.key_layout, self._plain_key
        )
        new = [value for _, value in items]
        if self.per_cpu or self.type in _OF_FDS:
            values = b"".join(map(self._value, new))
        else:
            values = self._many(new, self.value_size, self.value_layout, self._value)
        return self._write_batch(abi.BPF_MAP_UPDATE_BATCH, len(items), keys, values)

    def delete_batch(self, keys: Any) -> int:
        """Delete many keys in one call; ENOENT (with the count done) if one is missing."""
        items = list(keys)
        raw = self._many(items, self.key_size, self.key_layout, self._plain_key)
        try:
            return self._write_batch(abi.BPF_MAP_DELETE_BATCH, len(items), raw, None)
        except KernelError as error:
            done = error.where.get("count")
            if error.errno == bpf.ENOENT and isinstance(done, int) and done < len(items):
                error.hint = f"There is no key {items[done]!r}; those before it are deleted."
            raise

    @staticmethod
    def _many(
        items: list[Any], size: int, layout: Layout | None, one: Callable[[Any], bytes]
    ) -> bytes:
        """Keys or values in a row: numbers all at once, whatever else ``one`` by one."""
        code = _CODES.get(layout[:3] if layout else ("int", size, False))
        if code:
            try:
                return struct.pack(f"={len(items)}{code}", *items)
            except struct.error:
                pass  # some are no plain numbers, or do not fit: then ``one`` tells which
        return b"".join(map(one, items))

    def _write_batch(self, cmd: int, count: int, keys: bytes, values: bytes | None) -> int:
        if not count:
            return 0
        try:
            return bpf.map_batch(cmd, self.fileno(), count, keys=keys, values=values)[0]
        except KernelError as error:
            raise self._refused(error)  # noqa: B904

    # --- the map as a whole -------------------------------------------------------------------

    def freeze(self) -> None:
        """BPF_MAP_FREEZE (5.2). EBUSY while it is mapped writable."""
        try:
            bpf.map_freeze(self.fileno())
        except KernelError as error:
            raise error.at(map=self._name)  # noqa: B904

    def mmap(self, *, writable: bool = True) -> mmap.mmap:
        """Map an array map made with BPF_F_MMAPABLE (5.5) into memory.

        The mapping holds a reference to the map (and, in Python, an fd of its own) until it is
        closed. Its elements are ``round_up(value_size, 8)`` bytes apart.
        """
        page = mmap.PAGESIZE
        size = (self.value_size + 7) // 8 * 8 * self.max_entries
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            return mmap.mmap(
                self.fileno(), (size + page - 1) // page * page, mmap.MAP_SHARED, prot
            )
        except OSError as error:
            from pybpf.sys.syscalls import fail

            hint = None
            if not self.flags & abi.BPF_F_MMAPABLE:
                hint = "The map was made without BPF_F_MMAPABLE."
            raise fail("mmap", error.errno or 22, map=self._name, hint=hint) from None

    def matches(
        self, map_type: int, key: int, value: int, entries: int, flags: int, extra: int = 0
    ) -> str | None:
        """None if the map has this shape, else what differs ("key_size 8, not 4")."""
        info = self.info()
        wanted = {
            "type": map_type,
            "key_size": key,
            "value_size": value,
            "max_entries": entries,
            "map_flags": flags,
            "map_extra": extra,
        }
        if info["type"] in (abi.BPF_MAP_TYPE_DEVMAP, abi.BPF_MAP_TYPE_DEVMAP_HASH):
            # The kernel adds BPF_F_RDONLY_PROG to these itself (kernel/bpf/devmap.c).
            wanted["map_flags"] = flags | info["map_flags"] & abi.BPF_F_RDONLY_PROG
        differs = [f"{n} {info[n]}, not {w}" for n, w in wanted.items() if info[n] != w]
        return ", ".join(differs) or None
