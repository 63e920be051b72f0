# SPDX-License-Identifier: BSD-2-Clause
"""The generated numbers and layouts: known values, and no drift from their sources."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import lzma
import os
import posix
import struct
from pathlib import Path
from typing import Any

import pytest

from pybpf.sys import abi, abi_helpers, abi_names, bpf, layouts, numbers_aarch64, numbers_x86_64

ROOT = Path(__file__).resolve().parents[2]


def _generator() -> Any:
    loader = importlib.machinery.SourceFileLoader("gen_abi", str(ROOT / "tools/gen_abi"))
    spec = importlib.util.spec_from_loader("gen_abi", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_values_that_every_kernel_has() -> None:
    assert (abi.BPF_MAP_CREATE, abi.BPF_PROG_LOAD, abi.BPF_LINK_CREATE) == (0, 5, 28)
    assert (abi.BPF_PROG_TYPE_LSM, abi.BPF_LSM_MAC, abi.BPF_MAP_TYPE_RINGBUF) == (29, 27, 27)
    assert abi.BPF_COMMON_ATTRS == 1 << 16
    assert abi.BPF_F_SLEEPABLE == 1 << 4
    assert abi.BPF_PSEUDO_KFUNC_CALL == 2
    assert layouts.ATTR_PROG_LOAD["core_relo_rec_size"] == (136, 4)
    assert layouts.ATTR_PROG_LOAD["attach_btf_obj_fd"] == layouts.ATTR_PROG_LOAD["attach_prog_fd"]
    assert layouts.ATTR_LINK_CREATE["tracing.cookie"] == (24, 8)
    assert layouts.INFO_PROG["tag"] == (8, 8)


def test_names_are_those_of_bpftool() -> None:
    assert abi_names.MAP_TYPE_NAMES[1] == "hash"
    assert abi_names.MAP_TYPE_NAMES[19] == "cgroup_storage"
    assert abi_names.PROG_TYPE_NAMES[26] == "tracing"
    assert abi_names.ATTACH_TYPE_NAMES[27] == "lsm_mac"
    assert abi_names.LINK_TYPE_NAMES[2] == "tracing"
    assert abi_names.CMD_NAMES[5] == "BPF_PROG_LOAD"
    assert abi_helpers.HELPER_NAMES[1] == "map_lookup_elem"
    assert abi_helpers.HELPER_NAMES[167] == "btf_find_by_name_kind"


def test_fields_lie_inside_and_apart() -> None:
    """Fields of one struct overlap only where the kernel has a union."""
    for name in dir(layouts):
        if not name.startswith(("ATTR_", "INFO_")):
            continue
        size = getattr(layouts, "SIZE_" + name.removeprefix("ATTR_"))
        layout = getattr(layouts, name)
        assert max(offset + width for offset, width in layout.values()) <= size, name
        if name in ("ATTR_MAP_CREATE", "ATTR_BTF_LOAD", "INFO_MAP", "INFO_PROG", "INFO_BTF"):
            spans = sorted(layout.values())
            for (first, width), (second, _) in itertools.pairwise(spans):
                assert first + width <= second, name


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [("bpf", 321, 280), ("perf_event_open", 298, 241), ("mount", 165, 40), ("keyctl", 250, 219),
     ("add_key", 248, 217), ("finit_module", 313, 273), ("pivot_root", 155, 41),
     ("umount2", 166, 39), ("pidfd_open", 434, 434), ("getpid", 39, 172)],
)  # fmt: skip
def test_system_call_numbers(name: str, x86_64: int, aarch64: int) -> None:
    assert numbers_x86_64.NUMBERS[name] == x86_64
    assert numbers_aarch64.NUMBERS[name] == aarch64


def test_bpf_uses_the_number_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "_number", bpf._number)  # so that it is put back at the end
    for machine, table in (
        ("x86_64", numbers_x86_64.NUMBERS),
        ("aarch64", numbers_aarch64.NUMBERS),
    ):
        monkeypatch.setattr(bpf, "machine", lambda machine=machine: machine)
        assert bpf._bpf_number() == table["bpf"]


def test_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pybpf.errors import UsageError
    from pybpf.sys import syscalls

    real = os.uname()
    monkeypatch.setattr(posix, "uname", lambda: os.uname_result((*real[:4], "riscv64")))
    with pytest.raises(UsageError, match="not of riscv64"):
        syscalls.number("bpf")


def test_macros_are_evaluated() -> None:
    gen = _generator()
    text = "#define BPF_A 0x10\n#define BPF_B (BPF_A | 1U << 3)\n#define BPF_C(x) (x)\n"
    text += "#define BPF_D BPF_UNKNOWN\n/* #define BPF_E 1 */\n#define BPF_F_G 2UL /* two */\n"
    assert gen.macros([text], {}) == {"BPF_A": 16, "BPF_B": 24, "BPF_F_G": 2}


def test_a_btf_without_the_types_is_refused() -> None:
    gen = _generator()
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1)
    with pytest.raises(gen.GenError, match="no bpf_cmd"):
        gen.generate(dict.fromkeys(gen.HEADERS, ""), gen.Btf(head + b"\0"), "0")
    with pytest.raises(gen.GenError, match="no raw little-endian BTF"):
        gen.Btf(b"\x7fELF")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("RESTRICT_CACHE") or Path(base) / "pybpf-restrict")


def _btf_of_7_3() -> bytes | None:
    """The BTF of the cached 7.3 kernel, or of the file in PYBPF_TEST_BTF (raw or .xz)."""
    named = os.environ.get("PYBPF_TEST_BTF")
    if named:
        data = Path(named).read_bytes()
        return lzma.decompress(data) if named.endswith(".xz") else data
    for path in sorted((_cache() / "abi").glob("7.3*.btf")):
        return path.read_bytes()
    return None


def test_no_drift_from_headers_and_btf() -> None:
    """Runs where tools/gen_abi has left its headers in the cache, and BTF of 7.3 is at hand."""
    gen = _generator()
    trees = sorted((_cache() / "headers").glob("7.3*"))
    btf = _btf_of_7_3()
    if not trees or btf is None:
        pytest.skip("no headers of 7.3 in the cache (tools/gen_abi) or no BTF (PYBPF_TEST_BTF)")
    headers = {key: (trees[-1] / path).read_text() for key, path in gen.HEADERS.items()}
    version = trees[-1].name.split("-")[0]
    for name, text in gen.generate(headers, gen.Btf(btf), version).items():
        assert (ROOT / name).read_text() == text, f"{name} differs: run tools/gen_abi"


def test_an_older_kernel_has_the_same_offsets() -> None:
    """bpf_attr only ever grows: what the running kernel has lies where ours says it lies."""
    source = Path("/sys/kernel/btf/vmlinux")
    if not source.exists():
        pytest.skip("this kernel has no BTF")
    gen = _generator()
    btf = gen.Btf(source.read_bytes())
    attr = btf.types[btf.find("bpf_attr", 5)]
    found = {}
    for name_off, of, _ in attr[4]:
        found[btf.text(name_off) or next(iter(btf.fields(of)))] = btf.fields(of)
    compared = 0
    for ours, theirs in gen.ATTRS.items():
        if theirs in found:
            wanted = getattr(layouts, f"ATTR_{ours}")
            for field, place in found[theirs].items():
                assert wanted[field] == place, (ours, field)
                compared += 1
    assert compared > 100
