# SPDX-License-Identifier: BSD-2-Clause
"""What an interpreter needs to run ``restrict init``: traced, trimmed, compiled, checked.

Which of our own modules are needed is read from their import statements, those inside functions
too. Which of the standard library are needed is seen by importing all of these in the interpreter
itself, isolated as in the initramfs (-I -S): what is in sys.modules then, and where it came from.
Byte code is made by the same interpreter, because its format belongs to the version.
"""

from __future__ import annotations

import ast
import base64
import codecs
import io
import json
import os
import subprocess
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from restrict.errors import RestrictError

__all__ = ["Interpreter", "closure", "compile_all", "inspect_interpreter", "make_zip"]

_TOPS = ("pybpf", "restrict")
# The rooms of the executor. What they import from others, on demand, is for people at a terminal
# (symbols of ELF files, section names), not for a boot.
_ROOMS = ("pybpf.btf", "pybpf.kernel", "pybpf.plan", "pybpf.sys", "restrict")
_SINGLE = ("pybpf", "pybpf.errors", "pybpf.record", *_ROOMS)
# Codecs are imported when they are first used: these by the interpreter itself, others where our
# sources name them.
_CODECS = ("utf-8", "ascii", "latin-1")
_ANOTHER = "Give CPython 3.11 or later with --python."

_TRACE = """
import sys
sys.path[:0] = [sys.argv[1]]
failed = None
for name in sys.argv[2].split(","):
    try:
        __import__(name)
    except ImportError as e:
        failed = [name, getattr(e, "name", None) or "", str(e)]
        break
import codecs
for name in sys.argv[4].split(","):
    codecs.lookup(name)
# Named somewhere in a function: those in C are taken along where they exist.
from _frozen_importlib import _find_spec
for name in sys.argv[3].split(","):
    if name not in sys.modules:
        spec = _find_spec(name, None)
        if spec is not None and getattr(spec.loader, "__name__", type(spec.loader).__name__) in (
                "BuiltinImporter", "ExtensionFileLoader"):
            __import__(name)
found = []
for name, module in list(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if spec is None:
        continue
    loader = spec.loader if isinstance(spec.loader, type) else type(spec.loader)
    found.append([spec.name, loader.__name__, spec.origin or "",
                  spec.submodule_search_locations is not None])
import json
print(json.dumps({
    "failed": failed, "modules": found, "version": list(sys.version_info[:3]),
    "executable": getattr(sys, "_base_executable", None) or sys.executable,
    "platlibdir": sys.platlibdir, "implementation": sys.implementation.name,
}))
"""

# optimize=0: assertions are part of the product. co_filename is the name in the archive, whatever
# folder the source lies in.
_COMPILE = """
import json, sys, base64, _imp, importlib._bootstrap_external as external
result = {}
for name, path, shown in json.load(sys.stdin):
    with open(path, "rb") as file:
        source = file.read()
    code = compile(source, shown, "exec", dont_inherit=True, optimize=0)
    data = external._code_to_hash_pyc(
        code, _imp.source_hash(external._RAW_MAGIC_NUMBER, source), False)
    result[name] = base64.b64encode(data).decode()
print(json.dumps(result))
"""


class Interpreter:
    """An interpreter and the part of its library that is needed.

    executable: its file. version: (3, 11, 2). sources: {file in the library's archive, such as
    "ctypes/__init__": source file}. extensions: extension modules as files.
    """

    __slots__ = ("executable", "extensions", "platlibdir", "sources", "version")

    def __init__(self, traced: Mapping[str, object], project: Path) -> None:
        version = traced["version"]
        modules = traced["modules"]
        assert isinstance(version, list)
        assert isinstance(modules, list)
        self.version: tuple[int, ...] = tuple(version)
        self.executable = Path(os.path.realpath(str(traced["executable"])))
        self.platlibdir = str(traced["platlibdir"])
        self.sources: dict[str, Path] = {}
        self.extensions: list[Path] = []
        for name, loader, origin, package in modules:
            if name.partition(".")[0] in _TOPS or name == "__main__":
                continue
            if loader == "SourceFileLoader":
                inner = name.replace(".", "/") + ("/__init__" if package else "")
                self.sources[inner] = Path(origin)
            elif loader == "ExtensionFileLoader":
                self.extensions.append(Path(origin))
            elif loader not in ("BuiltinImporter", "FrozenImporter"):
                raise RestrictError(
                    f"its module {name} comes from {origin or 'nowhere'} by {loader}, and only "
                    "source files and extension modules can be taken along.",
                    interpreter=str(self.executable),
                )

    @property
    def archive_name(self) -> str:
        """Name of the library's archive, which the interpreter finds by itself."""
        return f"python{self.version[0]}{self.version[1]}.zip"

    @property
    def folder_name(self) -> str:
        """Name of the library's folder."""
        return f"python{self.version[0]}.{self.version[1]}"


def _run(command: Sequence[str], what: str, *, data: str | None = None, seed: bool = False) -> str:
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    if seed:
        environment["PYTHONHASHSEED"] = "0"
    try:
        done = subprocess.run(
            list(command),
            input=data,
            stdin=None if data is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            cwd="/",
        )
    except OSError as e:
        raise RestrictError(
            f"the interpreter cannot be started: {e.strerror}.",
            hint=_ANOTHER,
            interpreter=command[0],
        ) from None
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise RestrictError(f"{what} failed: {tail[0]}.", hint=_ANOTHER, interpreter=command[0])
    return done.stdout


def _imports(tree: ast.AST, module: str, package: bool) -> list[str]:
    """Absolute names that a module imports anywhere but under ``if TYPE_CHECKING``."""
    found: list[str] = []
    skipped: set[ast.AST] = set()
    base = module.split(".") if package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if node in skipped:
            skipped.update(ast.iter_child_nodes(node))
            continue
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped.update(node.body)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            found.append(name)
            found += [f"{name}.{alias.name}" for alias in node.names]
    return found


def _source(project: Path, name: str) -> tuple[Path, bool] | None:
    path = project.joinpath(*name.split("."))
    if (path / "__init__.py").is_file():
        return path / "__init__.py", True
    file = path.with_name(path.name + ".py")
    return (file, False) if file.is_file() else None


def closure(roots: Sequence[str], project: Path) -> tuple[dict[str, Path], list[str]]:
    """Our modules that ``roots`` can come to import, and what of others they name.

    Gives ({"restrict/init": file, "pybpf/__init__": file, …}, ["ctypes", …]).
    Raises RestrictError for a root that is not there.
    """
    files: dict[str, Path] = {}
    others: set[str] = set()
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        found = _source(project, name)
        if found is None:
            if name in roots:
                raise RestrictError(f"there is no module {name}.", folder=str(project))
            continue  # a name inside a module, not a module
        path, package = found
        files[name.replace(".", "/") + ("/__init__" if package else "")] = path
        try:
            tree = ast.parse(path.read_bytes(), str(path))
        except OSError as e:
            raise RestrictError(f"the file cannot be read: {e.strerror}.", file=str(path)) from None
        for other in _imports(tree, name, package):
            if other.partition(".")[0] in _TOPS:
                if other in _SINGLE or other.rpartition(".")[0] in _ROOMS:
                    waiting.append(other)
            elif other:
                others.add(other)
    return dict(sorted(files.items())), sorted(others)


def _codecs(files: Iterable[Path]) -> set[str]:
    """Names of codecs in calls of ``encode``, ``decode`` and with ``encoding=``."""
    found: set[str] = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
            if not isinstance(node, ast.Call):
                continue
            named = [k.value for k in node.keywords if k.arg == "encoding"]
            function = node.func
            if isinstance(function, ast.Attribute) and function.attr in ("encode", "decode"):
                named += node.args[:1]
            for value in named:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    try:
                        codecs.lookup(value.value)
                    except LookupError:
                        continue  # another function of that name
                    found.add(value.value)
    return found


def inspect_interpreter(
    python: str | Path, project: Path, modules: Mapping[str, Path], others: Sequence[str]
) -> Interpreter:
    """Run ``python`` and see what it imports for ``modules``.

    Raises RestrictError when it cannot be started, is too old, or lacks a module.
    """
    names = [name.replace("/", ".").removesuffix(".__init__") for name in modules]
    command = [
        str(python), "-I", "-S", "-B", "-c", _TRACE, str(project), ",".join(names),
        ",".join(name for name in others if "." not in name),
        ",".join(sorted({*_CODECS, *_codecs(modules.values())})),
    ]  # fmt: skip
    text = _run(command, "tracing what `restrict init` imports")
    try:
        traced = json.loads(text)
    except ValueError:
        raise RestrictError(
            "this is not a Python interpreter.", hint=_ANOTHER, interpreter=str(python)
        ) from None
    if traced["implementation"] != "cpython" or tuple(traced["version"]) < (3, 11):
        raise RestrictError(
            f"it is {traced['implementation']} {'.'.join(map(str, traced['version']))}.",
            hint=_ANOTHER,
            interpreter=str(python),
        )
    if traced["failed"] is not None:
        name, missing, text = traced["failed"]
        raise RestrictError(
            f"it cannot import {missing or name}: {text}.",
            hint="`restrict init` needs this module; install it for this interpreter (Debian: "
            "libpython3-stdlib), or give another one with --python.",
            interpreter=str(python),
        )
    return Interpreter(traced, project)


def compile_all(python: str | Path, files: Mapping[str, Path]) -> dict[str, bytes]:
    """{name: byte code} by this interpreter, never checked against its source (PEP 552).

    The same bytes for the same sources: fixed hash seed, and names that do not depend on where
    the sources lie. Raises RestrictError for a source that does not compile.
    """
    request = [[name, str(path), f"{name}.py"] for name, path in sorted(files.items())]
    # Not -I: it would ignore PYTHONHASHSEED.
    command = [str(python), "-S", "-s", "-P", "-B", "-c", _COMPILE]
    answer = json.loads(_run(command, "compiling", data=json.dumps(request), seed=True))
    return {name: base64.b64decode(text) for name, text in answer.items()}


def make_zip(files: Mapping[str, bytes]) -> bytes:
    """A ZIP archive, stored and not compressed: equal files give equal bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data)
    return out.getvalue()
