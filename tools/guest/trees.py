# SPDX-License-Identifier: BSD-2-Clause
"""The guest's files: its system (Python, busybox, bpftool) and the project itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from .cache import cache_root, content_hash, publish, tree_hash
from .errors import GuestError
from .packages import Toolbox

__all__ = ["PROJECT", "project_files", "project_tree", "small_system", "system_tree"]

PROJECT = Path(__file__).resolve().parents[2]

_FORMAT = "5"
_PYTHON = "usr/lib/python3.11"
_DYNLOAD = f"{_PYTHON}/lib-dynload"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_UNUSED = re.compile(
    r"^(test|idlelib|tkinter|turtledemo|turtle\.py|lib2to3|ensurepip|distutils|venv|curses|sqlite3"
    r"|pydoc_data|wsgiref|xmlrpc|dbm|__pycache__|lib-dynload)$"
)
_UNUSED_EXTENSION = re.compile(
    r"^(_test|_xx|xx|_curses|_sqlite3|_dbm|_ssl|_hashlib|nis|ossaudiodev|audioop|_codecs_|_ctypes_test"
    r"|_multibytecodec|_crypt|_lsprof|_uuid|readline)"
)
# What PID 1 in the initramfs imports, directly or not; tests may import the rest there too,
# but only these have their shared library in the small tree.
_SMALL_EXTENSIONS = re.compile(r"^(_ctypes|mmap|_json|termios|resource|_queue|_contextvars)\.")
_PROGRAMS = ("usr/sbin/bpftool", "usr/bin/strace", "usr/bin/busybox")
_PROJECT_PARTS = ("pybpf", "restrict", "bpf/objects", "tests", "tools/guest")


def _libraries(tools: Toolbox, binary: Path) -> set[str]:
    """File names of the shared libraries that *binary* needs, by its dynamic linker."""
    loader = tools.tree / _LIBRARIES / "ld-linux-x86-64.so.2"
    done = subprocess.run(
        [str(loader), "--library-path", str(tools.tree / _LIBRARIES), "--list", str(binary)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if "not found" in done.stdout:
        raise GuestError(f"libraries of {binary.name} are missing: {done.stdout.strip()}")
    return {Path(match).name for match in re.findall(r"=> (\S+)", done.stdout)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
    else:
        shutil.copy2(source, target)


def _add_libraries(tools: Toolbox, tree: Path, binaries: Iterable[Path]) -> None:
    names = {"ld-linux-x86-64.so.2"}
    for binary in binaries:
        names |= _libraries(tools, binary)
    for name in sorted(names):
        source = tools.tree / _LIBRARIES / name
        # The file under its SONAME: /proc/PID/maps then shows the name that was asked for.
        target = tree / _LIBRARIES / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source.resolve(), target)
    (tree / "usr/lib64").mkdir(parents=True, exist_ok=True)
    link = tree / "usr/lib64/ld-linux-x86-64.so.2"
    if not link.exists():
        link.symlink_to("../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")


def _compile(tools: Toolbox, folder: Path, beside: bool) -> None:
    """Compile every module below *folder*; the byte code is never checked against its source."""
    arguments = ["-I", "-S", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    if beside:
        arguments.append("-b")
    # The host's path must not end up in tracebacks of the guest.
    arguments += ["-s", str(folder), "-p", "/" + folder.name, str(folder)]
    done = subprocess.run(
        tools.command("python3.11", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PYTHONHOME": str(tools.tree / "usr"), "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    if done.returncode:
        raise GuestError(f"a module of the guest does not compile: {done.stdout.strip()}")


def _skeleton(tree: Path) -> None:
    for name in (
        "proc", "sys", "dev", "run", "tmp", "mnt", "project", "root", "var", "etc", "srv",
    ):  # fmt: skip
        (tree / name).mkdir(exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(f"usr/{name}")
    (tree / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
    )
    (tree / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "usr/lib/os-release").write_text("ID=guest\n")  # systemd switches to no other root


def _stdlib(tools: Toolbox, tree: Path) -> None:
    source = tools.tree / _PYTHON
    for entry in sorted(source.iterdir()):
        if _UNUSED.match(entry.name):
            continue
        target = tree / _PYTHON / entry.name
        if entry.is_dir():
            shutil.copytree(
                entry, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            _copy(entry.resolve(), target)


def system_tree(tools: Toolbox) -> Path:
    """The root of the guest: CPython with its library, busybox, bpftool, strace, pytest."""
    target = cache_root() / f"system-{content_hash([_FORMAT, tools.identity])}"

    def build(tree: Path) -> None:
        _skeleton(tree)
        _stdlib(tools, tree)
        binaries = [tools.tree / name for name in (*_PROGRAMS, "usr/bin/python3.11")]
        for entry in sorted((tools.tree / _DYNLOAD).iterdir()):
            if not _UNUSED_EXTENSION.match(entry.name):
                _copy(entry, tree / _DYNLOAD / entry.name)
                binaries.append(entry)
        for binary in binaries:
            if _DYNLOAD not in str(binary):
                _copy(binary, tree / binary.relative_to(tools.tree))
        _add_libraries(tools, tree, binaries)
        (tree / "usr/bin/python3").symlink_to("python3.11")
        _applets(tree)
        packages = tree / "usr/lib/python3/dist-packages"
        for entry in sorted((tools.tree / "usr/lib/python3/dist-packages").iterdir()):
            if entry.is_dir() and entry.name != "__pycache__":
                shutil.copytree(entry, packages / entry.name)
            elif entry.suffix == ".py":
                _copy(entry, packages / entry.name)
        _compile(tools, tree / _PYTHON, beside=False)
        _compile(tools, packages, beside=False)

    return publish(target, build, "the guest's system tree", keep=2)


def _applets(tree: Path) -> None:
    busybox = tree / "usr/bin/busybox"
    done = subprocess.run(
        [str(busybox), "--list-full"], stdout=subprocess.PIPE, text=True, check=True
    )
    for applet in done.stdout.split():
        link = tree / "usr/bin" / Path(applet).name
        if not link.exists() and not link.is_symlink():
            link.symlink_to("busybox")


def small_system(tools: Toolbox) -> Path:
    """What the initramfs holds of the system: CPython, byte code only, and busybox."""
    target = cache_root() / f"small-{content_hash([_FORMAT, tools.identity])}"

    def build(tree: Path) -> None:
        _skeleton(tree)
        _stdlib(tools, tree)
        _compile(tools, tree / _PYTHON, beside=True)
        for path in (tree / _PYTHON).rglob("*.py"):
            path.unlink()
        python = tools.tree / "usr/bin/python3.11"
        _copy(python, tree / "usr/bin/python3.11")
        (tree / "usr/bin/python3").symlink_to("python3.11")
        _copy(tools.tree / "usr/bin/busybox", tree / "usr/bin/busybox")
        (tree / "usr/bin/sh").symlink_to("busybox")
        binaries = [python]
        for entry in sorted((tools.tree / _DYNLOAD).iterdir()):
            if _SMALL_EXTENSIONS.match(entry.name):
                _copy(entry, tree / _DYNLOAD / entry.name)
                binaries.append(entry)
        _add_libraries(tools, tree, binaries)

    return publish(target, build, "the system tree of the initramfs", keep=2)


def project_files() -> Iterator[tuple[str, Path]]:
    """(name in the guest, file) of the project, as the work tree has it now."""
    for part in _PROJECT_PARTS:
        for path in sorted((PROJECT / part).rglob("*")):
            relative = path.relative_to(PROJECT)
            if path.is_file() and not any(
                piece == "__pycache__" or piece.startswith(".") for piece in relative.parts
            ):
                yield str(relative), path
    yield "pyproject.toml", PROJECT / "pyproject.toml"


def project_tree(tools: Toolbox) -> Path:
    """The project's files with their byte code; made anew when any content has changed."""
    files = list(project_files())
    target = cache_root() / "projects" / f"project-{content_hash([_FORMAT, tree_hash(files)])}"

    def build(tree: Path) -> None:
        for name, path in files:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tree / name)
        _compile(tools, tree, beside=False)

    return publish(target, build, "the project's files for the guest", keep=8)
