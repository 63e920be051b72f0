# SPDX-License-Identifier: BSD-2-Clause
"""Objects of our own and of the corpus, loaded into the running kernel."""

from __future__ import annotations

import gc
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pybpf
from pybpf.btf.consts import KIND_INT
from pybpf.btf.model import Btf
from pybpf.cli import main
from pybpf.compiler import Target, compile, compile_alternatives
from pybpf.elf import read
from pybpf.plan.frozen import from_bytes, to_bytes
from pybpf.plan.run import run
from tests.kernel.helpers import fds_to_begin_with, live_names, open_fds, settle
from tests.kernel.relocations import compare
from tests.unit.test_elf_damaged import changed, magic
from tools.corpus_compare import compare as compare_corpus
from tools.corpus_compare import find_corpus, host_matches

OBJECTS = Path(__file__).parent.parent / "objects"
FEATURES = OBJECTS / "features.bpf.o"

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(sys.byteorder != "little", reason="the objects are little-endian"),
]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, no fd and no map of ours survives it."""
    before = fds_to_begin_with()
    others = set(live_names("features"))  # of somebody else
    yield
    gc.collect()
    assert settle(lambda: open_fds() == before), f"fds left: {open_fds() ^ before}"
    assert settle(lambda: set(live_names("features")) <= others), live_names("features")


def load(spec: object = FEATURES, **more: object) -> pybpf.Object:
    if isinstance(spec, Path):
        spec = read(spec)
    spec = spec.with_map("pinned", pin=0)  # type: ignore[attr-defined]
    return pybpf.load(spec, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["kernel", "python"])
def test_everything_in_one_object(mode: str) -> None:
    with load(relocate=mode, variables={"limit": 5, "start": -9}) as live:
        assert set(live.programs) == {"first", "tail_target", "tracing"}
        assert live.vars["limit"] == 5
        assert live.vars["start"] == -9
        live.vars["start"] = 12
        assert live.vars["start"] == 12
        with pytest.raises(pybpf.UsageError):
            live.vars["limit"] = 6
        assert live.vars["LINUX_KERNEL_VERSION"] == Target.of_running().version
        live.maps["inner_a"][1] = 77
        assert live.maps["inner_a"][1] == 77
        assert live.maps[".rodata"].info()["map_flags"] == 0x480
        result = live.programs["first"].test_run(ctx=bytes(8))
        # the first program tail-calls the second, which finds 0 in its map: global_sub(0) is
        # leaf(0), whose static counter stands at 2 after the two calls through branch
        assert result.retval == 2
        # leaf(0) + leaf(1) + weak_sub(3), the loop's 0 + 1 + 2 + 3 + 4, and inner_a[1]
        assert live.vars["counter"] == (5 * 0 + 0) + (5 * 1 + 1) + 4 + (0 + 1 + 2 + 3 + 4) + 77


@pytest.mark.parametrize("mode", ["kernel", "python"])
def test_attaching(mode: str) -> None:
    spec = read(FEATURES).with_map("pinned", pin=0)
    with pybpf.load(spec, relocate=mode) as live:
        live.attach()
        assert set(live.links) == {"first", "tail_target", "tracing"}
        before = live.vars["counter"]
        assert settle(lambda: live.vars["counter"] != before)
        live.detach()
        assert not live.links


def test_pinning_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "bpf"
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(folder)], check=True)
    try:
        with pybpf.load(FEATURES, pin_root=str(folder)) as live:
            live.maps["pinned"][0] = 42
        assert (folder / "pinned").exists()
        with pybpf.load(FEATURES, pin_root=str(folder)) as live:
            assert live.maps["pinned"][0] == 42
        with pytest.raises(pybpf.PlanError, match="not the one that the object declares"):
            pybpf.load(read(FEATURES).with_map("pinned", max_entries=2), pin_root=str(folder))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_frozen_plans_run_the_same() -> None:
    spec = read(FEATURES).with_map("pinned", pin=0)
    plan = from_bytes(to_bytes(compile(spec, export=["struct pair"])))
    with run(plan) as live:
        assert live.layouts["struct pair"][0] == "struct"
        assert live.programs["first"].test_run(ctx=bytes(8)).retval == 2


def test_alternatives_fall_back() -> None:
    """The verifier refuses the first alternative: its program is not allowed what it asks."""
    good = read(FEATURES).with_map("pinned", pin=0)
    bad = good.with_program("first", flags=16)  # such programs cannot sleep
    plan = compile_alternatives([("bad", bad), ("good", good)], label="kind", relocate="kernel")
    with run(plan) as live:
        assert live.choices == {"kind": "good"}
        assert live.programs["first"].type == 17


def test_refusals_leave_nothing() -> None:
    spec = read(FEATURES).with_map("pinned", pin=0)
    with pytest.raises(pybpf.VerifierError) as caught:
        pybpf.load(spec.with_program("first", type=1, section="socket"))
    assert caught.value.where["program"] == "first"
    assert caught.value.log
    assert caught.value.summary


def test_both_ways_give_the_same_program_for_our_objects() -> None:
    loaded, problems = compare(FEATURES)
    assert problems == []
    assert loaded == 4


def corpus() -> Path:
    found = find_corpus()
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no corpus at ../shared/corpus beside the checkout")
        pytest.skip("no corpus (RESTRICT_CORPUS, ../shared/corpus)")
    return found


def test_both_ways_give_the_same_programs_for_the_corpus() -> None:
    total, problems = 0, []
    for path in sorted((corpus() / "objects").glob("*/*.o")):
        try:
            loaded, found = compare(path)
        except pybpf.FormatError:
            continue
        total += loaded
        problems += found
    assert problems == []
    assert total > 300


def test_verdicts_of_the_corpus() -> None:
    unable = host_matches()
    if unable is not None:
        pytest.skip(unable)
    report = compare_corpus(corpus(), kernels=["host-6.18"], load=True)
    assert report.verdicts > 500
    assert [f"{d.object}: {d.what} {d.detail}" for d in report.ours] == []


def test_verify_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", str(FEATURES)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["error"] is None
    assert {p["name"]: p["loaded"] for p in found["programs"]} == dict.fromkeys(
        ("tail_target", "first", "tracing"), True
    )
    for program in found["programs"]:
        assert program["errno"] is None
        assert program["processed_insns"] > 0
        assert program["insns"] > 0
        assert program["verification_time_us"] >= 0
        assert "processed" in program["log"]
    assert main(["verify", "--json", "--alone", "--program", "optional", str(FEATURES)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [p["name"] for p in found["programs"]] == ["optional"]


def test_run_command() -> None:
    spec_args = ["run", "--json", "--seconds", "0.1", "--disable", "tracing", str(FEATURES)]
    done = subprocess.run(
        [sys.executable, "-m", "pybpf", *spec_args], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    try:
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert set(found["links"]) == {"first", "tail_target"}
        assert all(found["programs"].values())
    finally:
        Path("/sys/fs/bpf/pinned").unlink(missing_ok=True)


def test_kernels_that_cannot_relocate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel before 5.17 refuses an attribute with core_relos: E2BIG. pybpf then does it."""
    from pybpf.errors import KernelError
    from pybpf.sys import bpf

    real = bpf.prog_load
    refused = []

    def old(fields: dict[str, int | bytes], *more: object) -> int:
        if fields.get("core_relos"):
            refused.append(fields)
            raise KernelError("too big", errno=7, call="BPF_PROG_LOAD")
        return real(fields, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(bpf, "prog_load", old)
    with load() as live:
        assert set(live.programs) == {"first", "tail_target", "tracing"}
    assert refused
    with pytest.raises(KernelError, match="too big"):
        load(relocate="kernel")


def _congestion_controls() -> set[str]:
    return set(Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split())


@pytest.mark.parametrize("mode", ["kernel", "python"])
def test_struct_ops(mode: str) -> None:
    """A TCP congestion control of our own: there while it is attached, and not after."""
    with pybpf.load(OBJECTS / "struct_ops.bpf.o", relocate=mode) as live:
        assert "pybpf_test" not in _congestion_controls()
        live.attach()
        assert set(live.links) == {"test_control"}
        assert "pybpf_test" in _congestion_controls()
        assert "pybpf_spare" not in _congestion_controls()
        live.detach()
        assert settle(lambda: "pybpf_test" not in _congestion_controls())


def test_struct_ops_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    spec = read(OBJECTS / "struct_ops.bpf.o").with_map("spare_control", autocreate=True)
    with pybpf.load(spec) as live:
        live.attach()
        assert {"pybpf_test", "pybpf_spare"} <= _congestion_controls()
    assert settle(lambda: not {"pybpf_test", "pybpf_spare"} & _congestion_controls())
    assert main(["verify", str(OBJECTS / "struct_ops.bpf.o")]) == 0
    assert capsys.readouterr().out.count("loaded") == 3


def test_what_was_damaged_is_told(tmp_path: Path) -> None:
    """BTF that only makes things legible is left out, and what is loaded says so."""
    path = tmp_path / "many.bpf.o"
    path.write_bytes(changed(OBJECTS / "many.bpf.o", ".BTF", magic))
    with pybpf.load(path) as live:
        (note,) = live.notes
        assert "damaged and left out" in note
        assert len(live.programs) == len(read(OBJECTS / "many.bpf.o").programs)


def int_word(at: int, value: int) -> Callable[[bytearray], None]:
    """Another word in the record of ``int``; 3 words before what is its own."""

    def change(data: bytearray) -> None:
        btf = Btf.parse(bytes(data))
        integer = btf.type(btf.find("int", KIND_INT)[0])
        struct.pack_into("=I", data, btf.header.type_range[0] + 4 * (integer.pos + at), value)

    return change


def later_flag(data: bytearray) -> None:
    data[3] = 1


# 200 bits in 4 bytes (EINVAL); an encoding and a flag that there are not (ENOTSUPP).
@pytest.mark.parametrize("change", [int_word(3, 200), int_word(3, 15 << 24 | 32), later_flag])
def test_btf_that_the_kernel_refuses(change: Callable[[bytearray], None], tmp_path: Path) -> None:
    """Without relocations it is no more than an ornament, whoever would relocate."""
    path = tmp_path / "many.bpf.o"
    path.write_bytes(changed(OBJECTS / "many.bpf.o", ".BTF", change))
    for relocate in ("kernel", "python"):
        with pybpf.load(path, relocate=relocate) as live:
            assert any("BTF" in note for note in live.notes), live.notes
