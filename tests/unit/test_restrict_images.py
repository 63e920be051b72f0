# SPDX-License-Identifier: BSD-2-Clause
"""Partition tables, superblocks and signatures of images: pure parsers, and damage of all kinds."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable

import pytest

from restrict import gpt, images
from restrict.config import parse as parse_config
from restrict.disks import wishes
from restrict.errors import ConfigError, ImageError
from tests.unit import gptwriter as w

TYPES = gpt.TYPES["x86_64"]["root"]
OTHER = "ab" * 16 + "ba" * 16


def table(raw: bytes, sector_size: int = 512) -> gpt.Table:
    return gpt.parse(lambda at, length: raw[at : at + length], len(raw), sector_size)


def choose(raw: bytes, **how: object) -> images.Chosen:
    def content(p: gpt.Partition) -> bytes:
        return raw[p.first * 512 : (p.first + p.sectors) * 512]

    return images.select(table(raw), TYPES, content, **how)  # type: ignore[arg-type]


def changed(raw: bytes, at: int, value: bytes) -> bytes:
    return raw[:at] + value + raw[at + len(value) :]


# ── the table ──


def test_table() -> None:
    raw = w.disk(w.image_disk())
    found = table(raw)
    assert not found.backup
    assert found.warnings == []
    assert [(p.number, p.first, p.sectors, p.name) for p in found.partitions] == [
        (1, 40, 200, "part"), (2, 240, 100, "part"), (3, 340, 32, "part"),
    ]  # fmt: skip
    assert [p.type for p in found.partitions] == list(TYPES)
    assert found.partitions[0].uuid + found.partitions[1].uuid == w.ROOT_HASH
    assert found.uuid == "03020100050407060" + "8090a0b0c0d0e0f"


def test_type_uuids_are_written_as_the_specification_writes_them() -> None:
    """Root data, x86-64: 4f68bce3-e8cd-4db1-96e7-fbcaf984b709, as bytes of the disk."""
    stored = b"\xe3\xbchO\xcd\xe8\xb1M\x96\xe7\xfb\xca\xf9\x84\xb7\t"  # from a systemd-repart image
    assert gpt.guid_text(stored) == TYPES[0]
    every = [t for parts in gpt.TYPES.values() for types in parts.values() for t in types]
    assert len(set(every)) == 12
    assert all(len(t) == 32 and t[12] == "4" for t in every)  # random UUIDs (RFC 9562, version 4)


def test_a_disk_of_large_sectors() -> None:
    entries = b"".join(e.pack() for e in w.image_disk()).ljust(128 * 128, b"\0")
    sectors = 600
    out = bytearray(sectors * 4096)
    out[4096:4608] = w.header(1, sectors - 1, sectors, 2, entries)
    out[2 * 4096 : 2 * 4096 + len(entries)] = entries
    assert len(table(bytes(out), 4096).partitions) == 3
    with pytest.raises(ImageError, match="no usable partition table"):
        table(bytes(out), 512)


HEADER = 512


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"EFI PARX", "does not begin with"),
        (8, b"\0\0\2\0", "revision 0x20000"),
        (12, struct.pack("<I", 91), "size 91"),
        (12, struct.pack("<I", 513), "size 513"),
        (24, struct.pack("<Q", 2), "says that it is the one of sector 2"),
        (40, struct.pack("<2Q", 50, 49), "usable sectors 50 to 49"),
        (48, struct.pack("<Q", 2048), "do not lie on a disk of 2048"),
        (72, struct.pack("<Q", 1), "entries in sector 1"),
        (72, struct.pack("<Q", 2040), "entries in sector 2040"),
        (72, struct.pack("<Q", 100), "among the usable sectors"),
        (80, struct.pack("<I", 0), "0 entries"),
        (80, struct.pack("<I", 0xFFFFFFFF), "4294967295 entries"),
        (84, struct.pack("<I", 64), "entries of 64 bytes"),
        (84, struct.pack("<I", 192), "entries of 192 bytes"),
        (84, struct.pack("<I", 1 << 31), "entries of 2147483648 bytes"),
        (88, b"\0\0\0\0", "checksum of the entries in sector 2"),
    ],
)
def test_bad_headers_are_told_and_the_backup_is_used(at: int, value: bytes, message: str) -> None:
    """The header's own checksum is right, so it is the field that is refused."""
    raw = w.disk(w.image_disk())
    bad = changed(raw, HEADER, w.reseal(changed(raw[512:1024], at, value)))
    found = table(bad)
    assert found.backup
    assert message in found.warnings[0]
    assert len(found.partitions) == 3
    gone = changed(bad, len(bad) - 512, bytes(512))
    with pytest.raises(ImageError, match="no usable partition table") as caught:
        table(gone)
    assert message in str(caught.value)
    assert "sector 2047 does not begin" in str(caught.value)


def test_checksums() -> None:
    raw = w.disk(w.image_disk())
    assert "checksum of the header" in table(changed(raw, HEADER + 56, b"\xff")).warnings[0]
    assert "checksum of the entries" in table(changed(raw, 1024 + 60, b"\xff")).warnings[0]


def test_a_damaged_or_different_backup_is_a_warning() -> None:
    raw = w.disk(w.image_disk())
    found = table(changed(raw, len(raw) - 512, bytes(512)))
    assert not found.backup
    assert "backup partition table is not usable" in found.warnings[0]
    other = w.disk(w.image_disk(OTHER))
    found = table(raw[: len(raw) - 33 * 512] + other[len(raw) - 33 * 512 :])
    assert found.warnings == ["the backup partition table differs and is not used"]
    assert found.partitions[0].uuid == w.ROOT_HASH[:32]


def test_an_image_on_a_larger_disk() -> None:
    found = table(w.disk(w.image_disk()) + bytes(1 << 20))
    assert (len(found.partitions), found.warnings) == (3, [])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (w.Entry(TYPES[0], "11" * 16, 200, 80), "partitions 1 and 4 overlap"),
        (w.Entry(TYPES[0], "11" * 16, 371, 1), "partitions 3 and 4 overlap"),
        (w.Entry(TYPES[0], "11" * 16, 33, 4), "takes sectors 33 to 36"),
        (w.Entry(TYPES[0], "11" * 16, 2000, 48), "takes sectors 2000 to 2047"),
        (w.Entry(TYPES[0], "11" * 16, 500, 0), "takes sectors 500 to 499"),
        (w.Entry(TYPES[0], w.ROOT_HASH[:32], 500, 8), "1 and 4 have the same UUID"),
    ],
)
def test_contradictions(entry: w.Entry, message: str) -> None:
    with pytest.raises(ImageError, match="contradicts itself") as caught:
        table(w.disk([*w.image_disk(), entry]))
    assert message in str(caught.value)


# ── the choice ──


def test_the_one_image_is_chosen() -> None:
    found = choose(w.disk(w.image_disk()))
    assert (found.data.number, found.hash.number, found.root_hash) == (1, 2, w.ROOT_HASH)
    assert found.signature is not None
    assert (found.signature.der, found.signature.fingerprint) == (w.DER, "68" * 32)


def moved(entries: list[w.Entry], by: int) -> list[w.Entry]:
    for entry in entries:
        entry.first += by
        entry.uuid = "cd" * 16 if entry.uuid == "de" * 16 else entry.uuid
    return entries


def test_one_of_two_images_is_chosen_by_its_root_hash() -> None:
    raw = w.disk([*w.image_disk(), *moved(w.image_disk(OTHER), 400)])
    with pytest.raises(ImageError, match="several signed images") as caught:
        choose(raw)
    assert w.ROOT_HASH in str(caught.value)
    assert OTHER in str(caught.value)
    assert choose(raw, root_hash=OTHER).data.number == 4
    assert choose(raw, data_uuid=w.ROOT_HASH[:32]).data.number == 1


def test_what_must_not_be_used_by_itself_is_not() -> None:
    second = moved(w.image_disk(OTHER), 400)
    for entry in second:
        entry.flags = gpt.NO_AUTO
    assert choose(w.disk([*w.image_disk(), *second])).root_hash == w.ROOT_HASH


def test_a_signature_from_elsewhere() -> None:
    raw = w.disk(w.image_disk()[:2])
    found = choose(raw, root_hash=w.ROOT_HASH, signed_elsewhere=True)
    assert (found.data.number, found.signature) == (1, None)
    with pytest.raises(ImageError, match="does not belong to its partitions"):
        choose(raw, root_hash=OTHER, signed_elsewhere=True)


def with_signature(data: bytes) -> list[w.Entry]:
    entries = w.image_disk()
    entries[2].data = data
    return entries


def _third_copy() -> list[w.Entry]:
    entries = w.image_disk()
    entries.append(w.Entry(TYPES[2], "cc" * 16, 400, 32, w.signature()))
    return entries


def _other_half() -> list[w.Entry]:
    entries = w.image_disk()
    entries[1].uuid = OTHER[:32]
    return entries


def _other_data() -> list[w.Entry]:
    entries = w.image_disk()
    entries[0].uuid = OTHER[:32]
    return entries


@pytest.mark.parametrize(
    ("entries", "how", "message"),
    [
        (lambda: w.image_disk()[1:], {}, "no data partition of type 4f68"),
        (lambda: w.image_disk(part="usr"), {}, "no data partition of type 4f68"),
        (lambda: w.image_disk(machine="aarch64"), {}, "no data partition of type 4f68"),
        (w.image_disk, {"data_uuid": "00" * 16}, "with UUID 0000"),
        (lambda: w.image_disk()[:2], {}, "not signed: there is no signature partition"),
        (lambda: [w.image_disk()[0], w.image_disk()[2]], {}, "the hash partition's UUID"),
        (_other_half, {}, "the hash partition's UUID would be d02908b1"),
        (_other_data, {}, "the data partition's UUID would be 24546f4f"),
        (_third_copy, {}, "several signature partitions for one root hash"),
        (w.image_disk, {"root_hash": OTHER}, "no signature partition is for the root hash abab"),
        (lambda: with_signature(w.signature(OTHER)), {}, "does not belong to its partitions"),
        (lambda: with_signature(b""), {}, "signature partition 3: it is empty"),
        (lambda: with_signature(w.signature()[:-1]), {}, "'}' is expected, not the end"),
        (lambda: with_signature(w.signature()[:200]), {}, "the end of a string is expected"),
        (lambda: with_signature(w.signature() + b"\0x"), {}, "more after the NULs"),
        (lambda: with_signature(w.signature() + b"{}"), {}, "nothing is expected, not '{'"),
    ],
)
def test_what_does_not_fit_is_refused(
    entries: Callable[[], list[w.Entry]], how: dict[str, str], message: str
) -> None:
    with pytest.raises(ImageError) as caught:
        choose(w.disk(entries()), **how)
    assert message in str(caught.value)


# ── signatures and JSON ──


@pytest.mark.parametrize(
    "text",
    [
        "{}", '{"a":"b"}', ' {\n"a" :\t"b" , "c":"" }\r\n', r'{"\u0041\n\"\\\/":"\t\b\f\r"}',
        '{"ü":"€"}',
    ],
)  # fmt: skip
def test_json_as_the_standard_library_reads_it(text: str) -> None:
    assert images.parse_flat_json(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "{", "}", "{]", '{"a"', '{"a":', '{"a":"b"', '{"a":"b",', '{"a":"b",}', '{,}',
        '{"a":1}', '{"a":null}', '{"a":{}}', '{"a":["b"]}', "[]", '"a"', '{"a":"b"}x', "{'a':'b'}",
        '{"a":"b\n"}', r'{"a":"\x"}', r'{"a":"\u12"}', r'{"a":"\u12g4"}', '{"a":"\\', '{"a":"b"}{}',
        '{"a":"b" "c":"d"}', '{"a":"b","a":"c"}', '{"a" "b"}', '\ufeff{"a":"b"}',
    ],
)  # fmt: skip
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="no flat JSON object"):
        images.parse_flat_json(text)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\0" * 512, "empty"),
        (b'{"signature":"MA=="}', "no 'rootHash'"),
        (b'{"rootHash":"' + b"ab" * 32 + b'"}', "no 'signature'"),
        (b'{"rootHash":"xy","signature":"MA=="}', "no root hash"),
        (w.signature("ab" * 8), "no root hash"),
        (w.signature().replace(b'"MII', b'"M II'), "no base64"),
        (w.signature().replace(b'"signature":"', b'"signature":"\xc3\xa4'), "no base64"),
        (w.signature(der=b"hello"), "no PKCS#7"),
        (w.signature(der=b""), "no PKCS#7"),
        (w.signature(der=b"\x30" * 40000), "no PKCS#7"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"x" * (images.SIGNATURE_MOST + 1), "are possible"),
    ],
)
def test_bad_signature_partitions(raw: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        images.parse_signature(raw)


# ── the superblock ──


def test_superblock() -> None:
    found = images.parse_superblock(w.superblock())
    assert (found.hash_type, found.algorithm, found.data_blocks) == (1, "sha256", 10)
    assert found.salt == "5e" * 32
    assert [found.hash_start(at) for at in (0, 1, 4096 - 512, 4096 - 511, 4096)] == [1, 1, 1, 2, 2]
    assert images.parse_superblock(w.superblock(salt=b"")).salt == "-"


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"verity\0\1", "no verity superblock"),
        (8, b"\2", "version 2"),
        (12, b"\2", "hash type 2"),
        (32, b"\0", "algorithm"),
        (32, b"a b", "algorithm"),
        (64, b"\1", "blocks of 4097"),
        (68, b"\0\0\0\x80", "blocks of 2147483648"),
        (72, bytes(8), "0 data blocks"),
        (72, b"\xff" * 8, "data blocks"),
        (80, b"\1\1", "salt of 257"),
    ],
)
def test_bad_superblocks(at: int, value: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        images.parse_superblock(changed(w.superblock(), at, value))
    with pytest.raises(ImageError, match="cut short"):
        images.parse_superblock(w.superblock()[:511])


# ── whatever comes, it is one of our errors or a whole image ──


def test_mutations_give_errors_of_ours() -> None:
    """Bytes changed at random, checksums made right again half of the time."""
    rng = random.Random(5)
    raw = w.disk([*w.image_disk(), *moved(w.image_disk(OTHER), 400)], 900)
    interesting = [
        *range(512, 604),
        *range(1024, 1024 + 6 * 128),
        *range(340 * 512, 340 * 512 + 700),
    ]
    refused = chosen = 0
    for _ in range(4000):
        data = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            at = rng.choice(interesting)
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        if rng.random() < 0.5:
            entries = bytes(data[1024 : 1024 + 128 * 128])
            data[512 + 88 : 512 + 92] = struct.pack("<I", zlib.crc32(entries))
            data[512:1024] = w.reseal(bytes(data[512:1024]))
        try:
            found = choose(bytes(data), root_hash=w.ROOT_HASH)
        except ImageError as e:
            refused += len(str(e)) > 20
        else:
            assert found.data.uuid + found.hash.uuid == w.ROOT_HASH
            chosen += 1
    assert refused > 200
    assert chosen > 200


@pytest.mark.parametrize("length", [0, 1, 511, 512, 1024, 1500, 17 * 1024, 100 * 1024])
def test_disks_cut_short(length: int) -> None:
    raw = w.disk(w.image_disk())[:length]
    with pytest.raises(ImageError):
        choose(raw)


# ── what is asked for ──


def wish(configuration: str, command_line: str) -> tuple[str, str, str, str]:
    found = wishes(parse_config("init = /sbin/init\n" + configuration), command_line)
    return found.part, found.image, found.root_hash, found.data_uuid


def test_configuration_and_command_line_together() -> None:
    assert wish("", "") == ("root", "auto", "", "")
    assert wish("", f"roothash={OTHER.upper()} quiet") == ("root", "auto", OTHER, "")
    assert wish("", f"usrhash={OTHER} root=tmpfs") == ("usr", "auto", OTHER, "")
    assert wish("part = usr", f"usrhash={OTHER} roothash={w.ROOT_HASH}")[2] == OTHER
    assert wish("command_line = no", f"roothash={OTHER} root=x") == ("root", "auto", "", "")
    assert wish(f"root_hash = {OTHER}", f"roothash={OTHER}")[2] == OTHER
    uuid = "24546f4f-cdbf-2ccd-36c4-348D9CA00A16"
    assert wish("", f"root=PARTUUID={uuid}") == ("root", "auto", "", w.ROOT_HASH[:32])
    assert wish("", "root=/dev/vda") == ("root", "/dev/vda", "", "")
    assert wish("image = /dev/vdb", "root=/dev/vda")[1] == "/dev/vdb"
    assert wish("", "root=gpt-auto ro")[1] == "auto"


@pytest.mark.parametrize(
    ("configuration", "command_line", "message"),
    [
        (f"root_hash = {OTHER}", f"roothash={w.ROOT_HASH}", "the configuration abab"),
        ("", f"roothash={OTHER} usrhash={OTHER}", "one image is opened"),
        ("", "root=LABEL=x", "cannot be a signed image"),
        ("", "root=PARTUUID=12345678-01", "no UUID of a GPT partition"),
    ],
)
def test_contradictions_of_the_command_line(
    configuration: str, command_line: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        wish(configuration, command_line)


def test_a_command_line_with_a_bad_root_hash() -> None:
    with pytest.raises(ImageError, match="no root hash"):
        wish("", "roothash=hello")


# ── companions, filesystems ──


def test_companions_are_named_as_systemd_names_them() -> None:
    assert images.companions("/a/x.raw", "root") == (
        "/a/x.verity", "/a/x.roothash", "/a/x.roothash.p7s",
    )  # fmt: skip
    assert images.companions("/a/x.img", "usr") == (
        "/a/x.img.verity", "/a/x.img.usrhash", "/a/x.img.usrhash.p7s",
    )  # fmt: skip


def test_filesystems() -> None:
    assert images.which_filesystem(b"hsqs".ljust(2048, b"\0")) == "squashfs"
    assert images.which_filesystem(bytes(1024) + b"\xe2\xe1\xf5\xe0") == "erofs"
    assert images.which_filesystem(bytes(1080) + b"\x53\xef") == "ext4"
    for head in (b"", bytes(2048), b"hsq"):
        with pytest.raises(ImageError, match="none of erofs"):
            images.which_filesystem(head)
