# SPDX-License-Identifier: BSD-2-Clause
"""What a successor takes over, and what it refuses: partial, foreign and forged handovers."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

from tests.vm import probes
from tests.vm.outcome import refused
from tests.vm.programs import program
from tests.vm.scenario import Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from restrict.fsaccess import Policy

PLAN = "/project/bpf/objects/fsaccess.plan"
PROGRAM = "/tmp/program"

handover = Scenario("handover")


@handover.setup
def prepare(guest: Guest) -> None:
    probes.write_file(PROGRAM, program())


class Inherited:
    """A policy in force, owned by this process, and its record as text, open to forgery."""

    def __init__(self, pin: str | None = None) -> None:
        from restrict import fsaccess
        from restrict import handover as module

        self.plan: Any = fsaccess.load_plan(PLAN)
        self.policy: Policy = fsaccess.enable(self.plan, status_pin=pin)
        self.text = module._record(self.policy)

    def line(self, start: str) -> str:
        (found,) = [x for x in self.text.splitlines() if x.startswith(start + " ")]
        return found + "\n"

    def adopt(self, text: str, plan: Any = None) -> Policy | None:
        from restrict import handover as module

        fd = module._memfd(text.encode())
        try:
            return module.adopt({module.VARIABLE: str(fd)}, plan=plan or self.plan)
        finally:
            if os.path.exists(f"/proc/self/fd/{fd}"):
                os.close(fd)


def _refused(
    name: str, message: str, forge: Callable[[Inherited], str], *, plan: Any = None
) -> None:
    """A case: the forged record is refused with ``message``, and enforcement goes on."""

    @handover.case(name=f"refuses_{name}")
    def run(guest: Guest) -> None:
        from restrict.errors import HandoverError

        inherited = Inherited()
        text = forge(inherited)
        assert text != inherited.text or plan is not None
        before = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in _fds()}
        said = ""
        try:
            inherited.adopt(text, plan(inherited) if plan is not None else None)
        except HandoverError as e:
            said = str(e)
        guest.note(said)
        assert said, "it was taken over"
        assert message in said
        assert {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in _fds()} == before
        guest.expect(probes.execute(PROGRAM), refused())


def _fds() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


def _without_a_link(inherited: Inherited) -> str:
    count = len(inherited.policy.links)
    text = inherited.text.replace(inherited.line("link fsaccess_mprotect"), "")
    return text.replace(f"end {count}\n", f"end {count - 1}\n")


def _without_an_entry(inherited: Inherited) -> str:
    return inherited.text.replace(inherited.line("link fsaccess_mprotect"), "")


def _words(inherited: Inherited, start: str, **changes: object) -> str:
    """The record with words of one line changed; positions by name."""
    line = inherited.line(start)
    words = line.split()
    places = {"fd": 2, "id": 3, "prog": 4, "size": 4, "tag": 5}
    for key, value in changes.items():
        words[places[key]] = str(value)
    return inherited.text.replace(line, " ".join(words) + "\n")


_kept: list[Any] = []


def _second() -> Inherited:
    _kept.append(Inherited())
    found: Inherited = _kept[-1]
    return found


def _foreign_link(inherited: Inherited) -> str:
    """The same program of another policy, with its own true ids."""
    other = _second().line("link fsaccess_exec").split()
    return _words(inherited, "link fsaccess_exec", fd=other[2], id=other[3], prog=other[4])


def _foreign_link_under_our_ids(inherited: Inherited) -> str:
    other = _second().line("link fsaccess_exec").split()
    return _words(inherited, "link fsaccess_exec", fd=other[2])


def _foreign_bss(inherited: Inherited) -> str:
    other = _second().line("map .bss").split()
    return _words(inherited, "map .bss", fd=other[2], id=other[3])


def _forged_bss(inherited: Inherited) -> str:
    """An array made here, with a perfect copy of the guard in it."""
    from pybpf.kernel import map as maps

    size = inherited.policy.bss_size
    made = maps.create(2, 4, size, 1, name="forged", flags=1 << 10)  # ARRAY, BPF_F_MMAPABLE
    _kept.append(made)
    with inherited.policy.globals() as values:
        content = bytes(values._mapped()[:size])
        owner, offset = inherited.policy.bss.id, inherited.policy.places["guard_map_ids"][0]
    raw = bytearray(content)
    for i in range(offset, offset + 64, 4):
        if int.from_bytes(raw[i : i + 4], "little") == owner:
            raw[i : i + 4] = made.id.to_bytes(4, "little")
    made.update(0, bytes(raw))
    return _words(inherited, "map .bss", fd=made.fileno(), id=made.id)


def _map_for_link(inherited: Inherited) -> str:
    fd = os.dup(inherited.policy.events.fileno())
    return _words(inherited, "link fsaccess_exec", fd=fd)


def _pipe_for_link(inherited: Inherited) -> str:
    return _words(inherited, "link fsaccess_exec", fd=os.pipe()[0])


def _other_attach_type(inherited: Inherited) -> str:
    """The fmod_ret program's link under the name of an LSM program."""
    brk = inherited.line("link fsaccess_brk")
    execute = inherited.line("link fsaccess_exec")
    text = inherited.text.replace(brk, "@").replace(execute, brk.replace("_brk ", "_exec "))
    return text.replace("@", execute.replace("_exec ", "_brk "))


def _twice(inherited: Inherited) -> str:
    mmap = inherited.line("link fsaccess_mmap").split()
    return _words(
        inherited, "link fsaccess_exec",
        fd=os.dup(int(mmap[2])), id=mmap[3], prog=mmap[4], tag=mmap[5],
    )  # fmt: skip


def _closed(inherited: Inherited) -> str:
    return _words(inherited, "link fsaccess_exec", fd=999)


def _disarmed(inherited: Inherited) -> str:
    with inherited.policy.globals() as values:
        values.set("armed", 0)
    return inherited.text


_refused("a_missing_link", "the guard protects the links", _without_a_link)
_refused("a_short_record", "links where", _without_an_entry)
_refused("a_foreign_link", "the guard protects", _foreign_link)
_refused("a_foreign_link_under_our_ids", "it is link", _foreign_link_under_our_ids)
_refused("a_foreign_bss", "the guard protects", _foreign_bss)
_refused("a_forged_bss", "the guard protects", _forged_bss)
_refused("a_map_for_a_link", "link", _map_for_link)
_refused("a_pipe_for_a_link", "stays open", _pipe_for_link)
_refused("another_attach_type", "attach type is", _other_attach_type)
_refused("a_link_twice", "twice", _twice)
_refused("a_closed_fd", "stays open", _closed)
_refused(
    "a_wrong_tag",
    "has the tag",
    lambda i: _words(i, "link fsaccess_exec", tag="0011223344556677"),
)


def _swapped(inherited: Inherited) -> Any:
    """The plan with two programs exchanged: its tags are not those of what is attached."""
    slots = inherited.plan.programs
    slots["fsaccess_exec"], slots["fsaccess_mmap"] = slots["fsaccess_mmap"], slots["fsaccess_exec"]
    return inherited.plan


_refused("programs_of_another_plan", "the plan's is", lambda i: i.text, plan=_swapped)


@handover.case()
def refuses_a_disarmed_policy(guest: Guest) -> None:
    from restrict.errors import HandoverError

    inherited = Inherited()
    text = _disarmed(inherited)
    said = ""
    try:
        inherited.adopt(text)
    except HandoverError as e:
        said = str(e)
    assert "not armed" in said


@handover.case()
def refuses_another_process(guest: Guest) -> None:
    """A child has the fds, but it is not the owner."""
    from restrict.errors import HandoverError

    inherited = Inherited()
    child = os.fork()
    if child == 0:
        try:
            inherited.adopt(inherited.text)
        except HandoverError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@handover.case()
def takes_over_what_is_complete(guest: Guest) -> None:
    inherited = Inherited("/sys/fs/bpf/restrict/complete")
    policy = inherited.adopt(inherited.text)
    assert policy is not None
    for handle in inherited.policy.handles():
        handle.fd = -1  # they are the successor's now
    guest.expect(probes.execute(PROGRAM), refused())
    policy.close()
    assert probes.execute(PROGRAM).kind == "allowed"
    assert not os.path.exists("/sys/fs/bpf/restrict/complete")


_CHAIN = """\
import os, sys
sys.path.insert(0, "/project")
from restrict import fsaccess, handover, lockout
plan = fsaccess.load_plan({plan!r})
check = lockout.before_arm(plan, resumed=True)
policy = fsaccess.enable(plan, status_pin=None, before_arm=check)
print(os.getpid(), flush=True)
environment, _ = handover.hand_over(policy)
words = {words!r}
os.execve(words[0], words, {{**os.environ, **environment}})
"""
_LAST = """\
import os, sys
sys.path.insert(0, "/project")
from restrict import fsaccess, handover
policy = handover.adopt(plan=fsaccess.load_plan({plan!r}))
print(os.getpid(), len(policy.links), flush=True)
sys.stdin.read()
policy.close()
"""


@handover.case()
def ten_reexecs_of_an_owner_that_is_not_pid_1(guest: Guest) -> None:
    """A prober tries all the time; the owner's start time is what tells it from another."""
    python = [sys.executable, "-I", "-S", "-c"]
    words = [*python, _LAST.format(plan=PLAN)]
    resume = [sys.executable, "-s", "-m", "restrict", "init", "--resume", "--plan", PLAN, "--"]
    for _ in range(10):
        words = [*resume, *words]
    owner = subprocess.Popen(
        [*python, _CHAIN.format(plan=PLAN, words=words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    first = owner.stdout.readline().strip()
    assert first == str(owner.pid)
    denied = 0
    import select

    poll = select.poll()
    poll.register(owner.stdout, select.POLLIN)
    while not poll.poll(5):
        code = probes.execute_once(PROGRAM)
        assert code == errno.EPERM, code
        denied += 1
    last = owner.stdout.readline().split()
    from restrict import fsaccess

    attached = len(fsaccess.load_plan(PLAN).links) + 1  # and the guard of a sysctl
    assert last == [str(owner.pid), str(attached)]
    guest.expect(probes.execute(PROGRAM), refused())
    guest.note(f"{denied} attempts during ten re-execs, all refused")
    assert denied > 10
    owner.communicate("")
    assert probes.execute(PROGRAM).kind == "allowed"
