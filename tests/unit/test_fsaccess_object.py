# SPDX-License-Identifier: BSD-2-Clause
"""The committed fsaccess object and its headers: what must be true of them on every kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pybpf import elf
from pybpf.asm.insn import decode
from pybpf.btf.layout import layout
from pybpf.spec import FunctionSpec, ObjectSpec
from pybpf.sys.abi_helpers import HELPER_NAMES
from restrict import abi

BPF = Path(__file__).resolve().parents[2] / "bpf"
OBJECT = BPF / "objects/fsaccess.bpf.o"
KIND_STRUCT = 4
OPCODE_CALL = 0x85

# Program → (section without prefix marks, sleepable, loaded unless switched off).
PROGRAMS = {
    "fsaccess_setintegrity": ("lsm/bdev_setintegrity", False, True),
    "fsaccess_bdev_free": ("lsm/bdev_free_security", False, True),
    "fsaccess_exec": ("lsm.s/bprm_check_security", True, True),
    "fsaccess_exec_check": ("lsm.s/bprm_creds_for_exec", True, True),
    "fsaccess_mmap": ("lsm.s/mmap_file", True, True),
    "fsaccess_mprotect": ("lsm/file_mprotect", False, True),
    "fsaccess_guard_map": ("lsm/bpf_map", False, True),
    "fsaccess_guard_program": ("lsm/bpf_prog", False, True),
    "fsaccess_guard_link": ("lsm/bpf", False, True),
    "fsaccess_birth_map": ("lsm/bpf_map_create", False, True),
    "fsaccess_birth_program": ("lsm/bpf_prog_load", False, True),
    "fsaccess_guard_signal": ("lsm/task_kill", False, True),
    "fsaccess_ptrace": ("lsm/ptrace_access_check", False, True),
    "fsaccess_traceme": ("lsm/ptrace_traceme", False, True),
    "fsaccess_brk": ("fmod_ret/security_vm_enough_memory_mm", False, True),
    "fsaccess_dm_ioctl": ("lsm/file_ioctl", False, False),
    "fsaccess_dm_ioctl_compat": ("lsm/file_ioctl_compat", False, False),
    "fsaccess_sysctl": ("cgroup/sysctl", False, False),
    "fsaccess_status": ("iter/bpf_map", False, False),
}
SLEEPABLE = 1 << 4  # BPF_F_SLEEPABLE


@pytest.fixture(scope="module")
def spec() -> ObjectSpec:
    return elf.read(OBJECT)


def helpers_called(function: FunctionSpec) -> set[str]:
    """Helpers by name; calls of kfuncs and subprograms are told by their source register."""
    return {
        HELPER_NAMES[insn.imm]
        for insn in decode(function.insns)
        if insn.opcode == OPCODE_CALL and insn.src == 0
    }


def test_programs(spec: ObjectSpec) -> None:
    found = {
        name: (program.section.lstrip("?"), bool(program.flags & SLEEPABLE), program.autoload)
        for name, program in spec.programs.items()
    }
    assert found == PROGRAMS


def test_no_helper_that_lockdown_confidentiality_forbids(spec: ObjectSpec) -> None:
    called = set().union(*(helpers_called(function) for function in spec.functions))
    assert "map_lookup_elem" in called, "the calls were not found at all"
    assert not {name for name in called if "probe_" in name or name.startswith("trace_")}


def test_only_the_known_kfuncs_and_only_the_overlay_one_is_weak(spec: ObjectSpec) -> None:
    assert {(e.name, e.kind, e.weak) for e in spec.externs.values()} == {
        ("bpf_rdonly_cast", "kfunc", False),
        ("bpf_real_data_inode", "kfunc", True),
    }


def test_programs_that_cannot_sleep_do_not_resolve_overlays(spec: ObjectSpec) -> None:
    users = set()
    for name, program in spec.programs.items():
        if any(ref.name == "bpf_real_data_inode" for ref in spec.functions[program.function].refs):
            users.add(name)
    assert users == {name for name, (_, sleepable, _) in PROGRAMS.items() if sleepable}


def test_maps(spec: ObjectSpec) -> None:
    assert set(spec.maps) == {
        "verity_devices", "births", "counters", "events", ".bss", ".rodata",
    }  # fmt: skip
    assert spec.maps["verity_devices"].max_entries == 16384
    assert spec.maps[".rodata"].frozen
    data = spec.maps[".bss"].data
    assert data is not None
    assert not any(data), "it must start inert"


def test_the_guard_has_room_for_every_object(spec: ObjectSpec) -> None:
    for name, needed in (
        ("guard_map_ids", len(spec.maps)),
        ("guard_program_ids", len(spec.programs)),
        ("guard_link_ids", len(spec.programs)),
    ):
        assert spec.variables[name].size // 4 >= needed


@pytest.mark.parametrize("name", ["armed", "audit", "initramfs_dev", "owner_tgid"])
def test_switches_are_aligned_words(spec: ObjectSpec, name: str) -> None:
    variable = spec.variables[name]
    assert (variable.map, variable.size, variable.offset % 4) == (".bss", 4, 0)


def test_filesystems_that_can_be_trusted_by_default(spec: ObjectSpec) -> None:
    variable = spec.variables["filesystem_magics"]
    data = spec.maps[variable.map].data
    assert data is not None
    words = data[variable.offset : variable.offset + variable.size]
    numbers = [int.from_bytes(words[i : i + 4], "little") for i in range(0, len(words), 4)]
    assert [n for n in numbers if n] == [0xE0F5E1E2, 0x73717368]


def test_helper_numbers_of_the_header() -> None:
    text = (BPF / "include/bpf.h").read_text()
    declared = re.findall(r"\(\*const bpf_(\w+)\)\([^;]*?\)\s*=\s*\(void \*\)(\d+);", text)
    assert len(declared) == text.count("= (void *)") > 10
    for name, number in declared:
        assert HELPER_NAMES[int(number)] == name


@pytest.mark.parametrize("name", ["fsaccess_device", "policy_counter", "policy_event"])
def test_offsets_in_the_header_are_those_of_the_object(spec: ObjectSpec, name: str) -> None:
    text = (BPF / f"include/{name.split('_')[0]}.h").read_text()
    match = re.search(rf"([^;]*?)\nstruct {name} {{\n(.*?)\n}};", text, re.DOTALL)
    assert match is not None
    said = {
        field: int(offset)
        for field, offset in re.findall(r"(\w+)(?:\[\w+\])?;\s*/\*\s*(\d+)\b", match[2])
    }
    said_size = int(re.findall(r"(\d+) bytes", match[1])[-1])
    assert spec.btf is not None
    (type_id,) = spec.btf.find(name, (KIND_STRUCT,))
    kind, size, members = layout(spec.btf, type_id)
    assert kind == "struct"
    assert {member[0]: member[1] for member in members} == said
    assert size == said_size


def test_no_path_of_the_building_machine() -> None:
    data = OBJECT.read_bytes()
    assert b"./bpf/fsaccess.bpf.c" in data
    for word in (b"/home/", b"/tmp/", b"/usr/", bytes(BPF.parent)):
        assert word not in data


def test_the_ownerless_object_has_the_same_decisions_in_other_sections() -> None:
    """What a cgroup can have of them: nothing sleeps, and no hook but nine of ten places."""
    found = elf.read(OBJECT.with_name("fsaccess_cgroup.bpf.o"))
    hooks = {
        name: program.section.removeprefix("lsm_cgroup/")
        for name, program in found.programs.items()
        if program.section.startswith("lsm_cgroup/")
    }
    assert len(hooks) == 9
    assert set(found.programs) - set(hooks) == {"fsaccess_sysctl", "fsaccess_status"}
    for name, hook in hooks.items():
        assert PROGRAMS[name][0].partition("/")[2] == hook
        assert not found.programs[name].flags & SLEEPABLE
    assert {e.name for e in found.externs.values()} == {"bpf_rdonly_cast"}
    called = set().union(*(helpers_called(function) for function in found.functions))
    assert not called & {"d_path", "get_func_arg"}
    assert "map_lookup_elem" in called


def test_the_status_has_a_name_for_each_operation(spec: ObjectSpec) -> None:
    data = b"".join(m.data or b"" for m in spec.maps.values())
    for name in abi.OPERATIONS:
        assert name.encode().ljust(16, b"\0") in data, name
