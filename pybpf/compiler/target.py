# SPDX-License-Identifier: BSD-2-Clause
"""A kernel to compile for: the running one, or another one known by its BTF."""

from __future__ import annotations

import os

from pybpf.btf.model import SYSFS, Btf
from pybpf.errors import CompileError, FormatError
from pybpf.plan.kconfig import config_text, parse_config, parse_release, running_config
from pybpf.reloc.externs import KernelTypes
from pybpf.sys.files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


__all__ = ["Target"]


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
    ) -> None:
        self._vmlinux = btf
        self.running = running
        self.version = version
        self._config = config
        self._modules: dict[str, Btf] = {}
        self._symbols: dict[str, int] | None = None

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
            values = parse_config(config_text(read_file(config)))
            if not values:
                raise FormatError("it has no line CONFIG_…=….", file=os.fspath(config))
        return cls(btf=Btf.open(os.fspath(path)), version=version, config=values)

    @property
    def vmlinux(self) -> Btf:
        """vmlinux BTF. Raises CompileError where the running kernel has none."""
        if self._vmlinux is None:
            try:
                self._vmlinux = Btf.vmlinux()
            except OSError as exc:
                raise CompileError(
                    f"the kernel's BTF cannot be read from {SYSFS}/vmlinux ({exc.strerror}).",
                    hint="Mount sysfs, use a kernel with CONFIG_DEBUG_INFO_BTF, or give a BTF "
                    "file of the kernel.",
                ) from exc
        return self._vmlinux

    def module_names(self) -> list[str]:
        """Modules of the running kernel that have BTF (5.11), sorted."""
        if not self.running:
            return []
        try:
            names = os.listdir(SYSFS)
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
        """Address of a symbol in /proc/kallsyms, 0 if there is none or it is hidden from us.

        Of a kernel given as BTF there are addresses if it is the running one's.
        """
        return self._kallsyms().get(name, 0)

    def lacks(self, name: str) -> bool:
        """Whether the kernel is known not to have this symbol: its addresses can be read."""
        symbols = self._kallsyms()
        return name not in symbols and any(symbols.values())

    def _kallsyms(self) -> dict[str, int]:
        if self._symbols is None:
            self._symbols = {}
            if self.running or self._is_running():
                from pybpf.kernel.kallsyms import symbols

                for address, name in symbols():
                    self._symbols.setdefault(name, address)
        return self._symbols

    def _is_running(self) -> bool:
        """Whether the BTF that was given is the running kernel's."""
        try:
            if os.stat(f"{SYSFS}/vmlinux").st_size != len(self.vmlinux.data):
                return False
            return bytes(Btf.vmlinux().data) == bytes(self.vmlinux.data)
        except OSError:
            return False
