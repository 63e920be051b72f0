# SPDX-License-Identifier: BSD-2-Clause
"""A kernel to compile for: the running one, or another one known by its BTF."""

from __future__ import annotations

import os

from pybpf.btf.model import Btf
from pybpf.errors import CompileError, FormatError
from pybpf.plan.kconfig import parse_config, parse_release, running_config
from pybpf.reloc.externs import KernelTypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Target"]

SYSFS_BTF = "/sys/kernel/btf"


class Target:
    """What compiling asks of a kernel. Everything is read when first asked for.

    running: whether it is the kernel underneath; version: its KERNEL_VERSION number or None;
    config: its configuration, or None where it is not known.
    """

    def __init__(
        self,
        *,
        btf: Btf | None = None,
        running: bool = False,
        version: int | None = None,
        config: Mapping[str, str] | None = None,
        btf_dir: str = SYSFS_BTF,
    ) -> None:
        self._vmlinux = btf
        self.running = running
        self.version = version
        self._config = config
        self._btf_dir = btf_dir
        self._modules: dict[str, Btf] = {}
        self._symbols: dict[str, int] = {}

    @classmethod
    def of_running(cls) -> Target:
        """The running kernel."""
        return cls(running=True, version=parse_release(os.uname().release))

    @classmethod
    def from_btf(
        cls,
        path: str | os.PathLike[str],
        *,
        version: int | None = None,
        config: str | os.PathLike[str] | None = None,
    ) -> Target:
        """Another kernel, of which there is raw vmlinux BTF (and perhaps its configuration).

        Its modules are not known, as with libbpf's btf_custom_path. Raises FormatError, OSError.
        """
        values = None
        if config is not None:
            with open(config, encoding="utf-8", errors="surrogateescape") as file:
                values = parse_config(file.read())
        return cls(btf=Btf.open(os.fspath(path)), version=version, config=values)

    @property
    def vmlinux(self) -> Btf:
        """vmlinux BTF. Raises CompileError where the running kernel has none."""
        if self._vmlinux is None:
            try:
                self._vmlinux = Btf.vmlinux()
            except OSError as exc:
                raise CompileError(
                    f"the kernel's BTF cannot be read from {SYSFS_BTF}/vmlinux ({exc.strerror}).",
                    hint="Mount sysfs, use a kernel with CONFIG_DEBUG_INFO_BTF, or give a BTF "
                    "file of the kernel.",
                ) from exc
        return self._vmlinux

    def module_names(self) -> list[str]:
        """Modules of the running kernel that have BTF (5.11), sorted."""
        if not self.running:
            return []
        try:
            names = os.listdir(self._btf_dir)
        except OSError:
            return []
        return sorted(name for name in names if name != "vmlinux")

    def module(self, name: str) -> Btf:
        """A module's BTF. Raises FormatError, OSError (the module may have gone)."""
        if name not in self._modules:
            self._modules[name] = Btf.module(name, self.vmlinux)
        return self._modules[name]

    def modules(self) -> Iterator[tuple[str, Btf]]:
        """(name, BTF) of every module whose BTF can be read."""
        for name in self.module_names():
            try:
                yield name, self.module(name)
            except (OSError, FormatError):
                continue  # unloaded meanwhile, or built against another vmlinux

    def types(self) -> KernelTypes:
        """Its BTF, to search."""
        return KernelTypes(self.vmlinux, self.modules)

    def config(self) -> Mapping[str, str]:
        """Its configuration. Raises PlanError if it cannot be found."""
        if self._config is None:
            self._config = running_config()
        return self._config

    @property
    def has_config(self) -> bool:
        """Whether a configuration is known or can be looked for."""
        return self.running or self._config is not None

    @property
    def config_given(self) -> bool:
        """Whether somebody gave a configuration, which then counts instead of the kernel's."""
        return self._config is not None

    def address(self, name: str) -> int:
        """Address of a symbol in /proc/kallsyms, 0 if there is none or it is hidden from us."""
        if not self.running:
            return 0
        if not self._symbols:
            try:
                with open("/proc/kallsyms", encoding="ascii", errors="replace") as file:
                    for line in file:
                        address, _, symbol = line.split(None, 3)[:3]
                        self._symbols.setdefault(symbol, int(address, 16))
            except OSError:
                self._symbols[""] = 0
        return self._symbols.get(name, 0)
