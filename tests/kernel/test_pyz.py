# SPDX-License-Identifier: BSD-2-Clause
"""Self-running bundles on this machine: they load, attach, stay, pin, and say what went wrong.

tests/vm/test_bundle.py runs the very bytes of ``features_bundle`` on other kernels.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from binascii import crc32
from collections.abc import Iterator
from pathlib import Path

import pytest

import pybpf
from pybpf import kernel
from pybpf.kernel.link import Link
from pybpf.plan import ops
from pybpf.pyz import build, plan_of
from tests.kernel.bundles import FEATURES, features_bundle
from tests.kernel.helpers import SOCKET, live_names, mov, plan, prog, returns, settle
from tests.kernel.test_links import _two_links

pytestmark = pytest.mark.kernel


def command(path: Path, *words: str, python: str = sys.executable) -> list[str]:
    return [python, "-I", "-S", str(path), *words]


def run_it(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, *words), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pyz") / "features.pyz"
    path.write_bytes(features_bundle())
    print(f"SHA-256 of the bundle: {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return path


@pytest.fixture(autouse=True)
def no_pin() -> Iterator[None]:
    """features.bpf.o pins a map by name."""
    Path("/sys/fs/bpf/pinned").unlink(missing_ok=True)
    yield
    Path("/sys/fs/bpf/pinned").unlink(missing_ok=True)


def written(tmp_path: Path, the_plan: ops.Plan) -> Path:
    path = tmp_path / "made.pyz"
    path.write_bytes(build(pybpf.to_bytes(the_plan)))
    return path


def test_it_loads_everything_and_ends(features: Path) -> None:
    done = run_it(features, "--no-attach", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    the_plan = pybpf.from_bytes(plan_of(features.read_bytes()))
    assert set(found["programs"]) == set(the_plan.programs)
    assert set(found["maps"]) == set(the_plan.maps)
    assert len(set(found["programs"].values())) == len(the_plan.programs)
    assert found["links"] == {}
    gone = set(found["programs"].values())
    assert settle(lambda: not gone & set(kernel.program_ids()))


def test_it_imports_nothing_of_the_machines_pybpf(features: Path, tmp_path: Path) -> None:
    """Copied elsewhere, without a path to the project, nothing but the standard library's small
    modules is imported."""
    path = tmp_path / "elsewhere.pyz"
    path.write_bytes(features.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", str(path), "--no-attach"],
        cwd="/", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {
        "ctypes", "os", "struct", "re", "enum", "typing", "json", "signal", "collections",
        "contextlib", "functools", "runpy", "importlib.util", "elftools", "construct",
    }  # fmt: skip
    assert not names & heavy


def test_another_pythons_byte_code_is_left_alone(features: Path, tmp_path: Path) -> None:
    """With the magic number of another version the sources in the bundle are used."""
    from importlib.util import MAGIC_NUMBER

    data = features.read_bytes()
    at = data.index(repr(MAGIC_NUMBER).encode())
    other = repr(b"\1" * len(MAGIC_NUMBER)).encode().ljust(len(repr(MAGIC_NUMBER)))
    changed = data[:at] + other + data[at + len(repr(MAGIC_NUMBER)) :]
    path = tmp_path / "other.pyz"
    path.write_bytes(changed[:-11] + b"#=%08x\n" % crc32(changed[:-11]))
    done = run_it(path, "--no-attach")
    assert (done.returncode, done.stderr) == (0, "")
    assert "programs loaded" in done.stdout


def test_it_stays_until_told(prefix: str, tmp_path: Path) -> None:
    path = written(tmp_path, _two_links(prefix))
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command(path, "--json"), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        assert len(found["links"]) == 2
        for ident in found["links"].values():
            with Link.from_id(ident) as link:
                assert link.prog_id in found["programs"].values()
        assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=300)
        assert process.returncode == 0
        assert settle(lambda: not live_names(prefix))


def test_seconds(prefix: str, tmp_path: Path) -> None:
    path = written(tmp_path, _two_links(prefix))
    done = run_it(path, "--seconds", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 programs loaded, 2 attached" in done.stdout


def pinned(bpffs: Path) -> list[str]:
    """What is pinned, without the files that the kernel's own preloaded iterators are."""
    return sorted(entry.name for entry in bpffs.iterdir() if "." not in entry.name)


def test_pinned_links_stay_and_it_ends(prefix: str, tmp_path: Path, bpffs: Path) -> None:
    path = written(tmp_path, _two_links(prefix))
    done = run_it(path, "--pin", str(bpffs))
    assert (done.returncode, done.stderr) == (0, "")
    assert pinned(bpffs) == ["one", "two"]
    with Link.from_pin(str(bpffs / "one")) as link:
        assert link.type
    # The second time the names are taken: nothing of it is left, the first ones stay.
    again = run_it(path, "--pin", str(bpffs))
    assert again.returncode == 1
    assert "EEXIST" in again.stderr
    assert pinned(bpffs) == ["one", "two"]
    for name in pinned(bpffs):
        (bpffs / name).unlink()


def test_a_plan_that_pins_its_links_has_nothing_to_stay_for(
    prefix: str, tmp_path: Path, bpffs: Path
) -> None:
    made = _two_links(prefix)
    pins = tuple(
        ops.Pin(src=slot, path=f"{bpffs}/{name}") for name, slot in made.links.items()
    )  # fmt: skip
    pinning = ops.Plan(
        **{name: getattr(made, name) for name in ops.Plan.FIELDS if name != "attach"},
        attach=made.attach + pins,
    )
    done = run_it(written(tmp_path, pinning))
    assert (done.returncode, done.stderr) == (0, "")
    assert pinned(bpffs) == ["one", "two"]
    for name in pinned(bpffs):
        (bpffs / name).unlink()


def test_a_refusal_is_told_and_leaves_nothing(prefix: str, tmp_path: Path) -> None:
    path = written(tmp_path, plan(prog(0, f"{prefix}_p", mov(1, 0) + returns(0)[8:], SOCKET)))
    done = run_it(path, "--no-attach")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert f"program {prefix}_p" in done.stderr
    assert "R0 !read_ok" in done.stderr
    assert not live_names(prefix)


def test_a_bundle_for_another_kernel_is_refused(tmp_path: Path, prefix: str) -> None:
    """Relocations that were decided for one kernel are not run on another one."""
    here = os.uname()
    loads = prog(0, f"{prefix}_p", returns(0), SOCKET)
    same = ops.RequireKernel(release=here.release, version=here.version)
    assert run_it(written(tmp_path, plan(same, loads)), "--no-attach").returncode == 0
    for other in (("5.4.0-made-up", here.version), (here.release, "#1 SMP made up")):
        required = ops.RequireKernel(release=other[0], version=other[1])
        done = run_it(written(tmp_path, plan(required, loads)), "--no-attach")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"Linux {other[0]} ({other[1]})" in done.stderr
        assert here.release in done.stderr
    spec = pybpf.read(FEATURES)
    decided = pybpf.compile(spec, relocate="python")
    assert decided.ops[0] == same
    assert same not in pybpf.compile(spec).ops


def test_without_privileges(features: Path, tmp_path: Path) -> None:
    path = Path("/tmp") / f"pyz-{os.getpid()}.pyz"
    path.write_bytes(features.read_bytes())
    try:
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
             *command(path, "--no-attach", python="/usr/bin/python3")],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        path.unlink()
    assert done.returncode == 1
    assert "EPERM" in done.stderr
    assert "CAP_BPF" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_bundle(features: Path, tmp_path: Path, prefix: str) -> None:
    with pybpf.run_bundle(features) as live:
        assert len(live.programs) == len(live.plan.programs)
        assert not live.attached
    plain = tmp_path / "plain.plan"
    plain.write_bytes(pybpf.to_bytes(_two_links(prefix)))
    with pybpf.run_bundle(plain, attach=True) as live:
        assert set(live.links) == {"one", "two"}
