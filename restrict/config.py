# SPDX-License-Identifier: BSD-2-Clause
"""The configuration file of ``restrict init``: ``key = value`` lines.

``#`` begins a comment line; blank lines are skipped. Keys, with their defaults:

    plan = /etc/restrict/fsaccess.plan     the frozen policy
    mode = exec                            "exec" enforces, "audit" reports and allows
    ptrace_poke = deny                     deny: no tracer writes its tracee's memory (a seccomp
                                           filter; not in audit mode). allow: leave that way open
    module = PATH [NAME=VALUE …]           a kernel module to load; may be repeated, in order
    certificate = PATH                     DER; into .dm-verity (7.0+); may be repeated
    image = (auto, without data)           the signed image: a disk or file with a GPT (as of
                                           systemd-repart, mkosi), a file with its companions
                                           .verity .roothash .roothash.p7s, a device, or auto:
                                           every disk's partition table is looked at
    carrier = DEVICE TYPE [OPTIONS]        a filesystem with such a file, mounted read-only on
                                           /run/restrict/carrier
    part = root                            root, or usr: then / is what ``root`` says
    root = tmpfs                           with part = usr: tmpfs, or DEVICE TYPE [OPTIONS]
    command_line = yes                     heed the kernel's roothash=, usrhash= and root=
    root_hash = HEX                        or the absolute path of a file with it
    signature = PATH                       PKCS#7 (DER) over the root hash; for images that
                                           do not bring one along
    data = DEVICE                          the parameters one by one, instead of image:
    hash = (as data)                       device with the hash tree
    hash_offset = 0                        bytes before the superblock of `veritysetup format`
    data_blocks = N                        given for a tree without superblock, as are the rest:
    hash_start = (data_blocks if hash is data, else 0)   in hash blocks
    data_block_size = 4096
    hash_block_size = 4096
    algorithm = sha256
    hash_type = 1
    salt = -
    name = (part)                          name of the mapped device
    filesystem = auto                      its type: erofs squashfs ext4 xfs; auto looks
    options =                              further mount options
    wait = 10                              seconds to wait for the devices
    move = /dev /proc /sys /run            mounts that go along to the new root
    init = /sbin/init [ARGUMENT …]         what becomes PID 1 (required)
    keep = auto                            what keeps the policy when init is executed. pins in
                                           /sys/fs/bpf, for any init; ownerless: nobody, until the
                                           next boot (its own plan, Linux 6.16), for any init; exec,
                                           its own fds, for an init that adopts them; keeper: a
                                           process, the weakest. auto: ownerless with a plan for
                                           it, exec where init is `restrict init --resume`, else
                                           pins
    pins_plan = /etc/restrict/pins.plan    for pins: the frozen policy that guards the
                                           pins; without the file root can take them away
    on_failure = exit                      exit (the kernel panics), reboot or poweroff
    status = yes                           pin the status where `restrict status` reads it
    events = no                            yes: leave a process that serves `restrict events` (not
                                           before another generator's initramfs)

The file is part of the initramfs, so whoever can write it can also replace this program; what
is checked here is that a mistake is told where it was made and not later by the kernel.
"""

from __future__ import annotations

import os

from restrict import abi
from restrict.devmapper import Verity
from restrict.errors import ConfigError, ImageError
from restrict.images import SIGNATURE_KEY, parse_root_hash, read_bytes
from restrict.modules import parse_module_line

__all__ = ["DEFAULT_PATH", "InitConfig", "parse", "read"]

DEFAULT_PATH = "/etc/restrict/init.conf"
_REPEATED = ("module", "certificate")
_REQUIRED = ("init",)
_WITH_DATA = ("root_hash", "signature")  # data needs these
# Say something of a hash tree without a superblock; each means nothing without data_blocks.
_WITHOUT_SUPERBLOCK = (
    "hash_start", "data_block_size", "hash_block_size", "algorithm", "hash_type", "salt",
)  # fmt: skip
_DEFAULTS = {
    "plan": "/etc/restrict/fsaccess.plan",
    "mode": "exec",
    "ptrace_poke": "deny",
    "image": "",
    "carrier": "",
    "part": "",
    "root": "tmpfs",
    "command_line": "yes",
    "data": "",
    "hash": "",
    "hash_offset": "0",
    "data_blocks": "",
    "hash_start": "",
    "data_block_size": "4096",
    "hash_block_size": "4096",
    "algorithm": "sha256",
    "hash_type": "1",
    "root_hash": "",
    "salt": "-",
    "signature": "",
    "name": "",
    "filesystem": "auto",
    "options": "",
    "wait": "10",
    "move": "/dev /proc /sys /run",
    "init": "",
    "keep": "auto",
    "pins_plan": "/etc/restrict/pins.plan",
    "on_failure": "exit",
    "status": "yes",
    "events": "no",
}
_CHOICES = {
    "mode": ("exec", "audit"),
    "ptrace_poke": ("deny", "allow"),
    "keep": ("auto", "pins", "ownerless", "exec", "keeper"),
    "on_failure": ("exit", "reboot", "poweroff"),
    "status": ("yes", "no"),
    "events": ("yes", "no"),
    "filesystem": ("auto", *abi.MAGICS),
    "part": ("root", "usr"),
    "command_line": ("yes", "no"),
}


class InitConfig:
    """The checked values of one file."""

    __slots__ = (
        "audit", "carrier", "certificates", "command_line", "data", "deny_poke", "events",
        "filesystem", "hash", "hash_offset", "image", "init", "keep", "modules", "move", "name",
        "on_failure", "options", "part", "pins_plan", "plan", "resumes", "root", "root_hash",
        "signature", "status", "verity", "wait",
    )  # fmt: skip

    def __init__(self, values: dict[str, str], modules: list[str], certificates: list[str]) -> None:
        self.audit = values["mode"] == "audit"
        self.deny_poke = values["ptrace_poke"] == "deny"
        self.modules = [parse_module_line(line) for line in modules]
        self.certificates = [_path(c, "certificate") for c in certificates]
        self.plan = _path(values["plan"], "plan")
        self.image = values["image"]
        if self.image not in ("", "auto"):
            self.image = _path(self.image, "image")
        self.carrier = _mount(values["carrier"], "carrier") if values["carrier"] else None
        self.part = values["part"]
        self.root = None if values["root"] == "tmpfs" else _mount(values["root"], "root")
        self.command_line = values["command_line"] == "yes"
        self.signature = _path(values["signature"], "signature") if values["signature"] else ""
        self.root_hash = _root_hash(values["root_hash"])
        self.data = _path(values["data"], "data") if values["data"] else ""
        self.hash = _path(values["hash"], "hash") if values["hash"] else ""
        self.hash_offset = _number(values["hash_offset"], "hash_offset")
        # The target's parameters, where they are all given; else the superblock has them.
        self.verity = _verity(values, self) if values["data_blocks"] else None
        self.name = values["name"]
        if "/" in self.name or any(c.isspace() for c in self.name):
            raise ConfigError(f"the name {self.name!r} of the mapped device is not one plain word.")
        self.filesystem = values["filesystem"]
        self.options = values["options"]
        self.wait = _number(values["wait"], "wait")
        self.move = tuple(_path(word, "move") for word in values["move"].split())
        self.init = values["init"].split()
        _path(self.init[0], "init")
        self.resumes = ("init", "--resume") in zip(self.init, self.init[1:], strict=False)
        self.keep = values["keep"]
        self.pins_plan = _path(values["pins_plan"], "pins_plan")
        self.on_failure = values["on_failure"]
        self.status = values["status"] == "yes"
        self.events = values["events"] == "yes"


def _verity(values: dict[str, str], settings: InitConfig) -> Verity:
    hashes = settings.hash or settings.data
    blocks = _number(values["data_blocks"], "data_blocks")
    start = blocks if hashes == settings.data else 0
    if values["hash_start"]:
        start = _number(values["hash_start"], "hash_start")
    return Verity(
        data=settings.data,
        hash=hashes,
        data_blocks=blocks,
        hash_start=start,
        root_hash=settings.root_hash,
        salt=values["salt"],
        algorithm=values["algorithm"],
        data_block_size=_number(values["data_block_size"], "data_block_size"),
        hash_block_size=_number(values["hash_block_size"], "hash_block_size"),
        hash_type=_number(values["hash_type"], "hash_type"),
        signature_key=SIGNATURE_KEY,
    )


def _mount(text: str, key: str) -> tuple[str, str, str]:
    """``DEVICE TYPE [OPTIONS]``."""
    words = text.split()
    if not 2 <= len(words) <= 3:
        raise ConfigError(f"{key} = {text!r} is not `DEVICE TYPE [OPTIONS]`.", key=key)
    return _path(words[0], key), words[1], words[2] if len(words) > 2 else ""


def _root_hash(text: str) -> str:
    if text.startswith("/"):
        path = _path(text, "root_hash")
        text = read_bytes(path, "root hash", 1024).decode("ascii", "replace")
    try:
        return parse_root_hash(text) if text else ""
    except ImageError as e:
        raise ConfigError(e.message, key="root_hash") from None


def _path(text: str, key: str) -> str:
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise ConfigError(f"{key} = {text!r} is not an absolute path without '..'.", key=key)
    return text.rstrip("/") or "/"


def _number(text: str, key: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ConfigError(f"{key} = {text!r} is not a whole number.", key=key)
    return int(text)


def _consistent(values: dict[str, str], given: set[str], file: str | None) -> None:
    """Keys that need or exclude one another."""
    if not values["data"]:
        for key in ("data_blocks", *_WITHOUT_SUPERBLOCK):
            if key in given:
                raise ConfigError(f"{key} says nothing without data.", file=file)
        return
    missing = [key for key in _WITH_DATA if not values[key]]
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given with data.", file=file)
    if values["image"]:
        raise ConfigError("image and data are two ways to say one thing: give one.", file=file)
    if values["data_blocks"]:
        if "hash_offset" in given:
            raise ConfigError("hash_offset is of a superblock, data_blocks of none.", file=file)
        return
    for key in _WITHOUT_SUPERBLOCK:
        if key in given:
            raise ConfigError(
                f"{key} is in the superblock; it is given with data_blocks only.", file=file
            )
    if not values["hash"] and "hash_offset" not in given:
        raise ConfigError(
            "hash, hash_offset or data_blocks must be given with data: where the hash tree is.",
            file=file,
        )


def parse(text: str, *, file: str | None = None) -> InitConfig:
    """The configuration in ``text``. Raises ConfigError with file, line and key."""
    values = dict(_DEFAULTS)
    repeated: dict[str, list[str]] = {key: [] for key in _REPEATED}
    given: set[str] = set()
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            raise ConfigError(f"{line!r} is no `key = value`.", file=file, line=number)
        if key in repeated:
            repeated[key].append(value)
            continue
        if key not in values:
            raise ConfigError(
                f"there is no key {key!r}.",
                hint=f"Keys: {', '.join([*_DEFAULTS, *_REPEATED])}.",
                file=file,
                line=number,
            )
        if key in given:
            raise ConfigError(f"{key} is given twice.", file=file, line=number)
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ConfigError(
                f"{key} = {value!r} is none of {', '.join(_CHOICES[key])}.", file=file, line=number
            )
        given.add(key)
        values[key] = value
    missing = [key for key in _REQUIRED if not values[key]]
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given.", file=file)
    _consistent(values, given, file)
    try:
        return InitConfig(values, repeated["module"], repeated["certificate"])
    except ConfigError as e:
        raise e.at(file=file) from None


def read(path: str = DEFAULT_PATH) -> InitConfig:
    """The configuration in a file."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as e:
        raise ConfigError(
            f"the configuration cannot be read: {os.strerror(e.errno or 0)}.", file=path
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("the configuration is not UTF-8 text.", file=path) from None
    return parse(text, file=path)
