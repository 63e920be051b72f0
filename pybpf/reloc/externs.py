# SPDX-License-Identifier: BSD-2-Clause
"""Externs: kernel functions (kfuncs), kernel variables (ksyms) and kconfig values.

A kfunc and a typed ksym are found by name in vmlinux's BTF, then in each module's; a typeless
ksym is an address from /proc/kallsyms; kconfig values come from the kernel's configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from pybpf.btf.consts import (
    ENUM_KINDS,
    KIND_ARRAY,
    KIND_FUNC,
    KIND_INT,
    KIND_VAR,
    KIND_VOID,
)
from pybpf.btf.model import Btf, essential_name
from pybpf.errors import CompileError, RelocationError
from pybpf.reloc.core_types import Budget, types_compatible
from pybpf.spec import ExternSpec, ObjectSpec

__all__ = [
    "POISON_KFUNC",
    "POISON_MAP",
    "KernelTypes",
    "Resolved",
    "is_typeless",
    "kconfig_data",
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
    """Kernel BTF to search: vmlinux and the modules, the latter opened one at a time."""

    def __init__(
        self, vmlinux: Btf, modules: Callable[[], Iterator[tuple[str, Btf]]] | None = None
    ) -> None:
        self.vmlinux = vmlinux
        self.modules = modules or (lambda: iter(()))

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
            f"{what} {name!r} is neither in vmlinux BTF nor in that of any module.",
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


# -- kconfig --------------------------------------------------------------------------------


def kconfig_data(
    spec: ObjectSpec, config: Callable[[], Mapping[str, str]] | None, version: int | None
) -> bytes:
    """The contents of the .kconfig map.

    config: gives CONFIG_ names and their values as in .config ("y", "m", "1000", '"text"');
    None: no kernel is known, every value is 0. version: KERNEL_VERSION number or None.
    Raises RelocationError if a strong value is missing or does not fit its variable, and what
    ``config`` raises if a strong value needs it. Weak values that cannot be had are 0.
    """
    assert spec.btf is not None
    values = [e for e in spec.externs.values() if e.kind == "kconfig"]
    data = bytearray(max((e.offset + e.size for e in values), default=0))
    loaded: Mapping[str, str] | None = None
    for extern in values:
        if extern.name == "LINUX_KERNEL_VERSION":
            number = version or 0
        elif extern.name in ("LINUX_HAS_BPF_COOKIE", "LINUX_HAS_SYSCALL_WRAPPER"):
            # bpf_get_attach_cookie() is there from 5.15, system call wrappers from 4.17.
            need = 0x050F00 if extern.name == "LINUX_HAS_BPF_COOKIE" else 0x041100
            number = int(version is not None and version >= need)
        else:
            if config is None:
                continue
            if loaded is None:
                try:
                    loaded = config()
                except CompileError:
                    if not extern.weak:
                        raise
                    continue
            text = loaded.get(extern.name)
            if text is None:
                if extern.weak:
                    continue
                raise RelocationError(
                    "this kernel's configuration has no such value.",
                    hint="Declare it __weak, or give the configuration's file.",
                    extern=extern.name,
                )
            _put_text(spec.btf, extern, text, data, spec.byteorder)
            continue
        _put_number(extern, number, data, spec.byteorder, signed=False)
    return bytes(data)


_TRISTATE = {"n": 0, "y": 1, "m": 2}  # enum libbpf_tristate


def _put_text(btf: Btf, extern: ExternSpec, text: str, data: bytearray, byteorder: str) -> None:
    found = btf.skip(extern.type_id)
    if text.startswith('"'):
        if found.kind != KIND_ARRAY or btf.size(found.array.type) != 1:
            raise _misfit(extern, text, "no array of char")
        raw = text.strip('"').encode("utf-8", "surrogateescape")[: extern.size - 1]
        data[extern.offset : extern.offset + len(raw)] = raw
        return
    if text in _TRISTATE:
        number = _TRISTATE[text]
        if found.kind in ENUM_KINDS and found.name == "libbpf_tristate":
            pass
        elif found.kind == KIND_INT and found.int_encoding & 4:
            if text == "m":
                raise _misfit(extern, text, "a bool, which cannot say m")
        elif found.kind == KIND_INT and extern.size == 1:
            number = ord(text)
        else:
            raise _misfit(extern, text, "neither bool, char nor enum libbpf_tristate")
        _put_number(extern, number, data, byteorder, signed=False)
        return
    try:
        number = int(text, 0)
    except ValueError:
        raise _misfit(extern, text, "of no type that could hold it") from None
    if found.kind != KIND_INT or found.int_encoding & 4:
        raise _misfit(extern, text, "no integer")
    _put_number(extern, number, data, byteorder, signed=found.signed)


def _put_number(
    extern: ExternSpec, number: int, data: bytearray, byteorder: str, *, signed: bool
) -> None:
    try:
        raw = number.to_bytes(
            extern.size, "little" if byteorder == "little" else "big", signed=signed
        )
    except OverflowError:
        raise _misfit(extern, str(number), f"only {extern.size} bytes wide") from None
    data[extern.offset : extern.offset + extern.size] = raw


def _misfit(extern: ExternSpec, text: str, why: str) -> RelocationError:
    return RelocationError(
        f"the kernel's value {text} does not fit: the variable is {why}.", extern=extern.name
    )
