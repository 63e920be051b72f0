# SPDX-License-Identifier: BSD-2-Clause
"""An initramfs whose PID 1 is ``restrict init``, for scenarios that boot by it.

``files(run)`` is what a Scenario's ``initramfs`` wants; ``Prober`` is what a process that was
started before the policy, and tries to execute from a tmpfs all the time, has seen; ``pokes`` is
what came of writing a child's text before there was a policy or a filter.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["HARNESS", "PLAN", "Prober", "configuration", "console", "files", "pokes", "resumed"]

PLAN = "/run/test/fsaccess.plan"
HARNESS = "/usr/bin/python3 -s /project/tools/guest/inside/harness.py"
_PYTHON = "/usr/bin/python3 -s -m restrict init --resume"

# PID 1 before restrict: makes /run, leaves the plan there for the successors, starts the prober.
_INIT = """\
#!/usr/bin/python3 -BIS
import os, sys, time
sys.path.insert(0, "/project")
os.environ["PYTHONPATH"] = "/project"
os.environ["PATH"] = "/usr/bin"
from restrict import init, mounts
init.mount_basics()
os.makedirs("/run/test")
with open("/etc/restrict/fsaccess.plan", "rb") as source, open("{plan}", "wb") as target:
    target.write(source.read())
with open("/probe", "rb") as source:
    program = source.read()
fd = os.open("/run/test/program", os.O_WRONLY | os.O_CREAT, 0o755)
os.write(fd, program)
os.close(fd)
child = os.fork()
if child == 0:
    from tests.vm import probes_process
    outcomes = [probes_process.peek(), probes_process.poke(), probes_process.poke(True)]
    with open("/run/test/pokes", "w") as file:
        for outcome in outcomes:
            print(outcome, file=file)
    os._exit(0)
os.waitpid(child, 0)
folder = os.open("/run/test", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
result = os.open("/run/test/prober", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

def attempt():  # by vfork: a fork of Python costs the emulated processor ten times as much
    try:
        pid = os.posix_spawn("./program", ["probe"], {{}})
    except OSError as e:
        return 100 + e.errno
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

if os.fork() == 0:
    os.setsid()
    os.fchdir(folder)  # its path ends with the initramfs
    before = denied = after = other = 0
    while True:
        status = attempt()
        if status == 42:
            if denied:
                after += 1
            else:
                before += 1
        elif status == 101 or (status < 0 and not denied):
            # Killed: its exec was let pass, then the policy was armed and its mapping refused.
            denied += 1
        else:
            other += 1
        os.pwrite(result, b"%10d %10d %10d %10d" % (before, denied, after, other), 0)
        try:
            os.stat("stop", dir_fd=folder)
        except FileNotFoundError:
            time.sleep(0.01)
            continue
        os._exit(0)
while os.fstat(result).st_size == 0:
    time.sleep(0.01)
from restrict.cli import main
status = main(["init", "/etc/restrict/init.conf"])
# Only after a failure: the cases run in this very process, which still holds what it holds.
os.environ["RESTRICT_INIT_STATUS"] = str(status)
from restrict.modules import insmod, parse_module_line
with open("/etc/restrict/init.conf") as lines:  # where it came to no module: for the run's disk
    for line in lines:
        if line.startswith("module = "):
            insmod(*parse_module_line(line[9:]))
import runpy
runpy.run_path("/project/tools/guest/inside/harness.py", run_name="__main__")
"""


class Prober:
    """What the prober has counted. before: successes until the first denial; after: successes
    since, of which there must be none; other: attempts that came out otherwise."""

    def __init__(self, path: str = "/run/test/prober") -> None:
        with open(path, encoding="ascii") as file:
            words = file.read().split()
        self.before, self.denied, self.after, self.other = map(int, words)

    def __str__(self) -> str:
        return (
            f"{self.before} successes, then {self.denied} denials and {self.after} successes, "
            f"{self.other} other"
        )

    @staticmethod
    def stop() -> None:
        with open("/run/test/stop", "w"):
            pass


def pokes() -> list[str]:
    """Outcomes of PTRACE_PEEKTEXT, POKETEXT and POKEDATA before ``restrict init``."""
    with open("/run/test/pokes") as file:
        return file.read().split("\n")[:-1]


def console() -> list[str]:
    """What restrict said in the kernel's log."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    found: list[str] = []
    while True:
        try:
            text = os.read(fd, 8192).decode().split("\n")[0].partition(";")[2]
        except BlockingIOError:
            os.close(fd)
            return found
        if text.startswith("restrict: "):
            found.append(text)


def resumed(times: int, then: str = HARNESS) -> str:
    """An ``init`` that takes the policy over and hands it on ``times`` times."""
    words = []
    for _ in range(times):
        words.append(f"{_PYTHON} --plan {PLAN} --")
    return " ".join([*words, then])


def configuration(run: Mapping[str, Any], init: str = HARNESS, **changes: str) -> str:
    """The text of init.conf for the disk ``root`` of the run; a change to "" drops a key, so that
    its default counts.

    Without an image ``root`` (a scenario with disks of its own) it does not say what to open.
    """
    values = {}
    if "root" in run["images"]:
        image = run["images"]["root"]
        letter = "abcdefghijkl"[list(run["images"]).index("root")]
        values = {
            "data": f"/dev/vd{letter}",
            "data_blocks": str(image["blocks"]),
            "root_hash": image["root_hash"],
            "salt": image["salt"],
            "signature": "/etc/restrict/root.p7s",
        }
    values |= {
        "plan": "/etc/restrict/fsaccess.plan",
        "init": init,
        "wait": "20",
        "keep": "exec",  # the harness adopts what it inherits
        **changes,
    }
    lines = [f"{key} = {value}" for key, value in values.items() if value]
    lines += [
        f"module = /usr/lib/modules/{name}.ko {parameters}".rstrip()
        for name, parameters in run["modules"]
    ]
    if run["keyring"]:
        lines.append("certificate = /etc/restrict/certificate.der")
    return "\n".join(lines) + "\n"


def files(
    run: Mapping[str, Any],
    *,
    init: str = HARNESS,
    signature: bytes | None = None,
    gate: bool = False,
    changes: Mapping[str, str] | None = None,
    **more: str,
) -> dict[str, bytes]:
    """The initramfs' files. On the host only: the plan is compiled here.

    changes, more: what else the configuration says.
    gate: with the programs that let nobody but the owner change device-mapper tables.
    """
    from pybpf.plan.frozen import to_bytes
    from restrict import bundle
    from tests.vm.programs import program

    text = _INIT.format(plan=PLAN)
    if signature is None:
        signature = bytes.fromhex(run["images"].get("root", {}).get("signature", ""))
    return {
        "init": text.encode(),
        "probe": program(),
        "etc/restrict/init.conf": configuration(run, init, **{**(changes or {}), **more}).encode(),
        "etc/restrict/fsaccess.plan": to_bytes(bundle.build(gate_device_mapper=gate)),
        "etc/restrict/root.p7s": signature,
        "etc/restrict/certificate.der": run["certificate"],
    }
