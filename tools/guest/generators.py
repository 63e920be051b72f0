# SPDX-License-Identifier: BSD-2-Clause
"""Other generators of initramfs images, run in a tree of Debian packages of their own.

The packages of trixie (initramfs-tools, dracut, and what they call) are unpacked into the cache.
A run gets an overlay on it, with restrict installed as a package would be, and is thrown away;
neither the tree nor the machine changes. Root is needed, for chroot and mounts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .apt import World
from .cache import cache_root, content_hash, progress, publish, scratch
from .errors import GuestError
from .packages import Kernel
from .trees import PROJECT

__all__ = ["generator_tree", "run_generator"]

_FORMAT = "2"
_SUITE = "trixie"
_COMMON = (
    "kmod", "zstd", "xz-utils", "bash", "dash", "coreutils", "sed", "grep", "findutils", "mawk",
    "gzip", "util-linux", "mount", "libc-bin", "tar", "diffutils", "base-files", "base-passwd",
    "python3", "python3-pyelftools", "python3-construct",
)  # fmt: skip
#: What each tree has beside that.
_PACKAGES = {
    "initramfs": (
        "initramfs-tools", "dracut-core", "klibc-utils", "busybox", "udev", "systemd",
        "systemd-sysv", "dmsetup", "cpio", "dpkg",
    ),
    "mkosi": ("mkosi", "systemd-repart", "libcryptsetup12", "erofs-utils", "openssl"),
}  # fmt: skip
_PACKED = ("pybpf", "restrict")


def generator_tree(kind: str) -> Path:
    """The unpacked packages of a kind (``initramfs``, ``mkosi``), fetched on first use."""
    names = sorted((*_COMMON, *_PACKAGES[kind]))

    def build(tree: Path) -> None:
        world = World("kernels", (_SUITE, "trixie-backports"))
        world.unpack(tree, *(f"{name}/{_SUITE}" for name in names))
        # What maintainer scripts would have done, as far as it is needed.
        for name in ("proc", "sys", "dev", "run", "tmp", "root", "var/tmp", "boot"):
            (tree / name).mkdir(parents=True, exist_ok=True)
        for name in ("passwd", "group"):
            shutil.copy(tree / f"usr/share/base-passwd/{name}.master", tree / "etc" / name)
        (tree / "usr/bin/awk").symlink_to("mawk")
        if not (tree / "usr/bin/sh").exists():
            (tree / "usr/bin/sh").symlink_to("dash")
        # dracut looks there for libraries that are opened by name, such as udevd's libkmod.
        done = _run([str(tree / "usr/sbin/ldconfig"), "-r", str(tree)])
        if done.returncode:
            raise GuestError(f"ldconfig failed: {done.stdout.strip()}")

    target = cache_root() / f"generators-{kind}-{content_hash([_FORMAT, _SUITE, *names])}"
    return publish(target, build, f"the tree of generators ({kind}) from Debian packages", keep=2)


def _install(tree: Path) -> None:
    """restrict as its package would be, from the work tree."""
    packages = tree / "usr/lib/python3/dist-packages"
    for name in _PACKED:
        shutil.copytree(
            PROJECT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copytree(PROJECT / "bpf/objects", packages / "restrict/objects")
    shutil.copytree(PROJECT / "integrations", packages / "restrict/integrations")
    program = tree / "usr/bin/restrict"
    program.parent.mkdir(parents=True)
    program.write_text("#!/usr/bin/python3\nimport sys\nfrom restrict.cli import main\n"
                       "sys.exit(main())\n")  # fmt: skip
    program.chmod(0o755)


_SCRIPT = """
set -e
mount -t overlay -o lowerdir="$1",upperdir="$2/upper",workdir="$2/work" restrict "$2/root"
mount --rbind /dev "$2/root/dev"
mount -t proc proc "$2/root/proc"
mount -t tmpfs tmpfs "$2/root/run"
mount --bind "$3" "$2/root/usr/lib/modules/$4"
exec chroot "$2/root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 \\
    /bin/sh -ec "$5"
"""


def _modules(kernel: Kernel, tree: Path) -> Path:
    """The kernel's modules with what depmod makes, which its package leaves to its scripts."""

    def build(folder: Path) -> None:
        place = folder / "lib/modules" / kernel.release
        shutil.copytree(kernel.tree / "modules", place, copy_function=os.link)
        loader = tree / "usr/lib64/ld-linux-x86-64.so.2"
        libraries = tree / "usr/lib/x86_64-linux-gnu"
        done = _run([
            str(loader), "--library-path", str(libraries), "--argv0", "depmod",
            str(tree / "usr/bin/kmod"), "-b", str(folder), kernel.release,
        ])  # fmt: skip
        if done.returncode:
            raise GuestError(f"depmod failed: {done.stdout.strip()}")

    target = cache_root() / f"modules-{content_hash([kernel.identity, tree.name])}"
    found = publish(target, build, f"the list of modules of {kernel.release}", keep=8)
    return found / "lib/modules" / kernel.release


def run_generator(
    kernel: Kernel, kind: str, script: str, files: Mapping[str, bytes], results: Sequence[str]
) -> tuple[list[bytes], str]:
    """Run a shell script in the tree of a kind, with *files* in it and the kernel's modules in
    place; gives the files *results* that it made, and what was printed.

    Raises:
        GuestError: not root, or the script failed; the message has what it said.
    """
    if os.geteuid() != 0:
        raise GuestError("running an initramfs generator in a tree of its own needs root")
    tree = generator_tree(kind)
    modules = _modules(kernel, tree)
    with scratch("generator") as folder:
        for part in ("upper", "work", "root"):
            (folder / part).mkdir()
        upper = folder / "upper"
        _install(upper)
        (upper / "usr/lib/modules" / kernel.release).mkdir(parents=True)
        for path, data in files.items():
            target = upper / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o755 if data[:2] == b"#!" else 0o644)
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh"]
        words += [str(tree), str(folder), str(modules), kernel.release, script]
        with progress("running an initramfs generator"):
            done = _run(words)
        if done.returncode:
            raise GuestError(f"the generator failed with status {done.returncode}:\n{done.stdout}")
        return [(upper / name).read_bytes() for name in results], done.stdout


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )  # fmt: skip
