# SPDX-License-Identifier: BSD-2-Clause
"""Early boot in a guest: from the first line of /init to armed, and on to the next PID 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.vm.restrict_boot import files
from tools.benchmarks.build import HERE, TOP
from tools.benchmarks.guest import CountingGuest, answer_of
from tools.guest.cache import progress
from tools.guest.lanes import lane_of

__all__ = ["boot_times"]

#: PID 1 of the initramfs: takes the time before anything else, then is `restrict init`. What it
#: writes into the kernel's log tells how the log's clock and its own stand to each other, and
#: when each step began: all in one record, for the kernel takes ten in five seconds.
_INIT = b"""\
#!/usr/bin/python3 -BIS
import time
first = time.monotonic_ns()
import os, sys
sys.path.insert(0, "/project")
os.environ["PYTHONPATH"] = "/project"
os.environ["PATH"] = "/usr/bin"
from restrict import init
init.mount_basics()
log = os.open("/dev/kmsg", os.O_WRONLY)
os.set_inheritable(log, False)
os.write(log, b"<6>bench: first %d now %d" % (first, time.monotonic_ns()))

class State(init.State):
    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "step":
            begun.append(f"{time.monotonic_ns() - first} {value}")
        if name == "step" and value == "exec":
            os.write(log, ("<6>bench: steps " + ",".join(begun)).encode())

begun = []
init.State = State
from restrict.cli import main
sys.exit(main(["init", "/etc/restrict/init.conf"]))
"""


def boot_times(lane: str, keep: str) -> dict[str, Any]:
    """Milliseconds since the first line of /init, by what restrict said in the kernel's log.

    keep: as in the configuration; the next PID 1 is none of restrict's. Raises BenchError,
    GuestError.
    """

    def initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
        pins = (TOP / "bpf/objects/pins.plan").read_bytes()
        return {**files(run, keep=keep), "init": _INIT, "etc/restrict/pins.plan": pins}

    script = HERE / "child" / "boot.py"
    guest = CountingGuest(
        lane_of(lane), files={script.name: script.read_bytes()}, initramfs=initramfs
    )
    with progress(f"booting a guest of lane {lane} by restrict init, keep = {keep}"):
        return answer_of(guest, lane, script.name)
