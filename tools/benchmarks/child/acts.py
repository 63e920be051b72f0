# SPDX-License-Identifier: BSD-2-Clause
"""Runs in the guest: what the policies cost acts that they do not judge, or allow to all.

CONFIGURATION (a JSON file in this folder). Everything happens on a tmpfs, by a process of the
initial user namespace; nothing is denied. Prints progress, and at the end one line "RESULT {…}".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

sys.path.insert(0, "/project")

from prepared import BENCH, prepare  # type: ignore[import-not-found]  # noqa: E402

from pybpf.plan.frozen import from_bytes  # noqa: E402
from restrict import fsaccess, lockout, pins, userns_pins  # noqa: E402
from restrict.mounts import ensure  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

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


def with_fsaccess(name: str) -> Callable[[], object]:
    with open(name, "rb") as file:
        plan = from_bytes(file.read())
    return fsaccess.enable(plan, before_arm=lockout.before_arm(plan, resumed=True)).close


POLICIES: dict[str, Callable[[], Callable[[], object]]] = {
    "userns": with_userns,
    "pins": with_pins,
    "fsaccess": lambda: with_fsaccess("fsaccess.plan"),
    "fsaccess with the device-mapper gate": lambda: with_fsaccess("gate.plan"),
}


def main(path: str) -> None:
    wanted, guest = prepare(path)
    ensure("bpf", "/sys/fs/bpf")
    os.makedirs(FOLDER)
    guest.mount("tmpfs", FOLDER, "tmpfs", 0, "mode=0755")
    os.makedirs(DEEP)
    with open(f"{DEEP}/file", "x"):
        pass
    found: dict[str, Any] = {}
    for policy, install in POLICIES.items():
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
