# SPDX-License-Identifier: BSD-2-Clause
"""`restrict userns …` and `restrict events`, as a user types them in a guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from restrict import release, userns_pins, userns_status
from restrict import userns as names_of
from restrict.policy import default_plan
from tests.vm import probes_bpf, userns
from tests.vm.outcome import ALLOWED, refused
from tests.vm.probes import attempt
from tests.vm.scenario import Guest, Scenario
from tests.vm.userns_acts import create
from tests.vm.userns_policy import events, installed, put, the_namespace
from tests.vm.waiting import ATTEMPT_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["PROGRAMS", "add_to", "restrict"]

PROGRAMS = len(userns_pins.load_plan(default_plan("userns")).programs)
_CASES: list[Callable[[Guest], None]] = []


def _case(function: Callable[[Guest], None]) -> Callable[[Guest], None]:
    _CASES.append(function)
    return function


def add_to(scenario: Scenario) -> None:
    """These cases, for a scenario in which the policy is installed with pins."""
    for function in _CASES:
        scenario.case()(function)


def restrict(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-s", "-m", "restrict", *words], capture_output=True, text=True,
        timeout=ATTEMPT_SECONDS, check=False,
    )  # fmt: skip


def command(*words: str) -> Any:
    done = restrict("userns", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-s", "-m", "restrict", *words], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _lines_until(process: subprocess.Popen[str], key: str, value: object) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = {}
    while line.get(key) != value:
        text = process.stdout.readline()
        assert text, process.stderr.read() if process.stderr is not None else ""
        line = json.loads(text)
    return line


@_case
def commands(guest: Guest) -> None:
    again = command("install")
    assert (again["attached"], len(again["reused"])) == ([], PROGRAMS)
    namespace = userns.Namespace(mount=False)
    path = f"/proc/{namespace.pid}/ns/user"
    fd = os.open(userns.ALLOWED_DIR, os.O_PATH)
    entry = {
        "inode": namespace.inode, "mounts": [names_of.mount_id(fd)], "deny_setgroups": True
    }  # fmt: skip
    os.close(fd)
    put_words = ("put", path, "--mount", userns.ALLOWED_DIR, "--deny-setgroups")
    assert command(*put_words) == {"inode": namespace.inode}
    found = command("list")
    assert found["namespaces"] == [entry]
    assert len(found["programs"]) == PROGRAMS - 1
    assert command("reset", str(namespace.inode))["removed"]
    assert restrict("userns", "reset", str(namespace.inode)).returncode == 1
    assert command("list")["namespaces"] == []
    command(*put_words)
    watch = _start("userns", "watch", "--json")
    namespace.end()
    assert _lines_until(watch, "event", "ended")["inode"] == namespace.inode
    second = restrict("userns", "watch")
    assert second.returncode == 1, second.stdout
    assert "another" in second.stderr, second.stderr
    watch.terminate()
    assert watch.wait(20) == 0
    assert command("list")["namespaces"] == []


@_case
def events_from_the_watch(guest: Guest) -> None:
    """`restrict events` gets them from the process that watches, and says of which policy."""
    namespace = the_namespace(guest)
    nobody = restrict("events", "--json")
    assert nobody.returncode == 1, nobody.stdout
    with installed() as policy:
        put(guest, policy)
        events(policy)
    watch = _start("userns", "watch", "--json")
    guest.wait(lambda: os.path.exists("/run/restrict/events-userns"), "the watch listens")
    follow = _start("events", "--follow", "--json")
    guest.expect(namespace.attempt(create, userns.FOREIGN, "watched0"), refused())
    for process in (watch, follow):
        line = _lines_until(process, "path", "watched0")
        assert line["policy"] == "userns"
        assert (line["operation"], line["reason"]) == ("mknod", "mount")
        assert line["managed"] == namespace.inode
    history = restrict("events", "--policy", "userns", "--json")
    assert history.returncode == 0, history.stderr
    assert json.loads(history.stdout.splitlines()[-1])["path"] == "watched0"
    assert restrict("events", "--policy", "fsaccess").returncode == 1
    watch.terminate()
    assert watch.wait(20) == 0
    assert follow.wait(20) == 0  # its reader has ended
    with installed() as policy:
        policy.reset_by_inode(namespace.inode)


@_case
def status_for_everybody(guest: Guest) -> None:
    def body(act: Callable[..., int]) -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

        def read() -> int:
            found = userns_status.read()
            assert found is not None
            assert found.in_force
            assert found.counters["mknod"]["denied"] >= 0
            return 0

        act(read)

    guest.expect(attempt(body), ALLOWED)
    found = command("status")
    assert found["in_force"] is True
    assert (found["mode"], found["administrators"], found["owner"]["pid"]) == ("deny", True, 0)
    assert len(found["guard"]["links"]) == PROGRAMS
    done = restrict("userns", "status")
    assert done.returncode == 0, done.stderr
    guest.note(done.stdout)
    assert done.stdout.startswith("userns: armed")
    assert restrict("userns", "status", "--pins", "/sys/fs/bpf/none").returncode == 1


@_case
def command_without_pins(guest: Guest) -> None:
    before = set(probes_bpf.ids("link"))
    process = _start("userns", "install", "--no-pin", "--json")
    assert process.stdout is not None
    line = json.loads(process.stdout.readline())
    assert (len(line["attached"]), line["mode"]) == (PROGRAMS - 1, "deny")
    links = [n for n in probes_bpf.ids("link") if n not in before]
    assert len(links) == PROGRAMS - 1
    guest.expect(probes_bpf.fd_by_id("link", links[0]), refused())
    process.terminate()
    assert process.wait(20) == 0
    assert release.wait_released(links) == []
