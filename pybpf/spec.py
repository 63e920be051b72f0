# SPDX-License-Identifier: BSD-2-Clause
"""ObjectSpec: what a BPF object file says, as pure data.

Nothing here makes a system call, needs privileges or depends on the running kernel. Specs are
frozen: a change gives a copy (``with_map``, ``with_variables``, ``with_program``).

Units: instruction positions are slots of 8 bytes (a ldimm64 takes two), relative to the function
they stand in. Sizes and offsets in data are bytes.
"""

from __future__ import annotations

from pybpf.errors import FormatError, UsageError
from pybpf.record import Frozen, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NamedTuple

    from pybpf.btf.model import Btf
else:
    from pybpf.record import NamedTuple

__all__ = [
    "NO_CALLBACK",
    "CoreRelo",
    "ExternSpec",
    "FunctionSpec",
    "LineInfo",
    "MapSpec",
    "ObjectSpec",
    "ProgramSpec",
    "Ref",
    "VariableSpec",
]


NO_CALLBACK = -2
_NO_NOTES: Mapping[str, Any] = {}  # shared by all specs without notes: never written
_NO_TABLES: Mapping[int, tuple[int, ...]] = {}


class Ref(NamedTuple):
    """One reference of an instruction to something outside its function.

    kind    target                                          instruction
    ------  ----------------------------------------------  ---------------------------------
    map     a map, by name                                  ldimm64 → BPF_PSEUDO_MAP_FD
    data    a data map, by name; offset: byte in its value  ldimm64 → BPF_PSEUDO_MAP_VALUE
    call    FunctionSpec number ``function``                call    → BPF_PSEUDO_CALL
    func    FunctionSpec number ``function``                ldimm64 → BPF_PSEUDO_FUNC
    extern  ExternSpec, by name                             ldimm64 or call
    table   jump table at byte ``offset`` of .jumptables    ldimm64 → BPF_PSEUDO_MAP_VALUE

    function -1: there is no function at byte ``offset`` of section ``name``.
    """

    insn: int
    kind: str
    name: str
    offset: int = 0
    function: int = -1


class LineInfo(NamedTuple):
    """One line_info record, as in struct bpf_line_info (insn: slot in the function)."""

    insn: int
    file_off: int
    line_off: int
    line_col: int


class CoreRelo(NamedTuple):
    """One CO-RE relocation, as in struct bpf_core_relo (insn: slot in the function)."""

    insn: int
    type_id: int
    access: str
    access_off: int
    kind: int


class FunctionSpec(Frozen):
    """A function of the object: a program's entry or a subprogram.

    insns: raw instructions in the object's byte order; refs, lines, core: sorted by insn.
    type_id: the BTF FUNC (0: none). global_: verified on its own by the kernel.
    """

    name: str
    section: str
    offset: int
    insns: bytes
    refs: tuple[Ref, ...] = ()
    type_id: int = 0
    lines: tuple[LineInfo, ...] = ()
    core: tuple[CoreRelo, ...] = ()
    global_: bool = True
    weak: bool = False


class MapSpec(Frozen):
    """A map to be created.

    data: initial contents of a data map (.data, .rodata, .bss, .kconfig …), else None; where
    shorter than value_size, the rest is zero.
    section: the ELF section it comes from. frozen: BPF_MAP_FREEZE after filling.
    initial: (key, value) pairs to fill in; a str value names a map or a program.
    struct_ops: a kernel struct with programs in it; members: (member, program) of it.
    exclusive: name of the only program that may use the map (6.18), or None.
    pin: 0 none, 1 LIBBPF_PIN_BY_NAME. max_entries 0 in a perf event array: number of CPUs.
    """

    name: str
    type: int
    key_size: int = 0
    value_size: int = 0
    max_entries: int = 0
    flags: int = 0
    extra: int = 0
    numa_node: int | None = None
    key_type_id: int = 0
    value_type_id: int = 0
    pin: int = 0
    pin_path: str | None = None
    inner: MapSpec | None = None
    initial: tuple[tuple[bytes, bytes | str], ...] = ()
    data: bytes | None = None
    frozen: bool = False
    section: str = ".maps"
    kernel_name: str | None = None
    autocreate: bool = True
    struct_ops: bool = False
    members: tuple[tuple[str, str], ...] = ()
    exclusive: str | None = None


class ProgramSpec(Frozen):
    """A program: an entry function with its type and what it attaches to.

    attach_to: what follows the section's prefix ("bprm_check_security" of "lsm/…"), or None.
    autoload: loaded unless switched off; autoattach: attached by ``attach()``.
    when_module: loaded only where this kernel module's BTF is there (a Plan condition).
    attach_program: attach_to names a function of a loaded program, which run() is given.
    exception_callback: number of the function that bpf_throw() runs (kernel 6.7), -1: none,
        NO_CALLBACK: one that is no global subprogram (linking the program fails).
    """

    name: str
    section: str
    function: int
    type: int
    expected_attach_type: int = 0
    attach_to: str | None = None
    flags: int = 0
    autoload: bool = True
    autoattach: bool = True
    when_module: str | None = None
    exception_callback: int = -1
    attach_program: bool = False


class VariableSpec(Frozen):
    """A global variable: ``size`` bytes at ``offset`` in data map ``map``."""

    name: str
    map: str
    offset: int
    size: int
    type_id: int = 0


class ExternSpec(Frozen):
    """An extern: kind "kconfig", "ksym" (typeless or typed variable) or "kfunc".

    type_id: its BTF type (FUNC for a kfunc, the VAR's type else); weak: may be missing.
    offset: for kconfig, the byte offset assigned in the .kconfig map.
    """

    name: str
    kind: str
    type_id: int
    weak: bool
    size: int = 0
    offset: int = 0


class ObjectSpec(Frozen):
    """A whole object. Dict order is the order of the file.

    jump_tables: byte offset in .jumptables → where its entries jump to: bytes from the start of
    the section that holds the function which uses it.
    """

    name: str
    byteorder: str
    license: str
    kern_version: int
    maps: Mapping[str, MapSpec]
    functions: tuple[FunctionSpec, ...]
    programs: Mapping[str, ProgramSpec]
    variables: Mapping[str, VariableSpec]
    externs: Mapping[str, ExternSpec]
    btf: Btf | None = None
    path: str | None = None
    notes: Mapping[str, Any] = _NO_NOTES
    jump_tables: Mapping[int, tuple[int, ...]] = _NO_TABLES

    def with_map(self, name: str, **changes: Any) -> ObjectSpec:
        """A copy in which map ``name`` has other fields (max_entries=…, pin_path=…)."""
        if name not in self.maps:
            raise UsageError(f"there is no map {name!r}; maps: {', '.join(self.maps)}")
        changed = _changed(self.maps[name], "map", name, changes)
        number: object = changed.max_entries
        if not isinstance(number, int) or not 0 <= number < 1 << 32:
            raise UsageError(f"max_entries is a number of 32 bits, not {number!r}", map=name)
        if (
            "max_entries" in changes
            and changed.data is not None
            # An arena, defined in .maps, has data, too, and pages in place of entries.
            and not (changed.struct_ops or changed.section == ".maps" or changed.max_entries == 1)
        ):
            raise UsageError("a data map has one entry, which holds all its variables", map=name)
        return replace(self, maps={**self.maps, name: changed})

    def with_program(self, name: str, **changes: Any) -> ObjectSpec:
        """A copy in which program ``name`` has other fields (autoload=False, …)."""
        if name not in self.programs:
            raise UsageError(f"there is no program {name!r}; programs: {', '.join(self.programs)}")
        changed = _changed(self.programs[name], "program", name, changes)
        return replace(self, programs={**self.programs, name: changed})

    def with_variables(
        self, values: Mapping[str, object] | None = None, /, **more: object
    ) -> ObjectSpec:
        """A copy in which global variables have other initial values.

        Values are Python values by the variable's type (int, bool, enum name, bytes, list, dict)
        or its bytes. Raises UsageError for an unknown variable or a value that does not fit.
        """
        maps = dict(self.maps)
        for name, value in {**(values or {}), **more}.items():
            variable = self.variable(name)
            spec = maps[variable.map]
            data = bytearray((spec.data or b"").ljust(variable.offset + variable.size, b"\0"))
            raw = self._encode(variable, value)
            data[variable.offset : variable.offset + variable.size] = raw
            maps[variable.map] = replace(spec, data=bytes(data))
        return replace(self, maps=maps)

    def variable(self, name: str) -> VariableSpec:
        """The variable of this name. Raises UsageError if there is none."""
        if name not in self.variables:
            known = ", ".join(self.variables) or "none (does the object have BTF?)"
            raise UsageError(f"there is no variable {name!r}; variables: {known}")
        return self.variables[name]

    def value(self, name: str) -> Any:
        """A variable's initial value: by its type, bytes where BTF says none."""
        from pybpf.kernel.layout import decode

        variable = self.variable(name)
        data = self.maps[variable.map].data or b""
        raw = data[variable.offset : variable.offset + variable.size].ljust(variable.size, b"\0")
        found = self._layout(variable)
        return raw if found is None else decode(found, raw, 0, self.byteorder)

    def _layout(self, variable: VariableSpec) -> tuple[Any, ...] | None:
        from pybpf.btf.layout import layout

        if self.btf is None or not variable.type_id:
            return None
        try:
            return layout(self.btf, variable.type_id)
        except FormatError:
            return None

    def _encode(self, variable: VariableSpec, value: object) -> bytes:
        from pybpf.kernel.layout import encode, named

        found = self._layout(variable)
        try:
            if isinstance(value, (bytes, bytearray, memoryview)):
                raw = bytes(value)
                if found is not None and found[0] == "array" and found[1][0] == "char":
                    raw = raw.ljust(variable.size, b"\0")
            elif found is not None:
                raw = encode(found, value, self.byteorder)
            elif isinstance(value, int):
                order: Any = self.byteorder
                raw = value.to_bytes(variable.size, order, signed=value < 0)
            else:
                raise UsageError(f"bytes are needed, not {type(value).__name__}")
        except OverflowError:
            raise UsageError(
                f"{value} does not fit into {variable.size} bytes", variable=variable.name
            ) from None
        except UsageError as exc:
            raise named(exc, "variable", variable.name) from None
        if len(raw) != variable.size:
            raise UsageError(
                f"{len(raw)} bytes given where {variable.size} are needed", variable=variable.name
            )
        return raw


def _changed(old: Any, what: str, name: str, changes: dict[str, Any]) -> Any:
    unknown = [key for key in changes if key not in old.__slots__]
    if unknown:
        raise UsageError(
            f"a {what} has no field {unknown[0]!r}; fields: {', '.join(old.__slots__)}",
            **{what: name},
        )
    return replace(old, **changes)
