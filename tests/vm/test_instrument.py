# SPDX-License-Identifier: BSD-2-Clause
"""The instrument itself: what every scenario relies on."""

from __future__ import annotations

import errno
import os

from tests.vm.outcome import refused, trial
from tests.vm.scenario import Drive, Guest, Scenario

content = {"hello": b"hello from the drive\n" * 1000}

guest = Scenario(
    "instrument",
    drives={
        "good": Drive(content),
        "unsigned": Drive(content, signature="none"),
        "foreign": Drive(content, signature="foreign"),
        "tampered": Drive(content, signature="tampered"),
        "corrupt": Drive(content, corrupt=True),
        "squash": Drive(content, filesystem="squashfs"),
        "ext4": Drive(content, filesystem="ext4"),
    },
)


@guest.case()
def root_is_verified(guest: Guest) -> None:
    with open("/proc/mounts") as mounts:
        root = next(line.split() for line in mounts if line.split()[1] == "/")
    assert root[0] == "/dev/dm-0"
    assert root[2] == "erofs"


@guest.case()
def signatures_are_required(guest: Guest) -> None:
    with open("/sys/module/dm_verity/parameters/require_signatures") as parameter:
        assert parameter.read().strip() == "Y"


@guest.case()
def good_drive(guest: Guest) -> None:
    guest.mount(guest.verity("good"), "/run/good")
    with open("/run/good/hello", "rb") as file:
        assert file.read() == content["hello"]
    guest.umount("/run/good")


@guest.case()
def unsigned_drive(guest: Guest) -> None:
    guest.expect(trial(guest.verity, "unsigned"), refused(errno.ENOKEY))


@guest.case()
def foreign_signer(guest: Guest) -> None:
    guest.expect(trial(guest.verity, "foreign"), refused(errno.ENOKEY))


@guest.case()
def tampered_signature(guest: Guest) -> None:
    guest.expect(trial(guest.verity, "tampered"), refused(errno.EKEYREJECTED))


@guest.case()
def corrupt_data(guest: Guest) -> None:
    fd = os.open(guest.verity("corrupt"), os.O_RDONLY)
    os.lseek(fd, (guest.images["corrupt"]["blocks"] - 1) * 4096, os.SEEK_SET)
    guest.expect(trial(os.read, fd, 4096), refused(errno.EIO))


@guest.case()
def other_filesystems(guest: Guest) -> None:
    guest.mount(guest.verity("squash"), "/run/squash", "squashfs")
    with open("/run/squash/hello", "rb") as file:
        assert file.read() == content["hello"]


@guest.case(where="pid1")
def harness_is_pid_1(guest: Guest) -> None:
    assert os.getpid() == 1


@guest.case()
def cases_run_in_children(guest: Guest) -> None:
    assert os.getppid() == 1
