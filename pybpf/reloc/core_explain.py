# SPDX-License-Identifier: BSD-2-Clause
"""Why a program was refused: what a poisoned CO-RE relocation looked for, and what is there.

The verifier says "invalid func unknown#195896080" and no more, also when the kernel relocated
the program itself. The relocation is then done once more here, for its account.
"""

from __future__ import annotations

from pybpf.errors import PybpfError, VerifierError
from pybpf.reloc.core import POISON, CoreTarget, relocate
from pybpf.reloc.link import link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pybpf.spec import ObjectSpec

__all__ = ["explain_poisoned", "explain_refusal"]


def explain_poisoned(
    spec: ObjectSpec, program: str, insn: int, target: CoreTarget | None = None
) -> str | None:
    """What the relocation at slot ``insn`` of a linked program lacks in the kernel.

    target: None for the running kernel. None where no relocation stands there, or it cannot be
    told (no BTF, for example).
    """
    if spec.btf is None or program not in spec.programs:
        return None
    try:
        linked = link(spec, spec.programs[program])
        relos = [relo for relo in linked.core if relo.insn == insn]
        outcomes = relocate(
            bytearray(linked.code.raw), relos, spec.btf, target or CoreTarget.running()
        )
    except (PybpfError, OSError):
        return None
    for outcome in outcomes:
        if outcome.poisoned is not None:
            return f"{outcome.kind_name} of {outcome.local.expression()}: {outcome.poisoned}"
    return None


def explain_refusal(
    error: VerifierError, spec: ObjectSpec, target: CoreTarget | None = None
) -> VerifierError:
    """Add to ``error`` what explain_poisoned() finds, where that was the reason; returns it."""
    if f"unknown#{POISON}" in error.log:
        program, insn = error.where.get("program"), error.where.get("insn")
        if isinstance(program, str) and isinstance(insn, int):
            told = explain_poisoned(spec, program, insn, target)
            if told is not None and told not in error.message:
                error.message = f"{error.message.rstrip()} It was {told}."
    return error
