# SPDX-License-Identifier: BSD-2-Clause
"""The operations of a Plan, as data.

A Plan is an ordered list of operations on two kinds of numbered places that the executor fills:
fd slots (a file descriptor each) and symbols (a kernel BTF id each, with the BTF object it is
in). Every field is None, bool, int, bytes, str, a tuple of such, or a tuple of operations, so a
Plan can be printed, compared and frozen to a file. ``FIELDS`` names the fields in order.

This module imports nothing heavier than the standard library's smallest modules: the executor
in an initramfs reads it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "PATCH_ADDR",
    "PATCH_ADDR_WEAK",
    "PATCH_KFUNC",
    "PATCH_KSYM",
    "PATCH_MAP_FD",
    "BtfLoad",
    "Choose",
    "ExclusiveMapCreate",
    "KconfigFill",
    "LinkCreate",
    "Lookup",
    "MapCreate",
    "MapFill",
    "MapFreeze",
    "Op",
    "Pin",
    "Plan",
    "ProgLoad",
    "RequireKernel",
    "StructOpsFill",
    "When",
]

# Patches of instructions before BPF_PROG_LOAD: (slot of the instruction, kind, argument).
PATCH_MAP_FD = "map_fd"  # imm ← fd in fd slot `argument`
PATCH_KSYM = "ksym"  # ldimm64: imm ← BTF id, next imm ← BTF fd of symbol; weak+absent: plain 0
PATCH_KFUNC = "kfunc"  # call: imm ← BTF id, off ← index of BTF fd in fd_array; weak+absent: poison
PATCH_ADDR = "addr"  # ldimm64: address from /proc/kallsyms of the name `argument`
PATCH_ADDR_WEAK = "addr_weak"  # the same, but 0 where there is no such symbol

NR_CPUS = -1  # in MapCreate.max_entries: the number of possible CPUs


class Op:
    """Base of all operations: equality, repr and construction from FIELDS."""

    # The annotations in the subclasses are for type checkers only; they cost nothing at run time.
    __slots__: tuple[str, ...] = ()
    FIELDS: tuple[str, ...] = ()
    DEFAULTS: dict[str, Any] = {}

    def __init__(self, **values: Any) -> None:
        for name in self.FIELDS:
            if name in values:
                setattr(self, name, values.pop(name))
            elif name in self.DEFAULTS:
                setattr(self, name, self.DEFAULTS[name])
            else:
                raise TypeError(f"{type(self).__name__} needs the field {name}")
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            getattr(self, n) == getattr(other, n) for n in self.FIELDS
        )

    def __hash__(self) -> int:
        return hash((type(self).__name__, *(getattr(self, n) for n in self.FIELDS)))

    def __repr__(self) -> str:
        inner = ", ".join(f"{n}={getattr(self, n)!r}" for n in self.FIELDS)
        return f"{type(self).__name__}({inner})"


class BtfLoad(Op):
    """BPF_BTF_LOAD of ``data`` into fd slot ``dst``. A kernel that refuses it: see optional."""

    dst: int
    data: bytes
    optional: bool
    __slots__ = FIELDS = ("dst", "data", "optional")
    DEFAULTS = {"optional": False}


class Lookup(Op):
    """Resolve kernel BTF names to ids, in the kernel (bpf_btf_find_by_name_kind, 5.14).

    names: ((symbol, name, BTF kind, module or None, weak), …). module None: vmlinux first,
    then every module. A missing name that is not weak fails the Plan and names what asked for it.
    """

    names: tuple[tuple[int, str, int, str | None, bool], ...]
    __slots__ = FIELDS = ("names",)


class MapCreate(Op):
    """BPF_MAP_CREATE into fd slot ``dst``; btf and inner are fd slots or None.

    pin_path: if an object is pinned there, take it (after checking that it fits), else create
    and pin. value_symbol: symbol for btf_vmlinux_value_type_id (struct_ops), else None.
    """

    dst: int
    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    extra: int
    numa_node: int | None
    btf: int | None
    key_type_id: int
    value_type_id: int
    inner: int | None
    value_symbol: int | None
    pin_path: str | None
    __slots__ = FIELDS = (
        "dst", "name", "type", "key_size", "value_size", "max_entries", "flags", "extra",
        "numa_node", "btf", "key_type_id", "value_type_id", "inner", "value_symbol", "pin_path",
    )  # fmt: skip
    DEFAULTS = {
        "flags": 0, "extra": 0, "numa_node": None, "btf": None, "key_type_id": 0,
        "value_type_id": 0, "inner": None, "value_symbol": None, "pin_path": None,
    }  # fmt: skip


class ExclusiveMapCreate(MapCreate):
    """A MapCreate of a map that one program alone may use (6.18): the one whose instructions,
    map fds zeroed, have this SHA-256. Others are refused with EACCES when they are loaded."""

    program_hash: bytes
    __slots__ = ("program_hash",)
    FIELDS = (*MapCreate.FIELDS, "program_hash")  # type: ignore[assignment]


class MapFill(Op):
    """Put ``entries`` ((key, value), …) into the map in fd slot ``map``.

    A value that is an int is an fd slot (map-in-map, prog array); bytes are the value itself.
    """

    map: int
    entries: tuple[tuple[bytes, bytes | int], ...]
    __slots__ = FIELDS = ("map", "entries")


class KconfigFill(Op):
    """Fill the map of ``__kconfig`` externs from the running kernel's version and configuration.

    values: ((name, offset, size, form, weak), …), see pybpf.plan.kconfig.
    """

    map: int
    values: tuple[tuple[str, int, int, str, bool], ...]
    __slots__ = FIELDS = ("map", "values")


class MapFreeze(Op):
    """BPF_MAP_FREEZE (5.2): user space can no longer write the map."""

    map: int
    __slots__ = FIELDS = ("map",)


class StructOpsFill(Op):
    """Set the value of a struct_ops map: ``data`` with programs' fds put in.

    programs: ((byte offset, fd slot), …), 8 bytes each. register: the map is one without
    BPF_F_LINK (before 6.4 all were), whose value goes into force with being set: it belongs to
    ``attach``, is undone by deleting the value, and else stays in force when its owner ends.
    """

    map: int
    data: bytes
    programs: tuple[tuple[int, int], ...]
    register: bool
    __slots__ = FIELDS = ("map", "data", "programs", "register")
    DEFAULTS = {"register": False}


class ProgLoad(Op):
    """BPF_PROG_LOAD into fd slot ``dst``.

    fd_array: fd slots, for BPF_PSEUDO_MAP_IDX and kfuncs of modules; attach_symbol: symbol whose
    (BTF object, id) become attach_btf_obj_fd / attach_btf_id; attach_btf_id: a vmlinux BTF id
    known when the Plan was compiled, used where attach_symbol is None (0: none);
    attach_prog: fd slot or None.
    func_info, line_info, core_relos: raw records ("" if none) with their record sizes;
    core_relos are given only when the kernel is to relocate (5.17). section, source: for errors.
    """

    dst: int
    name: str
    type: int
    expected_attach_type: int
    flags: int
    license: str
    kern_version: int
    insns: bytes
    patches: tuple[tuple[int, str, int | str], ...]
    fd_array: tuple[int, ...]
    btf: int | None
    func_info: bytes
    func_info_size: int
    line_info: bytes
    line_info_size: int
    core_relos: bytes
    core_relo_size: int
    attach_symbol: int | None
    attach_btf_id: int
    attach_prog: int | None
    ifindex: int
    section: str
    __slots__ = FIELDS = (
        "dst", "name", "type", "expected_attach_type", "flags", "license", "kern_version",
        "insns", "patches", "fd_array", "btf", "func_info", "func_info_size", "line_info",
        "line_info_size", "core_relos", "core_relo_size", "attach_symbol",
        "attach_btf_id", "attach_prog", "ifindex", "section",
    )  # fmt: skip
    DEFAULTS = {
        "expected_attach_type": 0, "flags": 0, "kern_version": 0, "patches": (), "fd_array": (),
        "btf": None, "func_info": b"", "func_info_size": 8, "line_info": b"",
        "line_info_size": 16, "core_relos": b"", "core_relo_size": 16, "attach_symbol": None,
        "attach_btf_id": 0, "attach_prog": None, "ifindex": 0, "section": "",
    }  # fmt: skip


class LinkCreate(Op):
    """Attach the program in fd slot ``prog``; the link's fd goes to ``dst``.

    how: "link" (BPF_LINK_CREATE with attach_type and target), "raw_tracepoint"
    (BPF_RAW_TRACEPOINT_OPEN with target name), or one of those in pybpf.plan.attach (cgroup,
    netns, interface, iter, struct_ops, tracepoint, kprobe, uprobe, prog_attach …), which also says
    what target then is. target: None, an int (fd, ifindex) or a str, as ``how`` asks; extra:
    further attributes of BPF_LINK_CREATE as ((attr name, value), …), parts of unions with a dot
    ("tracing.cookie").
    A LinkCreate whose program slot is empty fails: put it under the same When as the ProgLoad.
    """

    dst: int
    name: str
    prog: int
    how: str
    attach_type: int
    target: int | str | None
    flags: int
    extra: tuple[tuple[str, int], ...]
    __slots__ = FIELDS = ("dst", "name", "prog", "how", "attach_type", "target", "flags", "extra")
    DEFAULTS = {"how": "link", "attach_type": 0, "target": None, "flags": 0, "extra": ()}


class Pin(Op):
    """BPF_OBJ_PIN of fd slot ``src`` at ``path``; undone by unlink."""

    src: int
    path: str
    __slots__ = FIELDS = ("src", "path")


class RequireKernel(Op):
    """Go on only on the kernel that the Plan was decided for, told by uname(2)'s words."""

    release: str
    version: str
    __slots__ = FIELDS = ("release", "version")


class Choose(Op):
    """Try each alternative ((label, operations), …) until one succeeds.

    What a failed alternative created is undone before the next is tried. Only errors whose errno
    is in ``on`` lead to the next one (empty: any refusal by the verifier or a missing name).
    """

    label: str
    alternatives: tuple[tuple[str, tuple[Op, ...]], ...]
    on: tuple[int, ...]
    __slots__ = FIELDS = ("label", "alternatives", "on")
    DEFAULTS = {"on": ()}


class When(Op):
    """Run ``then`` if the condition holds, else ``otherwise``.

    condition: ("module", name): /sys/kernel/btf/NAME exists;
    ("symbol", number): the symbol of an earlier Lookup was found; ("slot", number): the fd slot
    is filled. The first two are decided once, so that ``attach`` agrees with ``ops``.
    """

    condition: tuple[str, str | int]
    then: tuple[Op, ...]
    otherwise: tuple[Op, ...]
    __slots__ = FIELDS = ("condition", "then", "otherwise")
    DEFAULTS = {"otherwise": ()}


class Plan:
    """What to do, in order, and how to name the results.

    name:      the object's name.
    slots:     number of fd slots; symbols: number of symbols.
    ops:       operations up to loaded programs; attach: operations that attach (LinkCreate, Pin).
    maps:      {name: (fd slot, key layout or None, value layout or None)}
    programs:  {name: fd slot}; links: {name: fd slot}; the name of a link is its program's.
    variables: {name: (map name, offset, size, layout)}
    layouts:   {type name: layout}: further types asked for when compiling (event records).
    Layouts are the tuples of pybpf.kernel.layout.
    """

    name: str
    slots: int
    symbols: int
    ops: tuple[Op, ...]
    attach: tuple[Op, ...]
    maps: dict[str, tuple[int, Any, Any]]
    programs: dict[str, int]
    links: dict[str, int]
    variables: dict[str, tuple[str, int, int, Any]]
    layouts: dict[str, Any]
    __slots__ = FIELDS = (
        "name", "slots", "symbols", "ops", "attach", "maps", "programs", "links", "variables",
        "layouts",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        slots: int,
        symbols: int,
        ops: tuple[Op, ...],
        attach: tuple[Op, ...],
        maps: dict[str, tuple[int, Any, Any]],
        programs: dict[str, int],
        links: dict[str, int],
        variables: dict[str, tuple[str, int, int, Any]],
        layouts: dict[str, Any],
    ) -> None:
        self.name = name
        self.slots = slots
        self.symbols = symbols
        self.ops = ops
        self.attach = attach
        self.maps = maps
        self.programs = programs
        self.links = links
        self.variables = variables
        self.layouts = layouts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and all(
            getattr(self, n) == getattr(other, n) for n in self.FIELDS
        )

    __hash__ = None  # type: ignore[assignment]
