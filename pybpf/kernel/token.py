# SPDX-License-Identifier: BSD-2-Clause
"""BPF tokens: rights to bpf(2) that a bpf filesystem hands to a user namespace (6.9)."""

from __future__ import annotations

import os

from pybpf.errors import KernelError, UsageError
from pybpf.kernel.object import KernelObject, filesystem
from pybpf.sys import bpf
from pybpf.sys.syscalls import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

__all__ = ["Token"]


class Token(KernelObject):
    """A BPF token: give its ``fileno()`` as ``token_fd`` to ``pybpf.kernel.map.create``,
    ``pybpf.sys.bpf.btf_load``, and as prog_token_fd (with BPF_F_TOKEN_FD) to BPF_PROG_LOAD.

    What it allows was said when its bpf filesystem was mounted: the options delegate_cmds,
    delegate_maps, delegate_progs and delegate_attachs (Documentation/bpf/, kernel 6.9). It is
    good in the user namespace that this mount belongs to, which is not the initial one.
    """

    __slots__ = ()
    KIND = "token"

    @classmethod
    def create(cls, bpffs: str | int) -> Self:
        """BPF_TOKEN_CREATE from a bpf filesystem, by the path of its root or an fd of it.

        Raises KernelError: EOPNOTSUPP in the initial user namespace, EPERM without CAP_BPF in
        the mount's user namespace or in another one, ENOENT if nothing is delegated.
        """
        # fsmount(2) gives an fd that stands for a path only, which BPF_TOKEN_CREATE does not take.
        path, folder = (".", bpffs) if isinstance(bpffs, int) else (bpffs, None)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            raise fail("open", error.errno or 2, path=bpffs) from None
        try:
            return cls(bpf.token_create(fd), "token")
        except KernelError as error:
            if error.errno == 95:
                error.hint = (
                    "Tokens are for processes in a user namespace of their own, from a bpf "
                    "filesystem mounted there."
                )
            elif isinstance(bpffs, str) and (kind := filesystem(bpffs)) not in ("", "bpf"):
                error.hint = f"It is on {kind}; tokens are made from a filesystem of type bpf."
            raise error.at(path=bpffs)  # noqa: B904
        finally:
            os.close(fd)

    @property
    def id(self) -> int:
        """Tokens have no id."""
        raise UsageError("a BPF token has no id")

    def info(self) -> dict[str, object]:
        """Only the fdinfo that the kernel has: allowed_cmds, _maps, _progs, _attachs as masks."""
        out: dict[str, object] = {}
        with open(f"/proc/self/fdinfo/{self.fileno()}", encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.startswith("allowed_"):
                    text = value.strip()
                    out[name] = text if text == "any" else int(text, 16)
        return out
