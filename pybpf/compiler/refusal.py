# SPDX-License-Identifier: BSD-2-Clause
"""What a failure to load means in terms of the object: imported after a failure only.

The verifier and the look-up of kernel names speak of numbers and exact names. Here they are put
back to what the object says: the CO-RE relocation, weak kfunc, map or helper behind a call that
was refused, and kernel symbols with a name like the one that is missing.
"""

from __future__ import annotations

from pybpf.btf.consts import KIND_NAMES
from pybpf.compiler.externs import user_of_extern
from pybpf.compiler.needs import helper_since
from pybpf.compiler.programs import attach_symbol
from pybpf.errors import PybpfError, SymbolNotFoundError, VerifierError
from pybpf.reloc.core import CoreTarget
from pybpf.reloc.core_explain import explain_refusal
from pybpf.reloc.externs import POISON_KFUNC, POISON_MAP, kernel_symbol
from pybpf.reloc.near import nearest_addresses, nearest_symbols
from pybpf.sys.abi_helpers import HELPER_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from pybpf.spec import ObjectSpec, ProgramSpec

__all__ = ["explain"]


def explain(error: PybpfError, spec: ObjectSpec, target: CoreTarget | None = None) -> PybpfError:
    """Add to ``error`` what the object and the kernel's BTF tell of it; returns it.

    target: the kernel it was meant for, None for the running one. Nothing is added where nothing
    certain can be told. Calling it twice changes nothing.
    """
    if isinstance(error, VerifierError):
        explain_refusal(error, spec, target)
        told = _unknown_call(error.log, spec)
        if told is not None and told not in error.message:
            error.message = f"{error.message.rstrip()} {told}"
    elif isinstance(error, SymbolNotFoundError):
        users = {name: user for name in error.names if (user := _user(spec, name)) is not None}
        if len(error.names) == 1 and users:
            (user,) = users.values()
            # Behind the object, which is known already.
            error.where = {**error.where, "program": user.name, "section": user.section}
        elif users:
            asked = ", ".join(f"{name} (program {user.name})" for name, user in users.items())
            error.where = {**error.where, "asked for": asked}
        if error.hint is None:
            error.hint = _like(error.names)
    return error


def _parts(missing: str) -> tuple[str, str]:
    """(BTF kind or "", name) of what a look-up missed: "func name", "struct name (module m)", or
    the bare name of a symbol that has no type."""
    kind, _, rest = missing.partition(" ")
    return (kind.lower(), rest.split(" (module ", 1)[0]) if rest else ("", missing)


def _user(spec: ObjectSpec, missing: str) -> ProgramSpec | None:
    """The first program that asked for a kernel symbol: as what it attaches to, or by an extern."""
    kind, name = _parts(missing)
    if kind:
        for program in spec.programs.values():
            wanted = attach_symbol(program) if program.autoload else None
            if wanted is not None and wanted[0] == name:
                return program
    for extern in spec.externs.values():
        if name in (extern.name, kernel_symbol(extern)[0]):
            return user_of_extern(spec, extern.name)
    return None


def _unknown_call(log: str, spec: ObjectSpec) -> str | None:
    """What stood in place of a call of a helper that does not exist."""
    _, marker, tail = log.rpartition("invalid func unknown#")
    digits = tail.split(None, 1)[0].rstrip(";,") if tail else ""
    if not marker or not digits.isdigit():
        return None
    number = int(digits)
    # The executor numbers by symbols of the Plan, so only a single candidate is certain.
    weak = [e for e in spec.externs.values() if e.kind == "kfunc" and e.weak]
    if POISON_KFUNC <= number < POISON_KFUNC + 1_000_000:
        if len(weak) == 1:
            return f"The weak kfunc is {weak[0].name!r}."
        return f"The object's weak kfuncs are {', '.join(e.name for e in weak)}." if weak else None
    maps = list(spec.maps)
    if POISON_MAP <= number < POISON_MAP + len(maps):
        return f"The call marks a use of map {maps[number - POISON_MAP]!r}, which is not created."
    if number < len(HELPER_NAMES):
        return (
            f"Helper {number} is bpf_{HELPER_NAMES[number]} (requires >= v{helper_since(number)}): "
            "this kernel is older, or was built without it."
        )
    if number < 0xBAD2310:
        return (
            f"There is no helper {number} in Linux 7.3 either, which has {len(HELPER_NAMES) - 1}."
        )
    return None


def _like(names: Collection[str]) -> str | None:
    """ "Did you mean …?" for what a look-up missed."""
    kinds = {text.lower(): number for number, text in enumerate(KIND_NAMES)}
    told = []
    for missing in names:
        kind, name = _parts(missing)
        number = kinds.get(kind)
        near = nearest_symbols(name, number) if number is not None else nearest_addresses(name)
        if near:
            told.append((name, " or ".join(near)))
    if len(told) == 1:
        return f"Did you mean {told[0][1]}?"
    return f"Did you mean {', '.join(f'{n} for {m}' for m, n in told)}?" if told else None
