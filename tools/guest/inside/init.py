#!/usr/bin/python3 -BIS
# SPDX-License-Identifier: BSD-2-Clause
"""PID 1 of the initramfs: mounts, modules, certificate, signed images, then the harness."""

from __future__ import annotations

import os
import sys
import traceback

sys.path.insert(0, "/vm/lib")


def _copy(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    for entry in os.scandir(source):
        to = f"{target}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            _copy(entry.path, to)
        elif entry.is_symlink():
            os.symlink(os.readlink(entry.path), to)
        else:
            with open(entry.path, "rb") as old, open(to, "wb") as new:
                while block := old.read(1 << 20):
                    new.write(block)
            os.chmod(to, entry.stat().st_mode & 0o7777)


def main() -> None:
    """Bring the guest up as /vm/run.json says."""
    from tools.guest.inside import dm, kernel

    kernel.mount_usual()
    from tools.guest.inside.channel import Channel

    channel = Channel()
    channel.send("python", kernel=os.uname().release)
    import json

    with open("/vm/run.json") as file:
        run = json.load(file)
    for name, parameters in run["modules"]:
        kernel.insmod(f"/usr/lib/modules/{name}.ko", parameters)
    if run["keyring"]:
        keyring = kernel.find_keyring(".dm-verity")
        if keyring is None:
            raise RuntimeError("the kernel has no .dm-verity keyring")
        with open("/vm/certificate.der", "rb") as file_der:
            kernel.add_key("asymmetric", "", file_der.read(), keyring)
        kernel.keyctl("restrict .dm-verity", 29, keyring, None, None)
    drives = kernel.disks()
    if run["root"] == "signed":
        for name, where in (("system", "/newroot"), ("project", "/newroot/project")):
            image = run["images"][name]
            node = dm.verity(
                name, drives[name], image["blocks"], image["root_hash"], image["salt"],
                bytes.fromhex(image["signature"]),
            )  # fmt: skip
            kernel.mount(node, where, "erofs", kernel.MS_RDONLY)
        _copy("/vm", "/run/vm")
        kernel.switch_root("/newroot")
    else:
        _copy("/vm", "/run/vm")
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV)
    channel.send("ready")
    python = "/usr/bin/python3"
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "TERM": run.get("term", "linux"),
        "PYTHONPATH": "/project",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }
    os.execve(python, [python, "-s", "/run/vm/lib/tools/guest/inside/harness.py"], environment)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        try:
            from tools.guest.inside.channel import Channel

            Channel().send("crash", where="init", traceback=text)
        finally:
            from tools.guest.inside.kernel import reboot

            reboot()
