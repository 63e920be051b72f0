# SPDX-License-Identifier: BSD-2-Clause
"""BTF objects in the kernel, by fd or id."""

from __future__ import annotations

from pybpf.errors import SymbolNotFoundError
from pybpf.kernel.create import btf_fd as load_fd
from pybpf.kernel.layout import cstr
from pybpf.kernel.object import KernelObject
from pybpf.sys import abi, bpf, layouts
from pybpf.sys.syscalls import Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BtfObject", "function_of", "load_fd"]


def function_of(program_fd: int, name: str) -> int:
    """BTF id of a global function of a loaded program, for freplace and for tracing programs.

    Raises SymbolNotFoundError if the program has no such function or was loaded without BTF.
    """
    from pybpf.kernel.btf_lookup import find_ids

    info = bytearray(layouts.SIZE_INFO_PROG)
    bpf.obj_get_info(program_fd, info)
    ident = bpf.get(info, layouts.INFO_PROG, "btf_id")
    found = 0
    if ident:
        with BtfObject.from_id(ident) as btf:
            _, (found,) = find_ids(btf.data(), [(name, abi.BTF_KIND_FUNC)])
    if not found:
        start, size = layouts.INFO_PROG["name"]
        owner = cstr(bytes(info[start : start + size]))
        why = "has no function" if ident else "was loaded without BTF, so it has no function"
        raise SymbolNotFoundError(f"the program {owner!r} {why} {name}.", names=(f"func {name}",))
    return found


class BtfObject(KernelObject):
    """BTF that the kernel holds: vmlinux's, a module's or one that was loaded (4.18)."""

    __slots__ = ()
    KIND = "btf"
    INFO = layouts.INFO_BTF
    INFO_SIZE = layouts.SIZE_INFO_BTF
    GET_FD = abi.BPF_BTF_GET_FD_BY_ID

    def info(self) -> dict[str, Any]:
        """id, name ("vmlinux", the module's, or "" for loaded BTF), size in bytes, kernel_btf."""
        name = bytearray(64)
        held = Pointer(name)
        info = self._raw_info({"name": held.address, "name_len": len(name)})
        return {
            "id": bpf.get(info, self.INFO, "id"),
            "name": cstr(bytes(name)),
            "size": bpf.get(info, self.INFO, "btf_size"),
            "kernel_btf": bool(bpf.get(info, self.INFO, "kernel_btf")),
        }

    def data(self) -> bytes:
        """The raw BTF (a module's is split: its ids continue vmlinux's)."""
        size = bpf.get(self._raw_info(), self.INFO, "btf_size")
        out = bytearray(size)
        held = Pointer(out)
        self._raw_info({"btf": held.address, "btf_size": size})
        return bytes(out)
