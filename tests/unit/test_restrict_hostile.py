# SPDX-License-Identifier: BSD-2-Clause
"""What somebody who means harm can put in the way of restrict: names in /proc, disks, trees that an
image is made of, folders in bpffs. Each gets an error of ours, or is taken for what it is."""

from __future__ import annotations

import gzip
import lzma
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pybpf.errors import PybpfError
from restrict import (
    cli,
    config,
    disks,
    files,
    gpt,
    images,
    initramfs,
    initramfs_elf,
    initramfs_modules,
    keep_keeper,
    keep_pins,
    keyring,
    mounts,
    policy,
    serve,
    simulate,
    status,
)
from restrict.devmapper import Verity
from restrict.errors import ConfigError, ImageError, RestrictError
from restrict.initramfs_install import install
from restrict.initramfs_modules import Modules
from restrict.initramfs_settings import Settings, modules_for
from tests.unit import gptwriter as w
from tests.unit.elfwriter import ElfWriter

# All that str.splitlines() ends a line at and the kernel does not escape.
_ENDS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


# ── names in /proc ──


@pytest.mark.parametrize("end", _ENDS)
def test_a_mount_point_of_any_name(end: str) -> None:
    line = f"31 30 0:50 / /media/a{end}b rw - fuse x rw\n"
    (found,) = mounts.parse_mountinfo(line)
    assert (found.target, found.fstype) == (f"/media/a{end}b", "fuse")


@pytest.mark.parametrize("end", _ENDS)
def test_a_mapped_file_of_any_name(end: str) -> None:
    """Neither a further mapping nor an error comes of it."""
    line = "7f0000000000-7f0000001000 r-xp 00000000 fe:00 12   /tmp/a"
    for more in ("zz-zz r-xp 0 zz:zz z", "7f0000000000-7f0000001000 rwxp 00000000 00:00 0"):
        (found,) = simulate.parse_maps(f"{line}{end}{more}\n")
        assert (found.permissions, found.inode) == ("r-xp", 12)


def test_what_is_printed_obeys_nobody() -> None:
    found = simulate.Simulation()
    denial = simulate.Denial("/m\x1b[2J", "ext4", 1, "exec", "filesystem")
    denial.add(1, "a\rb", "/tmp/\x1b]0;x\x07\udcff")
    found.denials = [denial]
    said = simulate.text(found)
    assert all(line.isprintable() for line in said.split("\n"))
    assert r"/tmp/\x1b]0;x\x07\udcff" in said


def test_keys_of_any_description() -> None:
    """Every user may have a key whose description has lines of its own."""
    line = "2d4049eb I------     1 perm 082f0000     0     0 keyring   .dm-verity: 1\n"
    hostile = (
        "0000000a I--Q---     1 perm 3f3f3f3f  1000  1000 user      x\nzz a b c d e f g h: 1\n"
    )
    found = keyring.parse_keys(hostile + line)
    assert [key.description for key in found] == ["x", ".dm-verity"]


def _changed(source: random.Random, text: str) -> str:
    chars = list(text)
    for _ in range(source.choice((1, 2, 4, 9))):
        first, last = sorted(source.randrange(len(chars)) for _ in range(2))
        chars[first : source.choice((first, first + 1, last))] = source.choice(
            (*"0123456789 \n\t:-af=.²٣\0\udcff", "")
        )
        chars = chars or [" "]
    return "".join(chars)


_TEXTS: dict[str, tuple[str, Callable[[str], object]]] = {
    "mountinfo": (
        "23 1 0:21 / /proc rw,nosuid - proc proc rw\n"
        "30 1 254:0 / /a\\040b ro shared:1 - erofs /dev/dm-0 ro\n",
        mounts.parse_mountinfo,
    ),
    "maps": (
        "55d0c0001000-55d0c0002000 r-xp 00001000 fe:00 1234        /usr/bin/x\n"
        "7f0000000000-7f0000001000 rwxp 00000000 00:00 0\n",
        simulate.parse_maps,
    ),
    "keys": (
        "2d4049eb I------     1 perm 082f0000     0     0 keyring   .dm-verity: 1\n",
        keyring.parse_keys,
    ),
    "status": (
        "armed 1\nowner 1 start_ticks 5\nkept 2\nguard_map 4\ninitramfs_dev 0:2\n"
        "device 254:0 signed 1 first_seen 9\ncounter exec allowed 1 denied 2\n",
        status.Status,
    ),
    "configuration": (
        "module = /a/b.ko x=1\ndata = /dev/a\ndata_blocks = 10\nroot_hash = " + "ab" * 32
        + "\nsignature = /s\ninit = /sbin/init\nwait = 5\ncarrier = /dev/vdb ext4\n",
        config.parse,
    ),
    "command line": (
        'a=b root=PARTUUID=12-34 roothash=abcd "x y" -- z',
        lambda text: disks.wishes(config.parse("init = /x"), text),
    ),
    "JSON": ('{"rootHash":"ab\\u0041","signature":"MII="}', images.parse_flat_json),
    "stat": ("7 (a b) S " + " ".join(map(str, range(60))), keep_keeper.argument_start),
}  # fmt: skip


@pytest.mark.parametrize("name", _TEXTS)
def test_texts_are_read_or_refused(name: str) -> None:
    text, parse = _TEXTS[name]
    source = random.Random(11)
    refused = 0
    for _ in range(2500):
        try:
            parse(_changed(source, text))
        except PybpfError:
            refused += 1
    assert refused or name == "keys"


# ── disks ──


def test_only_a_fingerprint_is_taken_for_one() -> None:
    good = w.signature()
    assert images.parse_signature(good).fingerprint == "68" * 32
    for text in (b"\\u001b[2J", b"x" * 64, b"68" * 33, b""):
        raw = good.replace(b"68" * 32, text)
        assert raw != good
        assert images.parse_signature(raw).fingerprint == ""


def test_a_signature_partition_full_of_text() -> None:
    raw = b'{"x":"' + b"y" * (1 << 20) + b'"}'
    with pytest.raises(ImageError, match="JSON object has 1048584 bytes"):
        images.parse_signature(raw)


def test_as_many_partitions_as_a_table_has() -> None:
    """340 of each kind, all for one root hash but for the last digits: they are looked up, not
    tried with each other."""
    types = gpt.TYPES["x86_64"]["root"]
    found: list[gpt.Partition] = []
    hashes = [f"{n:032x}{n:032x}" for n in range(1, 341)]
    for kind, uuids in (
        (types[0], [h[:32] for h in hashes]),
        (types[1], [h[-32:] for h in hashes]),
        (types[2], [f"{n:032x}" for n in range(1000, 1340)]),
    ):
        for uuid in uuids:
            number = len(found) + 1
            found.append(gpt.Partition(number, kind, uuid, number, 1, 0, ""))
    table = gpt.Table("00" * 16, 512, found, False, [])
    contents = {p.uuid: w.signature(h) for p, h in zip(found[680:], hashes, strict=True)}
    chosen = images.select(table, types, lambda p: contents[p.uuid], root_hash=hashes[7])
    assert (chosen.data.number, chosen.hash.number) == (8, 348)
    with pytest.raises(ImageError, match="several signed images"):
        images.select(table, types, lambda p: contents[p.uuid])


def test_a_fifo_is_no_image_and_not_waited_for(tmp_path: Path) -> None:
    fifo = str(tmp_path / "x.raw")
    os.mkfifo(fifo)
    with pytest.raises(ImageError, match="neither a block device nor a file"):
        disks.Disk(fifo)
    with pytest.raises(ImageError, match="no file"):
        disks.attach_loop(fifo)
    with pytest.raises(ConfigError, match="has 0 bytes"):
        images.read_bytes(fifo, "root hash", 100)
    with pytest.raises(ConfigError, match="has 101 bytes"):
        images.read_bytes("/dev/zero", "root hash", 100)


def test_superblocks_of_random_bytes() -> None:
    """What a superblock may say is what a table may be told."""
    source = random.Random(5)
    good = w.superblock()
    said = 0
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(source.choice((1, 2, 5))):
            raw[source.randrange(8, 96)] = source.randrange(256)
        try:
            block = images.parse_superblock(bytes(raw))
        except ImageError:
            continue
        said += 1
        target = Verity(
            data="/dev/a", hash="/dev/b", data_blocks=block.data_blocks,
            hash_start=block.hash_start(0), root_hash="ab" * 32, salt=block.salt,
            algorithm=block.algorithm, data_block_size=block.data_block_size,
            hash_block_size=block.hash_block_size, hash_type=block.hash_type, signature_key="k",
        ).target()  # fmt: skip
        assert len(target.params.split()) == 13
        assert target.params.isascii()
    assert said > 100


# ── a new root that nobody has signed ──


def test_usr_of_an_unsigned_root_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "usr").symlink_to("elsewhere")
    with pytest.raises(RestrictError, match="its /usr is a symbolic link"):
        mounts.usr_root(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "usr"}


# ── trees that an image is made of ──


@pytest.fixture(scope="module")
def successor() -> initramfs.Built:
    return initramfs.build_successor()


def test_links_out_of_a_tree(successor: initramfs.Built, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    prefix = "usr/lib/restrict"
    for number, (link, to) in enumerate(
        (("usr", str(outside)), ("usr", "../outside"), ("usr/lib", "/outside"), ("usr/lib", "lib"))
    ):
        root = tmp_path / f"root{number}"
        (root / link).parent.mkdir(parents=True)
        (root / link).symlink_to(to)
        with pytest.raises(RestrictError, match=r"leads out of the tree|cannot be written"):
            initramfs.write_tree(root, successor, prefix)
    assert not list(outside.iterdir())
    # One that stays inside is how a merged /usr looks.
    inside = tmp_path / "inside"
    (inside / "system/lib").mkdir(parents=True)
    (inside / "usr").symlink_to("system")
    initramfs.write_tree(inside, successor, prefix)
    assert (inside / "system/lib/restrict/start.py").is_file()
    # The folder itself as a link: nothing of it is followed.
    (tmp_path / "root4/usr/lib").mkdir(parents=True)
    (tmp_path / "root4/usr/lib/restrict").symlink_to(inside / "system/lib/restrict")
    with pytest.raises(RestrictError, match="not made by"):
        initramfs.write_tree(tmp_path / "root4", successor, prefix)
    assert (inside / "system/lib/restrict/start.py").is_file()


def test_a_root_that_is_not_there_is_not_made(
    successor: initramfs.Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        with pytest.raises(RestrictError, match="no such folder"):
            initramfs.write_tree(tmp_path / name, successor, "usr/lib/restrict")
    assert cli.main(["initramfs", "successor", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_hook_is_not_installed_through_a_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "usr/share/initramfs-tools").mkdir(parents=True)
    outside.mkdir()
    (root / "etc").symlink_to(outside)
    with pytest.raises(RestrictError, match="leads out of the tree"):
        install("initramfs-tools", root)
    assert not list(outside.iterdir())


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_only_a_file_is_replaced(tmp_path: Path, kind: str) -> None:
    """/dev/stdout is a link; written by root it would be one no more."""
    target, other = tmp_path / "out", tmp_path / "other"
    other.write_text("other")
    if kind == "link":
        target.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(target)
    else:
        target.mkdir()
    before = os.lstat(target)
    with pytest.raises(RestrictError, match="no regular file"):
        files.replace(target, b"new")
    assert os.lstat(target) == before
    assert other.read_text() == "other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
    files.replace(other, b"new")
    assert other.read_bytes() == b"new"


def _module(path: Path, *info: str) -> bytes:
    writer = ElfWriter(machine=62)
    writer.section(".modinfo", b"".join(item.encode() + b"\0" for item in info))
    data = writer.build()
    path.write_bytes(data)
    return data


def test_modules_whose_names_are_no_names(tmp_path: Path) -> None:
    """A line of the image's configuration is made of them."""
    evil = "evil\nkeep = exec\nx"
    _module(tmp_path / "good.ko", f"depends={evil}")
    _module(tmp_path / f"{evil}.ko", "depends=")
    with pytest.raises(ConfigError, match="no name of a kernel module"):
        Modules(tmp_path).closure(["good"])
    _module(tmp_path / "good.ko", "depends=")
    _module(tmp_path / "dm_verity.ko", "depends=")
    settings = Settings("restrict")
    loaded = modules_for(tmp_path, ["good a=1\nkeep=exec"], settings)
    with pytest.raises(ConfigError, match="not one line"):
        settings.text(loaded)


def test_a_folder_whose_name_is_two_lines(tmp_path: Path) -> None:
    folder = tmp_path / "a\nkeep = exec"
    folder.mkdir()
    (folder / "p.plan").write_bytes(b"x")
    (folder / "init.conf").write_text("plan = p.plan\ninit = /sbin/init\n")
    with pytest.raises(ConfigError, match="not one line"):
        initramfs.build(configuration=folder / "init.conf")


def test_modules_that_are_no_files_or_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo.ko")
    (tmp_path / "zero.ko").symlink_to("/dev/zero")
    (tmp_path / "loop.ko").symlink_to("loop.ko")
    with open(tmp_path / "sparse.ko", "wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(initramfs_modules, "_MOST", 1 << 20)
    bomb = bytes(32 << 20)
    (tmp_path / "bomb.ko.xz").write_bytes(lzma.compress(bomb))
    (tmp_path / "gomb.ko.gz").write_bytes(gzip.compress(bomb))
    (tmp_path / "cut.ko.gz").write_bytes(gzip.compress(b"x" * 100)[:-12])
    modules = Modules(tmp_path)
    for name in ("fifo", "zero", "loop"):
        with pytest.raises(ConfigError, match="has no module"):
            modules.closure([name])
    for name in ("sparse", "bomb", "gomb"):
        with pytest.raises(PybpfError, match=r"more than \d+ MB"):
            modules.closure([name])
    with pytest.raises(RestrictError, match="cut short"):
        modules.closure(["cut"])
    if shutil.which("zstd") is not None:
        packed = subprocess.run(["zstd", "-qc"], input=bomb, capture_output=True).stdout
        (tmp_path / "zomb.ko.zst").write_bytes(packed)
        (tmp_path / "broken.ko.zst").write_bytes(packed[:20])
        modules = Modules(tmp_path)
        with pytest.raises(RestrictError, match="more than 1 MB"):
            modules.closure(["zomb"])
        with pytest.raises(RestrictError, match="cannot be decompressed"):
            modules.closure(["broken"])


def test_damaged_programs_get_errors_of_ours(tmp_path: Path) -> None:
    """Every length up to the program headers', and bytes changed in the headers."""
    whole = Path(os.path.realpath(sys.executable)).read_bytes()[:20000]
    source = random.Random(7)
    path = tmp_path / "program"
    inputs = [whole[:length] for length in range(0, 700, 3)]
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(source.choice((1, 3, 9))):
            raw[source.choice((source.randrange(64), source.randrange(800)))] = source.choice(
                (0, 1, 0x7F, 0x80, 0xFF, source.randrange(256))
            )
        inputs.append(bytes(raw))
    refused = 0
    for data in inputs:
        path.write_bytes(data)
        for act in (
            lambda: initramfs_elf.read(path),
            lambda: initramfs_elf.loadable(path),
            lambda: initramfs_modules._modinfo(path.read_bytes(), path),
        ):
            try:
                act()
            except PybpfError:
                refused += 1
    assert refused > len(inputs)


# ── folders in bpffs, processes ──


@pytest.mark.skipif(os.getuid() != 0, reason="changes owners")
def test_folders_of_pins_that_others_can_change(tmp_path: Path) -> None:
    """A plain bpffs is everybody's, as /tmp is: its folders may be somebody else's."""
    folder = tmp_path / "restrict"
    folder.mkdir()
    for mode, owner, above, alone in (
        (0o755, 0, True, True), (0o755, 1000, False, False), (0o777, 0, False, False),
        (0o1777, 0, True, False), (0o1777, 1000, False, False),
    ):  # fmt: skip
        os.chmod(folder, mode)
        os.chown(folder, owner, 0)
        for given, expected in ((True, above), (False, alone)):
            refused = False
            try:
                policy.make_folder(str(folder), 0o711, above=given)
            except RestrictError:
                refused = True
            assert refused == (not expected), (mode, owner, given)
    with pytest.raises(RestrictError, match="root alone"), keep_pins.Turn(f"{folder}/kept"):
        pass
    assert not list(folder.iterdir())


def test_no_deputy_that_does_not_exist(tmp_path: Path) -> None:
    """It is said before anything is changed: the deputy before would be none any more."""
    for pid in (-1, 1 << 22):
        with pytest.raises(RestrictError, match=f"no process {pid}"):
            keep_pins.appoint(pid, str(tmp_path / "kept"))
    assert not list(tmp_path.iterdir())


def test_a_reader_that_cannot_be_started_is_no_error() -> None:
    """The policy is in force by then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert serve.spawn(None) is None  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
