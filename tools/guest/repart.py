# SPDX-License-Identifier: BSD-2-Clause
"""Disk images as people build them: by Debian trixie's systemd-repart, signed, offline.

The tool runs in a chroot with the packages unpacked in it (root is needed), because it looks for
its libraries and for mkfs by itself. Nothing of the machine's is used but the kernel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from .apt import World
from .cache import cache_root, content_hash, publish
from .errors import GuestError
from .images import Image
from .keys import signer
from .packages import Toolbox
from .trees import project_tree, system_tree
from .verity import BLOCK

__all__ = ["definitions", "repart", "repart_system", "repart_usr", "root_hash_of"]

_PACKAGES = (
    "systemd-repart", "libcryptsetup12", "openssl", "erofs-utils", "squashfs-tools", "coreutils",
)  # fmt: skip
_FORMAT = "2"
_SEED = "2c1d7a3e-52b0-4ad5-9b5c-0f6a3c8e9d11"  # fixed: equal inputs give equal images

# The mounts are made in a mount namespace of its own and go with it.
_RUN = """\
set -e
mount --make-rprivate /
mount --bind "$2" "$1/work"
if [ -n "$4" ]; then mount --bind "$4" "$1/work/content"; fi
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" /usr/bin/systemd-repart --empty=create --size=auto --offline=yes \
    --definitions=/work/definitions --private-key=/work/key.pem \
    --certificate=/work/certificate.pem --dry-run=no --split=no --seed="$3" /work/image.raw
"""


def _tree() -> Path:
    """The chroot with systemd-repart."""
    target = cache_root() / f"repart-{content_hash([_FORMAT, *_PACKAGES])}"

    def build(tree: Path) -> None:
        World("trixie", ("trixie",)).unpack(tree, *_PACKAGES)
        for name in ("proc", "sys", "dev", "run", "tmp", "var/tmp", "work"):
            (tree / name).mkdir(parents=True, exist_ok=True)

    return publish(target, build, "systemd-repart from Debian packages", keep=2)


def definitions(part: str, source: str, filesystem: str = "erofs") -> dict[str, str]:
    """repart.d files of one image. part: ``root`` or ``usr``; source: the line that says what
    goes into the data partition, such as ``CopyFiles=/work/content:/``."""
    kind = f"Format={filesystem}\n" if source.startswith("CopyFiles") else ""
    common = f"VerityMatchKey={part}\n"
    return {
        f"10-{part}.conf": f"[Partition]\nType={part}\n{kind}{source}\nVerity=data\n{common}"
        + ("Minimize=best\n" if kind else ""),
        f"20-{part}-verity.conf": f"[Partition]\nType={part}-verity\nVerity=hash\n{common}"
        "Minimize=best\n",
        f"30-{part}-verity-sig.conf": f"[Partition]\nType={part}-verity-sig\nVerity=signature\n"
        f"{common}",
    }


def repart(
    tools: Toolbox,
    name: str,
    files: Mapping[str, str],
    *,
    content: Mapping[str, bytes] | None = None,
    tree: tuple[str, Callable[[Path], None]] | None = None,
    folder: tuple[str, Path] | None = None,
    blocks: Image | None = None,
    key: str = "signer",
) -> Path:
    """The disk image that systemd-repart makes by the repart.d ``files``; kept by its inputs.

    content goes to /work/content, as does what the function of *tree* makes; a *folder* is mounted
    there as it is. Both come with a name for what is in them. The data blocks of an image go to
    /work/blocks.

    Raises:
        GuestError: not root, or systemd-repart failed; the message has what it said.
    """
    by = signer(tools, key)
    parts: list[bytes | str] = [_FORMAT, _tree().name, by.der()]
    for item, text in sorted(files.items()):
        parts += [item, text]
    for item, data in sorted((content or {}).items()):
        parts += [item, data]
    if blocks is not None:
        parts.append(blocks.root_hash)
    for named in (tree, folder):
        if named is not None:
            parts.append(named[0])
    target = cache_root() / "repart" / f"{name}-{content_hash(parts)}"

    def build(target: Path) -> None:
        if os.geteuid():
            raise GuestError("systemd-repart runs in a chroot, which needs root")
        with tempfile.TemporaryDirectory(dir=target) as scratch:
            work = Path(scratch)
            (work / "definitions").mkdir()
            for item, text in files.items():
                (work / "definitions" / item).write_text(text)
            shutil.copy(by.key, work / "key.pem")
            shutil.copy(by.certificate, work / "certificate.pem")
            if folder is not None:
                (work / "content").mkdir()
            if tree is not None:
                tree[1](work / "content")
            for item, data in (content or {}).items():
                path = work / "content" / item
                if item.endswith("/"):
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                path.chmod(0o755)
            if blocks is not None:
                shutil.copy(blocks.path, work / "blocks")
                os.truncate(work / "blocks", blocks.blocks * BLOCK)
            words = ["unshare", "-m", "sh", "-c", _RUN, "sh", str(_tree()), str(work), _SEED]
            words.append("" if folder is None else str(folder[1]))
            places = "/usr/sbin:/usr/bin:/sbin:/bin"
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                env={"PATH": places, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"},
            )  # fmt: skip
            if done.returncode:
                raise GuestError(f"systemd-repart failed: {done.stderr.strip()}")
            (work / "image.raw").rename(target / "image.raw")

    what = f"a disk image by systemd-repart ({name})"
    return publish(target, build, what, keep=4) / "image.raw"


def repart_system(tools: Toolbox, blocks: Image) -> Path:
    """A disk whose signed root partition holds the data of an image that is there already."""
    source = "CopyBlocks=/work/blocks"
    return repart(tools, "system-root", definitions("root", source), blocks=blocks)


def repart_usr(tools: Toolbox, start: bytes) -> Path:
    """A disk with a signed /usr: the system's, the project in /usr/project, and the file
    /usr/lib/start."""
    system, project = system_tree(tools), project_tree(tools)

    def fill(target: Path) -> None:
        shutil.copytree(system / "usr", target / "usr", symlinks=True, copy_function=os.link)
        shutil.copytree(project, target / "usr/project", copy_function=os.link)

    return repart(
        tools,
        "system-usr",
        definitions("usr", "CopyFiles=/work/content/usr:/"),
        content={"usr/lib/start": start},
        tree=(f"{system.name} {project.name}", fill),
    )


def root_hash_of(image: Path, part: str = "root") -> str:
    """The root hash in a disk image's signature partition, by the product's own reader."""
    from restrict.gpt import Partition, parse
    from restrict.images import select, types_for

    raw = image.read_bytes()

    def content(partition: Partition) -> bytes:
        return raw[partition.first * 512 : (partition.first + partition.sectors) * 512]

    table = parse(lambda at, length: raw[at : at + length], len(raw))
    return select(table, types_for(part, "x86_64"), content).root_hash
