# SPDX-License-Identifier: BSD-2-Clause
"""The cache, the cpio archives and the UEFI variable store of the guests."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tools.guest.cache import content_hash, guests_at_once, prune, publish, scratch, there
from tools.guest.cpio import Archive
from tools.guest.errors import GuestError
from tools.guest.machine import _follow, kernel_trouble
from tools.guest.uefi import add_db_certificate


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTRICT_CACHE", str(tmp_path / "cache"))


def test_publish_builds_once_in_spite_of_a_race(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.1)
        (folder / "file").write_text("content")

    target = tmp_path / "cache/thing"
    threads = [threading.Thread(target=publish, args=(target, build, "it")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (target / "file").read_text() == "content"


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("broken")

    target = tmp_path / "cache/thing"
    with pytest.raises(ValueError, match="broken"):
        publish(target, build, "it")
    assert not target.exists()
    assert not list((tmp_path / "cache/scratch").iterdir())


def test_what_is_superseded_goes_by_its_last_use(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "file").write_text("content")

    cache, long_ago = tmp_path / "cache", time.time() - 10000
    for name in ("tree-1", "tree-2", "tree-3", "other-1"):
        publish(cache / name, build, "it")
        os.utime(cache / name, (long_ago, long_ago))
    assert there(cache / "tree-1")
    publish(cache / "tree-4", build, "it", keep=2)
    assert {path.name for path in cache.glob("*-*")} == {"tree-1", "tree-4", "other-1"}


def test_scratch_is_removed_after_a_killed_run_too(tmp_path: Path) -> None:
    left = tmp_path / "cache/scratch/guest-of-a-killed-run"
    (left / "folder").mkdir(parents=True)
    yesterday = time.time() - 90000
    os.utime(left, (yesterday, yesterday))
    with scratch("guest") as folder:
        assert [path.name for path in left.parent.iterdir()] == [folder.name]
    assert not list(left.parent.iterdir())


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_a_number_of_guests_that_is_none_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTRICT_VM_JOBS", text)
    with pytest.raises(GuestError, match=f"RESTRICT_VM_JOBS is '{text}'"):
        guests_at_once()


def test_prune_keeps_the_newest_and_what_is_young(tmp_path: Path) -> None:
    now = time.time()
    for age in range(6):
        path = tmp_path / f"item-{age}"
        path.mkdir()
        os.utime(path, (now - age * 4000, now - age * 4000))
    prune(tmp_path, "item-*", keep=1, min_age=6000)
    assert sorted(path.name for path in tmp_path.glob("item-*")) == ["item-0", "item-1"]
    prune(tmp_path, "item-*", keep=5, min_age=0)
    assert len(list(tmp_path.glob("item-*"))) == 2


def test_hash_tells_borders_apart() -> None:
    assert content_hash(["ab", "c"]) != content_hash(["a", "bc"])
    assert content_hash(["ab"]) == content_hash([b"ab"])


def _archive() -> bytes:
    archive = Archive()
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.file("usr/lib/deep/file", b"12345")
    archive.symlink("bin", "usr/bin")
    archive.node("dev/console", 5, 1)
    return archive.finish()


def test_cpio_is_deterministic_and_aligned() -> None:
    assert _archive() == _archive()
    assert len(_archive()) % 512 == 0
    # Each header begins at a multiple of four, whatever the lengths of names and contents.
    data, position, names = _archive(), 0, []
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + i * 8 :][:8], 16) for i in range(13)]
        name = data[position + 110 :][: fields[11] - 1].decode()
        if name == "TRAILER!!!":
            break
        names.append((name, fields[1], fields[6]))
        position = (position + 110 + fields[11] + 3) & ~3
        position = (position + fields[6] + 3) & ~3
    assert names == [
        ("init", 0o100755, 10),
        ("usr", 0o40755, 0),
        ("usr/lib", 0o40755, 0),
        ("usr/lib/deep", 0o40755, 0),
        ("usr/lib/deep/file", 0o100644, 5),
        ("bin", 0o120777, 7),
        ("dev", 0o40755, 0),
        ("dev/console", 0o20600, 0),
    ]


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_as_cpio_reads_it() -> None:
    done = subprocess.run(["cpio", "-t"], input=_archive(), capture_output=True, check=True)
    assert b"usr/lib/deep/file" in done.stdout.splitlines()


def _store(variables: bytes = b"", size: int = 0x3000) -> bytes:
    """A firmware volume as OVMF's: header, authenticated variable store, variables, 0xff."""
    header = bytearray(72)
    header[40:44] = b"_FVH"
    struct.pack_into("<H", header, 48, 72)
    guid = bytes.fromhex("782cf3aa7b949a43a1802e144ec37792")
    store = guid + struct.pack("<IBBHI", size - 72, 0x5A, 0xFE, 0, 0)
    return (bytes(header) + store + variables).ljust(size, b"\xff")


def test_certificate_in_variable_store() -> None:
    certificate = bytes(range(256)) * 3
    store = add_db_certificate(_store(), certificate)
    assert len(store) == len(_store())
    position = 72 + 28
    start, state, attributes = struct.unpack_from("<HBxI", store, position)
    assert (start, state, attributes) == (0x55AA, 0x3F, 0x27)
    name_size, data_size = struct.unpack_from("<II", store, position + 36)
    data = store[position + 60 :]
    assert data[:name_size].decode("utf-16-le") == "db\0"
    signatures = data[name_size : name_size + data_size]
    assert signatures[:16] == bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
    assert struct.unpack_from("<III", signatures, 16) == (data_size, 0, 16 + len(certificate))
    assert signatures[44:] == certificate
    assert set(store[position + 60 + name_size + data_size :]) == {0xFF}
    with pytest.raises(GuestError, match="has a db already"):
        add_db_certificate(store, certificate)


def test_variable_store_that_does_not_fit() -> None:
    with pytest.raises(GuestError, match="no room"):
        add_db_certificate(_store(size=0x100), bytes(1000))
    with pytest.raises(GuestError, match="does not begin"):
        add_db_certificate(bytes(0x1000), b"")


def test_kernel_trouble() -> None:
    console = (
        "[    1.0] clocksource: Switched\n"
        "[    7.1] BUG: kernel NULL pointer dereference, address: 0000000000000020\n"
        "[    7.2] Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI\n"
        "[    8.0] WARNING: CPU: 0 PID: 1 at kernel/bpf/verifier.c:1 do_check+0x1/0x2\n"
        "[    9.0] Kernel panic - not syncing: Attempted to kill init!\n"
        "[   10.0] reboot: Restarting system\n"
    )
    assert [line.split("] ", 1)[1][:5] for line in kernel_trouble(console)] == [
        "BUG: ",
        "Oops:",
        "WARNI",
        "Kerne",
    ]


def test_a_guest_is_ended_when_it_is_silent(tmp_path: Path) -> None:
    """What it has said is given first; None says that nothing more came in time."""
    results = tmp_path / "results.jsonl"
    results.write_bytes(b'BdsDxe: starting {"event": "ready"}\n{"event": bad\n{"event": "cut')
    process = subprocess.Popen(["sleep", "infinity"])
    try:
        found = list(_follow(results, process, 0.05))
    finally:
        process.kill()
        process.wait()
    assert found[0] == {"event": "ready"}
    assert [event and event["event"] for event in found] == ["ready", "garbled", None]
    assert list(_follow(results, process, 3600.0)) == found[:2]  # it has ended: nothing to wait for
