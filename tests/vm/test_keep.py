# SPDX-License-Identifier: BSD-2-Clause
"""fsaccess kept by pins: the owner ends, enforcement, guard and events go on.

What is pinned cannot be taken away in these cases by anybody but PID 1, who is the owner.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

from tests.vm import probes, probes_bpf
from tests.vm.attempts import CONTENT, EXITS
from tests.vm.outcome import ALLOWED, refused
from tests.vm.programs import program
from tests.vm.scenario import Drive, Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

RESTRICT = [sys.executable, "-s", "-m", "restrict"]

keep = Scenario("keep", drives={"good": Drive(CONTENT)})


@keep.setup
def prepare(guest: Guest) -> None:
    probes.write_file("/tmp/program", program())
    guest.mount(guest.verity("good"), "/run/good")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RESTRICT, *words], capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def kept(guest: Guest, *words: str) -> Iterator[dict[str, Any]]:
    """``restrict enable --keep pins``, which has ended when the block begins. Afterwards this
    process removes the pins, as root may where no pins policy is over them."""
    from restrict import fsaccess, keep_pins

    done = command("enable", "--keep", "pins", "--json", *words)
    assert done.returncode == 0, done.stderr
    state = json.loads(done.stdout)
    try:
        yield state
    finally:
        if state["events"]:
            os.kill(state["events"]["reader"], signal.SIGKILL)
        for generation in keep_pins.generations():
            generation.remove()
        os.unlink(fsaccess.PIN)
        guest.wait(
            lambda: probes.execute("/tmp/program").kind == "allowed", "the end of enforcement", 10
        )


@keep.case()
def enforcement_outlives_the_owner(guest: Guest) -> None:
    guest.expect(probes.execute("/tmp/program"), EXITS)
    with kept(guest) as state:
        assert not os.path.exists(f"/proc/{state['owner']}")
        guest.expect(probes.execute("/tmp/program"), refused())
        guest.expect(probes.map_anonymous(), refused())
        guest.expect(probes.execute("/run/good/program"), EXITS)
    guest.expect(probes.map_anonymous(), ALLOWED)


@keep.case()
def status_finds_it_again(guest: Guest) -> None:
    with kept(guest) as state:
        guest.expect(probes.execute("/tmp/program"), refused())
        done = command("status", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert found["in_force"] is True
        assert found["owner"]["pid"] == state["owner"]
        assert found["counters"]["exec"]["denied"] == 1
        assert {d["name"] for d in found["devices"]} >= {"system", "good"}
        assert set(state["links"].values()) < set(found["guard"]["links"])


@keep.case()
def guard_outlives_the_owner(guest: Guest) -> None:
    """No fd for anybody: by id, and by the maps' pins."""
    from restrict import keep_pins, status

    with kept(guest):
        found = status.read()
        assert found is not None
        for kind in ("map", "program", "link"):
            for ident in found.guard[kind]:
                guest.expect(probes_bpf.fd_by_id(kind, ident), refused())
        (generation,) = keep_pins.generations()
        for name in generation.names():
            if name.startswith("map_"):
                outcome = probes_bpf.object_get(f"{generation.folder}/{name}")
                guest.expect(outcome, refused())


@keep.case()
def events_outlive_the_owner(guest: Guest) -> None:
    with kept(guest):
        guest.expect(probes.execute("/tmp/program"), refused())
        done = command("events", "--json")
        assert done.returncode == 0, done.stderr
        (event,) = [json.loads(line) for line in done.stdout.splitlines()]
        assert (event["operation"], event["reason"], event["path"]) == (
            "exec", "filesystem", "/tmp/program",
        )  # fmt: skip


@keep.case()
def a_second_one_is_refused(guest: Guest) -> None:
    with kept(guest):
        for words in (("--keep", "pins"), ()):
            done = command("enable", *words)
            assert done.returncode == 1
            assert "in force already" in done.stderr, done.stderr
