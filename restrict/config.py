# SPDX-License-Identifier: BSD-2-Clause
"""The configuration file of ``restrict init``: ``key = value`` lines.

``#`` begins a comment line; blank lines are skipped. Keys, with their defaults:

    plan = /etc/restrict/fsaccess.plan     the frozen policy
    mode = exec                            "exec" enforces, "audit" reports and allows
    ptrace_poke = deny                     deny: no tracer writes its tracee's memory (a seccomp
                                           filter; not in audit mode). allow: leave that way open
    module = PATH [NAME=VALUE …]           a kernel module to load; may be repeated, in order
    certificate = PATH                     DER; into .dm-verity (7.0+); may be repeated
    data = /dev/vda                        device with the root filesystem (required)
    hash = (as data)                       device with the hash tree
    data_blocks = N                        (required)
    hash_start = (data_blocks if hash is data, else 0)   in hash blocks
    data_block_size = 4096
    hash_block_size = 4096
    algorithm = sha256
    hash_type = 1
    root_hash = HEX                        (required)
    salt = -
    signature = PATH                       PKCS#7 (DER) over the root hash (required)
    name = root                            name of the mapped device
    filesystem = erofs                     type of the root filesystem: erofs or squashfs …
    options =                              further mount options
    wait = 10                              seconds to wait for the devices
    move = /dev /proc /sys /run            mounts that go along to the new root
    init = /sbin/init [ARGUMENT …]         what becomes PID 1 (required)
    on_failure = exit                      exit (the kernel panics), reboot or poweroff
    status = yes                           pin the status where `restrict status` reads it
    events = no                            yes: leave a process that serves `restrict events`

The file is part of the initramfs, so whoever can write it can also replace this program; what
is checked here is that a mistake is told where it was made and not later by the kernel.
"""

from __future__ import annotations

import os

from restrict import abi
from restrict.devmapper import Verity
from restrict.errors import ConfigError
from restrict.modules import parse_module_line

__all__ = ["DEFAULT_PATH", "InitConfig", "parse", "read"]

DEFAULT_PATH = "/etc/restrict/init.conf"
_REPEATED = ("module", "certificate")
_REQUIRED = ("data", "data_blocks", "root_hash", "signature", "init")
_DEFAULTS = {
    "plan": "/etc/restrict/fsaccess.plan",
    "mode": "exec",
    "ptrace_poke": "deny",
    "data": "",
    "hash": "",
    "data_blocks": "",
    "hash_start": "",
    "data_block_size": "4096",
    "hash_block_size": "4096",
    "algorithm": "sha256",
    "hash_type": "1",
    "root_hash": "",
    "salt": "-",
    "signature": "",
    "name": "root",
    "filesystem": "erofs",
    "options": "",
    "wait": "10",
    "move": "/dev /proc /sys /run",
    "init": "",
    "on_failure": "exit",
    "status": "yes",
    "events": "no",
}
_CHOICES = {
    "mode": ("exec", "audit"),
    "ptrace_poke": ("deny", "allow"),
    "on_failure": ("exit", "reboot", "poweroff"),
    "status": ("yes", "no"),
    "events": ("yes", "no"),
    "filesystem": tuple(abi.MAGICS),
}
SIGNATURE_KEY = "restrict:root"


class InitConfig:
    """The checked values of one file."""

    __slots__ = (
        "audit", "certificates", "deny_poke", "events", "filesystem", "init", "modules", "move",
        "name", "on_failure", "options", "plan", "signature", "status", "verity", "wait",
    )  # fmt: skip

    def __init__(self, values: dict[str, str], modules: list[str], certificates: list[str]) -> None:
        self.audit = values["mode"] == "audit"
        self.deny_poke = values["ptrace_poke"] == "deny"
        self.modules = [parse_module_line(line) for line in modules]
        self.certificates = [_path(c, "certificate") for c in certificates]
        self.plan = _path(values["plan"], "plan")
        self.signature = _path(values["signature"], "signature")
        data = _path(values["data"], "data")
        hashes = _path(values["hash"], "hash") if values["hash"] else data
        blocks = _number(values["data_blocks"], "data_blocks")
        start = blocks if hashes == data else 0
        if values["hash_start"]:
            start = _number(values["hash_start"], "hash_start")
        self.verity = Verity(
            data=data,
            hash=hashes,
            data_blocks=blocks,
            hash_start=start,
            root_hash=values["root_hash"],
            salt=values["salt"],
            algorithm=values["algorithm"],
            data_block_size=_number(values["data_block_size"], "data_block_size"),
            hash_block_size=_number(values["hash_block_size"], "hash_block_size"),
            hash_type=_number(values["hash_type"], "hash_type"),
            signature_key=SIGNATURE_KEY,
        )
        self.name = values["name"]
        if "/" in self.name or any(c.isspace() for c in self.name):
            raise ConfigError(f"the name {self.name!r} of the mapped device is not one plain word.")
        self.filesystem = values["filesystem"]
        self.options = values["options"]
        self.wait = _number(values["wait"], "wait")
        self.move = tuple(_path(word, "move") for word in values["move"].split())
        self.init = values["init"].split()
        _path(self.init[0], "init")
        self.on_failure = values["on_failure"]
        self.status = values["status"] == "yes"
        self.events = values["events"] == "yes"


def _path(text: str, key: str) -> str:
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise ConfigError(f"{key} = {text!r} is not an absolute path without '..'.", key=key)
    return text.rstrip("/") or "/"


def _number(text: str, key: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ConfigError(f"{key} = {text!r} is not a whole number.", key=key)
    return int(text)


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
