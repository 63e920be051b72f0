# SPDX-License-Identifier: BSD-2-Clause
"""restrict: binary formats, held against construct declarations and the C header."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import construct as c
import pytest

from restrict import abi, devmapper, events, handover
from restrict.errors import ConfigError, HandoverError, RestrictError
from restrict.guard import GLOBALS

INCLUDE = Path(__file__).resolve().parents[2] / "bpf/include"
HEADER = INCLUDE / "fsaccess.h"
COMMON = INCLUDE / "policy.h"

# include/uapi/linux/dm-ioctl.h
DM_IOCTL = c.Struct(
    "version" / c.Array(3, c.Int32un),
    "data_size" / c.Int32un,
    "data_start" / c.Int32un,
    "target_count" / c.Int32un,
    "open_count" / c.Int32sn,
    "flags" / c.Int32un,
    "event_nr" / c.Int32un,
    "padding" / c.Int32un,
    "dev" / c.Int64un,
    "name" / c.PaddedString(128, "ascii"),
    "uuid" / c.PaddedString(129, "ascii"),
    "data" / c.Bytes(7),
)
DM_TARGET_SPEC = c.Struct(
    "sector_start" / c.Int64un,
    "length" / c.Int64un,
    "status" / c.Int32sn,
    "next" / c.Int32un,
    "target_type" / c.PaddedString(16, "ascii"),
)
# bpf/include/policy.h
EVENT = c.Struct(
    "time" / c.Int64un,
    "operation" / c.Int32un,
    "reason" / c.Int32un,
    "verdict" / c.Int32un,
    "pid" / c.Int32un,
    "tid" / c.Int32un,
    "uid" / c.Int32un,
    "cgroup" / c.Int64un,
    "inode" / c.Int64un,
    "magic" / c.Int64un,
    "device" / c.Int32un,
    "prot" / c.Int32un,
    "flags" / c.Int64un,
    "object" / c.Int32un,
    "path_flags" / c.Int32un,
    "path_length" / c.Int32un,
    "comm" / c.PaddedString(16, "ascii"),
    "path" / c.PaddedString(256, "ascii"),
    "policy" / c.Int32un,
)


def test_dm_ioctl() -> None:
    assert devmapper.HEADER.size == DM_IOCTL.sizeof() == 312
    assert devmapper.SPEC.size == DM_TARGET_SPEC.sizeof() == 40
    raw = devmapper.HEADER.pack(4, 1, 2, 3, 4, 5, -6, 7, 8, 9, 10, b"name", b"uuid", b"")
    found = DM_IOCTL.parse(raw)
    assert (found.data_size, found.open_count, found.flags, found.dev) == (3, -6, 7, 10)
    assert (found.name, found.uuid) == ("name", "uuid")
    # The number that strace prints for DM_DEV_CREATE on x86-64 and aarch64.
    assert devmapper._command(3) == 0xC138FD03


def test_event() -> None:
    raw = EVENT.build(
        {
            "time": 1_500_000_000, "operation": 2, "reason": 2, "verdict": 1, "pid": 7, "tid": 8,
            "uid": 9, "cgroup": 10, "inode": 11, "magic": 0x01021994, "device": 254 << 20 | 3,
            "prot": 5, "flags": 2, "object": 0, "path_flags": 1, "path_length": 5,
            "comm": "python3", "path": "a.bin", "policy": 0,
        }
    )  # fmt: skip
    assert len(raw) == abi.EVENT.size == 360
    event = events.decode(raw)
    assert (event.operation, event.reason, event.verdict) == ("mmap", "anonymous", "denied")
    assert (event.time, event.device, event.filesystem) == (1.5, "254:3", "tmpfs")
    assert event.path == "a.bin"
    assert event.text() == (
        "1.500000 denied mmap anonymous pid=7 comm='python3' uid=9 prot=read+exec fs=tmpfs "
        "dev=254:3 ino=11 name='a.bin'"
    )
    assert event.as_dict()["path_is_name"] is True
    assert event.raw == raw


def test_event_with_numbers_of_a_newer_policy() -> None:
    raw = bytearray(360)
    raw[8:20] = (99).to_bytes(4, "little") * 3
    event = events.decode(bytes(raw))
    assert (event.operation, event.reason, event.verdict) == ("99", "99", "99")
    assert event.filesystem is None
    assert event.path is None


def test_short_events_are_refused() -> None:
    with pytest.raises(RestrictError, match="359 bytes"):
        events.decode(bytes(359))


def _enum(name: str, prefix: str, header: Path = HEADER) -> list[str]:
    body = re.search(rf"enum {name} {{(.*?)}};", header.read_text(), re.DOTALL)
    assert body is not None
    found = re.findall(rf"{prefix}([A-Z_]+) = (\d+),", body.group(1))
    assert [int(n) for _, n in found] == list(range(len(found)))
    return [word.lower() for word, _ in found]


def test_names_are_those_of_the_header() -> None:
    assert _enum("fsaccess_operation", "FSACCESS_OP_") == list(abi.OPERATIONS)
    assert _enum("fsaccess_reason", "FSACCESS_REASON_") == list(abi.REASONS)
    assert _enum("policy_verdict", "POLICY_", COMMON) == list(abi.VERDICTS)


def test_event_fields_are_those_of_the_header() -> None:
    body = re.search(r"struct policy_event {(.*?)\n};", COMMON.read_text(), re.DOTALL)
    assert body is not None
    text = re.sub(r"/\*.*?\*/", "", body.group(1), flags=re.DOTALL)
    names = re.findall(r"(\w+)(?:\[\w+\])?;", text)
    assert names == [field.name for field in EVENT.subcons]


def test_device_numbers() -> None:
    assert abi.kernel_dev(os.makedev(254, 3)) == 254 << 20 | 3
    assert abi.st_dev(abi.kernel_dev(os.makedev(7, 300))) == os.makedev(7, 300)


@pytest.mark.parametrize("name", ["", "a/b", "x" * 128, "a\0b"])
def test_device_names_are_checked(name: str) -> None:
    with pytest.raises(ConfigError):
        devmapper._check_name(name)


def test_a_missing_device_mapper_is_told(tmp_path: Path) -> None:
    with pytest.raises(RestrictError.__mro__[1], match="Load the module dm-mod"):
        devmapper.DeviceMapper(str(tmp_path / "control"))


# ── the record of a handover ──

PLACES = "\n".join(
    f"place {name} {64 * i} {width if 'ids' not in name else 64}"
    for i, (name, width) in enumerate(GLOBALS.items())
)
RECORD = f"""\
restrict-handover 1
{PLACES}
map .bss 5 11 4096
map events 6 12 0
status none
link fsaccess_exec 7 21 31 0011223344556677
link fsaccess_mmap 8 22 32 8899aabbccddeeff
end 2
"""


def test_record() -> None:
    record = handover._Record(RECORD)
    assert record.maps == {".bss": (5, 11, 4096), "events": (6, 12, 0)}
    assert record.links["fsaccess_mmap"] == (8, 22, 32, "8899aabbccddeeff")
    assert record.fds == {5, 6, 7, 8}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("restrict-handover 1", "restrict-handover 2", "begins with"),
        ("end 2\n", "", "cut short"),
        ("end 2\n", "end 2", "cut short"),
        ("end 2", "end 3", "2 links where 3"),
        ("link fsaccess_mmap 8", "link fsaccess_mmap 7", "7 twice"),
        ("link fsaccess_mmap 8", "link fsaccess_exec 8", "has the line"),
        ("map events 6 12 0\n", "", "does not name the maps"),
        ("place armed 0 4\n", "", "every global"),
        ("place armed 0 4", "place armed 2 4", "armed"),
        ("link fsaccess_exec 7", "link fsaccess_exec -7", "is no number"),
        ("link fsaccess_exec 7 21", "link fsaccess_exec 7 \uff121", "is no number"),
        ("status none", "status some", "has the line"),
        ("status none", "hello", "has the line"),
    ],
)
def test_records_out_of_form_are_refused(old: str, new: str, message: str) -> None:
    assert old in RECORD
    with pytest.raises(RestrictError, match=message):
        handover._Record(RECORD.replace(old, new))


def test_damaged_records_are_refused_whole() -> None:
    """Whatever is in it: the one error that says that all stays in force."""
    source = random.Random(3)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(1500):
        text = list(RECORD)
        for _ in range(source.choice((1, 2, 5))):
            text[source.randrange(len(text))] = source.choice("0123456789 \n-abcdef.")
        fd = handover._memfd("".join(text).encode())
        try:
            with pytest.raises(HandoverError, match="stays open"):
                handover.adopt({handover.VARIABLE: str(fd)})
        finally:
            os.close(fd)
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_handed_over_is_none() -> None:
    assert handover.adopt({}) is None


@pytest.mark.parametrize("value", ["", "x", "-1", "99999", "3.0", "2147483648", "9999999999"])
def test_a_foreign_variable_is_refused(value: str) -> None:
    with pytest.raises(HandoverError):
        handover.adopt({handover.VARIABLE: value})


def test_an_unsealed_record_is_refused() -> None:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, RECORD.encode())
        with pytest.raises(HandoverError, match="not sealed"):
            handover.adopt({handover.VARIABLE: str(fd)})
        os.fstat(fd)  # it stays open
    finally:
        os.close(fd)


def test_fds_that_are_no_bpf_objects_are_refused() -> None:
    pipes = [fd for _ in range(2) for fd in os.pipe()]
    text = RECORD
    for old, new in zip((" 5 11", " 6 12", " 7 21", " 8 22"), pipes, strict=True):
        text = text.replace(old, f" {new} {old.split()[1]}")
    fd = handover._memfd(text.encode())
    try:
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(HandoverError, match="stays open"):
            handover.adopt({handover.VARIABLE: str(fd)})
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        for each in (fd, *pipes):
            os.close(each)
