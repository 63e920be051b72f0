# SPDX-License-Identifier: BSD-2-Clause
"""What is measured with and against: the C yardsticks, BPF objects, a copy of the product.

Everything is built into the cache under a name that tells its contents, once.
"""

from __future__ import annotations

import compileall
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.benchmarks.errors import BenchError
from tools.guest.cache import cache_root, content_hash, prune, publish, tree_hash

__all__ = ["HERE", "TOP", "bpf_object", "program", "stage"]

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]

_C_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
#: As tools/build_objects compiles the policies.
_BPF_FLAGS = (
    "--target=bpfel", "-mcpu=v3", "-O2", "-g", "-std=gnu11", "-ffreestanding", "-nostdinc",
    "-fno-stack-protector", "-Wall", "-Wextra", "-Werror",
)  # fmt: skip
#: What reads ELF in the product, and is no part of it.
_DEPENDENCIES = ("elftools", "construct")


def _run(words: Sequence[str | Path]) -> None:
    try:
        done = subprocess.run(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except FileNotFoundError:
        raise BenchError(f"{words[0]} is not installed") from None
    if done.returncode:
        raise BenchError(f"{' '.join(map(str, words))} failed: {done.stdout.strip()}")


def program(name: str, *flags: str) -> Path:
    """The C program (or, with -shared among the flags, library) c/NAME.c, built by gcc.

    Flags that begin with -l go behind the source. Raises BenchError.
    """
    source = HERE / "c" / f"{name}.c"
    options = [flag for flag in flags if not flag.startswith("-l")]
    libraries = [flag for flag in flags if flag.startswith("-l")]
    command = ["gcc", *_C_FLAGS, *options, str(source), *libraries]
    key = content_hash([source.read_bytes(), *_C_FLAGS, *flags])

    def build(folder: Path) -> None:
        _run([*command, "-o", folder / name])

    return publish(cache_root() / "bench" / f"{name}-{key}", build, f"compiling {name}.c") / name


def bpf_object(name: str) -> Path:
    """The object of bpf/NAME.bpf.c, built by clang, without debug sections. Raises BenchError."""
    source = HERE / "bpf" / f"{name}.bpf.c"
    include = TOP / "bpf" / "include"
    headers = sorted(include.glob("*.h"))
    key = content_hash(
        [source.read_bytes(), *(path.read_bytes() for path in headers), *_BPF_FLAGS]
    )
    file = f"{name}.bpf.o"

    def build(folder: Path) -> None:
        _run(["clang-19", *_BPF_FLAGS, f"-I{include}", "-c", source, "-o", folder / file])
        _run(["llvm-strip-19", "--strip-debug", folder / file])

    folder = cache_root() / "bench" / f"{name}-{key}"
    return publish(folder, build, f"compiling {source.name}") / file


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.origin:
        raise BenchError(f"the Python package {name} is not installed")
    return Path(found.origin).parent


def stage() -> tuple[Path, Path]:
    """(folder of pybpf and restrict, folder of their dependencies), byte-compiled.

    The work tree itself has no byte code and is not to get any; an installed package has it.
    """
    product = [
        (str(path.relative_to(TOP)), path)
        for part in ("pybpf", "restrict")
        for path in sorted((TOP / part).rglob("*.py"))
    ]
    dependencies = [
        (str(path.relative_to(package.parent)), path)
        for package in map(_package, _DEPENDENCIES)
        for path in sorted(package.rglob("*.py"))
    ]

    def made(kind: str, files: list[tuple[str, Path]]) -> Path:
        def build(folder: Path) -> None:
            for name, path in files:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            compileall.compile_dir(folder, quiet=1, stripdir=str(folder))

        name = f"{kind}-{tree_hash(files)}"
        return publish(cache_root() / "bench" / name, build, f"byte-compiling {kind}")

    found = made("product", product), made("dependencies", dependencies)
    prune(cache_root() / "bench", "product-*", keep=4)
    return found
