# SPDX-License-Identifier: BSD-2-Clause
"""What the execution policy would deny of what runs now, from /proc alone. Loads nothing.

The rules are those of bpf/fsaccess.bpf.c, applied to each process' executable and executable
mappings. /proc cannot tell whether a private file mapping was written to before it became
executable, so "modified" is never reported, and a mapping that was writable once and is not now
counts as what it is now.

Trust is taken from the device mapper: the live table of a verity target names a root-hash
signature (which the kernel checked when it loaded the table). Asking needs root; without it,
nothing is trusted, and the answer is what an unsigned system would get.
"""

from __future__ import annotations

import os
import stat

from pybpf.errors import PybpfError
from restrict import abi
from restrict.errors import ConfigError, RestrictError, describe, printable
from restrict.mounts import Mount, mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Denial", "Mapping", "Simulation", "judge", "parse_maps", "simulate", "verity_devices"]

_VSYSCALL = ("[vdso]", "[vvar]", "[vsyscall]", "[uprobes]", "[vvar_vclock]")


class Mapping:
    """One executable line of /proc/PID/maps. dev: user space's encoding."""

    __slots__ = ("dev", "end", "inode", "path", "permissions", "start")

    def __init__(
        self, start: int, end: int, permissions: str, dev: int, inode: int, path: str
    ) -> None:
        self.start = start
        self.end = end
        self.permissions = permissions
        self.dev = dev
        self.inode = inode
        self.path = path


def parse_maps(text: str) -> list[Mapping]:
    """The executable mappings of /proc/PID/maps, without the kernel's own (vdso). Raises
    RestrictError."""
    found = []
    for line in text.split("\n"):  # a file's name may have all else that splitlines() ends at
        words = line.split(None, 5)
        if len(words) < 5 or "x" not in words[1]:
            continue
        path = words[5] if len(words) > 5 else ""
        if path in _VSYSCALL:
            continue
        start, _, end = words[0].partition("-")
        major, _, minor = words[3].partition(":")
        try:
            found.append(
                Mapping(
                    int(start, 16),
                    int(end, 16),
                    words[1],
                    os.makedev(int(major, 16), int(minor, 16)),
                    int(words[4]),
                    path,
                )
            )
        except (ValueError, OverflowError):
            raise RestrictError(f"the line {line!r} of its mappings cannot be read") from None
    return found


def verity_devices() -> tuple[set[int], set[int], str | None]:
    """Numbers of the live dm-verity devices: signed, all; and why they are not known, or None."""
    from restrict.devmapper import DeviceMapper

    signed: set[int] = set()
    every: set[int] = set()
    try:
        with DeviceMapper() as mapper:
            for _name, dev in mapper.list():
                table = mapper.table(dev=dev)
                if len(table) == 1 and table[0].type == "verity":
                    every.add(dev)
                    if "root_hash_sig_key_desc" in table[0].params.split():
                        signed.add(dev)
    except PybpfError as e:
        return set(), set(), str(e)
    return signed, every, None


class Denial:
    """A group of like denials: same filesystem, operation and reason."""

    __slots__ = ("count", "dev", "examples", "fstype", "operation", "processes", "reason", "target")

    def __init__(self, target: str, fstype: str, dev: int, operation: str, reason: str) -> None:
        self.target = target
        self.fstype = fstype
        self.dev = dev
        self.operation = operation
        self.reason = reason
        self.count = 0
        self.processes: dict[int, str] = {}
        self.examples: list[str] = []

    def add(self, pid: int, comm: str, what: str) -> None:
        self.count += 1
        self.processes.setdefault(pid, comm)
        if what not in self.examples:
            self.examples.append(what)

    def as_dict(self) -> dict[str, object]:
        return {
            "mount": self.target,
            "filesystem": self.fstype,
            "device": f"{os.major(self.dev)}:{os.minor(self.dev)}",
            "operation": self.operation,
            "reason": self.reason,
            "count": self.count,
            "processes": [{"pid": p, "comm": c} for p, c in sorted(self.processes.items())],
            "files": self.examples,
        }


def judge(
    dev: int,
    regular: bool,
    entry: Mount | None,
    *,
    trusted: set[int],
    filesystems: Sequence[str],
    verity: set[int],
) -> str:
    """The reason the policy would give for an executable file, "none" if it is trusted.

    dev: st_dev of the file; entry: its mount, for the filesystem's type; verity: dm-verity
    devices, signed or not.
    """
    if dev in trusted and dev not in verity:
        return "none"  # the initramfs, or what the user asked to assume
    if not regular:
        return "not_regular"
    if entry is None:
        return "filesystem"
    if entry.fstype == "overlay":
        return "overlay"
    if entry.fstype not in filesystems:
        return "filesystem"
    if dev in trusted:
        return "none"
    if os.major(dev) == 0:
        return "no_device"
    return "unsigned_device" if dev in verity else "untrusted_device"


class Simulation:
    """The result: groups of denials, and what could not be looked at."""

    __slots__ = ("denials", "executables", "mappings", "processes", "trusted", "unknown")

    def __init__(self) -> None:
        self.denials: list[Denial] = []
        self.processes = 0
        self.executables = 0
        self.mappings = 0
        self.unknown: list[str] = []
        self.trusted: set[int] = set()

    def as_dict(self) -> dict[str, object]:
        return {
            "processes": self.processes,
            "executables": self.executables,
            "mappings": self.mappings,
            "trusted": sorted(f"{os.major(d)}:{os.minor(d)}" for d in self.trusted),
            "denials": [d.as_dict() for d in self.denials],
            "unknown": self.unknown,
        }


class _Collector:
    """Groups denials and looks mounts up by device number."""

    def __init__(self, table: Iterable[Mount]) -> None:
        self.table = list(table)
        self.by_dev: dict[int, Mount] = {}
        for entry in self.table:
            self.by_dev.setdefault(entry.dev, entry)
        self.groups: dict[tuple[str, int, str, str], Denial] = {}

    def add(
        self,
        pid: int,
        comm: str,
        dev: int,
        entry: Mount | None,
        operation: str,
        reason: str,
        what: str,
    ) -> None:
        if reason in ("anonymous", "write_exec"):
            target, fstype, dev = "", "", 0
        elif entry is None:
            target, fstype = "", "memory"  # memfd and SysV shared memory: no mount of its own
        else:
            target, fstype = entry.target, entry.fstype
        key = (target, dev, operation, reason)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Denial(target, fstype, dev, operation, reason)
        group.add(pid, comm, what)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def simulate(
    *, filesystems: Sequence[str] = ("erofs", "squashfs"), assume: Sequence[str] = ()
) -> Simulation:
    """Judge every process that can be read.

    filesystems: names of the types to allow (restrict.abi.MAGICS). assume: mount points whose
    filesystems are to be taken for signed, whatever their type: to see what would remain.
    Raises ConfigError for a name or path that does not exist.
    """
    for name in filesystems:
        if name not in abi.MAGICS:
            raise ConfigError(
                f"{name!r} is no filesystem type that can be trusted.",
                hint=f"There are {', '.join(abi.MAGICS)}.",
            )
    result = Simulation()
    signed, verity, why = verity_devices()
    if why is not None:
        result.unknown.append(f"signed devices: {why}")
    assumed = set()
    for path in assume:
        try:
            assumed.add(os.stat(path).st_dev)
        except OSError as e:
            raise ConfigError(f"{path!r} cannot be assumed trusted: {e.strerror}.") from None
    result.trusted = signed | assumed
    collector = _Collector(mounts())
    for name in sorted(os.listdir("/proc"), key=lambda n: int(n) if n.isdigit() else -1):
        if name.isdigit():
            _process(int(name), result, collector, verity - assumed, filesystems)
    result.denials = sorted(collector.groups.values(), key=lambda d: -d.count)
    return result


def _process(
    pid: int,
    result: Simulation,
    collector: _Collector,
    verity: set[int],
    filesystems: Sequence[str],
) -> None:
    base = f"/proc/{pid}"
    try:
        comm = _read(f"{base}/comm").strip()
        maps = parse_maps(_read(f"{base}/maps"))
        if not maps and not os.path.lexists(f"{base}/exe"):
            return  # a kernel thread or a zombie
        exe = os.stat(f"{base}/exe")
        exe_path = os.readlink(f"{base}/exe")
    except (FileNotFoundError, ProcessLookupError):
        return  # it ended meanwhile, or is a kernel thread
    except (OSError, RestrictError) as e:
        result.unknown.append(f"process {pid}: {describe(e)}")
        return
    result.processes += 1
    result.executables += 1

    def reason_of(dev: int, regular: bool) -> tuple[Mount | None, str]:
        entry = collector.by_dev.get(dev)
        return entry, judge(
            dev, regular, entry, trusted=result.trusted, filesystems=filesystems, verity=verity
        )

    entry, reason = reason_of(exe.st_dev, stat.S_ISREG(exe.st_mode))
    if reason != "none":
        collector.add(pid, comm, exe.st_dev, entry, "exec", reason, exe_path)
    for mapping in maps:
        result.mappings += 1
        entry = collector.by_dev.get(mapping.dev)
        if "w" in mapping.permissions:
            reason = "write_exec"
        elif mapping.inode == 0:
            reason = "anonymous"
        else:
            # maps shows a file's inode and superblock, so an overlay file is on the overlay.
            entry, reason = reason_of(mapping.dev, True)
        if reason != "none":
            what = mapping.path or "(anonymous)"
            collector.add(pid, comm, mapping.dev, entry, "mmap", reason, what)


def text(result: Simulation) -> str:
    """The report for people."""
    lines = [
        f"{result.processes} processes, {result.mappings} executable mappings; trusted devices: "
        + (", ".join(sorted(f"{os.major(d)}:{os.minor(d)}" for d in result.trusted)) or "none")
    ]
    for denial in result.denials:
        place = (
            f"{denial.fstype} {printable(denial.target) or '(not mounted)'} "
            f"({os.major(denial.dev)}:{os.minor(denial.dev)})"
            if denial.fstype
            else "memory"
        )
        lines.append(
            f"would deny {denial.operation} {denial.reason}: {denial.count} times in "
            f"{len(denial.processes)} processes, {place}"
        )
        for example in denial.examples[:5]:
            lines.append(f"    {printable(example)}")
        if len(denial.examples) > 5:
            lines.append(f"    … and {len(denial.examples) - 5} more files")
        names = sorted(map(printable, set(denial.processes.values())))
        lines.append(f"    in {', '.join(names[:8])}{' …' if len(names) > 8 else ''}")
    if not result.denials:
        lines.append("nothing that runs now would be denied")
    lines += [f"not looked at: {what}" for what in result.unknown]
    return "\n".join(lines)
