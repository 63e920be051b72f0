# SPDX-License-Identifier: BSD-2-Clause
"""The execution policy and devices: which images are trusted, for how long, and tricks with them.

The kernel is told to take no dm-verity table without a valid signature, so images that are
unsigned, signed by somebody else or damaged are refused before the policy is asked; what is on
them can still be mounted as it is, and then the policy has to refuse it.
"""

from __future__ import annotations

import errno
import os

from tests.vm import probes, programs
from tests.vm.attempts import CONTENT, EXITS, LARGE, replace_table, unread_pages
from tests.vm.outcome import Expected, refused, trial
from tests.vm.policy import (
    SABOTAGE,
    Attempt,
    Denial,
    check,
    enable,
    observe,
    plans_drive,
    read_events,
    unarmed,
)
from tests.vm.scenario import Drive, Guest, Scenario

_ONE_BLOCK = programs.program().ljust(4096, b"\0")

devices = Scenario(
    "devices",
    append=SABOTAGE,
    drives={
        "good": Drive(CONTENT),
        "other": Drive({"program": programs.program(43), "second": bytes(8192)}),
        "unsigned": Drive(CONTENT, signature="none"),
        "foreign": Drive(CONTENT, signature="foreign"),
        "tampered": Drive(CONTENT, signature="tampered"),
        "plain": Drive(CONTENT, signature="none"),
        "damaged": Drive({"program": _ONE_BLOCK}, corrupt=True),
        "whole": Drive({"program": _ONE_BLOCK}),
        **LARGE,
        "plans": plans_drive(),
    },
)


@devices.setup
def prepare(guest: Guest) -> None:
    """One device from before the policy; the cases make their own."""
    guest.mount(guest.verity("whole", device="early"), "/run/early")
    enable(guest)


def denied(guest: Guest, where: str, reason: str, control: Expected = EXITS) -> None:
    """The program on *where* is refused for *reason*, and runs while the policy is not armed."""
    path = f"{where}/program"
    denial = Denial("exec", reason, file=path, filesystem="erofs")
    check(guest, Attempt("", "", probes.execute, path, control=control, denied=denial))


def runs(guest: Guest, where: str, control: Expected = EXITS) -> None:
    """The program on *where* runs, and nothing is reported."""
    check(guest, Attempt("", "", probes.execute, f"{where}/program", control=control))


def record(node: str) -> dict[str, str]:
    """What the policy's status says of the device *node*; empty if it has no record of it."""
    from restrict.fsaccess import PIN

    number = os.stat(node).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    with open(PIN) as status:
        for line in status:
            words = line.split()
            if words[:2] == ["device", wanted]:
                return {words[i]: words[i + 1] for i in range(2, len(words) - 1, 2)}
    return {}


@devices.case()
def device_from_before_the_policy(guest: Guest) -> None:
    runs(guest, "/run/early")


@devices.case()
def signed(guest: Guest) -> None:
    node = guest.verity("good", device="signed")
    guest.mount(node, "/run/signed")
    runs(guest, "/run/signed")
    known = record(node)
    assert known["signed"] == "1"
    assert known["root_hash"] == guest.images["good"]["root_hash"]


def _not_activated(name: str, code: int) -> None:
    def case(guest: Guest) -> None:
        before = os.listdir("/dev/mapper")
        guest.expect(trial(guest.verity, name), refused(code))
        assert os.listdir("/dev/mapper") == before
        # The same blocks without verification.
        guest.mount(guest.node(name), f"/run/{name}")
        denied(guest, f"/run/{name}", "untrusted_device")

    devices.case(name=name)(case)


_not_activated("unsigned", errno.ENOKEY)
_not_activated("foreign", errno.ENOKEY)
_not_activated("tampered", errno.EKEYREJECTED)


@devices.case()
def signature_left_out(guest: Guest) -> None:
    guest.expect(trial(lambda: guest.verity("good", device="bare", signed=False)),
                 refused(errno.ENOKEY))  # fmt: skip


@devices.case()
def tampered_data(guest: Guest) -> None:
    """The signature is good, the block is not: the policy lets dm-verity refuse it."""
    guest.mount(guest.verity("damaged"), "/run/damaged")
    outcome, events = observe(guest, probes.execute, "/run/damaged/program")
    guest.expect(outcome, refused(errno.EIO))
    assert not events
    guest.mount(guest.verity("whole", device="again"), "/run/whole")
    runs(guest, "/run/whole")


@devices.case()
def number_reused(guest: Guest) -> None:
    """Trust ends with the device; another one with its number gets none of it."""
    node = guest.verity("good", device="first")
    number = os.stat(node).st_rdev
    guest.mount(node, "/run/first")
    runs(guest, "/run/first")
    guest.umount("/run/first")
    guest.remove("first")
    second = guest.linear("plain", "second")
    assert os.stat(second).st_rdev == number
    guest.mount(second, "/run/second")
    denied(guest, "/run/second", "untrusted_device")
    # The record names the device that had the number; it goes a grace period after that device.
    guest.wait(lambda: record(second) == {}, "the first device's record is gone")
    denied(guest, "/run/second", "untrusted_device")
    guest.umount("/run/second")
    guest.remove("second")  # its disk is wanted by another case, too
    third = guest.verity("good", device="third")
    assert os.stat(third).st_rdev == number
    guest.mount(third, "/run/third")
    runs(guest, "/run/third")


def _lenient(option: str) -> None:
    def case(guest: Guest) -> None:
        device = f"lenient-{option}"
        node = guest.verity("good", device=device, options=(option,))
        known = record(node)
        assert (known["signed"], known["lenient"]) == ("0", "1"), known
        guest.mount(node, f"/run/{device}")
        denied(guest, f"/run/{device}", "unsigned_device")

    devices.case(name=option)(case)


_lenient("ignore_corruption")
_lenient("check_at_most_once")


@devices.case()
def another_signed_table(guest: Guest) -> None:
    """A trusted device that is given another image, even a signed one, waits for its own."""
    from restrict.devmapper import DeviceMapper

    node = guest.verity("good", device="changing")
    number = os.stat(node).st_rdev
    read_events(guest)
    guest.expect(replace_table(guest, "changing", "other"), refused())
    with DeviceMapper() as mapper:  # the table is in place, suspended
        guest.expect(trial(mapper.resume, "changing"), refused())
    guest.expect(replace_table(guest, "changing", "other"), refused())
    events = read_events(guest)
    assert [(e.operation, e.reason, e.dev) for e in events] == 3 * [
        ("verity", "table_changed", os.major(number) << 20 | os.minor(number))
    ], events
    known = record(node)
    assert (known["signed"], known["root_hash"]) == ("0", guest.images["good"]["root_hash"])
    assert known["held"] == "1"
    guest.expect(replace_table(guest, "changing", "good"), Expected("allowed"))
    known = record(node)
    assert (known["signed"], known["held"]) == ("1", "0"), known
    guest.mount(node, "/run/changing")
    runs(guest, "/run/changing")
    guest.umount("/run/changing")
    guest.remove("changing")
    with unarmed(guest):
        guest.verity("good", device="changed")
        guest.expect(replace_table(guest, "changed", "other"), Expected("allowed"))
    assert not read_events(guest)
    guest.remove("changed")


@devices.case()
def same_table_again(guest: Guest) -> None:
    """Reloading the very same image is no change."""
    node = guest.verity("good", device="same")
    guest.expect(replace_table(guest, "same", "good"), Expected("allowed"))
    assert record(node)["signed"] == "1"
    guest.mount(node, "/run/same")
    runs(guest, "/run/same")


@devices.case()
def table_swapped(guest: Guest) -> None:
    """An error table, then linear: no integrity hook runs, but the live table is looked at."""
    node = guest.verity("good", device="swapped")
    guest.mount(node, "/run/swapped")
    runs(guest, "/run/swapped")
    guest.expect(replace_table(guest, "swapped", "good", "error"), Expected("allowed"))
    denied(guest, "/run/swapped", "table_changed")
    guest.expect(replace_table(guest, "swapped", "plain", "linear"), Expected("allowed"))
    denied(guest, "/run/swapped", "table_changed")
    guest.expect(replace_table(guest, "swapped", "good"), Expected("allowed"))
    runs(guest, "/run/swapped")


@devices.case()
def limit_unread_pages(guest: Guest) -> None:
    """Closed by a plan with the gate (test_fsaccess_variants.py, device_mapper_gate)."""
    read_events(guest)
    unread_pages(guest)
