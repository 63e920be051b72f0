# SPDX-License-Identifier: BSD-2-Clause
"""Kernel modules for an image: found by name, with what they depend on, in the order of loading.

``modules.dep`` (depmod(8)) says what a module needs; where it is missing, as in an unpacked
kernel package, ``depends=`` of the modules themselves does. Soft dependencies (``softdep=pre:``)
come along when they exist. A module that the kernel has built in (``modules.builtin``) needs no
file.
"""

from __future__ import annotations

import io
import lzma
import os
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from pybpf.sys.files import read_file
from restrict.errors import ConfigError, RestrictError

__all__ = ["Module", "Modules"]

_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_MOST = 256 << 20  # bytes of a module without compression: with all debugging they have half of it


def _name_of(file: str) -> str:
    return os.path.basename(file).partition(".ko")[0].replace("-", "_")


class Module:
    """One module to be loaded: its name with underscores, uncompressed file, parameters."""

    __slots__ = ("data", "name", "parameters")

    def __init__(self, name: str, data: bytes, parameters: str) -> None:
        self.name = name
        self.data = data
        self.parameters = parameters


def _inflate(decompressor: Any, data: bytes) -> bytes:
    """What lzma or zlib make of it, up to one byte more than a module may have."""
    out: bytes = decompressor.decompress(data, _MOST + 1)
    if not decompressor.eof and len(out) <= _MOST:
        raise EOFError("it is cut short")
    return out


def _zstd(path: Path) -> bytes:
    with (
        open(path, "rb") as file,
        subprocess.Popen(
            ["zstd", "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        out = process.stdout.read(_MOST + 1)
        if len(out) > _MOST:
            process.kill()
        elif process.wait():
            raise EOFError(process.stderr.read().decode("utf-8", "replace").strip())
    return out


def _decompress(path: Path) -> bytes:
    try:
        data = read_file(path)
    except OSError as e:
        raise RestrictError(f"the module cannot be read: {e.strerror}.", file=str(path)) from None
    try:
        if path.suffix == ".xz":
            data = _inflate(lzma.LZMADecompressor(), data)
        elif path.suffix == ".gz":
            data = _inflate(zlib.decompressobj(wbits=31), data)
        elif path.suffix == ".zst":
            data = _zstd(path)
    except OSError:
        raise RestrictError(
            "the module is compressed with zstd, and there is no program zstd.",
            hint="Install the package zstd.",
            file=str(path),
        ) from None
    except (lzma.LZMAError, zlib.error, EOFError) as e:
        raise RestrictError(f"the module cannot be decompressed: {e}.", file=str(path)) from None
    if len(data) > _MOST:
        raise RestrictError(
            f"it has more than {_MOST >> 20} MB: no kernel module has.", file=str(path)
        )
    return data


def _modinfo(data: bytes, path: Path) -> list[tuple[str, str]]:
    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
        raw: bytes = section.data() if section is not None else b""
    except Exception as e:  # what pyelftools makes of a damaged file can be anything
        raise RestrictError(
            f"it is no kernel module: {e or type(e).__name__}.", file=str(path)
        ) from None
    found = []
    for item in raw.split(b"\0"):
        key, equals, value = item.decode("utf-8", "replace").partition("=")
        if equals:
            found.append((key, value))
    return found


class Modules:
    """The modules of one kernel.

    where: the folder with modules.dep (/lib/modules/VERSION) or any tree of .ko files; or a
    VERSION of this machine. Raises RestrictError if there is none.
    """

    def __init__(self, where: str | Path) -> None:
        folder = Path(where)
        if not folder.is_dir() and "/" not in str(where):
            folder = Path("/lib/modules") / str(where)
        if not folder.is_dir():
            raise RestrictError(
                "there is no such folder of kernel modules.",
                hint="Give a version of /lib/modules, or a folder with .ko files.",
                folder=str(where),
            )
        self.folder = folder
        self._files: dict[str, Path] = {}
        for path in sorted(folder.rglob("*.ko*")):
            if path.name.endswith(_SUFFIXES) and path.is_file():
                self._files.setdefault(_name_of(path.name), path)
        self._builtin = {_name_of(line) for line in self._lines("modules.builtin") if line}
        if not self._files and not self._builtin:
            raise RestrictError("no kernel module is in this folder.", folder=str(folder))
        self._depends: dict[str, list[str]] | None = None
        lines = self._lines("modules.dep")
        if lines:
            self._depends = {}
            for line in lines:
                file, _, rest = line.partition(":")
                # depmod lists the nearest dependency first, and it must be loaded last
                self._depends[_name_of(file)] = [_name_of(w) for w in reversed(rest.split())]
        self._read: dict[str, tuple[bytes, list[tuple[str, str]]]] = {}

    def _lines(self, name: str) -> list[str]:
        try:
            return read_file(self.folder / name).decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            return []
        except OSError as e:
            raise RestrictError(
                f"the list cannot be read: {e.strerror}.", file=str(self.folder / name)
            ) from None

    def _load(self, name: str) -> tuple[bytes, list[tuple[str, str]]]:
        if name not in self._read:
            path = self._files[name]
            data = _decompress(path)
            self._read[name] = data, _modinfo(data, path)
        return self._read[name]

    def builtin(self, name: str) -> bool:
        """Whether the kernel has it built in, as far as modules.builtin says."""
        return name.replace("-", "_") in self._builtin

    def exists(self, name: str) -> bool:
        """Whether there is a file of this module."""
        return name.replace("-", "_") in self._files

    def has_parameter(self, name: str, parameter: str) -> bool:
        """Whether the module (a file of it) has a parameter of this name."""
        info = self._load(name.replace("-", "_"))[1]
        return any(k == "parm" and v.partition(":")[0] == parameter for k, v in info)

    def _needs(self, name: str) -> list[str]:
        info = self._load(name)[1]
        if self._depends is not None:
            hard = self._depends.get(name, [])
        else:
            hard = [w for k, v in info if k == "depends" for w in v.split(",") if w]
        soft: list[str] = []
        for key, value in info:
            if key == "softdep" and value.startswith("pre:"):
                soft += value[4:].partition("post:")[0].split()
        soft = [w.replace("-", "_") for w in soft]
        return [*(w for w in soft if w in self._files), *(w.replace("-", "_") for w in hard)]

    def closure(self, wanted: Sequence[str]) -> list[Module]:
        """Modules in the order of loading; each of ``wanted`` is ``NAME [PARAMETER=VALUE …]``.

        Raises ConfigError for a module that this kernel does not have, naming who needs it, and
        for parameters of one that is built in (they belong on the kernel command line).
        """
        parameters: dict[str, str] = {}
        for line in wanted:
            words = line.split(None, 1)
            name = _name_of(words[0])
            if name in parameters:
                raise ConfigError(f"the module {name} is given twice.")
            parameters[name] = words[1].strip() if len(words) > 1 else ""
        order: list[str] = []
        open_: list[str] = []

        def visit(name: str) -> None:
            if name in order or name in open_:
                return
            if not (name.isascii() and name.replace("_", "").isalnum()):
                raise ConfigError(f"{name!r} is no name of a kernel module.")
            if name not in self._files:
                if name in self._builtin:
                    if parameters.get(name):
                        raise ConfigError(
                            f"{name} is built into this kernel, so its parameters belong on the "
                            f"kernel command line: "
                            + " ".join(f"{name}.{p}" for p in parameters[name].split()),
                            module=name,
                        )
                    return
                by = f", which {open_[-1]} needs" if open_ else ""
                raise ConfigError(
                    f"this kernel has no module {name}{by}.",
                    folder=str(self.folder),
                    hint="Is it the folder of the kernel that will boot?",
                )
            open_.append(name)
            for other in self._needs(name):
                visit(other)
            open_.pop()
            order.append(name)

        for name in parameters:
            visit(name)
        return [Module(name, self._load(name)[0], parameters.get(name, "")) for name in order]
