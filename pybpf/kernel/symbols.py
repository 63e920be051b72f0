# SPDX-License-Identifier: BSD-2-Clause
"""Where a function lies in an ELF file, for uprobes: paths, symbols, patterns, file offsets.

Symbols are read with pyelftools, which is imported only when one is asked for by name.
"""

from __future__ import annotations

import os

from pybpf.errors import FormatError, UsageError
from pybpf.sys.syscalls import fail, machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["find_file", "function_offsets", "matches"]

_STT_FUNC, _STT_GNU_IFUNC = "STT_FUNC", "STT_LOOS"


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` fits a pattern of "*" (any text) and "?" (one character)."""
    at = star = 0
    back, index = -1, 0
    while index < len(name):
        if at < len(pattern) and pattern[at] == "*":
            back, star = at, index
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", name[index]):
            at += 1
            index += 1
        elif back >= 0:
            star += 1
            at, index = back + 1, star
        else:
            return False
    return pattern[at:].strip("*") == ""


def find_file(name: str) -> str:
    """The path of a program or library given by path, or by name as the loader would search it:
    libraries (".so" in the name) in LD_LIBRARY_PATH and the system's folders, programs in PATH.

    Raises UsageError if there is none.
    """
    if "/" in name:
        return name
    if ".so" in name:
        triplet = f"{machine()}-linux-gnu"
        folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
        folders += [f"/usr/lib/{triplet}", f"/lib/{triplet}", "/usr/lib64", "/lib64", "/usr/lib",
                    "/lib"]  # fmt: skip
    else:
        folders = os.environ.get("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").split(":")
    for folder in filter(None, folders):
        path = f"{folder}/{name}"
        if os.path.isfile(path):
            return path
    raise UsageError(f"there is no file {name!r} in {', '.join(filter(None, folders))}")


def function_offsets(path: str, pattern: str) -> dict[str, int]:
    """{name: offset in the file} of the functions whose names match, by .symtab and .dynsym.

    A versioned name counts without its version. Raises UsageError without a match, FormatError
    for a file that is no ELF, KernelError for one that cannot be opened.
    """
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
    except ImportError:
        raise UsageError(
            "finding a function by name needs pyelftools.",
            hint="Install it, or give the offset in the file: 'path:0x1234'.",
            path=path,
        ) from None
    exact = not set("*?") & set(pattern)
    found: dict[str, int] = {}
    try:
        with open(path, "rb") as file:
            elf = ELFFile(file)
            loads = [
                (s["p_vaddr"], s["p_vaddr"] + s["p_filesz"], s["p_offset"])
                for s in elf.iter_segments()
                if s["p_type"] == "PT_LOAD"
            ]
            for name in (".symtab", ".dynsym"):
                table: Any = elf.get_section_by_name(name)
                if table is None or table["sh_type"] not in ("SHT_SYMTAB", "SHT_DYNSYM"):
                    continue
                # A GNU hash table finds one name without reading every symbol.
                symbols = (table.get_symbol_by_name(pattern) or ()) if exact else (
                    table.iter_symbols()
                )  # fmt: skip
                for symbol in symbols:
                    value = symbol["st_value"]
                    kind = symbol["st_info"]["type"]
                    if kind not in (_STT_FUNC, _STT_GNU_IFUNC) or symbol["st_shndx"] == "SHN_UNDEF":
                        continue
                    plain = symbol.name.split("@", 1)[0]
                    if not matches(pattern, plain):
                        continue
                    for start, end, offset in loads:
                        if start <= value < end:
                            found.setdefault(plain, value - start + offset)
                if exact and found:
                    break
    except OSError as error:
        raise fail("open", error.errno or 2, path=path) from None
    except (ELFError, UnicodeDecodeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise FormatError(f"it is no usable ELF file ({error})", path=path) from None
    if not found:
        raise UsageError(f"it defines no function {pattern!r}", path=path)
    return found
