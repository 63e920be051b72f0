# SPDX-License-Identifier: BSD-2-Clause
"""What a failure to load means in terms of the object: imported after a failure only.

The verifier and the look-up of kernel names speak of numbers and exact names. Here they are put
back to what the object says: the CO-RE relocation, weak kfunc, map or helper behind a call that
was refused, and kernel symbols with a name like the one that is missing.
"""

from __future__ import annotations

import difflib
from weakref import WeakKeyDictionary

from pybpf.btf.consts import KIND_NAMES
from pybpf.btf.model import Btf
from pybpf.errors import FormatError, PybpfError, SymbolNotFoundError, VerifierError
from pybpf.reloc.core import CoreTarget
from pybpf.reloc.core_explain import explain_refusal
from pybpf.reloc.externs import POISON_KFUNC, POISON_MAP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from pybpf.spec import ObjectSpec, ProgramSpec

__all__ = ["did_you_mean", "explain", "nearest_addresses", "nearest_symbols"]

# Parts of kernel names that are put before the name a programmer writes.
_PREFIXES = ("bpf_lsm_", "btf_trace_", "bpf_iter_", "bpf_struct_ops_")
_MAX_COMPARED = 500  # difflib takes some 20 us a name
_MAX_FOUND = 4000  # places where a word of the name stands in the kernel's strings
_WORDS = 6
_KEPT = 256  # answers


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
    from pybpf.compiler.programs import attach_symbol
    from pybpf.compiler.target import user_of_extern
    from pybpf.reloc.externs import kernel_symbol

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
    from pybpf.sys.abi_helpers import HELPER_NAMES

    if number < len(HELPER_NAMES):
        from pybpf.compiler.needs import helper_since

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


def nearest_addresses(name: str, count: int = 3) -> list[str]:
    """Symbols in /proc/kallsyms that look like ``name``, nearest first."""
    from pybpf.kernel.kallsyms import symbols

    # Those that begin or end as the name does, and are about as long.
    found = {
        text
        for _, text in symbols()
        if abs(len(text) - len(name)) <= 3 and (text[:4] == name[:4] or text[-4:] == name[-4:])
    }
    return difflib.get_close_matches(name, sorted(found)[:_MAX_FOUND], count, cutoff=0.75)


def did_you_mean(name: str, kind: int, btf: Btf) -> str:
    """ " (did you mean …?)" to end a sentence with, or nothing."""
    near = nearest_symbols(name, kind, btf)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def nearest_symbols(name: str, kind: int, btf: Btf | None = None, count: int = 3) -> list[str]:
    """Names of ``kind`` in kernel BTF that look like ``name``, nearest first.

    btf: None for the running kernel's vmlinux. An empty list where it cannot be read.
    """
    try:
        btf = btf or Btf.vmlinux()
        # Each program of an object may miss the same name; looking for it takes some 30 ms.
        answers = _answers.setdefault(btf, {})
        if (name, kind) not in answers:
            if len(answers) >= _KEPT:
                answers.clear()
            answers[name, kind] = _nearest(name, kind, btf, 3)
        return answers[name, kind][:count]
    except (OSError, FormatError):
        return []


_answers: WeakKeyDictionary[Btf, dict[tuple[str, int], list[str]]] = WeakKeyDictionary()


def _nearest(name: str, kind: int, btf: Btf, count: int) -> list[str]:
    prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
    bare = name[len(prefix) :]
    # The rarest words are the long ones. Looking for them in all strings at once is faster by
    # far than looking at each string.
    words = sorted({w for w in bare.split("_") if len(w) > 2}, key=lambda w: (-len(w), w))
    wanted = [w.encode() for w in words[:_WORDS]]
    if not prefix:
        wanted.append(b"\0" + bare[:3].encode())
    wanted.append(bare[-4:].encode() + b"\0")
    start, end = btf.header.str_range
    strings = bytes(btf.data[start:end])
    apart = max(2, len(bare) // 3)
    found: dict[bytes, None] = {}
    for word in wanted:
        at = strings.find(word)
        left = _MAX_FOUND
        while at >= 0 and left:
            left -= 1
            first = strings.rfind(b"\0", 0, at + 1) + 1
            last = strings.find(b"\0", at + 1)
            # Only names of about the same length are worth comparing.
            if abs(last - first - len(name)) <= apart:
                found[strings[first:last]] = None
            at = strings.find(word, max(last, at + 1))
    compared = []
    for raw in found:
        text = raw.decode("ascii", "replace")
        if not text.startswith(prefix):
            continue
        shared = len(set(words).intersection(text[len(prefix) :].split("_")))
        compared.append((-shared, text))
    compared.sort()
    texts = [text for _, text in compared[:_MAX_COMPARED]]
    near = difflib.get_close_matches(name, texts, 4 * count, cutoff=0.75)
    return [n for n in near if btf.find(n, kind)][:count]
