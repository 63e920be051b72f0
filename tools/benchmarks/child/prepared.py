# SPDX-License-Identifier: BSD-2-Clause
"""Runs in the guest: what its measuring scripts begin with. They put /project on the path."""

from __future__ import annotations

import json

from tests.vm.scenario import Guest
from tools.guest.inside.kernel import disks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BENCH = "/run/bench"


def prepare(path: str) -> tuple[dict[str, Any], Guest]:
    """What is wanted (a JSON file), and the guest, with the drive "bench" mounted on BENCH."""
    with open(path) as file:
        wanted = json.load(file)
    with open("/run/vm/run.json") as file:
        guest = Guest(json.load(file), disks())
    guest.mount(guest.verity("bench"), BENCH)
    return wanted, guest
