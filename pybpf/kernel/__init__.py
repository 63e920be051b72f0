# SPDX-License-Identifier: BSD-2-Clause
"""Live objects of the kernel: maps, programs, links, BTF; and how to find them by id.

Standard library's smallest modules only: a policy's owner in an initramfs uses this.
"""

from __future__ import annotations

from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeVar

    from pybpf.kernel.btf import BtfObject
    from pybpf.kernel.link import Link
    from pybpf.kernel.map import Map
    from pybpf.kernel.object import KernelObject
    from pybpf.kernel.program import Program

    T = TypeVar("T", bound=KernelObject)

__all__ = [
    "btf_ids", "btfs", "link_ids", "links", "map_ids", "maps", "pins", "program_ids", "programs",
]  # fmt: skip


def map_ids() -> Iterator[int]:
    """Ids of all maps (4.13). Needs CAP_SYS_ADMIN, as its three sisters do."""
    return _ids(abi.BPF_MAP_GET_NEXT_ID)


def program_ids() -> Iterator[int]:
    """Ids of all programs (4.13)."""
    return _ids(abi.BPF_PROG_GET_NEXT_ID)


def link_ids() -> Iterator[int]:
    """Ids of all links (5.8)."""
    return _ids(abi.BPF_LINK_GET_NEXT_ID)


def btf_ids() -> Iterator[int]:
    """Ids of all BTF objects (5.4)."""
    return _ids(abi.BPF_BTF_GET_NEXT_ID)


def _ids(cmd: int) -> Iterator[int]:
    from pybpf.kernel.object import iterate_ids

    return iterate_ids(cmd)


def maps() -> Iterator[Map]:
    """Every map of the system, open: each is closed when the next one is asked for, unless its
    fd was taken with ``detach_fd``. Those that vanish meanwhile are left out."""
    from pybpf.kernel.map import Map

    return _each(Map, map_ids())


def programs() -> Iterator[Program]:
    """Every program, as ``maps`` gives maps."""
    from pybpf.kernel.program import Program

    return _each(Program, program_ids())


def links() -> Iterator[Link]:
    """Every link, as ``maps`` gives maps."""
    from pybpf.kernel.link import Link

    return _each(Link, link_ids())


def btfs() -> Iterator[BtfObject]:
    """Every BTF object, as ``maps`` gives maps."""
    from pybpf.kernel.btf import BtfObject

    return _each(BtfObject, btf_ids())


def _each(cls: type[T], ids: Iterator[int]) -> Iterator[T]:
    from pybpf.errors import KernelError

    for ident in ids:
        try:
            found = cls.from_id(ident)
        except KernelError as error:
            if error.errno != 2:  # ENOENT: gone since
                raise
            continue
        with found:
            yield found


def pins(root: str = "/sys/fs/bpf") -> Iterator[tuple[str, str, int]]:
    """(path, kind, id) of what is pinned below ``root``, sorted by path; kind is "map",
    "program" or "link". Files that are no pins, and pins that vanish meanwhile, are left out.

    Raises KernelError if ``root`` cannot be read, or a pin cannot be opened by this process.
    """
    import os

    from pybpf.errors import KernelError
    from pybpf.kernel.link import Link
    from pybpf.kernel.map import Map
    from pybpf.kernel.object import kind_of
    from pybpf.kernel.program import Program
    from pybpf.sys import bpf
    from pybpf.sys.syscalls import fail

    classes: dict[str, type[KernelObject]] = {"map": Map, "program": Program, "link": Link}
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise fail("open", error.errno or 2, path=root) from None
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from pins(entry.path)
            continue
        if not entry.is_file(follow_symlinks=False):
            continue
        try:
            fd = bpf.obj_get(entry.path)
        except KernelError as error:
            if error.errno in (2, 13):  # gone, or a file that is no pin
                continue
            raise error.at(path=entry.path)  # noqa: B904
        cls = classes.get(kind_of(fd))
        if cls is None:
            os.close(fd)
            continue
        with cls(fd) as found:
            ident = found.id
        yield entry.path, cls.KIND, ident
