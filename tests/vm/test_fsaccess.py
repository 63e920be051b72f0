# SPDX-License-Identifier: BSD-2-Clause
"""The execution policy: every attempt, on both kernels, each with and without enforcement."""

from __future__ import annotations

import errno
import os

from tests.vm import probes, probes_bpf, probes_process
from tests.vm.attempts import ATTEMPTS, EXITS, RX, drives, prepare
from tests.vm.outcome import ALLOWED, refused
from tests.vm.policy import (
    SABOTAGE,
    add,
    add_toothless,
    before_filter,
    counters,
    policy_of,
    read_events,
    unarmed,
)
from tests.vm.scenario import Guest, Scenario

OFTEN = 10_000

fsaccess = Scenario("fsaccess", drives=drives(), append=SABOTAGE)
fsaccess.setup(prepare)
add(fsaccess, ATTEMPTS)

# No helper that reads memory by address works then; the policy must not need one.
lockdown = Scenario(
    "lockdown", drives=drives(), append=f"lockdown=confidentiality {SABOTAGE}".strip()
)
lockdown.setup(prepare)
add(lockdown, ATTEMPTS)


@lockdown.case()
def is_locked_down(guest: Guest) -> None:
    with open("/sys/kernel/security/lockdown") as file:
        assert "[confidentiality]" in file.read()


@fsaccess.case()
@lockdown.case()
def pokes_succeed_before_the_filter(guest: Guest) -> None:
    """The control of poke_text and poke_data: nothing but the filter refuses them."""
    for name, outcome in before_filter(guest).items():
        guest.note(f"{name}: {outcome}")
        guest.expect(outcome, ALLOWED)


@fsaccess.case()
def anonymous_memory_often(guest: Guest) -> None:
    """10,000 times, without and with the policy; the harness looks for an oops afterwards."""
    with unarmed(guest):
        guest.expect(probes.map_repeatedly(OFTEN, RX, 0), ALLOWED)
    read_events(guest)
    before = counters(guest, "mmap")
    guest.expect(probes.map_repeatedly(OFTEN, RX, errno.EPERM), ALLOWED)
    after = counters(guest, "mmap")
    seen = len(read_events(guest))
    lost = after["dropped"] - before["dropped"]
    guest.note(f"{seen} events read, {lost} dropped, {guest.act_seconds} s")
    assert after["denied"] - before["denied"] == OFTEN
    # The ring buffer has 256 KiB: it was full for the most part, and nobody waited.
    assert 0 < seen < OFTEN
    assert seen + lost == OFTEN
    # It goes on when there is room again.
    guest.expect(probes.map_anonymous(), refused())
    assert [event.reason for event in read_events(guest)] == ["anonymous"]


@fsaccess.case()
def every_object_is_guarded(guest: Guest) -> None:
    """Each map, program and link of the policy: nobody but the owner gets an fd."""
    policy = policy_of(guest)
    with policy.globals() as values:
        ids = {kind: values.ids(f"guard_{kind}_ids") for kind in ("map", "program", "link")}
    guest.note(str(ids))
    assert len(ids["map"]) == 6
    assert len(ids["program"]) == len(ids["link"]) >= 14
    for kind, numbers in ids.items():
        for number in numbers:
            with unarmed(guest):
                guest.expect(probes_bpf.fd_by_id(kind, number), ALLOWED)
            assert not read_events(guest)
            guest.expect(probes_bpf.fd_by_id(kind, number), refused())
            (event,) = read_events(guest)
            assert (event.operation, event.reason) == (f"bpf_{kind}", f"guard_{kind}")
            assert event.object == number


@fsaccess.case(where="pid1")
def the_owner_gets_every_object(guest: Guest) -> None:
    assert os.getpid() == 1
    read_events(guest)
    for kind, objects in guest.state["ids"].items():
        for name, number in objects.items():
            fd = probes_bpf._open_by_id(kind, number)
            assert fd > 0, name
            os.close(fd)
    assert not read_events(guest)


@fsaccess.case()
def kfunc_is_used_where_the_kernel_has_it(guest: Guest) -> None:
    """What the loader made of the weak bpf_real_data_inode agrees with the kernel's BTF."""
    with open("/sys/kernel/btf/vmlinux", "rb") as file:
        known = b"\0bpf_real_data_inode\0" in file.read()
    assert known == (guest.lane == "7.3")
    guest.expect(probes.execute("/run/overlay/program"), EXITS if known else refused())


toothless = Scenario("toothless", drives=drives(), append="restrict.sabotage=hooks")
toothless.setup(prepare)
add_toothless(toothless, ATTEMPTS)
# Nor is there the filter, so these must not be refused either.
toothless.probe("poke_text", ALLOWED, probes_process.poke)
toothless.probe("poke_data", ALLOWED, probes_process.poke, True)
