# SPDX-License-Identifier: BSD-2-Clause
"""Hold pybpf against libbpf on any folder of objects, with results made on the spot.

    tools/corpus --objects DIR --libbpf PREFIX [--btf FILE] [--no-load]

PREFIX is where a libbpf of 1.6 or newer was installed (include/bpf, and libbpf.a in it or in
lib*/); the one of Debian 12 is too old. A small C program (corpus_yardstick.c) prepares each
object with it and prints maps and final instructions; loading asks it for the verifier's answers.
libbpf looks kernel functions and struct_ops types up in the running kernel, whatever BTF it is
given: they are told apart by name.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.guest.cache import cache_root, content_hash, publish

__all__ = ["YardstickError", "build", "results"]

SOURCE = Path(__file__).with_suffix(".c")
_CHUNK = 40
_TIMEOUT = 300


class YardstickError(Exception):
    """libbpf or a compiler is missing, or the yardstick failed."""


def _library(prefix: Path) -> Path:
    for place in (prefix, *sorted(prefix.glob("lib*")), *sorted(prefix.glob("lib*/*"))):
        if (place / "libbpf.a").is_file():
            return place / "libbpf.a"
    raise YardstickError(f"there is no libbpf.a in {prefix} or its lib folders")


def build(prefix: Path) -> Path:
    """The yardstick linked with the libbpf in ``prefix``. Raises YardstickError."""
    library = _library(prefix)
    flags = ["-O2", "-std=gnu11", "-Wall", f"-I{prefix / 'include'}", "-Wl,--wrap=syscall"]
    key = content_hash([SOURCE.read_bytes(), library.read_bytes(), *flags])

    def make(folder: Path) -> None:
        command = ["gcc", *flags[:-1], str(SOURCE), flags[-1], str(library), "-lelf", "-lz"]
        try:
            done = subprocess.run(
                [*command, "-o", str(folder / SOURCE.stem)], capture_output=True, text=True
            )
        except FileNotFoundError:
            raise YardstickError("gcc is not installed") from None
        if done.returncode:
            raise YardstickError(
                "the yardstick cannot be built (it needs libbpf 1.6 or newer, libelf and zlib): "
                + done.stderr.strip()
            )

    folder = publish(
        cache_root() / "corpus" / f"yardstick-{key}", make, f"compiling {SOURCE.name}"
    )
    return folder / SOURCE.stem


def results(
    program: Path, objects: Sequence[Path], *, btf: Path | None = None, load: bool = False
) -> Iterator[dict[str, Any]]:
    """What libbpf made of each object, in the form of the corpus' recorded results, with the
    object's path as "object". One that libbpf crashes on has "crashed"."""
    options = [*(["-b", str(btf)] if btf is not None else []), *(["-l"] if load else [])]
    for start in range(0, len(objects), _CHUNK):
        yield from _some(program, options, objects[start : start + _CHUNK])


def _some(
    program: Path, options: list[str], objects: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    words = [str(program), *options, *map(str, objects)]
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is not None and done.returncode == 0:
        for line in done.stdout.decode("utf-8", "replace").splitlines():
            yield json.loads(line)
    elif len(objects) == 1:
        status = "timeout" if done is None else done.returncode
        yield {"object": str(objects[0]), "crashed": status}
    else:
        for one in objects:
            yield from _some(program, options, [one])
