# SPDX-License-Identifier: BSD-2-Clause
"""Live links: what keeps a program attached. Closing the last fd detaches, unless it is pinned."""

from __future__ import annotations

from pybpf.errors import KernelError
from pybpf.kernel.layout import cstr
from pybpf.kernel.object import KernelObject, fd_of
from pybpf.sys import abi, bpf, layouts
from pybpf.sys.syscalls import Pointer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pybpf.kernel.program import Program

__all__ = ["Link"]

# Link type → the part of struct bpf_link_info that describes it.
_PARTS = {
    abi.BPF_LINK_TYPE_RAW_TRACEPOINT: "raw_tracepoint",
    abi.BPF_LINK_TYPE_TRACING: "tracing",
    abi.BPF_LINK_TYPE_CGROUP: "cgroup",
    abi.BPF_LINK_TYPE_ITER: "iter",
    abi.BPF_LINK_TYPE_NETNS: "netns",
    abi.BPF_LINK_TYPE_XDP: "xdp",
    abi.BPF_LINK_TYPE_PERF_EVENT: "perf_event",
    abi.BPF_LINK_TYPE_KPROBE_MULTI: "kprobe_multi",
    abi.BPF_LINK_TYPE_STRUCT_OPS: "struct_ops",
    abi.BPF_LINK_TYPE_NETFILTER: "netfilter",
    abi.BPF_LINK_TYPE_TCX: "tcx",
    abi.BPF_LINK_TYPE_UPROBE_MULTI: "uprobe_multi",
    abi.BPF_LINK_TYPE_NETKIT: "netkit",
    abi.BPF_LINK_TYPE_SOCKMAP: "sockmap",
    abi.BPF_LINK_TYPE_TRACING_MULTI: "tracing_multi",
}
_NAMED = {"raw_tracepoint": "tp_name", "iter": "target_name"}
_NAME_ROOM = 256


class Link(KernelObject):
    """An attached program (5.7).

    Tracing links (LSM, fentry, tp_btf) can be neither updated nor detached by a command on any
    kernel up to 7.3: ``detach`` then raises KernelError EOPNOTSUPP; close() is what detaches.
    """

    __slots__ = ()
    KIND = "link"
    INFO = layouts.INFO_LINK
    INFO_SIZE = layouts.SIZE_INFO_LINK
    GET_FD = abi.BPF_LINK_GET_FD_BY_ID

    @property
    def prog_id(self) -> int:
        """Id of the attached program."""
        return bpf.get(self._raw_info(), self.INFO, "prog_id")

    @property
    def type(self) -> int:
        """BPF_LINK_TYPE_… number."""
        return bpf.get(self._raw_info(), self.INFO, "type")

    def info(self) -> dict[str, Any]:
        """struct bpf_link_info (5.8): id, type, prog_id and the fields of that link type
        (a tracing link: attach_type, target_obj_id, target_btf_id; a raw tracepoint: tp_name)."""
        info = self._raw_info()
        link_type = bpf.get(info, self.INFO, "type")
        part = _PARTS.get(link_type)
        name = None
        if part in _NAMED:
            room = bytearray(_NAME_ROOM)
            held = Pointer(room)
            field = f"{part}.{_NAMED[part]}"
            info = self._raw_info({field: held.address, f"{field}_len": len(room)})
            name = cstr(bytes(room))
        out: dict[str, Any] = {
            field: bpf.get(info, self.INFO, field) for field in ("type", "id", "prog_id")
        }
        for field in self.INFO:
            if part is None or not field.startswith(part + "."):
                continue
            short = field[len(part) + 1 :]
            if "." not in short and not short.endswith(("_len", "_name")):
                out[short] = bpf.get(info, self.INFO, field)
        if name is not None and part is not None:
            out[_NAMED[part]] = name
        if part == "iter" and (map_id := bpf.get(info, self.INFO, "iter.map.map_id")):
            out["map_id"] = map_id
        return out

    def update(
        self, program: Program | int, *, old_program: Program | int | None = None
    ) -> None:
        """Replace the program (5.7) by a Program or the fd of one; with old_program only if that
        one is attached now."""
        old = None if old_program is None else fd_of(old_program)
        try:
            bpf.link_update(self.fileno(), fd_of(program), old)
        except KernelError as error:
            raise error.at(link=self._name)  # noqa: B904

    def read(self) -> bytes:
        """All the output of an iterator's link (5.8): its program runs over everything once."""
        from os import close, read

        try:
            fd = bpf.iter_create(self.fileno())
        except KernelError as error:
            raise error.at(link=self._name)  # noqa: B904
        parts = []
        try:
            while part := read(fd, 1 << 16):
                parts.append(part)
        except OSError as error:
            from pybpf.sys.syscalls import fail

            raise fail("read", error.errno or 5, link=self._name) from None
        finally:
            close(fd)
        return b"".join(parts)

    def detach(self) -> None:
        """BPF_LINK_DETACH (5.9): detach although fds or pins remain."""
        try:
            bpf.link_detach(self.fileno())
        except KernelError as error:
            raise error.at(link=self._name)  # noqa: B904
