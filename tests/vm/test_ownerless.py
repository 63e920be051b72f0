# SPDX-License-Identifier: BSD-2-Clause
"""The policy as programs on the root cgroup (keep = ownerless): what it refuses is what fsaccess
refuses, attempt by attempt; what it does not; and kernels that cannot have it.

That nobody takes it off: tests/vm/test_hold.py and test_trixie.py.
"""

from __future__ import annotations

import json
import os
import subprocess

from tests.vm import probes
from tests.vm.attempts import (
    EXECUTE,
    EXITS,
    LARGE,
    MEMORY,
    OVERLAY,
    PROCESSES,
    drives,
    foreign_objects,
    mount_all,
    unread_pages,
    write_files,
)
from tests.vm.outcome import ALLOWED, Expected, refused
from tests.vm.policy import Attempt, Denial, add, adopt, read_events
from tests.vm.programs import program
from tests.vm.scenario import Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PLAN = "/project/bpf/objects/fsaccess_cgroup.plan"


def by_name(attempt: Attempt) -> Attempt:
    """The same for hooks that may not sleep: the event has the file's name, not its path."""
    denied = attempt.denied
    if denied is None or not denied.file:
        return attempt
    named = Denial(
        denied.operation,
        denied.reason,
        code=denied.code,
        file=denied.file,
        data=denied.data,
        filesystem=denied.filesystem,
        object=denied.object,
        name=os.path.basename(denied.file).removesuffix(" (deleted)"),
    )
    return Attempt(
        attempt.name,
        attempt.words,
        attempt.probe,
        *attempt.arguments,
        denied=named,
        outcome=attempt.outcome,
        control=attempt.control,
        lanes=attempt.lanes,
    )


def _error(kind: type[Exception], act: Callable[[], object]) -> str:
    """What the act raises, as text."""
    try:
        act()
    except kind as e:
        return str(e)
    raise AssertionError("it succeeded")


_SYSCTL = ("ftrace", "other_sysctl")
ATTEMPTS = [
    by_name(attempt)
    for attempt in (
        *EXECUTE,
        *OVERLAY,
        *(attempt for attempt in MEMORY if attempt.name != "heap_implied"),
        *(attempt for attempt in PROCESSES if attempt.name in _SYSCTL),
    )
]

ownerless = Scenario("ownerless", drives={**drives(), **LARGE}, lanes=("7.3",))


@ownerless.setup
def prepare(guest: Guest) -> None:
    """PID 1 stays the owner, so that each case can be tried without the policy first."""
    from restrict import fsaccess, keep_ownerless, lockout

    write_files()
    foreign_objects(guest)
    plan = fsaccess.load_plan(PLAN)
    adopt(guest, keep_ownerless.enable(plan, before_arm=lockout.before_arm(plan, resumed=True)))
    mount_all(guest)


add(ownerless, ATTEMPTS)
# No program that could refuse it can be attached without a link (restrict/BOOT.md); `restrict init`
# has its seccomp filter refuse what leads there, which the next case installs for itself.
ownerless.probe(
    "limit_heap_implied",
    Expected("allowed", 0, "heap rwxp"),
    probes.executable_heap,
    attempt="limit: brk with READ_IMPLIES_EXEC",
)


@ownerless.case()
def limit_unread_pages(guest: Guest) -> None:
    """There is no plan with the gate here (restrict/BOOT.md)."""
    read_events(guest)
    unread_pages(guest)


@ownerless.case()
def the_filter_refuses_implied_exec(guest: Guest) -> None:
    from restrict import seccomp

    guest.expect(probes.imply_exec(), ALLOWED)
    assert seccomp.install(implied_exec=True)
    guest.expect(probes.imply_exec(), refused())
    guest.expect(probes.imply_exec(0x0400000 | 8), refused())
    assert probes.executable_heap().kind != "allowed"
    for other in (0xFFFFFFFF, 0x0040000):  # asking, ADDR_NO_RANDOMIZE
        guest.expect(probes.imply_exec(other), ALLOWED)
    assert not seccomp.install(implied_exec=True), "a second one was stacked"


@ownerless.case()
def a_second_one_is_undone_whole(guest: Guest) -> None:
    """A failure after the programs are attached leaves none of them there."""
    from pybpf.sys import abi
    from pybpf.sys.bpf_more import prog_query
    from restrict import fsaccess, keep_ownerless
    from restrict.errors import RestrictError
    from restrict.mounts import root_cgroup

    def fail(obj: object) -> None:
        raise RestrictError("this far and no further.")

    cgroup = root_cgroup()
    try:
        before = sorted(prog_query(cgroup, abi.BPF_LSM_CGROUP))
        assert len(before) == 9
        said = _error(
            RestrictError,
            lambda: keep_ownerless.enable(
                fsaccess.load_plan(PLAN), status_pin=None, before_arm=fail
            ),
        )
        assert "this far" in said
        assert sorted(prog_query(cgroup, abi.BPF_LSM_CGROUP)) == before
    finally:
        os.close(cgroup)


@ownerless.case(where="pid1")
def the_status_tells_what_is_gone(guest: Guest) -> None:
    """Last: the owner, who may, takes one of the programs away. The status' own link stays."""
    from pybpf.kernel.program import Program
    from pybpf.sys import abi
    from pybpf.sys.bpf_more import prog_detach
    from restrict import status
    from restrict.mounts import root_cgroup

    before = status.read()
    assert before is not None
    assert (before.attached, before.in_force) == (True, True)
    cgroup = root_cgroup()
    try:
        for ident in before.guard["program"]:
            with Program.from_id(ident) as program:
                if program.name.startswith("fsaccess_mprot"):
                    prog_detach(program.fileno(), cgroup, abi.BPF_LSM_CGROUP)
    finally:
        os.close(cgroup)

    def gone() -> bool:
        found = status.read()
        assert found is not None
        return not found.in_force and "NOT in force" in found.text()

    guest.wait(gone, "the program to be released")


def restrict(*words: str) -> subprocess.CompletedProcess[str]:
    """The command, as root types it."""
    return subprocess.run(
        ["/usr/bin/python3", "-s", "-m", "restrict", *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip


command = Scenario("command", lanes=("7.3",))


@command.case()
def enabled_by_the_command_it_is_nobodys(guest: Guest) -> None:
    path = probes.write_file("/tmp/program", program())
    guest.expect(probes.execute(path), EXITS)
    done = restrict("enable", "--keep", "ownerless", "--json")
    assert done.returncode == 0, done.stderr
    guest.note(done.stdout)
    enabled = json.loads(done.stdout)
    assert (enabled["kept"], enabled["owner"], enabled["links"]) == ("ownerless", 0, {})
    guest.expect(probes.execute(path), refused())
    said = json.loads(restrict("status", "--json").stdout)
    assert (said["in_force"], said["mode"], said["owner"]["pid"]) == (True, "exec", 0)
    assert (said["keep"]["method"], said["keep"]["removers"]) == ("ownerless", [])
    # Its reader goes on without the command.
    events = [json.loads(line) for line in restrict("events", "--json").stdout.splitlines()]
    assert ("exec", "filesystem", "program") in [
        (event["operation"], event["reason"], event["path"]) for event in events
    ]
    again = restrict("enable", "--keep", "ownerless")
    assert again.returncode == 1
    assert "in force already" in again.stderr


older = Scenario("older", lanes=("6.12",))


@older.case()
def it_is_refused_with_its_reason(guest: Guest) -> None:
    done = restrict("enable", "--keep", "ownerless", "--force")
    guest.note(done.stderr)
    assert done.returncode == 1
    assert "cannot be kept by ownerless here: it needs Linux 6.16, and this is 6.12" in done.stderr


@older.case()
def the_kernel_says_no_too(guest: Guest) -> None:
    """So the number in the message above is no guess: the plan itself is refused."""
    from pybpf.errors import VerifierError
    from pybpf.plan.run import run
    from restrict import fsaccess

    said = _error(VerifierError, lambda: run(fsaccess.load_plan(PLAN)))
    guest.note(said)
    assert "fsaccess_setintegrity" in said
