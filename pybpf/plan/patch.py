# SPDX-License-Identifier: BSD-2-Clause
"""Put into a program's instructions what only the running kernel knows: fds, ids, addresses."""

from __future__ import annotations

import struct

from pybpf.errors import PlanError, SymbolNotFoundError
from pybpf.plan import ops as _ops
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pybpf.plan.run import Executor

__all__ = ["POISON_KFUNC", "apply"]

# What libbpf writes into a call of a weak kfunc that the kernel lacks: the verifier refuses it
# only where it can be reached (libbpf.c: POISON_CALL_KFUNC_BASE).
POISON_KFUNC = 2002000000


def apply(
    executor: Executor,
    code: bytearray,
    patches: tuple[tuple[int, str, int | str], ...],
    fd_array: list[int],
) -> None:
    """Patch ``code`` in place: (instruction, kind, argument) each, kinds as in pybpf.plan.ops.

    fd_array gets the fds of modules whose kfuncs are called. Raises PlanError where a patch does
    not fit, SymbolNotFoundError for an address that is not in /proc/kallsyms.
    """
    for slot, kind, argument in patches:
        at = 8 * slot
        if at + (8 if kind == _ops.PATCH_KFUNC else 16) > len(code):
            raise PlanError(f"a patch lies at instruction {slot}, behind the end")
        if kind in (_ops.PATCH_ADDR, _ops.PATCH_ADDR_WEAK):
            address = _address(executor, str(argument), weak=kind == _ops.PATCH_ADDR_WEAK)
            struct.pack_into("=I", code, at + 4, address & 0xFFFFFFFF)
            struct.pack_into("=I", code, at + 12, address >> 32)
            continue
        if not isinstance(argument, int):
            raise PlanError(f"the patch {kind} at instruction {slot} needs a number")
        if kind == _ops.PATCH_MAP_FD:
            struct.pack_into("=i", code, at + 4, executor.fd(argument, "map"))
        elif kind == _ops.PATCH_KSYM:
            symbol = executor.symbol(argument)
            _set_source(code, at, abi.BPF_PSEUDO_BTF_ID if symbol else 0)
            struct.pack_into("=i", code, at + 4, symbol[1] if symbol else 0)
            struct.pack_into("=i", code, at + 12, symbol[0] if symbol else 0)
        elif kind == _ops.PATCH_KFUNC:
            _kfunc(executor, code, at, argument, fd_array)
        else:
            raise PlanError(f"{kind!r} is no kind of patch")


def _kfunc(
    executor: Executor, code: bytearray, at: int, argument: int, fd_array: list[int]
) -> None:
    symbol = executor.symbol(argument)
    _set_source(code, at, abi.BPF_PSEUDO_KFUNC_CALL if symbol else 0)
    index = 0
    if symbol and symbol[0]:
        # Index 0 of a call means vmlinux, so a module's BTF never stands there.
        if not fd_array:
            fd_array.append(0)
        if symbol[0] not in fd_array[1:]:
            fd_array.append(symbol[0])
        index = fd_array.index(symbol[0], 1)
    struct.pack_into("=h", code, at + 2, index)
    struct.pack_into("=i", code, at + 4, symbol[1] if symbol else POISON_KFUNC + argument)


def _address(executor: Executor, name: str, *, weak: bool) -> int:
    """The address of a kernel symbol, remembered; a weak one that is missing is 0."""
    if name not in executor.addresses:
        from pybpf.kernel.kallsyms import address

        try:
            executor.addresses[name] = address(name)
        except SymbolNotFoundError:
            if not weak:
                raise
            return 0
    return executor.addresses[name]


def _set_source(code: bytearray, at: int, source: int) -> None:
    """Set the source register of an instruction (the upper half of the byte on little-endian
    machines, which x86-64 and aarch64 are)."""
    code[at + 1] = (code[at + 1] & 0x0F) | source << 4
