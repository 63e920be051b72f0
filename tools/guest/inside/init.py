#!/usr/bin/python3 -BIS
# SPDX-License-Identifier: BSD-2-Clause
"""PID 1 of the initramfs: mounts, modules, certificate, signed images, then the harness."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, "/project")


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
    from restrict.devmapper import DeviceMapper, Verity
    from restrict.keyring import add_certificate, add_user_key, find_keyring, restrict_keyring
    from restrict.modules import insmod
    from restrict.mounts import mount, switch_root
    from tools.guest.inside import kernel
    from tools.guest.inside.channel import Channel

    kernel.mount_usual()
    channel = Channel()
    channel.send("python", kernel=os.uname().release)
    import json

    with open("/vm/run.json") as file:
        run = json.load(file)
    for name, parameters in run["modules"]:
        insmod(f"/usr/lib/modules/{name}.ko", parameters)
    if run["keyring"]:
        keyring = find_keyring()
        if keyring is None:
            raise RuntimeError("the kernel has no .dm-verity keyring")
        with open("/vm/certificate.der", "rb") as file_der:
            add_certificate(file_der.read(), keyring.serial)
        restrict_keyring(keyring.serial)
    _copy("/vm", "/run/vm")
    if run["root"] == "signed":
        drives = kernel.disks()
        for name, where in (("system", "/newroot"), ("project", "/newroot/project")):
            image = run["images"][name]
            add_user_key(f"guest-{name}", bytes.fromhex(image["signature"]))
            with DeviceMapper() as mapper:
                device = mapper.activate(
                    name,
                    Verity(
                        data=drives[name],
                        hash=drives[name],
                        data_blocks=image["blocks"],
                        hash_start=image["blocks"],
                        root_hash=image["root_hash"],
                        salt=image["salt"],
                        signature_key=f"guest-{name}",
                    ),
                )
            os.makedirs(where, exist_ok=True)
            mount(device.path, where, "erofs", kernel.MS_RDONLY)
        switch_root("/newroot")
    mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV)
    channel.send("ready")
    python = "/usr/bin/python3"
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "TERM": "linux",
        "PYTHONPATH": "/project",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }
    os.execve(python, [python, "-s", "/project/tools/guest/inside/harness.py"], environment)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        try:
            from tools.guest.inside.channel import Channel

            Channel().crash("init")
        finally:
            from tools.guest.inside.kernel import reboot

            reboot()
