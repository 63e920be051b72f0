# SPDX-License-Identifier: BSD-2-Clause
"""The exceptions of pybpf. Every one says where it happened and what to do next.

This module imports nothing: the executor in an initramfs uses it too.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "CompileError",
    "FormatError",
    "KernelError",
    "PlanError",
    "PybpfError",
    "RelocationError",
    "SymbolNotFoundError",
    "UsageError",
    "VerifierError",
]


class PybpfError(Exception):
    """Base of everything pybpf raises on purpose.

    message: one sentence, what is wrong.
    where:   ordered names of the place, outermost first, for example
             {"object": "a.bpf.o", "program": "f", "section": "lsm/bpf", "insn": 12,
              "source": "a.bpf.c:31"}; None values are left out.
    hint:    what to do next, one sentence; None where there is no honest advice.
    """

    def __init__(self, message: str, *, hint: str | None = None, **where: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where: dict[str, object] = {k: v for k, v in where.items() if v is not None}

    def at(self, **where: object) -> PybpfError:
        """Add places known only further out (they are put in front); returns self."""
        outer = {k: v for k, v in where.items() if v is not None and k not in self.where}
        self.where = {**outer, **self.where}
        return self

    def again(self) -> Self:
        """A copy, for an error that is kept and raised more than once: at() changes it."""
        other = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__)
        return other

    def __str__(self) -> str:
        place = ", ".join(f"{k} {_on_one_line(str(v))}" for k, v in self.where.items())
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} {self.hint}" if self.hint else text


def _on_one_line(name: str) -> str:
    """A name, which an object chose, without what a terminal or a reader of lines obeys."""
    if name.isprintable():
        return name
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name
    )


class UsageError(PybpfError):
    """The caller asked for something that does not exist or does not fit."""


class FormatError(PybpfError):
    """The input (ELF, BTF, bundle, record) is malformed or cut short."""


class CompileError(PybpfError):
    """A spec cannot be turned into a Plan.

    errno: the number libbpf's loader gives for it: EINVAL, or 4003 (LIBBPF_ERRNO__ENDIAN) for an
    object of the other byte order.
    """

    errno = 22

    def numbered(self, errno: int) -> Self:
        """Set ``errno``; returns self."""
        self.errno = errno
        return self


class RelocationError(CompileError):
    """A reference or CO-RE relocation cannot be resolved for the chosen kernel.

    errno: EINVAL, ESRCH (3) for a target or an untyped symbol that the kernel does not have,
    EOPNOTSUPP (95) for a struct_ops member.
    """


class PlanError(PybpfError):
    """A Plan is inconsistent, or could not be executed for a reason that is no errno."""


class SymbolNotFoundError(PlanError):
    """The running kernel has no BTF type or symbol of a name that a Plan needs.

    names: what is missing, as "func bpf_real_data_inode" or "struct dm_table (module dm_mod)".
    """

    def __init__(
        self, message: str, *, names: tuple[str, ...], hint: str | None = None, **where: object
    ) -> None:
        super().__init__(message, hint=hint, **where)
        self.names = names


class KernelError(PybpfError):
    """A system call failed.

    errno: the positive errno; call: the operation, for example "BPF_MAP_CREATE".
    """

    def __init__(
        self,
        message: str,
        *,
        errno: int,
        call: str,
        hint: str | None = None,
        **where: object,
    ) -> None:
        super().__init__(message, hint=hint, **where)
        self.errno = errno
        self.call = call


class VerifierError(KernelError):
    """The kernel refused a program. log: the whole verifier log; summary: one paragraph."""

    def __init__(
        self,
        message: str,
        *,
        errno: int,
        call: str = "BPF_PROG_LOAD",
        log: str = "",
        summary: str = "",
        hint: str | None = None,
        **where: object,
    ) -> None:
        super().__init__(message, errno=errno, call=call, hint=hint, **where)
        self.log = log
        self.summary = summary
