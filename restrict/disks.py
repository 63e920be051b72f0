# SPDX-License-Identifier: BSD-2-Clause
"""Opening a signed image: block devices, their partitions, loop devices, and the choice made.

``open_image`` follows the configuration and the kernel command line to the parameters of one
dm-verity target and its signature (restrict/images.py says which kinds of image there are). It
reads; the only thing it makes is a loop device for an image in a file, which goes by itself with
its last user.

Sources: include/uapi/linux/loop.h (LOOP_CONFIGURE, 5.8), include/uapi/linux/fs.h (BLKSSZGET,
BLKGETSIZE64), Documentation/ABI/stable/sysfs-block; kernel-command-line(7) of systemd for
roothash=, usrhash= and root=.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time

from restrict import images
from restrict.devmapper import Verity
from restrict.errors import ConfigError, ImageError, KernelError, RestrictError, system_error
from restrict.gpt import Partition, parse
from restrict.preflight import command_line_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from restrict.config import InitConfig

__all__ = [
    "Disk",
    "Image",
    "Wishes",
    "attach_loop",
    "open_image",
    "partition_nodes",
    "waiting",
    "wishes",
]

_BLKSSZGET, _BLKGETSIZE64 = 0x1268, 0x80081272
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_READ_ONLY, _LO_AUTOCLEAR, _LO_PARTSCAN = 1, 4, 8
# struct loop_config: fd block_size, loop_info64 (device inode rdevice offset sizelimit number
# encrypt_type encrypt_key_size flags file_name[64] crypt_name[64] encrypt_key[32] init[2]),
# reserved[8].
_LOOP_CONFIG = struct.Struct("=2I 5Q 4I 64s 64s 32s 2Q 64x")
# Not what an image is on: devices that stand on others, and memory.
_VIRTUAL = ("dm-", "loop", "ram", "zram", "md", "nbd", "sr", "fd")


class Disk:
    """A block device or a file, open for reading. A context manager."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            mode = os.stat(path).st_mode
            if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):  # opening a FIFO would wait
                raise ImageError("it is neither a block device nor a file.", image=path)
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise system_error("it cannot be opened", e, "open", image=path) from None
        try:
            if stat.S_ISBLK(mode):
                self.size = struct.unpack("=Q", fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8)))[0]
                self.sector_size = struct.unpack("=i", fcntl.ioctl(self._fd, _BLKSSZGET, bytes(4)))[
                    0
                ]
            else:
                self.size = os.fstat(self._fd).st_size
                self.sector_size = 512
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; fewer only at the end."""
        out = b""
        while len(out) < length:
            try:
                part = os.pread(self._fd, length - len(out), offset + len(out))
            except OSError as e:
                raise system_error(
                    "it cannot be read", e, "read", image=self.path, offset=offset
                ) from None
            if not part:
                break
            out += part
        return out

    def has_table(self) -> bool:
        """Whether a GPT header is where the primary or the backup copy would be."""
        return self.size >= 3 * self.sector_size and b"EFI PART" in (
            self.read(self.sector_size, 8),
            self.read((self.size // self.sector_size - 1) * self.sector_size, 8),
        )


def attach_loop(path: str) -> tuple[str, int]:
    """A read-only loop device over a file: (node, fd). It goes when nobody has it open any more.

    Needs the module loop; Linux 5.8 (LOOP_CONFIGURE).
    """
    control = file = -1
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ImageError("it is no file.", image=path)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        for _ in range(16):  # another process may take the free one first
            node = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            loop = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
            flags = _LO_READ_ONLY | _LO_AUTOCLEAR | _LO_PARTSCAN
            name = os.fsencode(path)[:63]
            try:
                request = _LOOP_CONFIG.pack(
                    file, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0
                )
                fcntl.ioctl(loop, _LOOP_CONFIGURE, request)
            except OSError as e:
                os.close(loop)
                if e.errno == errno.EBUSY:
                    continue
                raise
            return node, loop
        raise RestrictError("no loop device stayed free.", image=path)
    except OSError as e:
        hint = "Load the module loop." if control < 0 and file >= 0 else None
        raise system_error(
            "it cannot be made a block device", e, "loop", hint=hint, image=path
        ) from None
    finally:
        for fd in (control, file):
            if fd >= 0:
                os.close(fd)


# ── partitions as the kernel has them ──


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def partition_nodes(
    node: str, sector_size: int, wanted: list[Partition], *, sys: str = "/sys"
) -> list[str]:
    """The kernel's devices of these partitions, each exactly where the table has it.

    Raises ImageError: the kernel does not have them (no partition scan, or a table that it does
    not accept), or has another idea of where they are.
    """
    device = os.stat(node).st_rdev
    folder = os.path.realpath(f"{sys}/dev/block/{os.major(device)}:{os.minor(device)}")
    children: dict[int, str] = {}
    for name in os.listdir(folder):
        number = _number(f"{folder}/{name}/partition")
        if number is not None:
            children[number] = name
    found = []
    for partition in wanted:
        child = children.get(partition.number)
        if child is None:
            raise ImageError(
                f"the kernel has no device for partition {partition.number}.",
                hint="It reads a GPT behind a protective MBR, with CONFIG_EFI_PARTITION; a "
                "damaged primary table only with `gpt` on its command line.",
                image=node,
            )
        factor = sector_size // 512  # sysfs counts in 512 bytes whatever the sectors are
        place = _number(f"{folder}/{child}/start"), _number(f"{folder}/{child}/size")
        if place != (partition.first * factor, partition.sectors * factor):
            raise ImageError(
                f"the kernel has partition {partition.number} at {place[0]}+{place[1]}, its table "
                f"at {partition.first * factor}+{partition.sectors * factor}.",
                image=node,
            )
        found.append("/dev/" + child.replace("!", "/"))
    return found


def _disks(sys: str = "/sys") -> list[str]:
    """Nodes of all whole disks that are not empty."""
    return [
        "/dev/" + name.replace("!", "/")
        for name in sorted(os.listdir(f"{sys}/block"))
        if not name.startswith(_VIRTUAL) and _number(f"{sys}/block/{name}/size")
    ]


# ── what is asked for ──


class Wishes:
    """What the configuration and the kernel command line ask for, together.

    part: root or usr. image: a path, or ``auto``. root_hash, data_uuid: hexadecimal or "".
    """

    __slots__ = ("data_uuid", "image", "part", "root_hash")

    def __init__(self, part: str, image: str, root_hash: str, data_uuid: str) -> None:
        self.part = part
        self.image = image
        self.root_hash = root_hash
        self.data_uuid = data_uuid


def wishes(settings: InitConfig, command_line: str) -> Wishes:
    """Put both together. What the file fixes, the command line may repeat but not change.

    roothash=, usrhash=: the image with this root hash. root= (root images only): gpt-auto,
    PARTUUID=… (the data partition), or /dev/… (the disk or plain device). Others are refused.
    """
    part, image, root_hash, data_uuid = settings.part, settings.image, settings.root_hash, ""
    given: dict[str, str] = {}
    if settings.command_line:
        for word in command_line_words(command_line):
            key, equals, value = word.partition("=")
            if equals and key in ("root", "roothash", "usrhash"):
                given[key] = value
    if "roothash" in given and "usrhash" in given and not part:
        raise ConfigError(
            "the command line has both roothash= and usrhash=, and one image is opened.",
            hint="Say which: part = root, or part = usr.",
        )
    part = part or ("usr" if "usrhash" in given else "root")
    asked = given.get(f"{part}hash")
    if asked is not None:
        asked = images.parse_root_hash(asked)
        if root_hash and root_hash != asked:
            raise ConfigError(
                f"the command line has {part}hash={asked}, the configuration {root_hash}."
            )
        root_hash = asked
    root = given.get("root", "")
    if root and part == "root" and not image:
        if root.startswith("PARTUUID="):
            data_uuid = root[9:].replace("-", "").lower()
            if len(data_uuid) != 32 or any(c not in "0123456789abcdef" for c in data_uuid):
                raise ConfigError(f"{root!r} on the command line is no UUID of a GPT partition.")
        elif root.startswith("/dev/"):
            image = root
        elif root != "gpt-auto":
            raise ConfigError(
                f"root={root} on the command line cannot be a signed image.",
                hint="gpt-auto, PARTUUID=… and /dev/… can; or set command_line = no.",
            )
    return Wishes(part, image or "auto", root_hash, data_uuid)


class Image:
    """An image that was opened: what to activate, and whom to keep open until that is done."""

    __slots__ = ("_fds", "fingerprint", "notes", "part", "signature", "verity", "where")

    def __init__(
        self, part: str, where: str, verity: Verity, signature: bytes, fingerprint: str = ""
    ) -> None:
        self.part = part
        self.where = where
        self.verity = verity
        self.signature = signature
        self.fingerprint = fingerprint
        self.notes: list[str] = []
        self._fds: list[int] = []

    def close(self) -> None:
        """Let loop devices go; those that a mapped device uses stay while it does."""
        while self._fds:
            os.close(self._fds.pop())


# ── opening ──


def _tree(data: str, hashes: str, offset: int, root_hash: str, source: str) -> Verity:
    """The verity target of a data device, by the superblock on the hash device."""
    with Disk(hashes) as device, Disk(data) as blocks:
        try:
            block = images.parse_superblock(device.read(offset, images.SUPERBLOCK_SIZE))
        except ImageError as e:
            raise e.at(image=source, hash=hashes) from None
        if block.data_blocks * block.data_block_size > blocks.size:
            raise ImageError(
                f"the verity superblock is of {block.data_blocks * block.data_block_size} bytes of "
                f"data, and the device has {blocks.size}.",
                image=source,
                hash=hashes,
            )
    return Verity(
        data=data,
        hash=hashes,
        data_blocks=block.data_blocks,
        hash_start=block.hash_start(offset),
        root_hash=root_hash,
        salt=block.salt,
        algorithm=block.algorithm,
        data_block_size=block.data_block_size,
        hash_block_size=block.hash_block_size,
        hash_type=block.hash_type,
        signature_key=images.SIGNATURE_KEY,
    )


def _open_table(node: str, disk: Disk, wanted: Wishes, signature: bytes | None) -> Image:
    """The image in a disk's partitions."""
    if signature is not None and not wanted.root_hash:
        raise ConfigError(
            "a signature in a file is given, but not the root hash that it is for.",
            hint="Give root_hash, or leave the signature to the image's own partition.",
        )

    def content(partition: Partition) -> bytes:
        length = partition.sectors * table.sector_size
        return disk.read(
            partition.first * table.sector_size, min(length, images.SIGNATURE_MOST + 1)
        )

    table = parse(disk.read, disk.size, disk.sector_size)
    chosen = images.select(
        table,
        images.types_for(wanted.part, os.uname().machine),
        content,
        root_hash=wanted.root_hash,
        data_uuid=wanted.data_uuid,
        signed_elsewhere=signature is not None,
    )
    data, hashes = partition_nodes(node, table.sector_size, [chosen.data, chosen.hash])
    verity = _tree(data, hashes, 0, chosen.root_hash, node)
    if chosen.signature is None:
        assert signature is not None
        image = Image(wanted.part, f"{node} {chosen.data.number}", verity, signature)
    else:
        image = Image(
            wanted.part,
            f"{data} and {hashes}",
            verity,
            chosen.signature.der,
            chosen.signature.fingerprint,
        )
    image.notes = [f"{node}: {text}." for text in table.warnings]
    return image


def _open_one(path: str, wanted: Wishes, settings: InitConfig, signature: bytes | None) -> Image:
    """The image in a file or on a device, with a GPT or plain."""
    root_hash, hashes, offset = wanted.root_hash, settings.hash, settings.hash_offset
    fds: list[int] = []
    node = path
    try:
        if not stat.S_ISBLK(os.stat(path).st_mode):
            tree, hash_file, signature_file = images.companions(path, wanted.part)
            if os.path.exists(hash_file):
                text = images.read_bytes(hash_file, "root hash", 1024).decode("ascii", "replace")
                beside = images.parse_root_hash(text)
                if root_hash and beside != root_hash:
                    raise ImageError(f"{hash_file} has {beside}, but {root_hash} is asked for.")
                root_hash = beside
            if signature is None and os.path.exists(signature_file):
                signature = images.read_bytes(signature_file, "signature", images.KEY_MOST)
            node, fd = attach_loop(path)
            fds.append(fd)
            if not hashes and os.path.exists(tree):
                hashes, fd = attach_loop(tree)
                fds.append(fd)
        with Disk(node) as disk:
            if disk.has_table():
                narrowed = Wishes(wanted.part, path, root_hash, wanted.data_uuid)
                image = _open_table(node, disk, narrowed, signature)
                image._fds = fds
                return image
        if not root_hash:
            raise ImageError(
                "it has no partition table, and its root hash is not known.",
                hint=f"Put a file .{wanted.part}hash beside it, or give root_hash.",
            )
        if signature is None:
            raise ImageError(
                "it is not signed: there is no signature.",
                hint=f"Put a file .{wanted.part}hash.p7s beside it, or give signature.",
            )
        if not hashes and not offset:
            raise ImageError(
                "its hash tree is not known.",
                hint="Put a file .verity beside it, or give hash or hash_offset.",
            )
        verity = _tree(node, hashes or node, offset, root_hash, path)
        image = Image(wanted.part, path, verity, signature)
        image._fds = fds
        return image
    except OSError as e:
        _close(fds)
        raise ImageError(f"it cannot be opened: {e.strerror}.", image=path) from None
    except RestrictError as e:
        _close(fds)
        raise e.at(image=path) from None
    except BaseException:
        _close(fds)
        raise


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _open_any(wanted: Wishes, signature: bytes | None) -> Image:
    """The one image among all disks. Raises ImageError with what each disk lacks."""
    found: list[Image] = []
    reasons: list[str] = []
    for node in _disks():
        try:
            with Disk(node) as disk:
                if disk.has_table():
                    found.append(_open_table(node, disk, wanted, signature))
                else:
                    reasons.append(f"{node} has no GPT")
        except (RestrictError, KernelError) as e:
            reasons.append(f"{node}: {e.message}")
        except OSError as e:  # it was taken away meanwhile
            reasons.append(f"{node}: {e.strerror}")
    if len(found) == 1:
        return found[0]
    if found:
        raise ImageError(
            "several disks have a signed image: "
            + ", ".join(f"{i.where} ({i.verity.root_hash})" for i in found)
            + ".",
            hint="Choose by image = DEVICE, or by the root hash.",
        )
    raise ImageError(
        f"no disk has a signed {wanted.part} image: "
        + "; ".join(reasons or ["there is no disk"])
        + "."
    )


def open_image(settings: InitConfig, command_line: str, wait: Callable[[], bool]) -> Image:
    """The image to boot, by the configuration and the kernel command line.

    wait: gives True after a short sleep while devices may still appear, False once it took too
    long; what was wrong at the end is what is raised.
    """
    signature = None
    if settings.signature:
        signature = images.read_bytes(settings.signature, "signature", images.KEY_MOST)
    if settings.data:
        while not all(map(os.path.exists, (settings.data, settings.hash or settings.data))):
            if not wait():
                missing = [p for p in (settings.data, settings.hash) if p and not os.path.exists(p)]
                raise RestrictError(
                    f"no device {', '.join(missing)} after {settings.wait} s.",
                    hint="List the modules of its driver and bus in the configuration.",
                )
        assert signature is not None  # config.parse insists
        verity = settings.verity or _tree(
            settings.data,
            settings.hash or settings.data,
            settings.hash_offset,
            settings.root_hash,
            settings.data,
        )
        return Image(settings.part or "root", settings.data, verity, signature)
    wanted = wishes(settings, command_line)
    while True:
        try:
            if wanted.image == "auto":
                return _open_any(wanted, signature)
            if os.path.exists(wanted.image):
                return _open_one(wanted.image, wanted, settings, signature)
            raise ImageError(
                f"there is none after {settings.wait} s.",
                hint="List the modules of its driver and bus in the configuration.",
                image=wanted.image,
            )
        except ImageError:
            if os.path.exists(wanted.image) or not wait():
                raise


def waiting(seconds: int) -> Callable[[], bool]:
    """A ``wait`` for open_image: true until ``seconds`` are over."""
    deadline = time.monotonic() + seconds

    def wait() -> bool:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
        return True

    return wait
