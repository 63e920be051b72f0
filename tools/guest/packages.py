# SPDX-License-Identifier: BSD-2-Clause
"""What comes from Debian packages: the tools run on the host, the kernels, the guest's files.

Nothing is installed.  The tools (qemu, mkfs.erofs, veritysetup, openssl) are unpacked with all
their libraries and started through their own dynamic linker, so they run the same on any
machine that has apt.
"""

from __future__ import annotations

import json
import lzma
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .apt import Package, World, unpack
from .cache import cache_root, content_hash, publish
from .errors import GuestError
from .lanes import Lane

__all__ = ["Kernel", "Toolbox", "kernel", "toolbox", "uncompressed"]

# qemu 7.2 of bookworm itself crashed in one run of twelve with -cpu max on Linux 6.12.
_TOOL_PACKAGES = (
    "qemu-system-x86",
    "ovmf",
    "erofs-utils",
    "cryptsetup-bin",
    "openssl",
    "python3.11",
    "libpython3.11-stdlib",
    "busybox-static",
    "bpftool",
    "strace",
    "squashfs-tools",
    "zstd",
    "e2fsprogs",
    "python3-pyelftools",
    "python3-construct",
    "python3-pytest",
)
_FORMAT = "2"  # raise it when what is unpacked changes


def _tools_world() -> World:
    return World(
        "tools",
        ("bookworm", "bookworm-backports"),
        (("qemu* seabios ipxe-qemu", "bookworm-backports"), ("bpftool", "bookworm-backports")),
    )


def _manifest(tree: Path, packages: Sequence[Package]) -> None:
    lines = {package.name: package.version for package in packages}
    (tree / "manifest.json").write_text(json.dumps(lines, indent=1, sort_keys=True) + "\n")


class Toolbox:
    """The unpacked tools; :meth:`command` gives the argument list that starts one of them."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        libraries = tree / "usr/lib/x86_64-linux-gnu"
        self._loader = libraries / "ld-linux-x86-64.so.2"
        self._path = ":".join(
            str(folder) for folder in (libraries, libraries / "pulseaudio", tree / "usr/lib")
        )

    @property
    def identity(self) -> str:
        """A hash over the versions of all packages: for what is made from them."""
        return content_hash([self.tree.name, (self.tree / "manifest.json").read_bytes()])

    def command(self, program: str, *arguments: str) -> list[str]:
        """The command that runs *program* (``mkfs.erofs``) with its own libraries."""
        for folder in ("usr/bin", "usr/sbin"):
            binary = self.tree / folder / program
            if binary.exists():
                return [
                    str(self._loader), "--library-path", self._path, "--argv0", program,
                    str(binary), *arguments,
                ]  # fmt: skip
        raise GuestError(f"{program} is not among the unpacked tools in {self.tree}")

    def run(self, program: str, *arguments: str, data: bytes | None = None) -> bytes:
        """Run *program* to its end and return its standard output.

        Raises:
            GuestError: it failed; the message has its standard error.
        """
        done = subprocess.run(
            self.command(program, *arguments),
            input=data,
            stdin=None if data is not None else subprocess.DEVNULL,
            capture_output=True,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C",
                "OPENSSL_CONF": str(self.tree / "etc/ssl/openssl.cnf"),
            },
        )
        if done.returncode:
            raise GuestError(
                f"{program} {' '.join(arguments)} failed with status {done.returncode}: "
                f"{done.stderr.decode('utf-8', 'replace').strip()}"
            )
        return done.stdout

    @property
    def qemu_data(self) -> list[Path]:
        """The directories with qemu's firmware and option ROMs."""
        return [self.tree / "usr/share" / name for name in ("qemu", "seabios")]

    def firmware(self, name: str) -> Path:
        """A file of the package ovmf, such as ``OVMF_CODE_4M.fd``."""
        return self.tree / "usr/share/OVMF" / name


def toolbox(refresh: bool = False) -> Toolbox:
    """The unpacked tools, fetched on first use."""
    key = content_hash([_FORMAT, *_TOOL_PACKAGES])
    target = cache_root() / f"tools-{key}"
    if refresh:
        shutil.rmtree(target, ignore_errors=True)

    def build(tree: Path) -> None:
        world = _tools_world()
        world.update(force=refresh)
        packages = world.unpack(tree, *_TOOL_PACKAGES)
        _absolute_links(tree)
        _manifest(tree, packages)

    return Toolbox(publish(target, build, "qemu and the tools from Debian packages", keep=2))


def _absolute_links(tree: Path) -> None:
    """Make absolute symbolic links inside *tree* relative to it."""
    for path in tree.rglob("*"):
        if path.is_symlink():
            to = path.readlink()
            if to.is_absolute():
                depth = len(path.relative_to(tree).parts) - 1
                path.unlink()
                path.symlink_to(Path("../" * depth) / str(to).lstrip("/"))


class Kernel:
    """A kernel unpacked into the cache: its image and its modules."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.image = tree / "vmlinuz"
        self.release = (tree / "release").read_text().strip()
        self.identity = content_hash([tree.name, (tree / "manifest.json").read_bytes()])
        self._modules = {
            path.name.split(".ko")[0].replace("-", "_"): path
            for path in (tree / "modules").rglob("*.ko*")
        }

    def module_names(self) -> list[str]:
        """Names of all modules, with underscores."""
        return sorted(self._modules)

    def module(self, name: str) -> bytes:
        """The module *name*, decompressed.

        Raises:
            GuestError: the kernel package has no such module.
        """
        path = self._modules.get(name.replace("-", "_"))
        if path is None:
            raise GuestError(f"kernel {self.release} has no module {name}")
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == ".xz" else data

    def closure(self, names: Sequence[str]) -> list[str]:
        """*names* in their order, each preceded by what it depends on.

        modules.dep is not part of the package, so ``depends=`` of .modinfo is read.  erofs of
        6.12 needs libcrc32c, which it names only as a soft dependency of that module's user.
        """
        ordered: list[str] = []

        def visit(name: str) -> None:
            name = name.replace("-", "_")
            if name in ordered:
                return
            for other in _depends(self.module(name)):
                visit(other)
            if name == "erofs" and "libcrc32c" in self._modules:
                visit("libcrc32c")
            ordered.append(name)

        for name in names:
            visit(name)
        return ordered


def _is_kernel_file(name: str) -> bool:
    return "vmlinuz" in name or name.endswith((".ko", ".ko.xz"))


def _depends(module: bytes) -> list[str]:
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name for name in match.group(1).decode().split(",") if name] if match else []


def kernel(lane: Lane, refresh: bool = False) -> Kernel:
    """The kernel of *lane*, fetched on first use."""
    target = cache_root() / f"kernel-{lane.name}-{content_hash([_FORMAT, lane.suite])}"
    if refresh:
        shutil.rmtree(target, ignore_errors=True)

    def build(tree: Path) -> None:
        world = World("kernels", ("trixie", "trixie-backports"))
        world.update(force=refresh)
        wanted = re.compile(rf"^linux-image-{re.escape(lane.series)}\.\d+.*-cloud-amd64$")
        names = [name for name in world.names(f"linux-image-{lane.series}.") if wanted.match(name)]
        if names:
            names.sort(key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
            meta = f"{names[-1]}/{lane.suite}"
        else:
            meta = f"linux-image-cloud-amd64/{lane.suite}"
        packages = [
            package
            for package in world.resolve(meta)
            if re.match(r"linux-(image|binary|modules)-\d", package.name)
        ]
        for deb in world.download(packages):
            unpack(deb, tree, _is_kernel_file)
        images = sorted(tree.rglob("vmlinuz*"))
        releases = sorted(path.name for path in (tree / "usr/lib/modules").iterdir())
        if len(images) != 1 or len(releases) != 1:
            raise GuestError(
                f"the kernel packages of {lane.suite} hold {len(images)} images and "
                f"{len(releases)} module trees, not one of each"
            )
        images[0].rename(tree / "vmlinuz")
        (tree / "usr/lib/modules" / releases[0]).rename(tree / "modules")
        (tree / "release").write_text(releases[0] + "\n")
        _manifest(tree, packages)

    what = f"the kernel of lane {lane.name} from Debian packages"
    return Kernel(publish(target, build, what, keep=2))


def uncompressed(tools: Toolbox, kernel: Kernel) -> Path:
    """The ELF file inside the kernel's bzImage, for qemu to start by its PVH entry.

    The emulated processor takes two seconds to decompress a kernel, the host a tenth of one.
    Gives the bzImage itself where the payload is not what Debian's kernels have: zstd (x86
    boot protocol 2.08, Documentation/arch/x86/boot.rst).
    """
    data = kernel.image.read_bytes()
    start = ((data[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", data, 0x248)
    payload = data[start + offset : start + offset + length]
    if payload[:4] != b"\x28\xb5\x2f\xfd":
        return kernel.image
    target = cache_root() / f"vmlinux-{kernel.identity}"

    def build(folder: Path) -> None:
        # The last four bytes are the length of the decompressed kernel.
        (folder / "vmlinux").write_bytes(tools.run("zstd", "-dcq", data=payload[:-4]))

    return publish(target, build, "decompressing the kernel", keep=4) / "vmlinux"
