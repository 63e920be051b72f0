# SPDX-License-Identifier: BSD-2-Clause
"""The policy's Plan from its object: settings applied, alternatives compiled, frozen to a file.

Runs where images are built; it needs pyelftools and construct, the guest does not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from restrict import abi
from restrict.errors import ConfigError, system_error
from restrict.files import replace

if TYPE_CHECKING:
    from pybpf.plan.ops import Plan
    from pybpf.spec import ObjectSpec

__all__ = ["GATE", "OBJECT", "build", "spec", "write"]


def _object() -> Path:
    """The object of an installed package, or that of a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "objects/fsaccess.bpf.o"
    return installed if installed.exists() else here.parent / "bpf/objects/fsaccess.bpf.o"


OBJECT = _object()
# Programs that the object leaves switched off: restrict attaches the first two itself.
_BY_RESTRICT = ("fsaccess_status", "fsaccess_sysctl")
#: The programs that gate_device_mapper switches on.
GATE = ("fsaccess_dm_ioctl", "fsaccess_dm_ioctl_compat")
_FILESYSTEMS_MOST = 8


def magics(filesystems: Sequence[str]) -> list[int]:
    """Superblock magics of filesystem names; ConfigError for one that cannot be trusted."""
    found = []
    for name in filesystems:
        if name in abi.NEVER:
            raise ConfigError(
                f"{name} can never be trusted: its files' data is not that of one block device."
            )
        if name not in abi.MAGICS:
            raise ConfigError(
                f"{name!r} is no filesystem type known here.",
                hint=f"There are {', '.join(abi.MAGICS)}.",
            )
        found.append(abi.MAGICS[name])
    if not 0 < len(found) <= _FILESYSTEMS_MOST:
        raise ConfigError(f"1 to {_FILESYSTEMS_MOST} filesystem types can be listed.")
    return found


def spec(
    source: str | Path | bytes = OBJECT,
    *,
    filesystems: Sequence[str] = ("erofs", "squashfs"),
    deny_ptrace: bool = False,
    gate_device_mapper: bool = False,
    policy_version: int | None = None,
) -> ObjectSpec:
    """The object's spec with the settings in its .rodata and restrict's own programs loaded.

    gate_device_mapper: nobody but the owner may change device-mapper tables (other users of the
    device mapper, LVM or LUKS, stop working once the policy is armed).
    policy_version: what an upgrade compares (default: the object's own).
    """
    from pybpf import elf

    try:
        found = elf.read(source)
    except OSError as e:
        raise system_error("the object cannot be read", e, "open", object=str(source)) from None
    numbers = magics(filesystems)
    numbers += [0] * (_FILESYSTEMS_MOST - len(numbers))
    found = set_variable(
        found, "filesystem_magics", b"".join(n.to_bytes(4, "little") for n in numbers)
    )
    found = set_variable(found, "deny_ptrace", int(deny_ptrace).to_bytes(4, "little"))
    if policy_version is not None:
        if not 0 < policy_version < 1 << 32:
            raise ConfigError(f"a version is a number from 1 to {(1 << 32) - 1}.")
        found = set_variable(found, "policy_version", policy_version.to_bytes(4, "little"))
    for name in _BY_RESTRICT:
        found = found.with_program(name, autoload=True, autoattach=False)
    if gate_device_mapper:
        for name in GATE:
            found = found.with_program(name, autoload=True, autoattach=True)
    return found


def set_variable(found: ObjectSpec, name: str, value: bytes) -> ObjectSpec:
    """A copy whose global variable ``name`` starts as ``value``."""
    if name not in found.variables:
        raise ConfigError(f"the object has no variable {name!r}; it is of another policy.")
    place = found.variables[name]
    if len(value) != place.size:
        raise ConfigError(f"the variable {name!r} has {place.size} bytes, not {len(value)}.")
    data = bytearray((found.maps[place.map].data or b"").ljust(place.offset + place.size, b"\0"))
    data[place.offset : place.offset + place.size] = value
    return found.with_map(place.map, data=bytes(data))


def build(
    source: str | Path | bytes = OBJECT,
    *,
    filesystems: Sequence[str] = ("erofs", "squashfs"),
    deny_ptrace: bool = False,
    gate_device_mapper: bool = False,
    policy_version: int | None = None,
) -> Plan:
    """The policy's Plan, relocated by the kernel that runs it: one for all kernels."""
    from pybpf.compiler import compile as compile_plan

    found = spec(
        source,
        filesystems=filesystems,
        deny_ptrace=deny_ptrace,
        gate_device_mapper=gate_device_mapper,
        policy_version=policy_version,
    )
    return compile_plan(found, relocate="kernel")


def write(plan: Plan, path: str | os.PathLike[str]) -> int:
    """Freeze the Plan into a file, replacing it at once; returns the number of bytes. Raises
    RestrictError, KernelError; what was there stays then."""
    from pybpf.plan.frozen import to_bytes

    data = to_bytes(plan)
    replace(path, data)
    return len(data)
