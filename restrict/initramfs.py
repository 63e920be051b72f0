# SPDX-License-Identifier: BSD-2-Clause
"""Building an initramfs, or a segment to put before one, from which ``restrict`` runs as PID 1.

    /restrict/init              a static program that starts the interpreter (rdinit=/restrict/init)
    /restrict/open              another, for a generator: makes the signed root's device
    /restrict/start.py          calls restrict.initramfs_start with the start program's words
    /restrict/bin/python3       the interpreter, its loader and libraries in /restrict/lib
    /restrict/lib/python3NN.zip what it needs of the standard library, as byte code
    /restrict/lib/restrict.pyz  what it needs of restrict and pybpf
    /restrict/etc               configuration, frozen policy, certificates, signature
    /restrict/modules           kernel modules, uncompressed
    /init, /dev/console         in a whole initramfs only

Everything is below one folder, so nothing collides with the files of another generator, whose libc
may be another one. The same inputs give the same bytes, wherever and by whomever it is built.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from restrict import initramfs_elf, initramfs_python
from restrict.errors import ConfigError, RestrictError
from restrict.files import inside, replace
from restrict.initramfs_cpio import Entry, archive
from restrict.initramfs_launcher import launcher
from restrict.initramfs_modules import Module
from restrict.initramfs_settings import Settings, modules_for, needs_certificate
from restrict.policy import default_plan

__all__ = [
    "PREFIX", "Built", "Runtime", "build", "build_successor", "compress", "kind_of", "runtime",
    "write", "write_tree",
]  # fmt: skip

PREFIX = "restrict"
_THEN = "/init"
_SUFFIXES = {".cpio": "", ".xz": "xz", ".zst": "zstd", ".img": ""}

_START = """\
# Started by /{prefix}/init. The interpreter is isolated (-I -S): this archive is all it is given.
import sys

sys.path.insert(0, "/{prefix}/lib/restrict.pyz")
from restrict.initramfs_start import command

sys.exit(command("/{prefix}", sys.argv[1:]))
"""
# The archive by itself: python3 -I -S restrict.pyz VERB …
_MAIN = b"""\
import sys
from restrict.initramfs_start import command
sys.exit(command(sys.path[0].rpartition("/lib/")[0], sys.argv[1:]))
"""
# Run with the trimmed tree on the building machine: all imports must come from it.
_CHECK = """
import sys
sys.path.insert(0, sys.argv[1] + "/lib/restrict.pyz")
for name in sys.argv[2].split(","):
    __import__(name)
for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None)
    spec = getattr(module, "__spec__", None)
    frozen = spec is not None and spec.origin == "frozen"
    if file and not frozen and not file.startswith(sys.argv[1] + "/"):
        sys.exit(name + " was taken from " + file)
print("ok", len(sys.modules))
"""


class Runtime:
    """The interpreter with its library and ours: what is the same in every image.

    entries: files below the prefix. start: the words that start the interpreter. machine: its
    e_machine. version: its version. names: modules in restrict.pyz.
    """

    __slots__ = ("entries", "machine", "names", "start", "version")

    def __init__(
        self, entries: list[Entry], start: list[str], machine: int, version: str, names: list[str]
    ) -> None:
        self.entries = entries
        self.start = start
        self.machine = machine
        self.version = version
        self.names = names


class Built:
    """An image: its bytes, uncompressed, and what is in it."""

    __slots__ = ("data", "entries", "modules", "runtime")

    def __init__(
        self, data: bytes, entries: list[Entry], modules: list[Module], runtime: Runtime
    ) -> None:
        self.data = data
        self.entries = entries
        self.modules = modules
        self.runtime = runtime


def _project() -> Path:
    return Path(__file__).resolve().parent.parent


# ── the interpreter ──


def runtime(python: str | Path | None = None, *, prefix: str = PREFIX) -> Runtime:
    """The interpreter ``python`` (default: the one this runs in), traced and trimmed.

    It is run once, from a temporary folder, to see that nothing is missing; so it must be for this
    machine. prefix: folder of the image, without a leading slash.
    Raises RestrictError: no such interpreter, too old, a module or a library is missing.
    """
    _plain_prefix(prefix)
    asked = str(python) if python is not None else sys.executable
    project = _project()
    ours, others = initramfs_python.closure(["restrict.init", "restrict.initramfs_start"], project)
    found = initramfs_python.inspect_interpreter(asked, project, ours, others)
    # A virtual environment's python is a link or a copy: what counts is the one behind it.
    program = initramfs_elf.read(found.executable)
    if not program.loader:
        raise RestrictError(
            "it is statically linked, so it cannot load ctypes.", interpreter=str(found.executable)
        )
    libraries = initramfs_elf.libraries(program, map(initramfs_elf.read, found.extensions))
    code = initramfs_python.compile_all(asked, {**found.sources, **ours})
    library = {f"{name}.pyc": code[name] for name in found.sources}
    product = {f"{name}.pyc": code[name] for name in ours}
    product["__main__.py"] = _MAIN
    loader = os.path.basename(program.loader)
    entries = [
        Entry.file(f"{prefix}/bin/python3", initramfs_elf.loadable(found.executable), 0o755),
        Entry.file(f"{prefix}/lib/{loader}", initramfs_elf.loadable(program.loader), 0o755),
        Entry.file(
            f"{prefix}/{found.platlibdir}/{found.archive_name}", initramfs_python.make_zip(library)
        ),
        Entry.file(f"{prefix}/lib/restrict.pyz", initramfs_python.make_zip(product)),
    ]
    for name, path in libraries.items():
        entries.append(Entry.file(f"{prefix}/lib/{name}", initramfs_elf.loadable(path), 0o755))
    dynload = f"{prefix}/{found.platlibdir}/{found.folder_name}/lib-dynload"
    entries.append(Entry.directory(dynload))  # sys.exec_prefix is found by this folder
    for path in found.extensions:
        entries.append(Entry.file(f"{dynload}/{path.name}", initramfs_elf.loadable(path), 0o755))
    start = [
        f"/{prefix}/lib/{loader}", "--library-path", f"/{prefix}/lib", f"/{prefix}/bin/python3",
        "-I", "-S", "-B",
    ]  # fmt: skip
    result = Runtime(
        entries, start, program.machine, ".".join(map(str, found.version)),
        sorted(name.replace("/", ".").removesuffix(".__init__") for name in ours),
    )  # fmt: skip
    _check(result, prefix)
    return result


def _plain_prefix(prefix: str) -> None:
    if not prefix or prefix != os.path.normpath(prefix) or prefix.startswith(("/", ".")):
        raise ConfigError(f"the prefix {prefix!r} is not a plain folder, without a leading slash.")
    if not prefix.isascii() or any(c.isspace() or c in "\"'\\{}" for c in prefix):
        raise ConfigError(f"the prefix {prefix!r} has characters that a path here may not have.")


def _check(result: Runtime, prefix: str) -> None:
    with tempfile.TemporaryDirectory(prefix="restrict-initramfs-") as name:
        for entry in result.entries:
            path = Path(name, entry.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISDIR(entry.mode):
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(entry.data)
                path.chmod(entry.mode & 0o777)
        words = [f"{name}{word}" if word.startswith("/") else word for word in result.start]
        done = subprocess.run(
            [*words, "-c", _CHECK, f"{name}/{prefix}", ",".join(result.names)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env={}, cwd="/",
        )  # fmt: skip
    if done.returncode or not done.stdout.startswith("ok "):
        said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise RestrictError(
            f"the trimmed interpreter does not run by itself: {said[0]}.",
            hint="Give another interpreter with --python.",
        )


# ── the whole ──


def build(
    *,
    standalone: bool = False,
    configuration: str | Path | None = None,
    modules_from: str | Path | None = None,
    modules: Sequence[str] = (),
    certificates: Sequence[str | Path] = (),
    signature: str | Path | None = None,
    plan: str | Path | None = None,
    audit: bool = False,
    then: str = _THEN,
    python: str | Path | None = None,
    prefix: str = PREFIX,
    made: Runtime | None = None,
) -> Built:
    """Put an initramfs together; no file is written.

    standalone: a whole one, whose PID 1 boots the signed root that ``configuration`` (as of
    restrict.config) describes. Without it a segment: PID 1 enforces, then executes ``then`` of the
    initramfs it is put before; with a configuration, that one finds /restrict/open, which makes
    the root's device. modules: ``NAME [PARAMETER=VALUE …]`` beside those of the
    configuration, from ``modules_from`` (a folder, or a version of /lib/modules). certificates:
    DER. plan: the frozen policy (default: restrict's own). audit: without a
    configuration, whose ``mode`` says it otherwise. made: a ``runtime`` made before.

    Raises ConfigError and RestrictError, which name the file.
    """
    _plain_prefix(prefix)
    _plain_program(then)
    if standalone and then != _THEN:
        raise ConfigError(
            f"a whole initramfs executes no {then}: the configuration's init is what follows.",
            hint="Leave --then out, or --standalone.",
        )
    settings = Settings(prefix)
    if configuration is not None:
        if audit:
            raise ConfigError("the configuration says the mode: `mode = audit`.")
        settings.take_over(configuration, signature=signature, plan=plan, standalone=standalone)
    elif standalone:
        raise ConfigError(
            "a whole initramfs needs a configuration: what to boot.",
            hint="Add --config FILE; `restrict init --help` lists what can be in it.",
        )
    elif signature is not None:
        raise ConfigError(
            "a signature is of a root that a configuration describes.", hint="Add --config FILE."
        )
    else:
        settings.lines += [f"mode = {'audit' if audit else 'exec'}", "init = /sbin/init"]
        settings.policy("plan", plan or default_plan("fsaccess"))
    for path in certificates:
        settings.certificate(path)
    loaded = modules_for(modules_from, modules, settings)
    if needs_certificate(loaded) and not settings.certificates:
        raise ConfigError(
            "there is no certificate, and this kernel's dm-verity trusts only those that "
            "restrict puts into its keyring: no signed root could be opened.",
            hint="Add --certificate FILE (DER), or `certificate = FILE` to the configuration.",
        )
    text = settings.text(loaded)
    entries = [*settings.entries, Entry.file(f"{prefix}/etc/init.conf", text)]
    if standalone:
        # The kernel opens it before PID 1 runs: without it PID 1 has no standard streams.
        entries.append(Entry.character_device("dev/console", 5, 1))
        entries.append(Entry.symlink("init", f"{prefix}/init"))
    starts = {"init": ["init"] if standalone else ["first", then]}
    if not standalone and configuration is not None:
        starts["open"] = ["open"]
    return _finish(entries, loaded, starts, made or runtime(python, prefix=prefix), prefix)


def build_successor(
    then: str = "/sbin/init",
    *,
    events: bool = False,
    plan: str | Path | None = None,
    python: str | Path | None = None,
    prefix: str = "usr/lib/restrict",
    made: Runtime | None = None,
) -> Built:
    """What goes onto the verified root: ``init=/PREFIX/init`` takes the policy over there, closes
    the trust in the initramfs and executes ``then``.

    events: leave a process that serves ``restrict events``. plan: must be that of the initramfs.
    Raises ConfigError and RestrictError.
    """
    _plain_prefix(prefix)
    _plain_program(then)
    settings = Settings(prefix)
    settings.policy("plan", plan or default_plan("fsaccess"))
    settings.policy("pins_plan", default_plan("pins"))
    carried = made or runtime(python, prefix=prefix)
    verb = ["resume", *(["--events"] if events else []), then]
    return _finish(settings.entries, [], {"init": verb}, carried, prefix)


def _finish(
    entries: list[Entry],
    modules: list[Module],
    starts: dict[str, list[str]],
    carried: Runtime,
    prefix: str,
) -> Built:
    entries = [*entries, *carried.entries]
    entries.append(Entry.file(f"{prefix}/start.py", _START.format(prefix=prefix).encode()))
    for name, verb in starts.items():
        words = [*carried.start, f"/{prefix}/start.py", *verb]
        entries.append(Entry.file(f"{prefix}/{name}", launcher(carried.machine, words), 0o755))
    return Built(archive(entries), entries, modules, carried)


def _plain_program(path: str) -> None:
    if not path.startswith("/") or any(c.isspace() for c in path):
        raise ConfigError(f"the program {path!r} is not an absolute path without blanks.")


# ── the file ──


def compress(data: bytes, kind: str) -> bytes:
    """``data`` as "" (as it is), "xz" or "zstd", in the form that the kernel can undo.

    The kernel's xz knows no check but CRC32 (lib/xz). Raises RestrictError where zstd(1) is not
    there or fails.
    """
    if kind == "":
        return data
    if kind == "xz":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)
    try:
        done = subprocess.run(
            ["zstd", "-q", "-19", "--single-thread", "-c"], input=data, capture_output=True
        )
    except OSError as e:
        raise RestrictError(
            f"the program zstd cannot be started: {e.strerror}.",
            hint="Install the package zstd, or end the file's name in .xz.",
        ) from None
    if done.returncode:
        raise RestrictError(f"zstd failed: {done.stderr.decode('utf-8', 'replace').strip()}")
    # Zeros up to a multiple of four, so that an uncompressed archive may follow.
    return done.stdout + bytes(-len(done.stdout) % 4)


def kind_of(path: str | Path) -> str:
    """How a file of this name is compressed: "", "xz" or "zstd". Raises ConfigError."""
    suffix = Path(path).suffix
    if suffix not in _SUFFIXES:
        raise ConfigError(
            f"its name ends in {suffix or 'nothing'}, so it is not clear how to compress it.",
            hint=f"End it in one of {', '.join(_SUFFIXES)}.",
            file=str(path),
        )
    return _SUFFIXES[suffix]


def write(path: str | Path, built: Built) -> int:
    """Write the image to a file, compressed as its name says (.cpio, .img, .xz, .zst).

    The file is complete or not there. Gives its size in bytes. Raises RestrictError, KernelError.
    """
    data = compress(built.data, kind_of(path))
    replace(path, data)  # an initramfs has no secrets, so the umask decides
    return len(data)


def write_tree(folder: str | Path, built: Built, prefix: str) -> int:
    """Write what is below ``prefix`` into a folder that will be packed by somebody else: the tree
    of another generator, or of a root filesystem. Gives the bytes of all files.

    The folder /PREFIX is complete or not there; one that is there already is replaced only if an
    image of ours is in it. Raises RestrictError, also where ``folder`` is not there, or a link in
    it leads out of it.
    """
    if any(not entry.name.startswith(prefix + "/") for entry in built.entries):
        raise ConfigError("a whole initramfs is no part of another tree.", folder=str(folder))
    target = inside(folder, prefix)
    scratch = ""
    try:
        if target.is_symlink() or (target.exists() and not (target / "start.py").is_file()):
            raise RestrictError(
                "it is there already, and not made by `restrict initramfs`.", folder=str(target)
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)
        for entry in built.entries:
            path = Path(scratch, entry.name.removeprefix(prefix + "/"))
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if stat.S_ISDIR(entry.mode):
                path.mkdir(exist_ok=True)
                continue
            path.write_bytes(entry.data)
            path.chmod(entry.mode & 0o777)
        for path in [Path(scratch), *Path(scratch).rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.rename(scratch, target)
    except BaseException as e:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(e, OSError):
            raise RestrictError(
                f"the tree cannot be written: {e.strerror}.", folder=str(target)
            ) from None
        raise
    return sum(len(entry.data) for entry in built.entries)
