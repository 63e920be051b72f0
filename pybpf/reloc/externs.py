# SPDX-License-Identifier: BSD-2-Clause
"""Externs: kernel functions (kfuncs), kernel variables (ksyms) and kconfig values.

A kfunc and a typed ksym are found by name in vmlinux's BTF, then in each module's; a typeless
ksym is an address from /proc/kallsyms; kconfig values come from the kernel's configuration.
"""

from __future__ import annotations

from pybpf.btf.consts import (
    ENUM_KINDS,
    KIND_ARRAY,
    KIND_FUNC,
    KIND_INT,
    KIND_VAR,
    KIND_VOID,
)
from pybpf.btf.model import Btf, essential_name
from pybpf.errors import RelocationError
from pybpf.reloc.core_types import Budget, types_compatible
from pybpf.spec import ExternSpec, ObjectSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = [
    "POISON_KFUNC",
    "POISON_MAP",
    "KernelTypes",
    "Resolved",
    "is_typeless",
    "kconfig_values",
    "kernel_symbol",
    "poison_numbers",
    "resolve",
]

# Helper numbers that do not exist; libbpf's, so that verifier logs read the same.
POISON_MAP = 2001000000
POISON_KFUNC = 2002000000


class Resolved(NamedTuple):
    """What an extern is in a kernel. id: BTF id, 0 for a weak one that is missing;
    module: None for vmlinux."""

    id: int
    module: str | None = None


class KernelTypes:
    """Kernel BTF to search: vmlinux and the modules, the latter opened one at a time.

    suggestions: for how many more names that are missing others are suggested; a malformed object
    may miss thousands, and each takes some 30 ms.
    """

    def __init__(
        self, vmlinux: Btf, modules: Callable[[], Iterator[tuple[str, Btf]]] | None = None
    ) -> None:
        self.vmlinux = vmlinux
        self.modules = modules or (lambda: iter(()))
        self.suggestions = 16

    def find(self, name: str, kind: int, module: str | None = None) -> tuple[Btf, Resolved] | None:
        """The first type of this name and kind: in vmlinux, then in each module.

        module: search only this one ("vmlinux" is one, too).
        """
        if module in (None, "vmlinux"):
            ids = self.vmlinux.find(name, kind)
            if ids:
                return self.vmlinux, Resolved(ids[0])
            if module is not None:
                return None
        for label, btf in self.modules():
            if module is not None and label != module:
                continue
            own = [i for i in btf.find(name, kind) if i >= btf.start_id]
            if own:
                return btf, Resolved(own[0], label)
        return None


def is_typeless(spec: ObjectSpec, extern: ExternSpec) -> bool:
    """Whether a ksym has no type (``extern const void x __ksym``): it stands for an address."""
    return (
        extern.kind == "ksym"
        and spec.btf is not None
        and spec.btf.skip(extern.type_id).kind == KIND_VOID
    )


def kernel_symbol(extern: ExternSpec) -> tuple[str, int]:
    """(name, BTF kind) of a typed extern in kernel BTF: a kfunc's without its flavour."""
    if extern.kind == "kfunc":
        return essential_name(extern.name), KIND_FUNC
    return extern.name, KIND_VAR


def poison_numbers(spec: ObjectSpec) -> dict[str, int]:
    """Extern name → number of the call that stands in for it where it is missing."""
    return {name: POISON_KFUNC + index for index, name in enumerate(spec.externs)}


def resolve(spec: ObjectSpec, extern: ExternSpec, kernel: KernelTypes) -> Resolved:
    """Find a kfunc or typed ksym. Raises RelocationError if a strong one is missing or differs.

    A weak kfunc of another type counts as missing; a variable of another type is an error.
    """
    assert spec.btf is not None
    name, kind = kernel_symbol(extern)
    found = kernel.find(name, kind)
    what = "kernel function" if extern.kind == "kfunc" else "kernel variable"
    if found is None:
        if extern.weak:
            return Resolved(0)
        raise RelocationError(
            f"{what} {name!r} is neither in vmlinux BTF nor in that of any module"
            f"{_suggestion(name, kind, kernel)}.",
            hint="Load the module that has it, use a kernel that has it, or declare it __weak "
            "and test for it.",
            extern=extern.name,
        )
    btf, resolved = found
    local, target = extern.type_id, btf.type(resolved.id).type
    if extern.kind == "kfunc":
        local = spec.btf.type(local).type
    else:  # const and volatile may differ
        local, target = spec.btf.skip(local).id, btf.skip(target).id
    if not types_compatible(spec.btf, local, btf, target, Budget()):
        if extern.weak and extern.kind == "kfunc":
            return Resolved(0)
        raise RelocationError(
            f"{what} {name!r} has another type in this kernel than the object declares.",
            hint="Declare it as the kernel does, or with a flavour (name___other) for this kernel.",
            extern=extern.name,
        )
    return resolved


def _suggestion(name: str, kind: int, kernel: KernelTypes) -> str:
    if kernel.suggestions <= 0:
        return ""
    kernel.suggestions -= 1
    from pybpf.reloc.near import did_you_mean

    return did_you_mean(name, kind, kernel.vmlinux)


# -- kconfig --------------------------------------------------------------------------------

_SPECIAL = {
    "LINUX_KERNEL_VERSION": "version",
    "LINUX_HAS_BPF_COOKIE": "cookie",
    "LINUX_HAS_SYSCALL_WRAPPER": "wrapper",
}


def kconfig_values(spec: ObjectSpec) -> tuple[tuple[str, int, int, str, bool], ...]:
    """The kconfig externs as pybpf.plan.kconfig takes them. Raises RelocationError for a type
    that no configuration value has."""
    assert spec.btf is not None
    return tuple(
        (e.name, e.offset, e.size, _SPECIAL.get(e.name) or _form(spec.btf, e), e.weak)
        for e in spec.externs.values()
        if e.kind == "kconfig"
    )


def _form(btf: Btf, extern: ExternSpec) -> str:
    found = btf.skip(extern.type_id)
    if found.kind == KIND_INT:
        if found.int_encoding & 4:
            return "bool"
        if found.size_or_type == 1:
            return "char"
        return "int" if found.signed else "uint"
    if found.kind in ENUM_KINDS and found.name == "libbpf_tristate":
        return "tristate"
    if found.kind == KIND_ARRAY and btf.size(found.array.type) == 1:
        return "text"
    raise RelocationError(
        f"a kconfig value cannot be a {found.kind_name} {found.name}".rstrip() + ".",
        hint="Declare it bool, char, an integer, enum libbpf_tristate or an array of char.",
        extern=extern.name,
    )
