# SPDX-License-Identifier: BSD-2-Clause
"""The part of an initramfs that says what to do: configuration, policy, certificates, modules.

The configuration is that of ``restrict init``. The files that it names are the building machine's
(relative to its own folder); they go along, and the image's copy names them where they are there.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from pathlib import Path

from pybpf.plan.ops import Plan
from pybpf.sys.files import read_file
from restrict import bundle, config, keep_init
from restrict.errors import ConfigError
from restrict.initramfs_cpio import Entry
from restrict.initramfs_modules import Module, Modules
from restrict.policy import default_plan, load_plan

__all__ = ["Settings", "modules_for", "needs_certificate"]

# Keys of the configuration whose values are files: of this machine here, of the image there.
_FILES = {
    "plan": "fsaccess.plan", "pins_plan": "pins.plan", "signature": "signature.p7s",
    "root_hash": "root_hash",
}  # fmt: skip


def _file(path: str | Path, what: str) -> bytes:
    try:
        data = read_file(path)
    except OSError as e:
        raise ConfigError(f"the {what} cannot be read: {e.strerror}.", file=str(path)) from None
    if not data:
        raise ConfigError(f"the {what} is empty.", file=str(path))
    return data


def _der(data: bytes) -> bytes:
    """A certificate in DER form; of PEM the one block is taken, of anything else nothing."""
    if b"-----BEGIN" not in data:
        return data
    _before, _begin, rest = data.partition(b"-----BEGIN CERTIFICATE-----")
    block, end, after = rest.partition(b"-----END CERTIFICATE-----")
    if not end or b"-----BEGIN" in after:
        return b""
    try:
        return binascii.a2b_base64(block, strict_mode=False)
    except binascii.Error:
        return b""


def _lines(text: str) -> list[tuple[str, str, str]]:
    """(key, value, line as it is); key "" for blank lines and comments."""
    found = []
    for raw in text.removesuffix("\n").split(
        "\n"
    ):  # as restrict.config, which reads the result, takes it apart
        line = raw.strip()
        key, equals, value = line.partition("=")
        if not line or line.startswith("#") or not equals:
            found.append(("", "", raw))
        else:
            found.append((key.strip(), value.strip(), raw))
    return found


def _one_line_each(lines: Sequence[str]) -> None:
    """Refuse what would be more than one line of a configuration: the name of a folder, say."""
    for line in lines:
        if "\n" in line:
            raise ConfigError(f"{line!r} is not one line of a configuration.")


def _module_words(line: str) -> str:
    """``PATH [PARAMETER …]`` of a configuration, or a plain name: the name and the parameters."""
    first, _, rest = line.strip().partition(" ")
    if not first:
        raise ConfigError("the name of a kernel module is missing.")
    name = first.rsplit("/", 1)[-1].partition(".ko")[0].replace("-", "_")
    return f"{name} {rest.strip()}".strip()


def _verity_line(modules: Modules) -> str:
    """dm_verity with the parameters that make it insist on signatures."""
    line = "dm_verity require_signatures=1"
    if modules.exists("dm_verity") and modules.has_parameter("dm_verity", "keyring_unsealed"):
        line += " keyring_unsealed=1"  # 7.0+: for the certificates, which restrict adds
    return "dm_verity" if modules.builtin("dm_verity") else line


def modules_for(where: str | Path | None, given: Sequence[str], settings: Settings) -> list[Module]:
    """The modules to load: ``given``, and those of the configuration, else what a signed root
    needs. where: as of ``Modules``; None takes none along. Raises ConfigError, RestrictError.
    """
    configured, filesystem = settings.modules, settings.filesystem
    wanted = [*map(_module_words, given), *map(_module_words, configured)]
    if where is None:
        if wanted:
            raise ConfigError(
                "kernel modules are asked for, and no folder of them is given.",
                hint="Add --modules-from DIR or --modules-from VERSION.",
                module=wanted[0],
            )
        return []
    modules = Modules(where)
    names = {line.split()[0] for line in wanted}
    if not configured:
        if "dm_verity" not in names:
            wanted.append(_verity_line(modules))
        for name in ("erofs", "squashfs") if filesystem == "auto" else (filesystem,):
            there = modules.exists(name) or modules.builtin(name)
            if name not in names and (there or filesystem != "auto"):
                wanted.append(name)
    return modules.closure(wanted)


def needs_certificate(modules: Sequence[Module]) -> bool:
    """Whether this kernel's dm-verity has a keyring of its own, which is empty at first."""
    return any(m.name == "dm_verity" and "keyring_unsealed=1" in m.parameters for m in modules)


class Settings:
    """The files of /PREFIX/etc, and the lines of the configuration that name them.

    modules: as the configuration lists them. filesystem: the root's, "auto" unless it says so.
    Its methods raise ConfigError, which names the file.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.entries: list[Entry] = []
        self.lines: list[str] = []
        self.modules: list[str] = []
        self.filesystem = "auto"
        self.certificates = 0

    def add(self, key: str, name: str, data: bytes) -> None:
        """Take a file along, and name it in the configuration."""
        place = f"{self.prefix}/etc/{name}"
        self.entries.append(Entry.file(place, data))
        self.lines.append(f"{key} = /{place}")

    def certificate(self, path: str | Path) -> None:
        """Take a certificate along."""
        data = _der(_file(path, "certificate"))
        if data[:1] != b"\x30":  # SEQUENCE, which every certificate begins with
            raise ConfigError(
                "it is no certificate in DER or PEM form.",
                hint="`openssl x509 -in FILE -outform der -out FILE.der` makes one of DER form.",
                file=str(path),
            )
        self.add("certificate", f"certificate{self.certificates}.der", data)
        self.certificates += 1

    def take_over(
        self,
        path: str | Path,
        *,
        signature: str | Path | None,
        plan: str | Path | None,
        standalone: bool,
    ) -> None:
        """Take a configuration over; ``signature`` and ``plan`` instead of its own.

        standalone: for a whole initramfs, which takes the policy that guards pins along. A
        segment's pins are guarded by the successor on the root, which brings it.
        """
        base = Path(path).resolve().parent
        try:
            text = _file(path, "configuration").decode()
        except UnicodeDecodeError:
            raise ConfigError("the configuration is not UTF-8 text.", file=str(path)) from None
        checked: list[str] = []
        named: dict[str, str] = {}
        for key, value, raw in _lines(text):
            line = ""  # keeps the numbers of the lines in errors right
            if key == "module":
                self.modules.append(value)
            elif key == "certificate":
                self.certificate(base / value)
            elif key in _FILES and not (key == "root_hash" and "/" not in value):
                named[key] = str(base / value)
                line = f"{key} = {named[key]}"
            else:
                if key == "filesystem" and value:
                    self.filesystem = value
                self.lines.append(raw)
                line = raw
            checked.append(line)
        for key, given in (("signature", signature), ("plan", plan)):
            if given is not None:
                named[key] = str(Path(given).resolve())
                checked = [x for x in checked if x.partition("=")[0].strip() != key]
                checked.append(f"{key} = {named[key]}")
        _one_line_each(checked)
        # Judged by who reads it in the guest; the files are those of this machine meanwhile.
        found = config.parse("\n".join(checked), file=str(path))
        ownerless = "_cgroup" if found.keep == "ownerless" else ""
        policy = self.policy("plan", named.pop("plan", default_plan(f"fsaccess{ownerless}")))
        keep, _why = keep_init.way(found, policy, segment=not standalone)
        if not standalone and not policy.programs.keys().isdisjoint(bundle.GATE):
            raise ConfigError(
                "this policy lets nobody but PID 1 make device-mapper devices, and before another "
                "generator /restrict/open, which makes the root's, is a child.",
                hint="Freeze it without --gate-device-mapper, or build with --standalone.",
                file=found.plan,
            )
        pins_plan = named.pop("pins_plan", default_plan("pins"))
        if standalone and keep == "pins":
            self.policy("pins_plan", pins_plan)
        for key, file in sorted(named.items()):
            self.add(key, _FILES[key], _file(file, key.replace("_", " ")))

    def policy(self, key: str, path: str | Path) -> Plan:
        """Take a frozen policy along as what ``key`` of the configuration names; gives it."""
        plan = load_plan(str(path))  # a damaged one is told now, and not by a machine that boots
        self.add(key, _FILES[key], _file(path, "plan"))
        return plan

    def text(self, modules: Sequence[Module]) -> bytes:
        """The image's configuration; takes the modules along."""
        for module in modules:
            place = f"{self.prefix}/modules/{module.name}.ko"
            self.entries.append(Entry.file(place, module.data))
            self.lines.append(f"module = /{place} {module.parameters}".rstrip())
        _one_line_each(self.lines)
        return ("\n".join(self.lines) + "\n").encode()
