# SPDX-License-Identifier: BSD-2-Clause
"""Signed images as people have them, each booted by ``restrict init``, and each way in which one
can be wrong refused with its reason."""

from __future__ import annotations

import os

from tests.vm import image_disks, probes
from tests.vm.attempts import EXITS
from tests.vm.outcome import ALLOWED, refused
from tests.vm.programs import program
from tests.vm.restrict_boot import HARNESS, PLAN, console, files
from tests.vm.scenario import ALL_LANES, Guest, Scenario
from tests.vm.test_restrict_init_failures import failing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any


def _booting(
    name: str,
    disks: Mapping[str, Callable[[], Path]],
    said: str,
    *,
    lanes: Sequence[str] = ("7.3",),
    append: str | Callable[[], str] = "",
    mount: str = "/",
    init: str = HARNESS,
    more: Callable[[], Mapping[str, bytes]] = dict,
    **settings: str,
) -> Scenario:
    """A boot to the signed image, with the cases that show that it is the one that runs.

    said: in the console's line about the image. mount: where the verified device is.
    """

    def initramfs(run: Mapping[str, Any]) -> dict[str, bytes]:
        given = files(run, init=init, changes={"wait": "20", **settings})
        return {**given, **more()}

    scenario = Scenario(name, initramfs=initramfs, disks=disks, lanes=lanes, append=append)

    @scenario.setup
    def take_over(guest: Guest) -> None:
        from restrict import fsaccess, handover

        guest.state["policy"] = handover.adopt(plan=fsaccess.load_plan(PLAN))

    @scenario.case()
    def booted_from_it(guest: Guest) -> None:
        from restrict import status

        lines = console()
        for line in lines:
            guest.note(line)
        (line,) = [line for line in lines if " image on " in line]
        assert said in line
        found = status.read()
        assert found is not None
        assert found.in_force
        assert found.mode == "exec"
        (device,) = [d for d in found.devices if mount in d.mounts]
        assert device.signed
        assert device.root_hash is not None
        assert device.root_hash in line

    @scenario.case()
    def tmpfs_is_denied(guest: Guest) -> None:
        path = probes.write_file("/run/program", program())
        guest.expect(probes.execute(path), refused())

    @scenario.case()
    def the_image_runs(guest: Guest) -> None:
        guest.expect(probes.run("/usr/bin/busybox", "true"), ALLOWED)

    return scenario


# What systemd-repart builds, found by itself among all disks.
repart = _booting(
    "repart", {"root": image_disks.system}, "root image on /dev/vda1 and /dev/vda2",
    lanes=ALL_LANES,
)  # fmt: skip


def _usrhash() -> str:
    from tools.guest.repart import root_hash_of

    return f"usrhash={root_hash_of(image_disks.usr(), 'usr')}"


# A /usr image, chosen by the kernel command line among several; / is a tmpfs.
usr = _booting(
    "usr", {"root": image_disks.usr, "other": image_disks.small}, "usr image on /dev/vda1",
    append=_usrhash, mount="/usr", init="/usr/bin/python3 -s /usr/lib/start",
)  # fmt: skip


@usr.case()
def root_is_completed(guest: Guest) -> None:
    assert os.readlink("/lib64") == "usr/lib64"
    assert sorted(os.listdir("/")) == [
        "bin", "dev", "etc", "lib", "lib64", "proc", "project", "root", "run", "sbin", "sys",
        "tmp", "usr", "var",
    ]  # fmt: skip
    path = probes.write_file("/program", program())  # the tmpfs around the image
    guest.expect(probes.execute(path), refused())


# A file with its companions, on a filesystem that is itself not trusted.
loose = _booting(
    "loose", {"root": image_disks.loose}, "root image on /run/restrict/carrier/system.raw",
    carrier="/dev/vda squashfs", image="/run/restrict/carrier/system.raw",
)  # fmt: skip


@loose.case()
def the_carrier_is_not_trusted(guest: Guest) -> None:
    from restrict import status

    found = status.read()
    assert found is not None
    assert [d.signed for d in found.devices if d.mounts] == [True]


def _given() -> dict[str, bytes]:
    return {
        "etc/restrict/system.roothash": image_disks.separate("root_hash").read_bytes(),
        "etc/restrict/root.p7s": image_disks.separate("signature").read_bytes(),
    }


# Two devices and veritysetup's superblock.
separate = _booting(
    "separate",
    {"root": lambda: image_disks.separate("data"), "hash": lambda: image_disks.separate("hash")},
    "root image on /dev/vda",
    more=_given, data="/dev/vda", hash="/dev/vdb", root_hash="/etc/restrict/system.roothash",
    signature="/etc/restrict/root.p7s",
)  # fmt: skip


# ── no boot from a wrong image, and the console says why ──

foreign_image = failing(
    "foreign-image", "root", "ENOKEY", armed=True,
    disks={"root": lambda: image_disks.small(key="foreign")},
)  # fmt: skip
truncated_image = failing(
    "truncated-image", "image", "signature partition 3: it is no flat JSON object", armed=False,
    disks={"root": image_disks.damaged("truncated-json")}, changes={"wait": "1"},
)  # fmt: skip

# ── refused: one guest with many bad disks ──

_FOREIGN = "foreign"
BAD: dict[str, Callable[[], Path]] = {
    "good": image_disks.small,
    "unsigned": lambda: image_disks.small(signed=False),
    _FOREIGN: lambda: image_disks.small(key="foreign"),
    **{
        kind: image_disks.damaged(kind)
        for kind in (
            "truncated-json",
            "other-root-hash",
            "foreign-uuid",
            "consistent-lie",
            "overlap",
            "no-header",
            "no-primary",
            "no-superblock",
            "short-data",
            "tampered",
        )
    },
}

wrong = Scenario("wrong", disks=BAD)


def _settings(text: str) -> Any:
    from restrict import config

    return config.parse(f"init = /sbin/init\nwait = 0\n{text}")


def _open(text: str, command_line: str = "") -> Any:
    """As ``restrict init`` opens it."""
    from restrict.disks import open_image, waiting

    return open_image(_settings(text), command_line, waiting(0))


def _activate(guest: Guest, name: str) -> str:
    from restrict import init

    image = _open(f"image = {guest.node(name)}")
    try:
        return init.activate(f"image-{name}", image)
    finally:
        image.close()


def _failure(attempt: Callable[[], object]) -> str:
    """The error that an attempt ends with, as the console would have it."""
    from pybpf.errors import PybpfError

    try:
        result = attempt()
    except PybpfError as e:
        return str(e)
    raise AssertionError(f"it was not refused: {result}")


@wrong.case()
def the_undamaged_one_is_opened_and_runs(guest: Guest) -> None:
    """The control for all of the following."""
    node = _activate(guest, "good")
    guest.mount(node, "/run/good")
    guest.expect(probes.execute("/run/good/program"), EXITS)
    guest.umount("/run/good")
    guest.remove("image-good")


def _key_is_gone() -> bool:
    with open("/proc/keys") as keys:
        return "restrict:root" not in keys.read()


def _refused(name: str, message: str) -> None:
    def case(guest: Guest) -> None:
        from restrict.devmapper import DeviceMapper

        said = _failure(lambda: _activate(guest, name))
        guest.note(said)
        assert message in said
        assert guest.node(name) in said
        with DeviceMapper() as mapper:
            assert [n for n, _ in mapper.list() if n.startswith("image-")] == []
        guest.wait(_key_is_gone, "the kernel has collected the unlinked key")

    wrong.case(name=name.replace("-", "_"))(case)


_refused("unsigned", "it is not signed: there is no signature partition")
_refused(_FOREIGN, "ENOKEY")
_refused("truncated-json", "signature partition 3: it is no flat JSON object: the end of a string")
_refused("other-root-hash", "does not belong to its partitions")
_refused("foreign-uuid", "the hash partition's UUID would be")
_refused("consistent-lie", "EKEYREJECTED")
_refused("overlap", "partitions 1 and 2 overlap")
_refused("no-header", "there is no usable partition table: the checksum of the header in sector 1")
_refused("no-primary", "the kernel has no device for partition 1")
_refused("no-superblock", "there is no verity superblock")
_refused("short-data", "bytes of data, and the device has")
_refused("tampered", "Root hash verification failed")


@wrong.case()
def duplicates(guest: Guest) -> None:
    """Several disks with a complete image: none is guessed, and each bad disk's reason is told
    where no good one is asked for."""
    said = _failure(lambda: _open("image = auto"))
    guest.note(said)
    assert "several disks have a signed image" in said
    said = _failure(lambda: _open("image = auto", "roothash=" + "ab" * 32))
    guest.note(said)
    assert "no disk has a signed root image" in said
    assert "no signature partition is for the root hash abab" in said
