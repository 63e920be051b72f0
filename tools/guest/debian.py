# SPDX-License-Identifier: BSD-2-Clause
"""A real Debian for the guest: trixie by mmdebstrap, its own init, services and units, on a signed
erofs root that systemd-repart makes.

The tree knows nothing of the project: that comes on a disk of its own, which /project is mounted
from, so that a change of the project costs no new root image.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .apt import mirror
from .cache import cache_root, content_hash, publish
from .errors import GuestError
from .packages import Toolbox
from .repart import definitions, repart

__all__ = ["debian_image", "debian_tree"]

_FORMAT = "3"
_SUITE = "trixie"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SYSTEMD = (
    "systemd-sysv", "dbus", "udev", "libpam-systemd", "cron", "iproute2", "procps", "python3",
)  # fmt: skip
_SYSVINIT = ("sysvinit-core", "initscripts", "udev", "cron", "procps", "python3")
PACKAGES = {"systemd": _SYSTEMD, "sysvinit": _SYSVINIT}

_FSTAB = """\
tmpfs /var/tmp tmpfs nosuid,nodev,mode=1777 0 0
tmpfs /var/log tmpfs nosuid,nodev,mode=0755 0 0
tmpfs /var/spool tmpfs nosuid,nodev,mode=0755 0 0
tmpfs /var/cache tmpfs nosuid,nodev,mode=0755 0 0
tmpfs /var/lib/systemd tmpfs nosuid,nodev,mode=0755 0 0
"""
# The tests are a service of the booted system; the first one that may run once it is up.
_UNITS = {
    "project.mount": """\
[Unit]
Description=The project (data: not on a trusted device)
[Mount]
What=/dev/disk/by-id/virtio-project
Where=/project
Type=erofs
Options=ro,nosuid,nodev
""",
    "guest-tests.service": """\
[Unit]
Description=Tests in the guest
Requires=project.mount
After=project.mount multi-user.target
[Service]
Type=exec
Environment=PYTHONPATH=/project PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
ExecStart=/usr/bin/python3 -s /project/tools/guest/inside/service.py
StandardOutput=journal+console
KillMode=mixed
TimeoutStopSec=5
""",
    "guest-tests.target": """\
[Unit]
Description=Multi-user system, and then the tests
Requires=multi-user.target
Wants=guest-tests.service
After=multi-user.target
AllowIsolate=yes
""",
}

# The same for an init without units: from inittab, once runlevel 2 is entered.
_SCRIPT = """\
#!/bin/sh
for serial in /sys/block/*/serial; do
    if [ "$(cat "$serial")" = project ]; then
        disk=${serial%/serial}
        mount -t erofs -o ro,nosuid,nodev "/dev/${disk##*/}" /project
    fi
done
export PYTHONPATH=/project PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8
exec /usr/bin/python3 -s /project/tools/guest/inside/service.py </dev/null >/dev/console 2>&1
"""
_INITTAB = "gt:2:once:/usr/local/sbin/guest-tests\n"


def _configure(tree: Path, init: str) -> None:
    etc = tree / "etc"
    (etc / "fstab").write_text(_FSTAB)
    (etc / "hostname").write_text("guest\n")
    for name in ("machine-id", "resolv.conf"):
        (etc / name).unlink(missing_ok=True)
        (etc / name).touch()
    (tree / "project").mkdir()
    for folder in ("var/cache/apt", "var/lib/apt/lists", "var/log", "boot"):
        shutil.rmtree(tree / folder, ignore_errors=True)
        (tree / folder).mkdir(parents=True)
    if init == "systemd":
        for name, text in _UNITS.items():
            (etc / "systemd/system" / name).write_text(text)
        default = etc / "systemd/system/default.target"
        default.symlink_to("guest-tests.target")
    else:
        script = tree / "usr/local/sbin/guest-tests"
        script.write_text(_SCRIPT)
        script.chmod(0o755)
        with open(etc / "inittab", "a") as file:
            file.write(_INITTAB)


def _started(init: str) -> list[str]:
    return sorted(_UNITS.values()) if init == "systemd" else [_SCRIPT, _INITTAB]


def debian_tree(init: str = "systemd") -> Path:
    """The root of a minimal trixie with this init; a minute or two the first time.

    Raises:
        GuestError: not root, no mmdebstrap, or it failed; the message has the end of its log.
    """
    packages = PACKAGES[init]
    key = content_hash([_FORMAT, _SUITE, init, *packages, _FSTAB, *_started(init)])
    target = cache_root() / "debian" / f"{init}-{key}"

    def build(folder: Path) -> None:
        program = shutil.which("mmdebstrap")
        if program is None:
            raise GuestError("mmdebstrap is not there: apt-get install mmdebstrap")
        excluded = [f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in ("doc", "man", "locale")]
        done = subprocess.run(
            [
                program, "--variant=minbase", "--mode=root", f"--include={','.join(packages)}",
                "--aptopt=APT::Install-Recommends false",
                "--aptopt=Acquire::Check-Valid-Until false", *excluded, _SUITE,
                str(folder / "root"), f"deb [signed-by={_KEYRING}] {mirror().uri} {_SUITE} main",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )  # fmt: skip
        if done.returncode:
            raise GuestError(f"mmdebstrap failed: {done.stderr.strip()[-2000:]}")
        _configure(folder / "root", init)

    return publish(target, build, f"a Debian {_SUITE} with {init}", keep=2) / "root"


def debian_image(tools: Toolbox, init: str = "systemd") -> Path:
    """Its disk: a GPT with a signed erofs root, by systemd-repart."""
    tree = debian_tree(init)
    return repart(
        tools,
        f"debian-{init}",
        definitions("root", "CopyFiles=/work/content:/"),
        folder=(tree.parent.name, tree),
    )
