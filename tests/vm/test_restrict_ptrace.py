# SPDX-License-Identifier: BSD-2-Clause
"""The seccomp filter that ``restrict init`` puts PID 1, and so every process, under."""

from __future__ import annotations

import os
import signal
import time

from tests.vm import probes, probes_process
from tests.vm.outcome import ALLOWED, Expected, refused
from tests.vm.policy import adopt, observe
from tests.vm.programs import program
from tests.vm.restrict_boot import PLAN, Prober, console, files, pokes, resumed
from tests.vm.scenario import Drive, Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

TAKEOVERS = 3
EPERM, ESRCH = 1, 3


def _initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
    return files(run, init=resumed(TAKEOVERS))


ptrace = Scenario(
    "ptrace",
    initramfs=_initramfs,
    drives={
        "good": Drive(
            {
                f"int80_{request}": program(code=probes_process.ptrace_by_int80(request))
                for request in (1, 4, 5)
            }
        )
    },
)


def _take_over(guest: Guest) -> None:
    from restrict import fsaccess, handover

    policy = handover.adopt(plan=fsaccess.load_plan(PLAN))
    assert policy is not None
    adopt(guest, policy)


@ptrace.setup
def take_over(guest: Guest) -> None:
    """The harness is the last successor; the prober would fill the events."""
    _take_over(guest)
    Prober.stop()
    guest.mount(guest.verity("good"), "/run/good")


@ptrace.case()
def pokes_succeed_before_init(guest: Guest) -> None:
    """The control: the same acts in the initramfs, before there was a policy or a filter."""
    guest.note(str(pokes()))
    assert [text.partition(" (")[0] for text in pokes()] == ["allowed"] * 3


def _refused_without_event(guest: Guest, data: bool, permissions: str) -> None:
    outcome, events = observe(guest, probes_process.poke, data, permissions)
    guest.expect(outcome, refused())
    # It is not the policy's doing, and the policy does not know of it.
    assert not events, [event.text() for event in events]


@ptrace.case()
def poke_text(guest: Guest) -> None:
    _refused_without_event(guest, False, "r-xp")


@ptrace.case()
def poke_data(guest: Guest) -> None:
    _refused_without_event(guest, True, "r-xp")


@ptrace.case()
def poke_writable(guest: Guest) -> None:
    """The filter sees no page, so this goes too; process_vm_writev(2) is there for it."""
    _refused_without_event(guest, False, "rw-p")


ptrace.probe("peek", ALLOWED, probes_process.peek)
ptrace.probe("attach", ALLOWED, probes_process.ptrace_stranger)
ptrace.probe("traceme", ALLOWED, probes_process.traceme)
for _request, _code in ((1, ESRCH), (4, EPERM), (5, EPERM)):
    ptrace.probe(
        f"int80_{_request}",
        Expected("allowed", 0, f"exited with {_code}"),
        probes.execute,
        f"/run/good/int80_{_request}",
    )


@ptrace.case()
def one_filter_after_all_takeovers(guest: Guest) -> None:
    """It came through exec and nobody stacked another; init said it once, and no privilege
    was given up for it."""
    from restrict import seccomp

    for pid in ("1", "self"):
        assert seccomp.filters_of(pid) == (2, 1), pid
        with open(f"/proc/{pid}/status") as file:
            assert "NoNewPrivs:\t0\n" in file
    said = [line for line in console() if "POKETEXT" in line]
    guest.note(str(said))
    assert len(said) == 1
    assert "refused from here on" in said[0]
    assert sum("took over" in line for line in console()) == TAKEOVERS


@ptrace.case(where="pid1")
def installed_already(guest: Guest) -> None:
    from restrict import seccomp

    assert seccomp.install() is False
    assert seccomp.filters_of(1) == (2, 1)


@ptrace.case()
def status_and_check_tell_it(guest: Guest) -> None:
    from restrict import preflight, status

    found = status.read()
    assert found is not None
    guest.note(found.poke)
    assert found.poke_refused is True
    assert "PID 1 has 1 seccomp filters" in found.poke
    (finding,) = [f for f in preflight.check() if f.name == "ptrace-poke"]
    assert finding.ok is True


def _records() -> list[str]:
    """Audit records of seccomp in the kernel's log (type 1326, AUDIT_SECCOMP)."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    found = []
    try:
        while True:
            text = os.read(fd, 8192).decode("utf-8", "replace").partition(";")[2]
            if "type=1326" in text:
                found.append(text.split("\n")[0])
    except BlockingIOError:
        os.close(fd)
    return found


@ptrace.case()
def the_kernel_logs_it(guest: Guest) -> None:
    """In place of an event: process, program, call and answer, in the audit's words."""
    before = len(_records())
    guest.expect(probes_process.poke(), refused())
    guest.wait(lambda: len(_records()) > before, "an audit record")
    (record,) = _records()[before:]
    guest.note(record)
    for words in (" arch=c000003e syscall=101 ", " code=0x50000", 'exe="/usr/bin/python3'):
        assert words in record, words


_HELPER = """\
import sys
sys.path.insert(0, "/project")
from tests.vm import probes_process
with open("/run/test/helper.new", "w") as file:
    file.write(str(probes_process.poke()))
import os
os.rename("/run/test/helper.new", "/run/test/helper")
"""


@ptrace.case()
def limit_kernel_helper(guest: Guest) -> None:
    """A limit: what the kernel itself starts does not descend from PID 1.

    Root lets the kernel start trusted python for a core dump, and that pokes.
    """
    probes.write_file("/run/test/helper.py", _HELPER.encode())
    with open("/proc/sys/kernel/core_pattern") as file:
        pattern = file.read()
    with open("/proc/sys/kernel/core_pattern", "w") as file:
        file.write("|/usr/bin/python3 -IS /run/test/helper.py")
    try:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(10)
            os._exit(0)
        os.waitpid(child, 0)
        guest.wait(lambda: os.path.exists("/run/test/helper"), "the helper's answer")
    finally:
        with open("/proc/sys/kernel/core_pattern", "w") as file:
            file.write(pattern)
    with open("/run/test/helper") as file:
        text = file.read()
    guest.note(text)
    assert text.partition(" (")[0] == "allowed"


def _without(name: str, **changes: Any) -> Scenario:
    """A boot by which PID 1 gets no filter."""

    def initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
        return files(run, **changes)

    scenario = Scenario(name, lanes=("7.3",), initramfs=initramfs)
    scenario.setup(_take_over)

    @scenario.case()
    def there_is_no_filter(guest: Guest) -> None:
        from restrict import seccomp, status

        assert seccomp.filters_of(1) == (0, 0)
        assert not any("POKETEXT" in line for line in console())
        found = status.read()
        assert found is not None
        assert found.in_force
        assert found.poke_refused is False

    scenario.probe("poke_text", ALLOWED, probes_process.poke)
    scenario.probe("poke_data", ALLOWED, probes_process.poke, True)
    return scenario


allowed = _without("allowed", ptrace_poke="allow")
audited = _without("audited", mode="audit")
