# SPDX-License-Identifier: BSD-2-Clause
"""LSM objects loaded on stock kernels, relocated by the kernel and by pybpf."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.vm.scenario import Drive, Guest, Scenario

TREE = Path(__file__).resolve().parent.parent.parent
LSM = TREE / "tests/objects/lsm.bpf.o"
FEATURES = TREE / "tests/objects/features.bpf.o"
MODULE = TREE / "tests/objects/module.bpf.o"
FSACCESS = TREE / "bpf/objects/fsaccess.bpf.o"

loading = Scenario("load", drives={"good": Drive({"file": b"content"})})


@loading.case()
def both_ways_give_the_same_programs(guest: Guest) -> None:
    """What the verifier made of each program is the same, whoever relocated it."""
    from tests.kernel.relocations import compare

    for path, least in ((LSM, 2), (FSACCESS, 11), (FEATURES, 3), (MODULE, 2)):
        loaded, problems = compare(path)
        assert problems == []
        assert loaded >= least, f"{path.name}: {loaded} loaded"


@loading.case()
def attached_programs_see_what_happens(guest: Guest) -> None:
    import pybpf

    with pybpf.load(LSM) as live:
        assert live.vars["execs"] == 0
        live.attach()
        subprocess.run(["/usr/bin/true"], check=True)
        assert live.vars["execs"] >= 1
        assert live.vars["opens"] >= 1
        # the kernel function is there from 7.2
        assert live.vars["has_kfunc"] == int(os.uname().release.startswith("7."))
        live.detach()
        seen = live.vars["execs"]
        subprocess.run(["/usr/bin/true"], check=True)
        assert live.vars["execs"] == seen


@loading.case()
def missing_hooks_are_told(guest: Guest) -> None:
    import pybpf

    spec = pybpf.read(LSM).with_program("check_open", section="lsm/no_such_hook")
    spec = spec.with_program("check_open", attach_to="no_such_hook")
    for mode in ("kernel", "python"):
        try:
            pybpf.load(spec, relocate=mode).close()
        except pybpf.PybpfError as error:
            told = str(error)
        else:
            raise AssertionError("loaded for a hook that does not exist")
        assert "bpf_lsm_no_such_hook" in told


@loading.case()
def functions_and_types_of_modules(guest: Guest) -> None:
    """dm_mod's function is attached to, and its struct relocated against, by both ways."""
    import pybpf

    vmlinux = pybpf.Btf.vmlinux()
    module = pybpf.Btf.module("dm_mod", vmlinux)
    table = next(t for i in module.find("dm_table") if (t := module.type(i)).members)
    (member,) = [m for m in table.members if m.name == "num_targets"]
    for mode in ("kernel", "python"):
        with pybpf.load(MODULE, relocate=mode) as live:
            live.attach()
            guest.verity("good", device=f"of-{mode}")
            assert live.vars["tables"] >= 2
            assert live.vars["offset"] == member.bit_offset // 8
            assert live.vars["known"] is False


@loading.case()
def programs_of_absent_modules_are_left_out(guest: Guest) -> None:
    import pybpf

    spec = pybpf.read(LSM).with_program("check_open", when_module="no_such_module")
    with pybpf.load(spec) as live:
        live.attach()
        assert set(live.programs) == {"check_exec"}
        assert set(live.links) == {"check_exec"}
