# SPDX-License-Identifier: BSD-2-Clause
"""Runs in the guest: what loading the policy takes, and what the policy costs.

CONFIGURATION (a JSON file in this folder). Prints progress, and at the end one line
"RESULT {…}". The drive "bench" has the workload, the launcher and a program that does nothing;
the root and the project are on signed devices too, so nothing here is ever denied unless it is
meant to be.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time

sys.path.insert(0, "/project")

from prepared import BENCH, prepare  # type: ignore[import-not-found]  # noqa: E402

from pybpf.kernel.program import Program  # noqa: E402
from pybpf.plan.frozen import from_bytes  # noqa: E402
from pybpf.plan.run import run  # noqa: E402
from pybpf.sys import abi, bpf  # noqa: E402
from restrict import fsaccess, lockout  # noqa: E402
from restrict.devmapper import DeviceMapper  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pybpf.plan.live import Object
    from restrict.fsaccess import Policy
    from tests.vm.scenario import Guest

PINS = "/sys/fs/bpf"
POLICY = "fsaccess"
_PTRACE_TRACEME = 0


def say(text: str) -> None:
    print(text, flush=True)


# --- loading ----------------------------------------------------------------------------------


def launch(command: Sequence[str]) -> dict[str, Any]:
    """One process by the C launcher; as tools.benchmarks.launch does on the host."""
    reader, writer = os.pipe()
    done = subprocess.run(
        [f"{BENCH}/launch", str(writer), *command], capture_output=True, text=True,
        pass_fds=[writer], stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writer)
    with open(reader) as file:
        start, took, cpu, rss, status = map(int, file.read().split())
    if status:
        raise RuntimeError(f"{command} ended with {status}: {done.stderr}{done.stdout}")
    marks: dict[str, float] = {}
    facts: dict[str, float] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "mark":
            marks[words[1]] = (int(words[2]) - start) / 1e6
        elif len(words) == 2 and words[1].isdigit():
            facts[words[0]] = float(words[1])
    result: dict[str, Any] = {
        "whole_ms": took / 1e6, "cpu_ms": cpu / 1e3, "rss_mb": rss / 1024,
        "marks": marks, "facts": facts,
    }  # fmt: skip
    if "loaded" in marks:
        result["in_process_ms"] = marks["loaded"] - marks["begin"]
    return result


def loading(name: str, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Loading NAME.o (attaching nothing) by the contenders, in rounds.

    For fsaccess bpftool is none of them: it loads the object, but then fails to pin the programs
    that are not loaded by default.
    """
    python = ["/usr/bin/python3", "-I", "-S"]
    elf = [*python, "load_elf.py", "/project", "/usr/lib/python3/dist-packages", f"{name}.o"]
    commands = {
        "bundle": [*python, "load_bundle.py", "/project", f"{name}.bundle"],
        "ELF, relocated in the kernel": [*elf, "kernel"],
        "C on libbpf, static": [f"{BENCH}/libbpf_load", f"{name}.o"],
    }
    if name == POLICY:
        commands["ELF, relocated in Python"] = [*elf, "python"]
    else:
        commands["bpftool loadall"] = [
            "/usr/sbin/bpftool", "prog", "loadall", f"{name}.o", f"{PINS}/{name}"
        ]  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in commands}
    for number in range(rounds + 1):
        for contender, command in commands.items():
            sample = launch(command)
            if number:  # the first round reads everything from the disks
                found[contender].append(sample)
            if "bpftool" in contender:
                for entry in os.listdir(f"{PINS}/{name}"):
                    os.unlink(f"{PINS}/{name}/{entry}")
                os.rmdir(f"{PINS}/{name}")
        say(f"loading {name}: round {number} of {rounds}")
    return found


def phases() -> dict[str, dict[str, float]]:
    """Milliseconds of each phase of loading fsaccess, by way; once each."""
    start = [
        "/usr/bin/python3", "-I", "-S", "phase_times.py", "/project",
        "/usr/lib/python3/dist-packages", ".",
    ]  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    modules: list[str] = []
    for name, how in (
        ("bundle", "bundle"),
        ("ELF, relocated in Python", "python"),
        ("ELF, relocated in the kernel", "kernel"),
    ):
        command = [*start, f"{POLICY}.{'bundle' if how == 'bundle' else 'o'}", how]
        if how != "kernel":  # what the kernel's way imports, Python's imports too
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            lines = [line.split() for line in done.stdout.splitlines()]
            names = [line[1] for line in lines if len(line) == 2 and line[0] == "imported"]
            modules = sorted(names, key=lambda name: name.partition(".")[0] != "pybpf")
        found[name] = phase_times([*command, *modules])
        say(f"phases: {name}")
    return found


def phase_times(command: Sequence[str]) -> dict[str, float]:
    """What phase_times.py prints, in milliseconds by phase."""
    sample = launch(command)
    marks = sample["marks"]
    return {
        "interpreter": marks["first"],
        "import": marks["begin"] - marks["first"],
        **{
            name.removeprefix("ns."): value / 1e6
            for name, value in sample["facts"].items()
            if name.startswith("ns.")
        },
        "end": sample["whole_ms"] - marks["loaded"],
    }


def operations(plan: Any) -> list[tuple[str, str, float]]:
    """(kind, name, milliseconds) of each operation of the plan, in order; attaches nothing."""
    found: list[tuple[str, str, float]] = []

    def trace(op: Any, nanoseconds: int) -> None:
        found.append((type(op).__name__, getattr(op, "name", ""), nanoseconds / 1e6))

    run(plan, trace=trace).close()
    return found


# --- the policy -------------------------------------------------------------------------------


class Owner:
    """The policy owned by this process; programs are held for their statistics."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.policy: Policy | None = None
        self.programs: dict[str, Program] = {}
        self.steps: list[tuple[str, float]] = []

    def _hold(self, obj: Object) -> None:
        lockout.before_arm(self.plan, resumed=True)(obj)
        self.programs = {
            name: Program(program.dup(), name) for name, program in obj.programs.items()
        }

    def enable(self, audit: bool) -> None:
        """Load, attach and arm; the time of each step is kept."""
        begun: list[tuple[str, float]] = []
        self.policy = fsaccess.enable(
            self.plan,
            audit=audit,
            before_arm=self._hold,
            step=lambda name: begun.append((name, time.perf_counter())),
        )
        ends = [start for _, start in begun[1:]] + [time.perf_counter()]
        self.steps = [
            (name, (end - start) * 1e3)
            for (name, start), end in zip(begun, ends, strict=True)
        ]

    def set(self, name: str, value: int) -> None:
        """Store one of the policy's globals."""
        assert self.policy is not None
        with self.policy.globals() as values:
            values.set(name, value)

    def disable(self) -> None:
        """Detach everything."""
        for program in self.programs.values():
            program.close()
        self.programs = {}
        if self.policy is not None:
            self.policy.close()
            self.policy = None


def workload(kind: str, count: int, path: str | None) -> float:
    """Operations a second."""
    words = [f"{BENCH}/workload", kind, str(count), *([path] if path else [])]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    number, nanoseconds = map(int, done.stdout.split())
    return number / (nanoseconds / 1e9)


def rates(owner: Owner, rounds: int, kinds: dict[str, tuple[int, str | None]]) -> dict[str, Any]:
    """Operations a second of each kind, with the policy off, in audit mode and on."""
    states = ("off", "audit", "on")
    found: dict[str, Any] = {kind: {state: [] for state in states} for kind in kinds}
    steps: dict[str, list[float]] = {}
    for number in range(rounds):
        for state in states:
            if state == "audit":
                owner.enable(audit=True)
                for name, took in owner.steps:
                    steps.setdefault(name, []).append(took)
            elif state == "on":
                owner.set("audit", 0)
            for kind, (count, path) in kinds.items():
                found[kind][state].append(workload(kind, count, path))
        owner.disable()
        say(f"rates: round {number + 1} of {rounds}")
    return {"rates": found, "enable_ms": steps}


# --- nanoseconds a call -----------------------------------------------------------------------


def _each(owner: Owner) -> dict[str, tuple[int, int]]:
    return {name: program.stats()[:2] for name, program in owner.programs.items()}


def _devices(guest: Guest) -> None:
    for _ in range(5):
        guest.verity("bench", device="again")
        with DeviceMapper() as mapper:
            mapper.remove("again")


def _ids(count: int) -> None:
    """Open a map, a program and a link that are none of the policy's, by id."""
    fd = bpf.map_create(abi.BPF_MAP_TYPE_ARRAY, 4, 4, 1, name="mine")
    from pybpf.kernel.map import Map

    with Map(fd, "mine") as mine:
        for _ in range(count):
            os.close(bpf.fd_by_id(abi.BPF_MAP_GET_FD_BY_ID, mine.id))
    # r0 = 0; exit
    code = ctypes.create_string_buffer(bytes.fromhex("b700000000000000" "9500000000000000"))
    licence = ctypes.create_string_buffer(b"GPL")
    program = bpf.prog_load(
        {
            "prog_type": abi.BPF_PROG_TYPE_SOCKET_FILTER,
            "insns": ctypes.addressof(code),
            "insn_cnt": 2,
            "license": ctypes.addressof(licence),
        }
    )
    with Program(program, "mine") as loaded:
        for _ in range(count):
            os.close(bpf.fd_by_id(abi.BPF_PROG_GET_FD_BY_ID, loaded.id))


def _traceme(count: int) -> None:
    libc = ctypes.CDLL(None)
    for _ in range(count):
        child = os.fork()
        if child == 0:
            libc.ptrace(_PTRACE_TRACEME, 0, 0, 0)
            os._exit(0)
        os.waitpid(child, 0)


def _sysctl(count: int) -> None:
    for _ in range(count):
        fd = os.open("/proc/sys/kernel/ostype", os.O_RDONLY)
        os.read(fd, 64)
        os.close(fd)


def _denied(count: int) -> int:
    """Map a file of a tmpfs executable: denied each time, with an event each."""
    refused = 0
    with open("/run/vm/files/untrusted", "wb+") as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        for _ in range(count):
            try:
                mmap.mmap(
                    file.fileno(), mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC
                ).close()
            except PermissionError:
                refused += 1
    return refused


def hooks(
    guest: Guest, owner: Owner, kinds: dict[str, tuple[int, str | None]]
) -> dict[str, dict[str, Any]]:
    """Runs and nanoseconds of each program while the workloads go, by state."""
    found: dict[str, dict[str, Any]] = {}
    statistics = bpf.enable_stats()
    try:
        for state in ("inert", "audit", "on"):
            owner.enable(audit=state != "on")
            if state == "inert":
                owner.set("armed", 0)
            before = _each(owner)
            for kind, (count, path) in kinds.items():
                workload(kind, count, path)
            _devices(guest)
            _ids(200)
            _traceme(10)
            _sysctl(200)
            after = _each(owner)
            found[state] = {
                name: {
                    "runs": after[name][0] - before[name][0],
                    "ns": after[name][1] - before[name][1],
                }
                for name in after
            }
            if state == "on":
                name = "fsaccess_mmap"
                start = owner.programs[name].stats()
                refused = _denied(500)
                end = owner.programs[name].stats()
                found["denied"] = {
                    name: {"runs": end[0] - start[0], "ns": end[1] - start[1], "denied": refused}
                }
            owner.disable()
            say(f"hooks: {state}")
    finally:
        os.close(statistics)
    return found


def main(path: str) -> None:
    wanted, guest = prepare(path)
    kinds = {
        "exec": (wanted["exec"], f"{BENCH}/nop"),
        "map": (wanted["map"], f"{BENCH}/workload"),
        "protect": (wanted["map"], f"{BENCH}/workload"),
        "anonymous": (wanted["map"], None),
        "trace": (wanted["exec"], None),
    }
    if wanted["check"]:
        kinds["check"] = (wanted["exec"], f"{BENCH}/nop")
    result: dict[str, Any] = {"kernel": os.uname().release}
    result["loading"] = {
        name: loading(name, wanted["load_rounds"]) for name in wanted["objects"]
    }
    result["phases"] = phases()
    with open("policy.bundle", "rb") as bundle:
        plan = from_bytes(bundle.read())
    result["operations"] = operations(plan)
    owner = Owner(plan)
    result.update(rates(owner, wanted["rounds"], kinds))
    result["hooks"] = hooks(guest, owner, kinds)
    say("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
