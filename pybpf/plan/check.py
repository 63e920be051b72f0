# SPDX-License-Identifier: BSD-2-Clause
"""Whether a Plan is well-formed: types of fields, shape of tuples, slots within range.

``check`` looks at every operation once (some 0.1 ms for a large object), so that the executor can
rely on what it reads. It says nothing on what the kernel will think of it.
"""

from __future__ import annotations

from pybpf.errors import FormatError
from pybpf.plan import ops as _ops

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["check"]

# One letter a field: i int, s str, b bytes, t tuple, B bool; upper-case I, S: or None.
_KINDS = {
    _ops.BtfLoad: "ibB",
    _ops.Lookup: "t",
    _ops.MapCreate: "isiiiiiiIIiiIIS",
    _ops.ExclusiveMapCreate: "isiiiiiiIIiiIISb",
    _ops.RequireKernel: "ss",
    _ops.MapFill: "it",
    _ops.KconfigFill: "it",
    _ops.MapFreeze: "i",
    _ops.StructOpsFill: "ibtB",
    _ops.ProgLoad: "isiiisibttIbibibiIiIis",
    _ops.LinkCreate: "isisi*it",
    _ops.Pin: "is",
    _ops.Choose: "stt",
    _ops.When: "ttt",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "i": (int,), "s": (str,), "b": (bytes,), "t": (tuple,), "B": (bool,),
    "I": (int, type(None)), "S": (str, type(None)), "*": (int, str, type(None)),
}  # fmt: skip
_PLAN = (
    ("name", str), ("slots", int), ("symbols", int), ("ops", tuple), ("attach", tuple),
    ("maps", dict), ("programs", dict), ("links", dict), ("variables", dict), ("layouts", dict),
)  # fmt: skip
_MOST = 1 << 16
# Fields of 64 bits; what else is a number is a u32 for the kernel.
_WIDE = ("extra",)
# Fields that are fd slots or symbols.
_SLOTS = ("dst", "map", "src", "prog", "btf", "inner", "attach_prog")
_SYMBOLS = ("attach_symbol", "value_symbol")


def _role(name: str) -> str:
    """What a number in a field is: of a slot, of a symbol, of nothing ("target"), or itself."""
    if name in _SLOTS:
        return "slot"
    if name in _SYMBOLS:
        return "symbol"
    return "" if name == "target" else "number"


# Operation → (field, types it may have, what a number in it is) for each field.
_ROWS: dict[type, tuple[tuple[str, tuple[type, ...], str], ...]] = {
    kind: tuple(
        (name, _TYPES[letter], _role(name))
        for name, letter in zip(kind.FIELDS, letters, strict=True)
    )
    for kind, letters in _KINDS.items()
}


def _bad(what: str) -> FormatError:
    return FormatError(f"the Plan is inconsistent: {what}.")


def check(plan: _ops.Plan) -> None:
    """Raise FormatError if ``plan`` could not be executed for reasons of its own."""
    for name, kind in _PLAN:
        if type(getattr(plan, name)) is not kind:
            raise _bad(f"its {name} is no {kind.__name__}")
    if not 0 <= plan.slots <= _MOST or not 0 <= plan.symbols <= _MOST:
        raise _bad("it has too many slots")
    _operations(plan, plan.ops, 0)
    _operations(plan, plan.attach, 0)
    for maps, shape in ((plan.programs, int), (plan.links, int), (plan.maps, tuple)):
        for name, place in maps.items():
            slot = place[0] if shape is tuple and type(place) is tuple and place else place
            if type(name) is not str or type(slot) is not int or not 0 <= slot < plan.slots:
                raise _bad(f"{name!r} is in no slot")
            if shape is tuple and (type(place) is not tuple or len(place) != 3):
                raise _bad(f"map {name!r} is not described by slot and two layouts")
    for name, where in plan.variables.items():
        if (
            type(name) is not str
            or type(where) is not tuple
            or len(where) != 4
            or type(where[0]) is not str
            or where[0] not in plan.maps
            or type(where[1]) is not int
            or type(where[2]) is not int
            or min(where[1:3]) < 0
        ):
            raise _bad(f"variable {name!r} has no place in a map")
        _layout(where[3], f"variable {name!r}")
    for name, place in plan.maps.items():
        _layout(place[1], f"map {name!r}")
        _layout(place[2], f"map {name!r}")
    for name, form in plan.layouts.items():
        if type(name) is not str:
            raise _bad(f"{name!r} is no name of a layout")
        _layout(form, name)


def _fits(name: str, value: int) -> bool:
    if name in _WIDE:
        return 0 <= value < 1 << 64
    return 0 <= value < 1 << 32 or (name == "max_entries" and value == _ops.NR_CPUS)


# The numbers and flags that follow the name of a kind of layout (see pybpf.btf.layout).
_FORMS: dict[Any, tuple[type, ...]] = {
    "int": (int, bool), "bool": (int,), "float": (int,), "char": (int,), "ptr": (int,),
    "opaque": (int,), "enum": (int, bool, tuple), "array": (tuple, int, int),
    "struct": (int, tuple), "union": (int, tuple),
}  # fmt: skip


def _layout(form: Any, of: str) -> None:
    """Raise FormatError if ``form`` is neither None nor a layout that can be decoded."""
    if form is not None:
        _size(form, of)


def _size(form: Any, of: str) -> int:
    """The size in bytes of a layout, checked."""
    kind = form[0] if type(form) is tuple and form else None
    types = _FORMS.get(kind) if type(kind) is str else None
    if types is None or tuple(map(type, form[1:])) != types:
        raise _bad(f"the layout of {of} has a part {form!r:.80}")
    size: int = form[1]
    if kind == "array":
        inner, count, stride = form[1:]
        if not 0 <= count < 1 << 32 or not 0 < stride < 1 << 32 or _size(inner, of) > stride:
            raise _bad(f"the layout of {of} has an array of {count} elements, {stride} bytes apart")
        size = count * stride
    elif kind == "enum":
        _tuples(form[3], ((str,), (int,)), f"the layout of {of}")
    elif kind in ("struct", "union"):
        for member in form[2]:
            _member(member, size, of)
    if not 0 <= size < 1 << 32 or (size > 16 and kind in ("int", "bool", "char", "ptr", "enum")):
        raise _bad(f"the layout of {of} has a part of {size} bytes")
    return size


def _member(member: Any, size: int, of: str) -> None:
    kinds = tuple(map(type, member)) if type(member) is tuple else ()
    if kinds not in ((str, int, tuple), (str, int, tuple, int, int)):
        raise _bad(f"the layout of {of} has a member {member!r:.80}")
    inner = _size(member[2], of)
    end = member[1] + inner
    if len(member) > 3:
        if min(member[3:]) < 0 or member[4] > 8 * inner:
            raise _bad(f"the layout of {of} has a bit-field {member[0]!r} of {member[4]} bits")
        # A bit-field's declared type may reach behind the struct that it is packed into.
        end = member[1] + (member[3] + member[4] + 7) // 8
    if member[1] < 0 or end > size:
        raise _bad(f"the layout of {of} has a member {member[0]!r} outside its {size} bytes")
    if not member[0] and member[2][0] not in ("struct", "union"):
        raise _bad(f"the layout of {of} has a member without a name")


def _operations(plan: _ops.Plan, operations: tuple[Any, ...], depth: int) -> None:
    if depth > 16:
        raise _bad("its alternatives are nested too deeply")
    for op in operations:
        rows = _ROWS.get(type(op))
        if rows is None:
            raise _bad(f"{op!r} is no operation")
        for name, types, role in rows:
            value = getattr(op, name)
            kind = type(value)
            if kind not in types:
                raise _bad(f"{type(op).__name__}.{name} is a {kind.__name__}")
            if kind is not int:
                continue
            if role == "slot":
                if not 0 <= value < plan.slots:
                    raise _bad(f"{type(op).__name__}.{name} is slot {value} of {plan.slots}")
            elif role == "symbol":
                if not 0 <= value < plan.symbols:
                    raise _bad(f"{type(op).__name__}.{name} is symbol {value} of {plan.symbols}")
            elif role and not _fits(name, value):
                raise _bad(f"{type(op).__name__}.{name} is {value}")
        more = _MORE.get(type(op))
        if more is not None:
            more(plan, op, depth)


def _tuples(items: tuple[Any, ...], types: tuple[tuple[type, ...], ...], what: str) -> None:
    for item in items:
        if type(item) is not tuple or len(item) != len(types):
            raise _bad(f"{what} has an item {item!r}")
        for part, allowed in zip(item, types, strict=True):
            if type(part) not in allowed:
                raise _bad(f"{what} has an item {item!r}")


def _lookup(plan: _ops.Plan, op: _ops.Lookup, _: int) -> None:
    _tuples(op.names, ((int,), (str,), (int,), (str, type(None)), (bool,)), "Lookup")
    for name in op.names:
        if not 0 <= name[0] < plan.symbols or "\0" in name[1]:
            raise _bad(f"Lookup of {name[1]!r} goes to symbol {name[0]} of {plan.symbols}")


def _map_create(plan: _ops.Plan, op: _ops.MapCreate, _: int) -> None:
    if op.max_entries < _ops.NR_CPUS or min(op.key_size, op.value_size, op.type) < 0:
        raise _bad(f"map {op.name!r} has a negative size")


def _exclusive_map_create(plan: _ops.Plan, op: _ops.ExclusiveMapCreate, depth: int) -> None:
    _map_create(plan, op, depth)
    if len(op.program_hash) != 32:
        raise _bad(f"map {op.name!r} is for a program of a hash of {len(op.program_hash)} bytes")


def _map_fill(plan: _ops.Plan, op: _ops.MapFill, _: int) -> None:
    _tuples(op.entries, ((bytes,), (bytes, int)), "MapFill")
    for _key, value in op.entries:
        if type(value) is int and not 0 <= value < plan.slots:
            raise _bad(f"MapFill puts slot {value} of {plan.slots}")


def _kconfig_fill(_plan: _ops.Plan, op: _ops.KconfigFill, _: int) -> None:
    from pybpf.plan.kconfig import FORMS

    _tuples(op.values, ((str,), (int,), (int,), (str,), (bool,)), "KconfigFill")
    for name, offset, size, form, _weak in op.values:
        if form not in FORMS or offset < 0 or not 0 < size <= _MOST or offset > _MOST:
            raise _bad(f"KconfigFill of {name!r} is {size} bytes at {offset} as {form!r}")


def _struct_ops_fill(plan: _ops.Plan, op: _ops.StructOpsFill, _: int) -> None:
    _tuples(op.programs, ((int,), (int,)), "StructOpsFill")
    for offset, slot in op.programs:
        if not 0 <= offset <= len(op.data) - 8 or not 0 <= slot < plan.slots:
            raise _bad(f"StructOpsFill puts slot {slot} at byte {offset} of {len(op.data)}")


def _prog_load(plan: _ops.Plan, op: _ops.ProgLoad, _: int) -> None:
    if not op.insns or len(op.insns) % 8:
        raise _bad(f"program {op.name!r} has {len(op.insns)} bytes of instructions")
    for slot in op.fd_array:
        if type(slot) is not int or not 0 <= slot < plan.slots:
            raise _bad(f"program {op.name!r} has slot {slot!r} of {plan.slots} in its fd_array")
    _tuples(op.patches, ((int,), (str,), (int, str)), f"program {op.name!r}")
    for slot, _kind, _argument in op.patches:
        if not 0 <= slot < len(op.insns) // 8:
            raise _bad(f"program {op.name!r} has a patch at instruction {slot}")
    for name in ("func_info", "line_info", "core_relo"):
        data = getattr(op, "core_relos" if name == "core_relo" else name)
        size = getattr(op, f"{name}_size")
        if size <= 0 or len(data) % size:
            raise _bad(f"program {op.name!r} has {len(data)} bytes of {name}, {size} a record")


def _link(plan: _ops.Plan, op: _ops.LinkCreate, _: int) -> None:
    _tuples(op.extra, ((str,), (int,)), f"link {op.name!r}")


def _pin(plan: _ops.Plan, op: _ops.Pin, _: int) -> None:
    if not op.path.startswith("/") or "\0" in op.path:
        raise _bad(f"the pin {op.path!r} is no absolute path")


def _choose(plan: _ops.Plan, op: _ops.Choose, depth: int) -> None:
    _tuples(op.alternatives, ((str,), (tuple,)), f"choice {op.label!r}")
    if not op.alternatives or not all(type(code) is int for code in op.on):
        raise _bad(f"choice {op.label!r} has no alternatives")
    for _label, operations in op.alternatives:
        _operations(plan, operations, depth + 1)


def _when(plan: _ops.Plan, op: _ops.When, depth: int) -> None:
    _tuples((op.condition,), ((str,), (str, int)), "When")
    _operations(plan, op.then, depth + 1)
    _operations(plan, op.otherwise, depth + 1)


_MORE: dict[type, Any] = {
    _ops.Lookup: _lookup, _ops.MapCreate: _map_create, _ops.MapFill: _map_fill,
    _ops.KconfigFill: _kconfig_fill,
    _ops.StructOpsFill: _struct_ops_fill, _ops.ExclusiveMapCreate: _exclusive_map_create,
    _ops.ProgLoad: _prog_load, _ops.LinkCreate: _link, _ops.Pin: _pin, _ops.Choose: _choose,
    _ops.When: _when,
}  # fmt: skip
