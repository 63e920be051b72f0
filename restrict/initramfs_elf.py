# SPDX-License-Identifier: BSD-2-Clause
"""Which shared libraries a program needs, read from the ELF files and not from ldd(1).

ldd starts the program's own loader, that is, it runs what it is asked about. Here DT_NEEDED,
DT_RUNPATH and DT_RPATH are followed as ld.so(8) does: folders that the file names, those of
/etc/ld.so.conf, the system's. What was asked for by a name is kept under that name, so that
/proc/PID/maps shows it.
"""

from __future__ import annotations

import glob
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from pybpf.sys.files import read_file
from restrict.errors import RestrictError

__all__ = ["Binary", "libraries", "loadable", "read"]

_MULTIARCH = {"EM_X86_64": "x86_64-linux-gnu", "EM_AARCH64": "aarch64-linux-gnu"}


class Binary:
    """What an ELF file says about how it is started.

    machine: e_machine as a number. loader: PT_INTERP, "" without one. needed: DT_NEEDED.
    folders: DT_RUNPATH or DT_RPATH with $ORIGIN resolved.
    """

    __slots__ = ("bits", "folders", "loader", "machine", "machine_name", "needed", "path")

    def __init__(self, path: Path, elf: ELFFile) -> None:
        self.path = path
        self.bits: int = elf.elfclass
        self.machine_name: str = elf.header["e_machine"]
        elf.stream.seek(18)
        self.machine = int.from_bytes(elf.stream.read(2), "little" if elf.little_endian else "big")
        self.loader = ""
        self.needed: list[str] = []
        self.folders: list[str] = []
        runpath: list[str] = []
        rpath: list[str] = []
        for segment in elf.iter_segments():  # sections may be stripped; segments are what is loaded
            if segment["p_type"] == "PT_INTERP":
                self.loader = segment.get_interp_name()
            if not isinstance(segment, DynamicSegment):
                continue
            for tag in segment.iter_tags():
                if tag.entry.d_tag == "DT_NEEDED":
                    self.needed.append(tag.needed)
                elif tag.entry.d_tag == "DT_RUNPATH":
                    runpath += tag.runpath.split(":")
                elif tag.entry.d_tag == "DT_RPATH":
                    rpath += tag.rpath.split(":")
        origin = str(path.parent)
        for folder in runpath or rpath:  # ld.so ignores DT_RPATH where there is DT_RUNPATH
            resolved = folder.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", origin)
            if resolved:
                self.folders.append(resolved)

    def fits(self, other: Binary) -> bool:
        """Whether both can be in one process."""
        return (self.bits, self.machine) == (other.bits, other.machine)


def read(path: str | Path) -> Binary:
    """Raises RestrictError for a file that cannot be read or is no ELF file."""
    # The folder's links are followed for $ORIGIN, as ld.so does.
    real = Path(os.path.realpath(path))
    try:
        with open(real, "rb") as file:
            return Binary(real, ELFFile(file))
    except OSError as e:
        raise RestrictError(f"the file cannot be read: {e.strerror}.", file=str(path)) from None
    except Exception as e:  # what pyelftools makes of a damaged file can be anything
        raise RestrictError(
            f"it is not an ELF file: {e or type(e).__name__}.", file=str(path)
        ) from None


def loadable(path: str | Path) -> bytes:
    """The file without what no loader reads: sections behind the last segment (symbols, debugging)
    and the table of sections. Raises RestrictError.
    """
    try:
        data = read_file(path)
    except OSError as e:
        raise RestrictError(f"the file cannot be read: {e.strerror}.", file=str(path)) from None
    if data[:6] != b"\x7fELF\x02\x01":
        raise RestrictError("it is not a little-endian 64-bit ELF file.", file=str(path))
    try:
        phoff, shoff = struct.unpack_from("<QQ", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        end = max(64, phoff + size * count)
        for index in range(count):
            offset, _vaddr, _paddr, length = struct.unpack_from(
                "<4Q", data, phoff + index * size + 8
            )
            end = max(end, offset + length)
    except (struct.error, OverflowError):
        end = len(data) + 1
    if end > len(data):
        raise RestrictError("it is cut off: a segment reaches beyond its end.", file=str(path))
    if shoff < end and shoff:  # the table lies among the segments: leave the file as it is
        return data
    head = bytearray(data[:end])
    struct.pack_into("<Q", head, 40, 0)  # e_shoff
    struct.pack_into("<HH", head, 60, 0, 0)  # e_shnum, e_shstrndx
    return bytes(head)


def _configured(path: str = "/etc/ld.so.conf", depth: int = 0) -> list[str]:
    """Folders of ld.so.conf(5)."""
    found: list[str] = []
    if depth > 8:
        return found
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return found
    for line in lines:
        text = line.partition("#")[0].strip()
        if text.startswith("include"):
            for pattern in text.split()[1:]:
                absolute = os.path.join(os.path.dirname(path), pattern)
                for name in sorted(glob.glob(absolute)):
                    found += _configured(name, depth + 1)
        elif text:
            found.append(text.partition("=")[0].strip())
    return found


def _system(machine: str, bits: int) -> list[str]:
    triplet = _MULTIARCH.get(machine)
    folders = _configured()
    if triplet is not None:
        folders += [f"/lib/{triplet}", f"/usr/lib/{triplet}"]
    if bits == 64:
        folders += ["/lib64", "/usr/lib64"]
    return [*folders, "/lib", "/usr/lib"]


def _find(name: str, wanted_by: Binary, first: Binary) -> Binary:
    candidates = [name] if "/" in name else [
        f"{folder}/{name}"
        for folder in [
            *wanted_by.folders, *first.folders, *_system(first.machine_name, first.bits)
        ]
    ]  # fmt: skip
    for candidate in candidates:
        if os.path.isfile(candidate):
            try:
                found = read(candidate)
            except RestrictError:
                continue  # a linker script under the name of a library
            if found.fits(first):
                return found
    raise RestrictError(
        f"the shared library {name} is not on this machine.",
        hint="Looked in " + ", ".join(os.path.dirname(c) or c for c in candidates) + ".",
        file=str(wanted_by.path),
    )


def libraries(program: Binary, others: Iterable[Binary] = ()) -> dict[str, Path]:
    """{name under which it is asked for: file} of everything that ``program`` and what it opens
    later (``others``: extension modules) need, the loader left out.

    Raises RestrictError for a library that is not there, naming who needs it.
    """
    loader = os.path.basename(program.loader)
    found: dict[str, Path] = {}
    waiting = [program, *others]
    for other in waiting:
        if not other.fits(program):
            raise RestrictError(
                f"it is for {other.machine_name}, and the interpreter for {program.machine_name}.",
                file=str(other.path),
            )
    while waiting:
        binary = waiting.pop()
        for name in binary.needed:
            short = name.rsplit("/", 1)[-1]
            if short == loader or short in found:
                continue
            library = _find(name, binary, program)
            found[short] = library.path
            waiting.append(library)
    return dict(sorted(found.items()))
