# SPDX-License-Identifier: BSD-2-Clause
"""Kernel modules: finit_module(2) with parameters.

Module parameters on the kernel command line count for modprobe and built-in code only; what is
loaded here gets its parameters here. Source: finit_module(2), include/uapi/linux/module.h.
"""

from __future__ import annotations

import errno
import os

from pybpf.sys.syscalls import finit_module
from restrict.errors import ConfigError, KernelError, system_error
from restrict.kmsg import KernelLog

__all__ = ["insmod", "loaded", "module_name", "parameter", "parse_module_line"]

MODULE_INIT_COMPRESSED_FILE = 4  # 5.17, CONFIG_MODULE_DECOMPRESS
_HINTS = {
    errno.ENOENT: "A symbol is missing: list the modules it depends on before it.",
    errno.EKEYREJECTED: "Its signature is not by a key that this kernel trusts.",
}
_COMPRESSED = (".ko.xz", ".ko.zst", ".ko.gz")


def module_name(path: str) -> str:
    """The kernel's name of the module in a file: "dm-mod.ko.xz" is dm_mod."""
    name = path.rsplit("/", 1)[-1]
    for suffix in (*_COMPRESSED, ".ko"):
        if name.endswith(suffix):
            return name[: -len(suffix)].replace("-", "_")
    raise ConfigError(f"{path!r} is no kernel module: its name does not end in .ko", module=path)


def loaded(name: str, *, sys: str = "/sys") -> bool:
    """Whether the module is loaded and past its initialisation, or is built in."""
    base = f"{sys}/module/{name}"
    if not os.path.isdir(base):
        return False
    try:
        with open(f"{base}/initstate", encoding="ascii") as file:
            return file.read().strip() == "live"
    except FileNotFoundError:  # built in
        return True


def parameter(name: str, key: str, *, sys: str = "/sys") -> str | None:
    """A module's parameter as sysfs shows it, or None."""
    try:
        with open(f"{sys}/module/{name}/parameters/{key}", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return None


def parse_module_line(line: str) -> tuple[str, str]:
    """``PATH [NAME=VALUE …]`` → (path, parameters)."""
    words = line.split(None, 1)
    if not words or not words[0].startswith("/"):
        raise ConfigError(f"{line!r} does not begin with the absolute path of a kernel module")
    module_name(words[0])
    return words[0], words[1].strip() if len(words) > 1 else ""


def insmod(path: str, parameters: str = "") -> bool:
    """Load one module file; False if it was loaded already.

    A module that is already there with other parameters is not changed: check ``parameter``.
    """
    name = module_name(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise system_error("the file cannot be opened", e, "open", module=path) from None
    flags = MODULE_INIT_COMPRESSED_FILE if path.endswith(_COMPRESSED) else 0
    try:
        with KernelLog() as log:
            try:
                finit_module(fd, parameters, flags)
            except KernelError as e:
                code = e.errno
                if code == errno.EEXIST:
                    return False
                said = log.said(name, "module")
                raise KernelError(
                    f"the kernel did not load it: {os.strerror(code)}.",
                    errno=code,
                    call="finit_module",
                    module=path,
                    hint=" ".join(h for h in (_HINTS.get(code), said) if h) or None,
                ) from None
    finally:
        os.close(fd)
    return True
