# SPDX-License-Identifier: BSD-2-Clause
"""The example for mkosi and systemd-repart, built by them and booted: integrations/mkosi.

mkosi itself (trixie's) runs the example as it stands, with a tree of busybox and an init that
reports instead of Debian's packages. Beside the disk image our script leaves the initramfs that
boots it: no other file, and nothing on the kernel command line, says what to boot.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tools.guest.cache import cache_root, content_hash, prune, publish
from tools.guest.errors import GuestError
from tools.guest.generators import generator_tree, run_generator
from tools.guest.keys import signer
from tools.guest.lanes import LANES
from tools.guest.machine import Guest
from tools.guest.packages import kernel, toolbox
from tools.guest.trees import PROJECT, project_files

_EXAMPLE = PROJECT / "integrations/mkosi"
_MODULES = ("dm-mod", "dm-bufio", "dm-verity", "reed_solomon", "erofs", "virtio_blk", "libcrc32c")

# /sbin/init of the image: what it finds goes to the results' port, a JSON string a line.
_INIT = """\
#!/bin/sh
say() { printf '{"event": "%s", "text": "%s"}\\n' "$1" "$2" >/dev/ttyS1; }
mount -t tmpfs tmpfs /mnt
cp /bin/busybox /mnt/busybox
/bin/busybox true && say root allowed
/mnt/busybox true 2>/mnt/said
say tmpfs "$? $(tail -n 1 /mnt/said)"
while read -r line; do say status "$line"; done </sys/fs/bpf/restrict/fsaccess
while read -r source target kind rest; do
    [ "$target" = / ] && say mount "$source $kind"
done </proc/mounts
echo '{"event": "end", "status": 0}' >/dev/ttyS1
exec reboot -f
"""

_SCRIPT = """
cd /work
chmod 600 mkosi.key
mkdir -p mkosi.output base/bin base/sbin base/mnt base/etc base/usr/lib/modules/RELEASE/kernel
mkdir -p base/proc base/sys base/dev base/run base/tmp
echo ID=custom >base/usr/lib/os-release
mv busybox base/bin/busybox
chmod 755 base/bin/busybox
for applet in sh mount cp tail reboot; do ln -s busybox base/bin/$applet; done
mv init base/sbin/init
cp -r modules/. base/usr/lib/modules/RELEASE/kernel
mkosi --distribution=custom --base-tree=/work/base --package= build
"""


def _inputs(lane: str) -> dict[str, bytes]:
    tools, found = toolbox(), kernel(LANES[lane])
    files = {
        f"work/{path.relative_to(_EXAMPLE)}": path.read_bytes()
        for path in sorted(_EXAMPLE.rglob("*"))
        if path.is_file()
    }
    by = signer(tools)
    files["work/mkosi.key"] = by.key.read_bytes()
    files["work/mkosi.crt"] = by.certificate.read_bytes()
    files["work/busybox"] = (tools.tree / "usr/bin/busybox").read_bytes()
    files["work/init"] = _INIT.encode()
    for name in _MODULES:
        try:
            files[f"work/modules/{name}.ko"] = found.module(name)
        except GuestError:  # libcrc32c is no module of its own any more
            assert name == "libcrc32c"
    return files


def _built(lane: str) -> Path:
    """image.raw and restrict.cpio.zst as mkosi makes them, kept by all that goes in."""
    if os.geteuid():
        raise GuestError("mkosi runs in a chroot here, which needs root")
    found, files = kernel(LANES[lane]), _inputs(lane)
    tree = generator_tree("mkosi")
    parts: list[bytes | str] = ["1", tree.name, found.identity, _SCRIPT]
    product = {n: p for n, p in project_files() if n.startswith(("pybpf/", "restrict/", "bpf/"))}
    for name, path in sorted(product.items()):
        parts += [name, path.read_bytes()]
    for name, data in sorted(files.items()):
        parts += [name, data]

    def build(folder: Path) -> None:
        names = ["image.raw", "restrict.cpio.zst"]
        results, said = run_generator(
            found, "mkosi", _SCRIPT.replace("RELEASE", found.release), files,
            [f"work/mkosi.output/{name}" for name in names],
        )  # fmt: skip
        for name, data in zip(names, results, strict=True):
            (folder / name).write_bytes(data)
        (folder / "said").write_text(said)

    target = cache_root() / "mkosi" / f"{lane}-{content_hash(parts)}"
    prune(target.parent, f"{lane}-*", keep=2)
    return publish(target, build, "an image by mkosi")


@pytest.mark.vm
@pytest.mark.parametrize("lane", ["7.3"])
def test_example_boots(lane: str, request: pytest.FixtureRequest) -> None:
    wanted = request.config.getoption("--lane")
    if wanted and lane not in wanted:
        pytest.skip("another lane was asked for")
    try:
        folder = _built(lane)
    except GuestError as e:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(e))

    def initramfs(run: Mapping[str, Any]) -> bytes:
        return (folder / "restrict.cpio.zst").read_bytes()

    guest = Guest(LANES[lane], drives={"root": folder / "image.raw"}, initramfs=initramfs)
    outcome = guest.run({"mode": "none"}, artifacts=PROJECT / f"artifacts/vm/mkosi-{lane}")
    assert outcome.status == 0, f"{outcome.reason}\n{outcome.console[-3000:]}"
    said: dict[str, list[str]] = {}
    for event in outcome.events:
        said.setdefault(str(event["event"]), []).append(str(event.get("text")))
    print(json.dumps(said, indent=1))
    assert said["root"] == ["allowed"]
    assert said["tmpfs"] == ["126 /sbin/init: line 6: /mnt/busybox: Operation not permitted"]
    assert said["mount"][-1] == "/dev/dm-0 erofs"
    # By default: kept by pins, which belong to nobody.
    assert {
        "armed 1", "audit 0", "initramfs_dev 0:0", "owner 0 start_ticks 0", "kept 2",
    } <= set(said["status"])  # fmt: skip
