# SPDX-License-Identifier: BSD-2-Clause
"""A Plan told in words, for people: the audit; and as plain data, for JSON.

Nothing here touches the kernel. ``to_text`` gives a numbered line for each operation, with what
it puts where and why it may be skipped; ``to_json`` gives every field, bytes in hex.
"""

from __future__ import annotations

from pybpf.plan import ops as _ops
from pybpf.sys import abi_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = ["to_json", "to_text"]

_MAP_FLAGS = {
    1: "NO_PREALLOC", 2: "NO_COMMON_LRU", 4: "NUMA_NODE", 8: "RDONLY", 16: "WRONLY",
    128: "RDONLY_PROG", 256: "WRONLY_PROG", 1024: "MMAPABLE", 4096: "INNER_MAP", 8192: "LINK",
    1 << 19: "RB_OVERWRITE",
}  # fmt: skip
_PROG_FLAGS = {1: "STRICT_ALIGNMENT", 16: "SLEEPABLE", 32: "XDP_HAS_FRAGS"}
_KINDS = {1: "int", 4: "struct", 5: "union", 6: "enum", 8: "typedef", 12: "func", 14: "var"}


def _flags(number: int, names: dict[int, str]) -> str:
    found = [name for bit, name in names.items() if number & bit]
    rest = number & ~sum(names)
    return ", ".join(found + ([f"{rest:#x}"] if rest else []))


def _bytes(data: bytes, limit: int = 16) -> str:
    if not any(data):
        return f"{len(data)} zero bytes"
    shown = data[:limit].hex()
    return f"{len(data)} bytes {shown}{'…' if len(data) > limit else ''}"


class _Names:
    """What slots and symbols are called: by the Plan's dicts and the operations themselves."""

    def __init__(self, plan: _ops.Plan) -> None:
        self.slots: dict[int, str] = {}
        self.symbols: dict[int, str] = {}
        self._collect(plan.ops)
        self._collect(plan.attach)
        for name, place in plan.maps.items():
            self.slots[place[0]] = f"map {name}"
        for name, slot in plan.programs.items():
            self.slots[slot] = f"program {name}"
        for name, slot in plan.links.items():
            self.slots[slot] = f"link {name}"

    def _collect(self, operations: tuple[Any, ...]) -> None:
        for op in operations:
            if isinstance(op, _ops.BtfLoad):
                self.slots[op.dst] = "the object's BTF"
            elif isinstance(op, _ops.MapCreate):
                self.slots[op.dst] = f"map {op.name}"
            elif isinstance(op, _ops.Lookup):
                for number, name, kind, module, _ in op.names:
                    where = f" of module {module}" if module else ""
                    self.symbols[number] = f"{_KINDS.get(kind, kind)} {name}{where}"
            elif isinstance(op, _ops.Choose):
                for _, branch in op.alternatives:
                    self._collect(branch)
            elif isinstance(op, _ops.When):
                self._collect(op.then)
                self._collect(op.otherwise)

    def slot(self, number: int) -> str:
        return self.slots.get(number, f"fd slot {number}")

    def symbol(self, number: int) -> str:
        return self.symbols.get(number, f"symbol {number}")


def _btf_load(op: _ops.BtfLoad, names: _Names) -> Iterator[str]:
    tail = " (if the kernel refuses, go on without)" if op.optional else ""
    yield f"load the object's BTF, {len(op.data)} bytes{tail}"


def _lookup(op: _ops.Lookup, names: _Names) -> Iterator[str]:
    yield f"ask the kernel for the BTF ids of {len(op.names)} names"
    for number, _, _, _, weak in op.names:
        yield f"  {names.symbol(number)}{' (may be missing)' if weak else ''}"


def _map_create(op: _ops.MapCreate, names: _Names) -> Iterator[str]:
    kind = abi_names.MAP_TYPE_NAMES.get(op.type, f"type {op.type}")
    entries = "one entry a CPU" if op.max_entries == _ops.NR_CPUS else f"{op.max_entries} entries"
    if kind.endswith("ringbuf"):
        entries = f"{op.max_entries} bytes"
    line = f"create map {op.name}: {kind}, key {op.key_size}, value {op.value_size}, {entries}"
    if op.flags:
        line += f", flags {_flags(op.flags, _MAP_FLAGS)}"
    if op.inner is not None:
        line += f", of maps like {names.slot(op.inner)}"
    if op.value_symbol is not None:
        line += f", values of {names.symbol(op.value_symbol)}"
    yield line
    if isinstance(op, _ops.ExclusiveMapCreate):
        yield f"  for the program alone whose hash is {op.program_hash.hex()}"
    if op.pin_path:
        yield f"  or take the one pinned at {op.pin_path}; else pin it there"


def _map_fill(op: _ops.MapFill, names: _Names) -> Iterator[str]:
    yield f"fill {names.slot(op.map)}"
    for key, value in op.entries:
        what = names.slot(value) if isinstance(value, int) else _bytes(value)
        yield f"  [{key.hex()}] = {what}"


def _kconfig_fill(op: _ops.KconfigFill, names: _Names) -> Iterator[str]:
    yield f"fill {names.slot(op.map)} from the running kernel's version and configuration"
    for name, offset, size, form, weak in op.values:
        yield f"  [+{offset}] = {name}, {size} bytes, {form}{' (may be missing)' if weak else ''}"


def _struct_ops_fill(op: _ops.StructOpsFill, names: _Names) -> Iterator[str]:
    force = ", which puts it into force until the value is deleted" if op.register else ""
    yield f"set {names.slot(op.map)}, {_bytes(op.data)}{force}"
    for offset, slot in op.programs:
        yield f"  [+{offset}] = {names.slot(slot)}"


def _map_freeze(op: _ops.MapFreeze, names: _Names) -> Iterator[str]:
    yield f"freeze {names.slot(op.map)}"


def _prog_load(op: _ops.ProgLoad, names: _Names) -> Iterator[str]:
    kind = abi_names.PROG_TYPE_NAMES.get(op.type, f"type {op.type}")
    line = f"load program {op.name}: {kind}"
    if op.expected_attach_type:
        attach = abi_names.ATTACH_TYPE_NAMES.get(op.expected_attach_type)
        line += f", for {attach or op.expected_attach_type}"
    line += f", {len(op.insns) // 8} instructions, license {op.license}"
    if op.flags:
        line += f", flags {_flags(op.flags, _PROG_FLAGS)}"
    yield line
    if op.section:
        yield f"  section {op.section}"
    if op.attach_symbol is not None:
        yield f"  attaches to {names.symbol(op.attach_symbol)}"
    elif op.attach_btf_id:
        yield f"  attaches to BTF id {op.attach_btf_id} of vmlinux"
    if op.attach_prog is not None:
        yield f"  attaches to {names.slot(op.attach_prog)}"
    if op.fd_array:
        yield f"  uses {', '.join(names.slot(slot) for slot in op.fd_array)}"
    parts = [
        f"{len(data) // size} {what}"
        for what, data, size in (
            ("functions", op.func_info, op.func_info_size),
            ("source lines", op.line_info, op.line_info_size),
            ("CO-RE relocations for the kernel to do", op.core_relos, op.core_relo_size),
        )
        if data
    ]
    if parts:
        yield f"  with {', '.join(parts)}"
    for slot, kind, argument in op.patches:
        yield f"  instruction {slot}: {_patch(kind, argument, names)}"


def _patch(kind: str, argument: int | str, names: _Names) -> str:
    if kind == _ops.PATCH_MAP_FD and isinstance(argument, int):
        return f"refers to {names.slot(argument)}"
    if kind == _ops.PATCH_KSYM and isinstance(argument, int):
        return f"takes the address of {names.symbol(argument)}"
    if kind == _ops.PATCH_KFUNC and isinstance(argument, int):
        return f"calls {names.symbol(argument)}"
    return f"takes the address of {argument} from /proc/kallsyms"


def _link_create(op: _ops.LinkCreate, names: _Names) -> Iterator[str]:
    line = f"attach {names.slot(op.prog)}"
    if op.how == "link":
        line += f" by a link of type {abi_names.ATTACH_TYPE_NAMES.get(op.attach_type)}"
    else:
        line += f" by {op.how}"
    if op.target is not None:
        target = names.slot(op.target) if op.how == "iter" and type(op.target) is int else op.target
        line += f" to {target}"
    extra = "".join(f", {name} {value}" for name, value in op.extra)
    yield f"{line}{extra}"


def _pin(op: _ops.Pin, names: _Names) -> Iterator[str]:
    yield f"pin {names.slot(op.src)} at {op.path}"


def _require_kernel(op: _ops.RequireKernel, names: _Names) -> Iterator[str]:
    yield f"go on only on Linux {op.release} ({op.version})"


def _choose(op: _ops.Choose, names: _Names) -> Iterator[str]:
    when = f"errno {', '.join(map(str, op.on))}" if op.on else "the verifier or a missing name"
    yield f"choose {op.label}: the first that works; the next is tried on {when}"
    for label, operations in op.alternatives:
        yield f"  alternative {label}:"
        yield from _indented(operations, names, "    ")


def _when(op: _ops.When, names: _Names) -> Iterator[str]:
    kind, what = op.condition
    if kind == "module":
        said = f"the BTF of module {what} is there"
    elif kind == "symbol" and isinstance(what, int):
        said = f"{names.symbol(what)} was found"
    elif kind == "slot" and isinstance(what, int):
        said = f"{names.slot(what)} was made"
    else:
        said = f"{kind} {what}"
    yield f"if {said}:"
    yield from _indented(op.then, names, "    ")
    if op.otherwise:
        yield "  else:"
        yield from _indented(op.otherwise, names, "    ")


def _indented(operations: tuple[Any, ...], names: _Names, prefix: str) -> Iterator[str]:
    for op in operations:
        for line in _HOW[type(op)](op, names):
            yield prefix + line


_HOW: dict[type, Callable[[Any, _Names], Iterator[str]]] = {
    _ops.BtfLoad: _btf_load, _ops.Lookup: _lookup, _ops.MapCreate: _map_create,
    _ops.MapFill: _map_fill, _ops.KconfigFill: _kconfig_fill, _ops.MapFreeze: _map_freeze,
    _ops.ProgLoad: _prog_load, _ops.StructOpsFill: _struct_ops_fill,
    _ops.ExclusiveMapCreate: _map_create, _ops.RequireKernel: _require_kernel,
    _ops.LinkCreate: _link_create, _ops.Pin: _pin, _ops.Choose: _choose, _ops.When: _when,
}  # fmt: skip


def to_text(plan: _ops.Plan) -> str:
    """The Plan as numbered lines."""
    names = _Names(plan)
    lines = [
        f"Plan {plan.name}: {len(plan.maps)} maps, {len(plan.programs)} programs, "
        f"{len(plan.links)} links, {len(plan.variables)} variables"
    ]
    number = 0
    for title, operations in (("Load", plan.ops), ("Attach", plan.attach)):
        if not operations:
            continue
        lines.append(f"{title}:")
        for op in operations:
            number += 1
            for i, line in enumerate(_HOW[type(op)](op, names)):
                lines.append(f"{number:4}. {line}" if not i else f"      {line}")
    return "\n".join(lines) + "\n"


def to_json(plan: _ops.Plan) -> dict[str, Any]:
    """The Plan as dicts, lists, numbers, strings: for ``json.dumps``. An operation is
    {"op": its name, field: value, …}; bytes are in hex; layouts are nested lists."""
    found = {name: _plain(getattr(plan, name)) for name in plan.FIELDS}
    found["maps"] = {
        name: {"slot": slot, "key": _plain(key), "value": _plain(value)}
        for name, (slot, key, value) in plan.maps.items()
    }
    found["variables"] = {
        name: {"map": m, "offset": offset, "size": size, "layout": _plain(layout)}
        for name, (m, offset, size, layout) in plan.variables.items()
    }
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, _ops.Op):
        fields = {name: _plain(getattr(value, name)) for name in value.FIELDS}
        return {"op": type(value).__name__, **fields}
    return value
