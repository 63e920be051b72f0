# SPDX-License-Identifier: BSD-2-Clause
"""The audit of a Plan, as text and as data for JSON."""

from __future__ import annotations

import json

from pybpf.plan import ops
from pybpf.plan.explain import to_json, to_text
from tests.unit.test_frozen import sample

EXPECTED = """\
Plan sämple: 1 maps, 1 programs, 1 links, 1 variables
Load:
   1. load the object's BTF, 32 bytes (if the kernel refuses, go on without)
   2. ask the kernel for the BTF ids of 2 names
        func f
        struct g of module dm_mod (may be missing)
   3. create map m: array, key 4, value 8, one entry a CPU
        or take the one pinned at /sys/fs/bpf/m; else pin it there
   4. fill map m
        [00000000] = 8 bytes 3132333435363738
        [01000000] = map m
   5. freeze map m
   6. choose v: the first that works; the next is tried on errno 22
        alternative a:
          load program p: socket_filter, 2 instructions, license GPL
            section socket
            attaches to func f
            uses map m
            with 1 functions
            instruction 0: calls func f
            instruction 1: takes the address of jiffies from /proc/kallsyms
        alternative b:
          load program p: socket_filter, 2 instructions, license GPL
            section socket
            attaches to func f
            uses map m
            with 1 functions
            instruction 0: calls func f
            instruction 1: takes the address of jiffies from /proc/kallsyms
          load program p: socket_filter, 2 instructions, license GPL
            section socket
            attaches to func f
            uses map m
            with 1 functions
            instruction 0: calls func f
            instruction 1: takes the address of jiffies from /proc/kallsyms
   7. if the BTF of module dm_verity is there:
          load program p: socket_filter, 2 instructions, license GPL
            section socket
            attaches to func f
            uses map m
            with 1 functions
            instruction 0: calls func f
            instruction 1: takes the address of jiffies from /proc/kallsyms
Attach:
   8. attach program p by a link of type lsm_mac, tracing.cookie 1099511627776
   9. pin link p at /sys/fs/bpf/l
"""


def test_text() -> None:
    assert to_text(sample()) == EXPECTED


def test_flags_and_odd_cases() -> None:
    plan = sample(
        ops=(
            ops.MapCreate(dst=1, name="m", type=27, key_size=0, value_size=0, max_entries=4096,
                          flags=1024 | 1 << 30, inner=0, value_symbol=1),
            ops.ProgLoad(dst=2, name="p", type=29, license="GPL", insns=bytes(8), flags=16,
                         expected_attach_type=27, attach_btf_id=7, patches=((0, "map_fd", 1),)),
            ops.When(condition=("symbol", 1), then=(), otherwise=(ops.MapFreeze(map=1),)),
            ops.When(condition=("slot", 2), then=(ops.MapFreeze(map=5),)),
        ),
        attach=(
            ops.LinkCreate(dst=3, name="p", prog=2, how="iter", target=1),
            ops.LinkCreate(dst=4, name="q", prog=2, how="cgroup", target="/sys/fs/cgroup"),
        ),
    )  # fmt: skip
    text = to_text(plan)
    assert "ringbuf, key 0, value 0, 4096 bytes, flags MMAPABLE, 0x40000000" in text
    assert "lsm, for lsm_mac, 1 instructions, license GPL, flags SLEEPABLE" in text
    assert "attaches to BTF id 7 of vmlinux" in text
    assert "instruction 0: refers to map m" in text
    assert "if symbol 1 was found:\n        else:\n          freeze map m" in text
    assert "if program p was made:\n          freeze fd slot 5" in text
    assert "attach program p by iter to map m" in text
    assert "by cgroup to /sys/fs/cgroup" in text


def test_json() -> None:
    found = json.loads(json.dumps(to_json(sample())))
    assert found["name"] == "sämple"
    assert found["ops"][0] == {
        "op": "BtfLoad", "dst": 0, "data": "9feb" + "00" * 30, "optional": True
    }  # fmt: skip
    assert found["ops"][5]["alternatives"][1][1][0]["op"] == "ProgLoad"
    assert found["maps"]["m"] == {"slot": 1, "key": ["int", 4, False], "value": None}
    assert found["variables"]["armed"]["offset"] == 0
    assert found["attach"][1] == {"op": "Pin", "src": 3, "path": "/sys/fs/bpf/l"}
