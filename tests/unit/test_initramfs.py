# SPDX-License-Identifier: BSD-2-Clause
"""restrict initramfs: format, start program, closures, errors; whole builds are in
test_initramfs_build.py, boots in tests/vm."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from restrict import initramfs, initramfs_elf, initramfs_python
from restrict.errors import ConfigError, RestrictError
from restrict.initramfs_cpio import Entry, archive
from restrict.initramfs_launcher import EM_AARCH64, EM_X86_64, launcher
from restrict.initramfs_modules import Modules
from tests.unit.elfwriter import ElfWriter
from tests.unit.initramfs_util import unpack

ROOT = Path(__file__).resolve().parents[2]
ON_X86_64 = os.uname().machine == "x86_64"


# ── cpio ──


def test_archive_holds_what_was_put_in() -> None:
    raw = archive(
        [
            Entry.file("b/c/data", b"12345", 0o755),
            Entry.symlink("init", "b/c/data"),
            Entry.character_device("dev/console", 5, 1),
        ]
    )
    assert len(raw) % 512 == 0
    found = unpack(raw)
    assert list(found) == ["b", "b/c", "b/c/data", "dev", "dev/console", "init"]
    assert found["b/c/data"] == (stat.S_IFREG | 0o755, b"12345", (0, 0), 0)
    assert found["init"] == (stat.S_IFLNK | 0o777, b"b/c/data", (0, 0), 0)
    assert found["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1), 0)
    assert found["b/c"][0] == stat.S_IFDIR | 0o755


def test_archive_is_in_one_order_whatever_was_given() -> None:
    entries = [Entry.file(name, name.encode()) for name in ("a/b", "a.b", "a/c/d", "z")]
    assert archive(entries) == archive(reversed(entries))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio(1) is not installed")
def test_cpio_reads_it() -> None:
    raw = archive([Entry.file("folder/file", b"text\n"), Entry.symlink("link", "folder/file")])
    done = subprocess.run(["cpio", "-t", "--quiet"], input=raw, capture_output=True, check=True)
    assert done.stdout.split() == [b"folder", b"folder/file", b"link"]
    assert done.stderr == b""


@pytest.mark.parametrize("name", ["/absolute", "a/../b", "a//b", "./a", "", "a\0b"])
def test_no_odd_names(name: str) -> None:
    with pytest.raises(RestrictError, match="no plain name"):
        archive([Entry.file(name, b"")])


def test_no_file_twice_or_below_a_file() -> None:
    with pytest.raises(RestrictError, match="twice"):
        archive([Entry.file("a", b""), Entry.file("a", b"")])
    with pytest.raises(RestrictError, match="a is no directory"):
        archive([Entry.file("a", b""), Entry.file("a/b", b"")])


# ── the start program ──


@pytest.mark.skipif(not ON_X86_64, reason="runs x86-64 code")
@pytest.mark.parametrize("count", [2, 3, 9])
def test_launcher_executes_its_words_and_passes_arguments_on(tmp_path: Path, count: int) -> None:
    shown = 'for word; do echo "$word"; done; env'
    words = ["/bin/sh", "-c", shown, *(f"word {i}" for i in range(count))]
    path = tmp_path / "start"
    path.write_bytes(launcher(EM_X86_64, words))
    path.chmod(0o755)
    done = subprocess.run([path, "one", "two 2"], capture_output=True, text=True, env={"KEY": "v"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[: count + 1] == [*(f"word {i}" for i in range(1, count)), "one", "two 2"]
    assert "KEY=v" in lines


@pytest.mark.skipif(not ON_X86_64, reason="runs x86-64 code")
def test_launcher_says_what_it_could_not_execute(tmp_path: Path) -> None:
    path = tmp_path / "start"
    path.write_bytes(launcher(EM_X86_64, ["/nowhere/ld.so", "program"]))
    path.chmod(0o755)
    done = subprocess.run([path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        127, "restrict: /nowhere/ld.so cannot be executed\n",
    )  # fmt: skip


def test_launcher_for_aarch64() -> None:
    """The words of the code, as an assembler of LLVM gives them for the same instructions."""
    raw = launcher(EM_AARCH64, ["/lib/ld", "--library-path", "/usr/lib", "/usr/bin/python3"])
    entry = struct.unpack_from("<Q", raw, 24)[0] - 0x400000
    code = struct.unpack_from("<23I", raw, entry)
    assert code[:4] == (0xF94003E3, 0x8B236FE2, 0x91004042, 0x910043E1)
    assert code[5:12:2] == (0xF81F8C20,) * 4
    assert code[12:14] == (0xD2801BA8, 0xD4000001)
    # adr x0, word: each reaches its string
    for index, word in zip((10, 8, 6, 4), (b"/lib/ld", b"--lib", b"/usr/lib", b"/usr/bin"),
                           strict=True):  # fmt: skip
        value = code[index]
        offset = (value >> 5 & 0x7FFFF) << 2 | value >> 29 & 3
        assert raw[entry + 4 * index + offset :].startswith(word)


def test_launcher_for_no_other_machine() -> None:
    with pytest.raises(RestrictError, match="machine 243"):
        launcher(243, ["a", "b"])


# ── ELF ──


def test_libraries_are_those_that_the_loader_finds() -> None:
    """Held against ld.so --list, which runs the real search (for a program we trust)."""
    binary = initramfs_elf.read(os.path.realpath(sys.executable))
    found = initramfs_elf.libraries(binary)
    done = subprocess.run(
        [binary.loader, "--list", str(binary.path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("this loader has no --list")
    listed = {
        words[0]: os.path.realpath(words[2])
        for words in map(str.split, done.stdout.splitlines())
        if len(words) > 2 and words[1] == "=>"
    }
    assert {name: os.path.realpath(path) for name, path in found.items()} == listed


def test_stripped_file_still_runs(tmp_path: Path) -> None:
    source = os.path.realpath(shutil.which("true") or "/bin/true")
    data = initramfs_elf.loadable(source)
    assert len(data) < os.path.getsize(source)
    path = tmp_path / "true"
    path.write_bytes(data)
    path.chmod(0o755)
    assert subprocess.run([path]).returncode == 0


def test_damaged_elf_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with pytest.raises(RestrictError, match="not an ELF file"):
        initramfs_elf.read(path)
    with pytest.raises(RestrictError, match="little-endian 64-bit"):
        initramfs_elf.loadable(path)
    path.write_bytes(Path("/proc/self/exe").read_bytes()[:5000])
    with pytest.raises(RestrictError, match="cut off"):
        initramfs_elf.loadable(path)
    with pytest.raises(RestrictError, match="cannot be read: No such file"):
        initramfs_elf.read(tmp_path / "nothing")


# ── modules ──


def _module(path: Path, *info: str) -> bytes:
    writer = ElfWriter(machine=62)
    writer.section(".modinfo", b"".join(item.encode() + b"\0" for item in info))
    data = writer.build()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".xz":
        data = lzma.compress(data)
    elif path.suffix == ".gz":
        data = gzip.compress(data)
    path.write_bytes(data)
    return data


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    kernel = tmp_path / "kernel"
    _module(kernel / "md/dm-verity.ko.xz", "depends=dm-mod,dm-bufio", "parm=keyring_unsealed:x")
    _module(kernel / "md/dm-mod.ko.gz", "depends=")
    _module(kernel / "md/dm-bufio.ko", "depends=dm-mod")
    _module(kernel / "fs/erofs.ko", "depends=", "softdep=pre: crc32c missing post: other")
    _module(kernel / "lib/crc32c.ko", "depends=")
    (tmp_path / "modules.builtin").write_text("kernel/fs/squashfs.ko\n")
    return tmp_path


def test_dependencies_come_first(tree: Path) -> None:
    found = Modules(tree).closure(["dm-verity a=1 b=2", "erofs"])
    assert [m.name for m in found] == ["dm_mod", "dm_bufio", "dm_verity", "crc32c", "erofs"]
    assert [m.parameters for m in found] == ["", "", "a=1 b=2", "", ""]
    assert all(m.data[:4] == b"\x7fELF" for m in found)


def test_modules_dep_is_believed_where_it_is(tree: Path) -> None:
    (tree / "modules.dep").write_text(
        "kernel/md/dm-verity.ko.xz: kernel/md/dm-bufio.ko kernel/lib/crc32c.ko kernel/md/dm-mod.ko"
        "\nkernel/md/dm-bufio.ko: kernel/md/dm-mod.ko\nkernel/md/dm-mod.ko.gz:\n"
    )
    found = Modules(tree).closure(["dm_verity"])
    assert [m.name for m in found] == ["dm_mod", "crc32c", "dm_bufio", "dm_verity"]


def test_modules_that_are_not_there(tree: Path) -> None:
    modules = Modules(tree)
    with pytest.raises(ConfigError, match="no module virtio_blk"):
        modules.closure(["virtio-blk"])
    (tree / "kernel/md/dm-mod.ko.gz").unlink()
    with pytest.raises(ConfigError, match=r"no module dm_mod, which dm_verity needs"):
        Modules(tree).closure(["dm_verity"])
    with pytest.raises(ConfigError, match="given twice"):
        modules.closure(["erofs", "erofs"])
    with pytest.raises(RestrictError, match="no such folder"):
        Modules("no-such-version")
    empty = tree / "empty"
    empty.mkdir()
    with pytest.raises(RestrictError, match="no kernel module"):
        Modules(empty)


def test_builtin_modules_need_no_file(tree: Path) -> None:
    modules = Modules(tree)
    assert modules.builtin("squashfs")
    assert modules.closure(["squashfs"]) == []
    with pytest.raises(ConfigError, match=r"squashfs\.a=1"):
        modules.closure(["squashfs a=1"])


@pytest.mark.parametrize(("suffix", "word"), [(".ko.xz", "decompressed"), (".ko", "no kernel")])
def test_damaged_modules(tree: Path, suffix: str, word: str) -> None:
    (tree / f"kernel/broken{suffix}").write_bytes(b"garbage" * 100)
    with pytest.raises(RestrictError, match=word):
        Modules(tree).closure(["broken"])


# ── what is imported ──


def test_closure_takes_imports_in_functions_but_none_for_types(tmp_path: Path) -> None:
    package = tmp_path / "restrict"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(
        "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from restrict import c\n    import decimal\n"
        "def f():\n    from restrict import b\n    import zlib\n"
    )
    (package / "b.py").write_text("import os\nfrom pybpf.compiler import nothing\n")
    (package / "c.py").write_text("")
    files, others = initramfs_python.closure(["restrict.a"], tmp_path)
    assert list(files) == ["restrict/__init__", "restrict/a", "restrict/b"]
    assert others == ["os", "zlib"]
    with pytest.raises(RestrictError, match=r"no module restrict\.nothing"):
        initramfs_python.closure(["restrict.nothing"], tmp_path)


def test_boot_needs_little() -> None:
    """No heavy module of the library and none of the compiler is carried along."""
    files, others = initramfs_python.closure(["restrict.init", "restrict.initramfs_start"], ROOT)
    assert not [f for f in files if f.startswith(("pybpf/compiler", "pybpf/elf", "pybpf/reloc"))]
    found = initramfs_python.inspect_interpreter(sys.executable, ROOT, files, others)
    assert {name.partition("/")[0] for name in found.sources} <= {
        "encodings", "__future__", "types", "struct", "ctypes", "codecs", "os", "stat",
        "posixpath", "genericpath", "_collections_abc", "io", "abc", "importlib", "zipimport",
        "bisect", "collections", "keyword", "operator", "reprlib", "weakref",  # by pybpf.btf and
        "_weakrefset",  # pybpf.sys.mapped, on demand
    }  # fmt: skip


def test_codecs_are_imported_too(tmp_path: Path) -> None:
    """They are looked up when they are used, which no import statement shows."""
    package = tmp_path / "restrict"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f(x):\n    return x.decode('utf-16-le'), x.encode('no')\n")
    files, others = initramfs_python.closure(["restrict.a"], tmp_path)
    found = initramfs_python.inspect_interpreter(sys.executable, tmp_path, files, others)
    assert {"encodings/utf_8", "encodings/ascii", "encodings/utf_16_le"} <= set(found.sources)
    assert "encodings/cp1252" not in found.sources


def test_interpreters_that_do_not_do(tmp_path: Path) -> None:
    files, others = initramfs_python.closure(["restrict.init"], ROOT)

    def inspect(path: str | Path) -> None:
        initramfs_python.inspect_interpreter(path, ROOT, files, others)

    with pytest.raises(RestrictError, match="cannot be started: No such file"):
        inspect(tmp_path / "none")
    with pytest.raises(RestrictError, match="not a Python interpreter"):
        inspect("/bin/true")
    with pytest.raises(RestrictError, match="failed"):
        inspect("/bin/false")
    # One without an extension module: -I, but the search for it is cut off.
    lame = tmp_path / "lame"
    lame.write_text(
        f"#!/bin/sh\nshift 3\nshift\ncode=\"import sys; sys.modules['_ctypes'] = None\n$1\"\n"
        f'shift\nexec {sys.executable} -I -S -B -c "$code" "$@"\n'
    )
    lame.chmod(0o755)
    with pytest.raises(RestrictError, match=r"cannot import _ctypes.*libpython3-stdlib"):
        inspect(lame)


def test_plain_prefixes_only() -> None:
    for prefix in ("", "/restrict", "a/../b", "a b", "a'"):
        with pytest.raises(ConfigError, match="prefix"):
            initramfs.build(prefix=prefix)
