# SPDX-License-Identifier: BSD-2-Clause
"""The execution policy in a guest: switched on in a set-up, judged by outcome and event.

An :class:`Attempt` is one act and what the policy must make of it.  ``check`` first tries it
with the policy attached but not armed, which shows that nothing else refuses it, and then
armed: the outcome must be exact, and each denial must have been reported with the right
operation, reason, process and file.  Only the one word ``armed`` differs between the two.

A second way to see that the checks can fail is a plan from which the enforcing hooks are left
out: ``check_toothless`` requires that ``check`` fails then.  ``RESTRICT_VM_SABOTAGE=hooks`` in
the environment of pytest does the same to all scenarios, whose denials must then all fail.
"""

from __future__ import annotations

import errno
import json
import os

from tests.vm.outcome import ALLOWED, Expected, Outcome, refused
from tests.vm.scenario import Drive, Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from pybpf.plan.ops import Plan
    from restrict.events import Event
    from restrict.fsaccess import Policy

__all__ = [
    "ENFORCING",
    "PLAN",
    "PLANS",
    "SABOTAGE",
    "Attempt",
    "Denial",
    "add",
    "add_toothless",
    "adopt",
    "before_filter",
    "build_plan",
    "check",
    "check_toothless",
    "counters",
    "enable",
    "load_plan",
    "judge",
    "observe",
    "plans_drive",
    "policy_of",
    "read_events",
    "unarmed",
]

PLAN = "/project/bpf/objects/fsaccess.plan"
PLANS = "/run/plans"

#: Every program that refuses something; left are those that keep the record of devices.
ENFORCING = (
    "fsaccess_exec",
    "fsaccess_exec_check",
    "fsaccess_mmap",
    "fsaccess_mprotect",
    "fsaccess_brk",
    "fsaccess_sysctl",
    "fsaccess_guard_map",
    "fsaccess_guard_program",
    "fsaccess_guard_link",
    "fsaccess_ptrace",
    "fsaccess_traceme",
)

_SABOTAGE_WORD = "restrict.sabotage=hooks"
#: For a scenario's kernel command line, which is how the guest hears of it.
SABOTAGE = _SABOTAGE_WORD if os.environ.get("RESTRICT_VM_SABOTAGE") == "hooks" else ""


# ── plans ──


def build_plan(*without: str, **settings: object) -> bytes:
    """A frozen plan of the policy without some programs; on the host only.

    *settings* are those of ``restrict.bundle.spec``.
    """
    from pybpf.compiler import compile as compile_plan
    from pybpf.plan.frozen import to_bytes
    from restrict import bundle

    spec = bundle.spec(**settings)  # type: ignore[arg-type]
    for name in without:
        spec = spec.with_program(name, autoload=False)
    return to_bytes(compile_plan(spec, relocate="kernel"))


def plans_drive(**plans: Callable[[], bytes]) -> Drive:
    """A disk with the plan that has no enforcing hooks, and others; ``load_plan`` finds them."""
    content: dict[str, Callable[[], bytes]] = {
        "toothless": lambda: build_plan(*ENFORCING),
        **plans,
    }
    return Drive(content, signature="none")


def load_plan(guest: Guest, name: str = "") -> Plan:
    """The committed plan, or the one that the drive ``plans`` has under *name*."""
    from restrict import fsaccess

    if not name:
        return fsaccess.load_plan(PLAN)
    if not os.path.ismount(PLANS):
        guest.mount(guest.node("plans"), PLANS)
    return fsaccess.load_plan(f"{PLANS}/{name}")


def _is_sabotaged() -> bool:
    with open("/proc/cmdline") as line:
        return _SABOTAGE_WORD in line.read().split()


def _pokes() -> dict[str, Outcome]:
    from tests.vm import probes_process

    return {
        "peek": probes_process.peek(),
        "poke_text": probes_process.poke(),
        "poke_data": probes_process.poke(True),
    }


def before_filter(guest: Guest) -> dict[str, Outcome]:
    """What came of the attempts on a child's text before PID 1 put itself under the filter."""
    outcomes = guest.state["before filter"]
    return outcomes  # type: ignore[no-any-return]


def enable(guest: Guest, plan: str = "") -> None:
    """Switch the policy on; PID 1 owns it, or the process that calls this.

    PID 1 puts itself, and so every case, under the seccomp filter first, as ``restrict init``
    does; not so with a plan that enforces nothing.
    """
    from restrict import fsaccess, lockout, seccomp

    if _is_sabotaged():
        plan = "toothless"
    if os.getpid() == 1:
        guest.state["before filter"] = _pokes()
        if plan != "toothless":
            seccomp.install()
    loaded = load_plan(guest, plan)
    if plan == "toothless":
        # enable() refuses a plan with so few programs; here that is what is wanted.
        fsaccess._LINKS_LEAST = 1
    policy = fsaccess.enable(
        loaded, before_arm=lockout.before_arm(loaded, resumed=True, refuse=plan != "toothless")
    )
    adopt(guest, policy)


def adopt(guest: Guest, policy: Policy) -> None:
    """Make an enabled or taken-over *policy* the one that ``check`` is about."""
    from restrict.events import Reader

    # The reader's mappings are shared with the children in which the cases run, and cases come
    # one after the other: there is one consumer at a time.
    guest.state["policy"] = policy
    guest.state["reader"] = Reader(policy.events.fileno())


def policy_of(guest: Guest) -> Policy:
    """The policy that ``enable`` left."""
    policy = guest.state["policy"]
    return policy  # type: ignore[no-any-return]


# ── the switch and the events ──


class _Unarmed:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __enter__(self) -> None:
        with self._policy.globals() as values:
            values.set("armed", 0)

    def __exit__(self, *exc: object) -> None:
        self._policy.arm()


def unarmed(guest: Guest) -> AbstractContextManager[None]:
    """Inside the block every hook is attached and allows."""
    return _Unarmed(policy_of(guest))


def _last_pid() -> int:
    """The process number that was given out last; they are given out in order."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[4])


def read_events(guest: Guest) -> list[Event]:
    """What waits in the ring buffer."""
    found: list[Event] = []
    guest.state["reader"].read(found.append)
    return found


def observe(
    guest: Guest, probe: Callable[..., Outcome], *arguments: object
) -> tuple[Outcome, list[Event]]:
    """Call *probe*: its outcome, and the events of this process and those it has started."""
    read_events(guest)
    first = _last_pid()
    outcome = probe(*arguments)
    last = _last_pid()
    me = os.getpid()
    return outcome, [e for e in read_events(guest) if e.pid == me or first < e.pid <= last]


def counters(guest: Guest, operation: str) -> dict[str, int]:
    """The policy's counters of one operation, as its status file prints them."""
    from restrict.fsaccess import PIN

    with open(PIN) as file:
        for line in file:
            words = line.split()
            if words[:2] == ["counter", operation]:
                return {words[i]: int(words[i + 1]) for i in range(2, len(words), 2)}
    raise LookupError(f"the status has no counter {operation}")


# ── attempts ──


class Denial:
    """What a denial and its event must be like.

    *file* is the file that was to be executed: the event must have its path (where the hook
    gives only a name, that, or *name*), device and inode.  *data* is the file that hosts the
    data, if that is another, as below an overlay; "" if the event's file cannot be looked up.
    *object* is the number of what was guarded; a function is called with the guest.
    """

    __slots__ = ("code", "data", "file", "filesystem", "name", "object", "operation", "reason")

    def __init__(
        self,
        operation: str,
        reason: str,
        *,
        code: int = errno.EPERM,
        file: str = "",
        data: str | None = None,
        filesystem: str = "",
        object: int | Callable[[Guest], int] = 0,
        name: str = "",
    ) -> None:
        self.name = name
        self.operation = operation
        self.reason = reason
        self.code = code
        self.file = file
        self.data = file if data is None else data
        self.filesystem = filesystem
        self.object = object

    def differences(self, guest: Guest, event: Event) -> Iterator[str]:
        """In what *event* is not as it must be."""
        wanted: list[tuple[str, object, object]] = [
            ("verdict", "denied", event.verdict),
            ("operation", self.operation, event.operation),
            ("reason", self.reason, event.reason),
            ("uid", os.getuid(), event.uid),
        ]
        if self.object:
            number = self.object(guest) if callable(self.object) else self.object
            wanted.append(("object", number, event.object))
        if self.filesystem:
            wanted.append(("filesystem", self.filesystem, event.filesystem))
        if self.data:
            status = os.stat(self.data)
            device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
            wanted.append(("device", device, event.device))
            wanted.append(("inode", status.st_ino, event.inode))
        if self.file:
            name = self.name or self.file
            if event.operation == "mprotect":
                name = os.path.basename(name)
            wanted.append(("path", name, event.path))
        for what, expected, found in wanted:
            if expected != found:
                yield f"{what} is {found!r}, not {expected!r}"


class Attempt:
    """An act, and what the policy must make of it.

    *denied* says how it is refused; None: it is allowed.  *outcome* is the exact outcome when
    armed (default: refused with the denial's errno, or allowed), *control* the one without
    (default: allowed).  An argument that is a function is called with the guest.  *words* is
    for people: what is tried.
    """

    def __init__(
        self,
        name: str,
        words: str,
        probe: Callable[..., Outcome],
        *arguments: object,
        denied: Denial | None = None,
        outcome: Expected | None = None,
        control: Expected = ALLOWED,
        lanes: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.words = words
        self.probe = probe
        self.arguments = arguments
        self.denied = denied
        self.control = control
        self.lanes = lanes
        if outcome is None:
            outcome = control if denied is None else refused(denied.code)
        self.outcome = outcome

    def observe(self, guest: Guest) -> tuple[Outcome, list[Event]]:
        """Do it once: the outcome and the events it caused."""
        given = [value(guest) if callable(value) else value for value in self.arguments]
        return observe(guest, self.probe, *given)


def check(guest: Guest, attempt: Attempt) -> None:
    """The attempt must come out as the control says without the policy, and as it says with it.

    Raises:
        AssertionError: it does not, or the events are not the right ones.
    """
    with unarmed(guest):
        outcome, events = attempt.observe(guest)
    guest.note(f"not armed: {outcome}")
    if not attempt.control.matches(outcome):
        raise AssertionError(f"not armed, expected {attempt.control}, but: {outcome}")
    if events:
        raise AssertionError(f"not armed, but reported: {[e.text() for e in events]}")
    judge(guest, attempt, *attempt.observe(guest))


def judge(guest: Guest, attempt: Attempt, outcome: Outcome, events: Sequence[Event]) -> None:
    """Hold what was observed with the policy armed against what the attempt says.

    Raises:
        AssertionError: the outcome or an event is not the right one.
    """
    for event in events:
        guest.note("event " + json.dumps(event.as_dict()))
    guest.expect(outcome, attempt.outcome)
    if attempt.denied is None:
        if events:
            raise AssertionError(f"allowed, but reported: {[e.text() for e in events]}")
        return
    if not events:
        raise AssertionError("refused, but no event reported it")
    for event in events:
        wrong = list(attempt.denied.differences(guest, event))
        if wrong:
            raise AssertionError(f"the event's {'; its '.join(wrong)}: {event.text()}")


def check_toothless(guest: Guest, attempt: Attempt) -> None:
    """With a plan that enforces nothing: the act succeeds, and ``check`` notices.

    Raises:
        AssertionError: the attempt is refused by something else, or the check cannot fail.
    """
    outcome, _events = attempt.observe(guest)
    guest.expect(outcome, attempt.control)
    try:
        check(guest, attempt)
    except AssertionError as error:
        guest.note(f"without its hook the case fails: {error}")
    else:
        raise AssertionError("the case passes although no hook enforces anything")
    guest.expected, guest.observed = str(attempt.control), str(outcome)


def add(scenario: Scenario, attempts: Sequence[Attempt]) -> None:
    """Make each attempt a case of *scenario*, whose set-up calls ``enable``."""
    _add(scenario, attempts, check)


def add_toothless(scenario: Scenario, attempts: Sequence[Attempt]) -> None:
    """Make each attempt that must be denied a case that requires the denial's check to fail."""
    _add(scenario, [attempt for attempt in attempts if attempt.denied], check_toothless)


def _add(
    scenario: Scenario, attempts: Sequence[Attempt], run: Callable[[Guest, Attempt], None]
) -> None:
    for attempt in attempts:
        lanes = [x for x in scenario.lanes if attempt.lanes is None or x in attempt.lanes]
        if not lanes:
            continue

        def case(guest: Guest, attempt: Attempt = attempt) -> None:
            run(guest, attempt)

        scenario.case(name=attempt.name, lanes=lanes)(case)
        scenario.cases[attempt.name].attempt = attempt.words
