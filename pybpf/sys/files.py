# SPDX-License-Identifier: BSD-2-Clause
"""Reading files that somebody named: whole, but neither without end nor waiting for a writer."""

from __future__ import annotations

import os
import sys

from pybpf.errors import FormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from io import FileIO

__all__ = ["LARGEST", "open_streams", "read_file", "read_head"]

LARGEST = 64 << 20  # bytes; objects with all of their debug information have a few million
_PIECE = 1 << 20
# Opening a FIFO that nobody writes would wait for ever; reading it then finds its end at once.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def open_streams() -> None:
    """Make standard streams that were closed /dev/null: what a command opens would take their
    numbers, and Python has None in their places."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _open(path: str | os.PathLike[str]) -> FileIO:
    file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | _NO_WAIT))
    if _NO_WAIT:
        os.set_blocking(file.fileno(), True)
    return file


def read_file(path: str | os.PathLike[str]) -> bytes:
    """All of a file, pipe or device. Raises OSError, and FormatError beyond LARGEST bytes."""
    pieces = []
    left = LARGEST
    with _open(path) as file:
        try:
            while piece := file.read(_PIECE):
                pieces.append(piece)
                left -= len(piece)
                if left < 0:
                    raise FormatError(
                        f"it has more than {LARGEST >> 20} MB: nothing that is read here has.",
                        file=str(path),
                    )
        except OSError as error:
            error.filename = str(path)
            raise
    return b"".join(pieces)


def read_head(path: str | os.PathLike[str]) -> bytes:
    """The first four bytes of a file, which tell an ELF file. Raises OSError."""
    with _open(path) as file:
        try:
            return file.read(4)
        except OSError as error:
            error.filename = str(path)
            raise
