# SPDX-License-Identifier: BSD-2-Clause
"""What the policies cost acts that are none of their business.

A guest whose clock counts instructions, as in ``tools.benchmarks.guest``: the ratios count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pybpf.plan.frozen import to_bytes
from restrict.bundle import build
from tests.vm.scenario import Drive
from tools.benchmarks.build import HERE, program
from tools.benchmarks.guest import CountingGuest, answer_of
from tools.benchmarks.stats import paired_ratios, summarise
from tools.guest.cache import progress
from tools.guest.drives import build_drive
from tools.guest.lanes import lane_of

__all__ = ["digest_acts", "measure_acts"]

_COUNT = 200


def measure_acts(lane: str, rounds: int) -> dict[str, Any]:
    """Instructions of each act by policy, without and with it. Raises BenchError, GuestError."""
    script = "acts.py"
    wanted = json.dumps({"rounds": rounds, "count": _COUNT}).encode()
    files = {name: (HERE / "child" / name).read_bytes() for name in (script, "prepared.py")}
    files["wanted.json"] = wanted
    for name, gate in (("fsaccess.plan", False), ("gate.plan", True)):
        files[name] = to_bytes(build(gate_device_mapper=gate))
    guest = CountingGuest(lane_of(lane), files=files)
    tools = {"workload": program("workload", "-static").read_bytes()}
    guest.add_image("bench", build_drive(guest.tools, Drive(tools)))
    with progress(f"measuring acts in a guest of lane {lane}"):
        return digest_acts(answer_of(guest, lane, script, "wanted.json"))


def digest_acts(raw: Mapping[str, Any]) -> dict[str, Any]:
    """policy → act → summaries of both states, and of their ratio within rounds."""
    return {
        policy: {
            act: {
                "off": summarise(states["off"]).json(),
                "on": summarise(states["on"]).json(),
                "on_over_off": summarise(paired_ratios(states["on"], states["off"])).json(),
            }
            for act, states in acts.items()
        }
        for policy, acts in raw["acts"].items()
    }
