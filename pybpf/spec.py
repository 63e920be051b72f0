# SPDX-License-Identifier: BSD-2-Clause
"""ObjectSpec: what a BPF object file says, as pure data.

Nothing here makes a system call, needs privileges or depends on the running kernel. Specs are
frozen: a change gives a copy (``with_map``, ``with_variables``, ``with_program``).

Units: instruction positions are slots of 8 bytes (a ldimm64 takes two), relative to the function
they stand in. Sizes and offsets in data are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pybpf.errors import UsageError

if TYPE_CHECKING:
    from pybpf.btf.model import Btf

__all__ = [
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


class Ref(NamedTuple):
    """One reference of an instruction to something outside its function.

    kind    target                                          instruction
    ------  ----------------------------------------------  ---------------------------------
    map     a map, by name                                  ldimm64 → BPF_PSEUDO_MAP_FD
    data    a data map, by name; offset: byte in its value  ldimm64 → BPF_PSEUDO_MAP_VALUE
    call    FunctionSpec number ``function``                call    → BPF_PSEUDO_CALL
    func    FunctionSpec number ``function``                ldimm64 → BPF_PSEUDO_FUNC
    extern  ExternSpec, by name                             ldimm64 or call
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


@dataclass(frozen=True, slots=True)
class FunctionSpec:
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


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map to be created.

    data: initial contents of a data map (.data, .rodata, .bss, .kconfig …), else None;
    section: the ELF section it comes from. frozen: BPF_MAP_FREEZE after filling.
    initial: (key, value) pairs to fill in; a str value names a map or a program.
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


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program: an entry function with its type and what it attaches to.

    attach_to: what follows the section's prefix ("bprm_check_security" of "lsm/…"), or None.
    autoload: loaded unless switched off; autoattach: attached by ``attach()``.
    when_module: loaded only where this kernel module's BTF is there (a Plan condition).
    exception_callback: number of the function that bpf_throw() runs (kernel 6.7), -1: none.
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


@dataclass(frozen=True, slots=True)
class VariableSpec:
    """A global variable: ``size`` bytes at ``offset`` in data map ``map``."""

    name: str
    map: str
    offset: int
    size: int
    type_id: int = 0


@dataclass(frozen=True, slots=True)
class ExternSpec:
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


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """A whole object. Dict order is the order of the file."""

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
    notes: Mapping[str, Any] = field(default_factory=dict)

    def with_map(self, name: str, **changes: Any) -> ObjectSpec:
        """A copy in which map ``name`` has other fields (max_entries=…, pin_path=…)."""
        if name not in self.maps:
            raise UsageError(f"there is no map {name!r}; maps: {', '.join(self.maps)}")
        return replace(
            self, maps={**self.maps, name: replace(self.maps[name], **changes)}
        )

    def with_program(self, name: str, **changes: Any) -> ObjectSpec:
        """A copy in which program ``name`` has other fields (autoload=False, …)."""
        if name not in self.programs:
            raise UsageError(f"there is no program {name!r}; programs: {', '.join(self.programs)}")
        return replace(
            self, programs={**self.programs, name: replace(self.programs[name], **changes)}
        )
