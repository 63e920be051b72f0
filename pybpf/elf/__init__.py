# SPDX-License-Identifier: BSD-2-Clause
"""ELF object files → ObjectSpec: pure reading, no system call but opening the file."""

from __future__ import annotations

from pybpf.elf.reader import object_name, read

__all__ = ["object_name", "read"]
