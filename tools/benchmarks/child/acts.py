# SPDX-License-Identifier: BSD-2-Clause
"""Runs in the guest: what the policies on namespaces and pins cost acts they do not judge.

CONFIGURATION (a JSON file in this folder). Everything happens on a tmpfs, by a process of the
initial user namespace; nothing is denied. Prints progress, and at the end one line "RESULT {…}".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

sys.path.insert(0, "/project")

from restrict import pins, userns_pins  # noqa: E402
from restrict.mounts import ensure  # noqa: E402
from tests.vm.scenario import Guest  # noqa: E402
from tools.guest.inside.kernel import disks  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

BENCH = "/run/bench"
FOLDER = "/run/acts"
DEEP = f"{FOLDER}/a/b/c/d"
PLANS = "/project/bpf/objects"
#: Act → what it is done to.
ACTS = {
    "stat": f"{DEEP}/file",
    "open": f"{DEEP}/file",
    "ioctl": f"{DEEP}/file",
    "chmod": f"{DEEP}/file",
    "chown": f"{DEEP}/file",
    "create": f"{DEEP}/new",
    "mkdir": f"{DEEP}/new",
    "rename": f"{DEEP}/file",
    "mount": DEEP,
}


def once(act: str, count: int) -> float:
    """Nanoseconds of one."""
    words = [f"{BENCH}/workload", act, str(count), ACTS[act]]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    number, nanoseconds = map(int, done.stdout.split())
    return nanoseconds / number


def with_userns() -> Callable[[], object]:
    userns_pins.install(userns_pins.load_plan(f"{PLANS}/userns.plan")).close()
    return userns_pins.uninstall


def with_pins() -> Callable[[], object]:
    return pins.install(pins.load_plan(f"{PLANS}/pins.plan")).uninstall


def main(path: str) -> None:
    with open(path) as file:
        wanted = json.load(file)
    with open("/run/vm/run.json") as file:
        description = json.load(file)
    guest = Guest(description, disks())
    guest.mount(guest.verity("bench"), BENCH)
    ensure("bpf", "/sys/fs/bpf")
    os.makedirs(FOLDER)
    guest.mount("tmpfs", FOLDER, "tmpfs", 0, "mode=0755")
    os.makedirs(DEEP)
    with open(f"{DEEP}/file", "x"):
        pass
    found: dict[str, Any] = {}
    for policy, install in (("userns", with_userns), ("pins", with_pins)):
        times: dict[str, dict[str, list[float]]] = {act: {"off": [], "on": []} for act in ACTS}
        for number in range(wanted["rounds"] + 1):
            for state in ("off", "on"):
                remove = install() if state == "on" else None
                for act in ACTS:
                    took = once(act, wanted["count"])
                    if number:  # the first round fills the kernel's caches
                        times[act][state].append(took)
                if remove is not None:
                    remove()
            print(f"acts, {policy}: round {number} of {wanted['rounds']}", flush=True)
        found[policy] = times
    print("RESULT " + json.dumps({"kernel": os.uname().release, "acts": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
