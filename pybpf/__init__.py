# SPDX-License-Identifier: BSD-2-Clause
"""pybpf: a BPF loader in pure Python.

    import pybpf

    with pybpf.load("policy.bpf.o") as obj:
        obj.attach()
        obj.vars["armed"] = 1

A loader is a compiler: ``read`` gives an ObjectSpec, ``compile`` turns it into a Plan for a
kernel, ``run`` executes the Plan; ``load`` is all three. Names here are imported when they are
first used (PEP 562), so that ``import pybpf`` costs next to nothing and running a frozen Plan
needs neither pyelftools nor construct.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from typing import Any

    from pybpf.btf.model import Btf
    from pybpf.btf.typed import typed
    from pybpf.bundle import run_bundle
    from pybpf.compiler import Target, compile, compile_alternatives
    from pybpf.elf import read
    from pybpf.errors import (
        CompileError,
        FormatError,
        KernelError,
        PlanError,
        PybpfError,
        RelocationError,
        SymbolNotFoundError,
        UsageError,
        VerifierError,
    )
    from pybpf.kernel.arena import Arena
    from pybpf.kernel.link import Link
    from pybpf.kernel.map import Map
    from pybpf.kernel.perfbuf import PerfBuffer
    from pybpf.kernel.program import Program
    from pybpf.kernel.ringbuf import RingBuffer
    from pybpf.kernel.token import Token
    from pybpf.kernel.user_ringbuf import UserRingBuffer
    from pybpf.plan.frozen import from_bytes, to_bytes
    from pybpf.plan.live import Object
    from pybpf.plan.ops import Plan
    from pybpf.plan.run import run
    from pybpf.spec import ObjectSpec

__version__ = "0.1.0"

# Name → the module that has it.
_WHERE = {
    "Arena": "pybpf.kernel.arena",
    "Btf": "pybpf.btf.model",
    "CompileError": "pybpf.errors",
    "FormatError": "pybpf.errors",
    "KernelError": "pybpf.errors",
    "Link": "pybpf.kernel.link",
    "Map": "pybpf.kernel.map",
    "Object": "pybpf.plan.live",
    "ObjectSpec": "pybpf.spec",
    "PerfBuffer": "pybpf.kernel.perfbuf",
    "Plan": "pybpf.plan.ops",
    "PlanError": "pybpf.errors",
    "Program": "pybpf.kernel.program",
    "PybpfError": "pybpf.errors",
    "RelocationError": "pybpf.errors",
    "RingBuffer": "pybpf.kernel.ringbuf",
    "SymbolNotFoundError": "pybpf.errors",
    "Target": "pybpf.compiler.target",
    "Token": "pybpf.kernel.token",
    "UsageError": "pybpf.errors",
    "UserRingBuffer": "pybpf.kernel.user_ringbuf",
    "VerifierError": "pybpf.errors",
    "compile": "pybpf.compiler.compile",
    "compile_alternatives": "pybpf.compiler.compile",
    "from_bytes": "pybpf.plan.frozen",
    "read": "pybpf.elf.reader",
    "run": "pybpf.plan.run",
    "run_bundle": "pybpf.bundle",
    "to_bytes": "pybpf.plan.frozen",
    "typed": "pybpf.btf.typed",
}

__all__ = [
    "Arena",
    "Btf",
    "CompileError",
    "FormatError",
    "KernelError",
    "Link",
    "Map",
    "Object",
    "ObjectSpec",
    "PerfBuffer",
    "Plan",
    "PlanError",
    "Program",
    "PybpfError",
    "RelocationError",
    "RingBuffer",
    "SymbolNotFoundError",
    "Target",
    "Token",
    "UsageError",
    "UserRingBuffer",
    "VerifierError",
    "compile",
    "compile_alternatives",
    "from_bytes",
    "load",
    "read",
    "run",
    "run_bundle",
    "to_bytes",
    "typed",
]


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'pybpf' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(where), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


def load(
    source: str | os.PathLike[str] | bytes | ObjectSpec | Plan,
    *,
    variables: Mapping[str, object] | None = None,
    max_entries: Mapping[str, int] | None = None,
    disable: Iterable[str] = (),
    relocate: str | None = None,
    pin_root: str | None = None,
    export: Iterable[str] = (),
    targets: Mapping[str, Program | int] | None = None,
    token: Token | int = 0,
    log_level: int = 0,
) -> Object:
    """Load an object file (path or bytes), a spec or a Plan into the kernel; attach nothing.

    variables: {name: value} for globals, .rodata among them, before loading; max_entries: {map:
    number}; disable: programs not to load; relocate: "kernel" or "python" as for ``compile``
    (None: the kernel, and on kernels before 5.17, which cannot, pybpf); pin_root, export: as for
    ``compile``; targets: {program of this object: loaded program, or its fd} whose function the
    section of an freplace, fentry or fexit program names; token: a BPF token (6.9), or its fd, by
    whose rights everything is made; log_level: as for BPF_PROG_LOAD. A Plan is executed as it is:
    it takes none of the edits.

    Needs CAP_BPF and what the program types ask for (CAP_PERFMON, CAP_NET_ADMIN …). Raises
    FormatError, CompileError, RelocationError, UsageError, KernelError, VerifierError; nothing
    is left behind then.
    """
    from pybpf.plan import ops as _ops
    from pybpf.plan import run as _run

    fds = {
        name: target if isinstance(target, int) else target.fileno()
        for name, target in (targets or {}).items()
    }
    by = token if isinstance(token, int) else token.fileno()
    if isinstance(source, _ops.Plan):
        if variables or max_entries or disable or export or relocate or pin_root:
            from pybpf.errors import UsageError as _UsageError

            raise _UsageError("a Plan is executed as it is.", hint="Edit the spec and compile it.")
        return _run.run(source, targets=fds, token=by, log_level=log_level)
    from pybpf.compiler.compile import compile as _compile
    from pybpf.elf.reader import read as _read
    from pybpf.spec import ObjectSpec as _ObjectSpec

    spec = source if isinstance(source, _ObjectSpec) else _read(source)
    for map_name, number in (max_entries or {}).items():
        spec = spec.with_map(map_name, max_entries=number)
    for name in disable:
        spec = spec.with_program(name, autoload=False)
    for name in fds:
        spec = spec.with_program(name, attach_program=True)
    if variables:
        spec = spec.with_variables(variables)
    plan = _compile(spec, relocate=relocate or "kernel", pin_root=pin_root, export=export)
    from pybpf.errors import KernelError as _KernelError
    from pybpf.errors import PybpfError as _PybpfError

    try:
        try:
            live = _run.run(plan, targets=fds, token=by, log_level=log_level)
        except _KernelError as error:
            # E2BIG: bpf_attr has no core_relos yet (before fbd94c7afcf9, in v5.17)
            if relocate is not None or error.errno != 7 or error.call != "BPF_PROG_LOAD":
                raise
            plan = _compile(spec, relocate="python", pin_root=pin_root, export=export)
            live = _run.run(plan, targets=fds, token=by, log_level=log_level)
    except _PybpfError as error:
        from pybpf.compiler.refusal import explain as _explain

        raise _explain(error, spec) from error.__cause__
    live.notes[:0] = spec.notes.get("damaged", ())
    return live
