# SPDX-License-Identifier: BSD-2-Clause
"""Self-running bundles: their bytes, and that no damaged one gets through."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zlib
from binascii import a2b_base64, crc32
from pathlib import Path
from typing import Any

import pytest

from pybpf import bundle
from pybpf.errors import FormatError
from pybpf.plan import format as declared
from pybpf.plan import frozen
from pybpf.pyz import build, container, is_container, merge, plan_of
from tests.unit.test_frozen import DATA, sample

TREE = Path(__file__).parent.parent.parent
HEAVY = {
    "argparse", "collections.abc", "construct", "contextlib", "ctypes", "dataclasses", "elftools",
    "enum", "json", "re", "signal", "subprocess", "typing",
}  # fmt: skip


@pytest.fixture(scope="module")
def pyz() -> bytes:
    return build(DATA)


def run_it(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(path), *words], capture_output=True, text=True, timeout=300
    )


def unpacked(section: Any) -> bytes:
    text = b"".join([section.packed, *(line.packed for line in section.more)])
    return zlib.decompress(a2b_base64(text.replace(b"!", b"J").replace(b"~", b"M")))


def sealed(data: bytes) -> bytes:
    """``data`` with the check sum that it ought to have."""
    return data[:-11] + b"#=%08x\n" % crc32(data[:-11])


def test_the_plan_comes_out_as_it_went_in(pyz: bytes, tmp_path: Path) -> None:
    assert plan_of(pyz) == DATA
    path = tmp_path / "a.pyz"
    path.write_bytes(pyz)
    assert bundle.read(path) == frozen.from_bytes(DATA)
    assert is_container(pyz[:40])
    assert not is_container(DATA[:40])


def test_same_bytes_whatever_the_process(pyz: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(DATA)
    code = (
        f"import sys; sys.path[:0] = {[str(TREE), *sys.path]!r}\n"
        "import re, json, typing, http.client, pybpf.compiler, pybpf.plan.run\n"  # other state
        "from pybpf.pyz import build; build(open('plan', 'rb').read())\n"
        "sys.stdout.buffer.write(build(open('plan', 'rb').read()))"
    )
    for seed, mask in (("1", 0o77), ("2", 0)):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed}, umask=mask,
        )  # fmt: skip
        assert done.stdout == pyz


def test_construct_agrees(pyz: bytes) -> None:
    found = declared.SELF_RUNNING.parse(pyz)
    assert int(found.version) == container.VERSION
    assert unpacked(found.plan) == DATA
    assert [unpacked(found[name]) for name in ("source", "source_on_demand")] == [
        *merge.merge(sample()).sources()
    ]
    assert int(found.crc.hex, 16) == crc32(pyz[:-11])
    source = b"\n".join(found.stub).decode("latin-1")
    assert len(ast.parse(source).body) == 1
    assert not set("JM") & set(found.code.packed.decode())


@pytest.mark.parametrize("length", range(7))
def test_the_stub_finds_the_plan_whatever_its_length(length: int, tmp_path: Path) -> None:
    """Sections of every length modulo that of base64's groups."""
    path = tmp_path / "a.pyz"
    path.write_bytes(build(frozen.to_bytes(sample(name="n" * length, ops=(), attach=(), links={}))))
    done = run_it(path, "--no-attach")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_truncation_is_refused(pyz: bytes) -> None:
    start = pyz.index(b"\n#c")
    for length in (*range(start), *range(start, len(pyz), 97), len(pyz) - 1):
        with pytest.raises(FormatError):
            plan_of(pyz[:length])
    with pytest.raises(FormatError, match="damaged"):
        plan_of(pyz + b"\n")


def test_every_changed_byte_is_refused(pyz: bytes) -> None:
    """The head, the stub and the Plan wholly, the executor in samples (a CRC has no blind spot
    for a byte)."""
    start = pyz.index(b"\n#c")
    for at in (*range(start), *range(start, len(pyz), 97), *range(len(pyz) - 10, len(pyz))):
        changed = bytearray(pyz)
        changed[at] ^= 1 << at % 8
        with pytest.raises(FormatError):
            plan_of(bytes(changed))


def test_a_damaged_file_says_so_when_it_is_run(pyz: bytes, tmp_path: Path) -> None:
    """Behind the stub every damage is told in our words; in it Python itself may be the one that
    refuses. Nothing ever ends with status 0."""
    path = tmp_path / "damaged.pyz"
    stub = pyz.index(b"\n#P") + 1
    damaged = [(at, mask) for at in range(stub + 2, len(pyz), len(pyz) // 8) for mask in (64, 128)]
    damaged += [(at, 1) for at in range(16, stub, stub // 24)] + [(len(pyz) - 2, 32)]
    for at, mask in damaged:
        changed = bytearray(pyz)
        changed[at] ^= mask
        path.write_bytes(changed)
        done = run_it(path, "--no-attach")
        assert done.returncode == 1, at
        assert at < stub or "the bundle is damaged or cut short" in done.stderr, (at, done.stderr)
    for length in (40, stub // 2, stub - 3, stub + 1, len(pyz) // 2, len(pyz) - 1):
        path.write_bytes(pyz[:length])
        done = run_it(path, "--no-attach")
        assert done.returncode == 1 or length < stub - 120, length
        assert length <= stub or "Traceback" not in done.stderr


def test_later_versions_are_refused(pyz: bytes, tmp_path: Path) -> None:
    later = sealed(pyz.replace(b"#pybpf bundle 1 ", b"#pybpf bundle 9 ", 1))
    with pytest.raises(FormatError, match="version 9"):
        plan_of(later)
    newer = bytearray(DATA)
    newer[8] = 7
    packed = container._packed(b"P", bytes(newer))
    start, end = pyz.index(b"\n#P") + 1, pyz.index(b"\n#c") + 1
    changed = pyz[:start] + packed + pyz[end:]
    # The stub says where sections begin, from the end of the file.
    changed = changed.replace(b"o=(-%d," % (len(pyz) - start - 2),
                              b"o=(-%d," % (len(changed) - start - 2), 1)  # fmt: skip
    path = tmp_path / "newer.pyz"
    path.write_bytes(sealed(changed))
    done = run_it(path, "--no-attach")
    assert done.returncode == 1
    assert "version 7" in done.stderr
    with pytest.raises(FormatError, match="version 7"):
        bundle.read(path)


def test_usage(pyz: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pyz"
    path.write_bytes(pyz)
    done = run_it(path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--no-attach" in done.stdout
    for words in (["--nonsense"], ["--seconds"], ["--seconds", "x"], ["--seconds=nan"], ["more"],
                  ["--json=1"], ["--pin", "/x", "--no-attach"]):  # fmt: skip
        done = run_it(path, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1


def test_the_executor_is_the_rooms_and_nothing_heavy() -> None:
    """What travels is the rooms' own code without what is for readers, and imports nothing that
    the executor must not."""
    merged = merge.merge()
    names = {name for name, _, _ in merged.first} | {name for name, _ in merged.later}
    assert {"pybpf.plan.run", "pybpf.plan.attach", "pybpf.errors", "pybpf.sys.bpf"} <= names
    assert all(name.startswith(("pybpf.", "pybpf")) for name in names)
    trees = [tree for _, _, tree in merged.first] + [tree for _, tree in merged.later]
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                assert ast.get_docstring(node) is None
            if isinstance(node, ast.FunctionDef):
                assert node.returns is None
    for name, tree in [(n, t) for n, _, t in merged.first]:
        found = {
            module
            for node in merge._statements(tree, nested=False)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for module in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
        }
        assert not found & HEAVY, name


def test_bundle_command(tmp_path: Path) -> None:
    from pybpf.cli import main

    out = tmp_path / "features.pyz"
    assert main(["bundle", str(TREE / "tests/objects/features.bpf.o"), "-o", str(out)]) == 0
    assert bundle.read(out).programs
    assert out.stat().st_mode & 0o777 == 0o644
