# SPDX-License-Identifier: BSD-2-Clause
"""Debian packages of any suite, fetched with an apt configuration of our own.

The machine's package state is neither read nor changed: lists, archives and the package
status are ours (``Dir::State::status=/dev/null``), so dependencies resolve against an empty
system.  Only the mirror's address is taken from the machine's sources.  Release files are
verified with Debian's archive keyring; the hash of every package is checked by apt against
the signed lists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import cache_root, lock, progress, remove_unused, there
from .errors import GuestError

__all__ = ["Package", "SourceEntry", "World", "mirror", "parse_sources", "unpack", "usrmerged"]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITES = re.compile(
    r"^(bullseye|bookworm|trixie|forky|duke|sid|oldstable|stable|testing|unstable)$"
)
_LISTS_MAX_AGE = 86400.0


@dataclass(frozen=True)
class SourceEntry:
    """One archive of the machine's apt sources."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


def _one_line(text: str) -> Iterator[SourceEntry]:
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        match = re.match(r"^deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*(.*)$", line)
        if match is None:
            continue
        options, uri, suite, components = match.groups()
        signed = re.search(r"(?:^|\s)signed-by=(\S+)", options or "", re.IGNORECASE)
        yield SourceEntry(uri, suite, tuple(components.split()), signed.group(1) if signed else "")


def _deb822(text: str) -> Iterator[SourceEntry]:
    for stanza in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t"):
                if name:
                    fields[name] += "\n" + line.strip()
            elif ":" in line:
                key, value = line.split(":", 1)
                name = key.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in ("no", "false", "0", "off"):
            continue
        signed = fields.get("signed-by", "")
        if "\n" in signed:  # an armoured key in the stanza itself, not a file's name
            signed = ""
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield SourceEntry(uri, suite, tuple(fields.get("components", "").split()), signed)


def parse_sources(name: str, text: str) -> list[SourceEntry]:
    """Entries of an apt sources file; *name* tells deb822 (``.sources``) from one-line."""
    return list(_deb822(text) if name.endswith(".sources") else _one_line(text))


def mirror(etc: Path = Path("/etc/apt")) -> SourceEntry:
    """The machine's own archive of Debian: the first plain suite that has ``main``.

    Raises:
        GuestError: no such entry in sources.list or sources.list.d.
    """
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    for path in files:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        for entry in parse_sources(path.name, path.read_text("utf-8", "replace")):
            if _SUITES.match(entry.suite) and "main" in entry.components:
                return entry
    raise GuestError(
        f"no archive of Debian found in {etc}/sources.list or {etc}/sources.list.d: the guest's "
        "packages come from the machine's own mirror; add one `deb URI SUITE main` entry"
    )


@dataclass(frozen=True)
class Package:
    """A package as apt resolved it."""

    name: str
    version: str
    filename: str


def _package(filename: str) -> Package:
    """The package in a file that apt has named."""
    name, version, _arch = filename.removesuffix(".deb").rsplit("_", 2)
    version = version.replace("%3a", ":").replace("%7e", "~").replace("%2b", "+")
    return Package(name, version, filename)


class World:
    """One isolated apt configuration: some suites, and the packages they resolve to.

    *prefer* maps package name patterns to the suite they are taken from although another suite
    has the higher priority.
    """

    def __init__(
        self, name: str, suites: Sequence[str], prefer: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.name = name
        self.suites = tuple(suites)
        self.prefer = tuple(prefer)
        self.root = cache_root() / "apt" / name

    def _options(self) -> list[str]:
        root = self.root
        settings = {
            "Dir::State": root / "state",
            "Dir::State::Lists": root / "state/lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": root / "cache",
            "Dir::Etc::sourcelist": root / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": root / "preferences",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # The _apt user cannot enter a cache below a home directory.
            "APT::Sandbox::User": "root",
            "APT::Install-Recommends": "false",
            "APT::Architecture": "amd64",
            "Debug::NoLocking": "true",  # we hold our own lock
            # Hooks of the machine (command-not-found, appstream) are for its own lists.
            "APT::Update::Post-Invoke": "",
            "APT::Update::Post-Invoke-Success": "",
        }
        arguments = []
        for key, value in settings.items():
            arguments += ["-o", f"{key}={value}"]
        return arguments

    def _run(
        self, tool: str, *arguments: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        if shutil.which(tool) is None:
            raise GuestError(f"{tool} is not on this machine: the guest needs apt (Debian)")
        return subprocess.run(
            [tool, *self._options(), *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )

    def _write_configuration(self) -> None:
        for part in ("state/lists/partial", "cache/archives/partial", "debs"):
            (self.root / part).mkdir(parents=True, exist_ok=True)
        entry = mirror()
        if _KEYRING.is_file():
            signed = f" signed-by={_KEYRING}"
        elif entry.signed_by:
            signed = f" signed-by={entry.signed_by}"
        else:
            signed = ""  # apt then uses the machine's trusted.gpg.d
        lines = [f"deb [arch=amd64{signed}] {entry.uri} {suite} main" for suite in self.suites]
        (self.root / "sources.list").write_text("\n".join(lines) + "\n")
        pins = [
            f"Package: {names}\nPin: release n={suite}\nPin-Priority: 990\n"
            for names, suite in self.prefer
        ]
        (self.root / "preferences").write_text("\n".join(pins))

    def update(self, force: bool = False) -> None:
        """Read the suites' package lists, unless that was done within the last day."""
        stamp = self.root / "updated"
        with lock(cache_root() / "locks" / f"apt-{self.name}"):
            if not force and stamp.exists():
                if time.time() - stamp.stat().st_mtime < _LISTS_MAX_AGE:
                    return
                stamp.unlink()
            self._write_configuration()
            with progress(f"reading the package lists of {', '.join(self.suites)}"):
                done = self._run("apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any")
                if done.returncode and re.search(r"not valid|expired", done.stderr):
                    # A frozen mirror, or a clock that is off: the signature still counts.
                    print(f"… the release files are past their validity, going on: {self.name}")
                    done = self._run(
                        "apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any",
                        "-o", "Acquire::Check-Valid-Until=false", "-o", "Acquire::Check-Date=false",
                    )  # fmt: skip
            if done.returncode:
                hint = ""
                if "NO_PUBKEY" in done.stderr:
                    hint = "; upgrade the package debian-archive-keyring"
                raise GuestError(
                    f"apt could not read {', '.join(self.suites)}: {done.stderr.strip()}{hint}"
                )
            stamp.touch()
            self._prune()

    def _prune(self) -> None:
        """Remove the packages that the lists have no more, but for those that were used lately:
        another run may have resolved them by the lists before."""
        found = {path: _package(path.name) for path in (self.root / "debs").glob("*.deb")}
        done = self._run("apt-cache", "madison", *sorted({p.name for p in found.values()}))
        rows = [line.split("|") for line in done.stdout.splitlines()]
        listed = {(row[0].strip(), row[1].strip()) for row in rows if len(row) == 3}
        if done.returncode or not listed:
            return  # nothing is known, so nothing is removed
        for path, package in found.items():
            if (package.name, package.version) not in listed:
                remove_unused(path)

    def names(self, prefix: str) -> list[str]:
        """Names of the packages that start with *prefix*."""
        done = self._run("apt-cache", "pkgnames", prefix)
        return sorted(done.stdout.split())

    def resolve(self, *packages: str) -> list[Package]:
        """*packages* (``name``, ``name=version`` or ``name/suite``) and all they depend on."""
        done = self._run("apt-get", "install", "--print-uris", "-qq", *packages)
        if done.returncode:
            raise GuestError(
                f"apt cannot resolve {' '.join(packages)} in {', '.join(self.suites)}: "
                f"{done.stdout.strip()} {done.stderr.strip()}"
            )
        found = []
        for line in done.stdout.splitlines():
            match = re.match(r"^'([^']+)' (\S+_\S+\.deb) \d+", line)
            if match is None:
                continue
            found.append(_package(match.group(2)))
        return found

    def download(self, packages: Iterable[Package]) -> list[Path]:
        """Fetch what is not there yet; apt checks each file against the signed lists."""
        debs = self.root / "debs"
        wanted = list(packages)
        with lock(cache_root() / "locks" / f"apt-{self.name}"):
            missing = [p for p in wanted if not there(debs / p.filename)]
            if missing:
                partial = debs / "partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                with progress(f"downloading {len(missing)} packages ({self.name})"):
                    done = self._run(
                        "apt-get", "download", "-qq",
                        *[f"{p.name}={p.version}" for p in missing], cwd=partial,
                    )  # fmt: skip
                for package in missing:
                    if (partial / package.filename).is_file():
                        (partial / package.filename).rename(debs / package.filename)
                shutil.rmtree(partial, ignore_errors=True)
                absent = [p.filename for p in missing if not (debs / p.filename).is_file()]
                if done.returncode or absent:
                    raise GuestError(
                        f"apt could not download {', '.join(absent) or 'the packages'}: "
                        f"{done.stderr.strip()}"
                    )
        return [debs / p.filename for p in wanted]

    def unpack(self, tree: Path, *packages: str) -> list[Package]:
        """Unpack *packages* and all they depend on into the empty directory *tree*, with /bin,
        /sbin and /lib merged into /usr; gives all of them."""
        self.update()
        found = self.resolve(*packages)
        debs = self.download(found)
        for name in ("bin", "sbin", "lib", "lib64"):
            (tree / "usr" / name).mkdir(parents=True)
            (tree / name).symlink_to(f"usr/{name}")
        with progress(f"unpacking {len(debs)} packages"):
            for deb in debs:
                unpack(deb, tree)
        return found


_MERGED = frozenset(("bin", "sbin", "lib", "lib32", "lib64", "libx32"))


def usrmerged(name: str) -> str:
    """The path of a package's file in a tree where /bin, /sbin and /lib are in /usr."""
    clean = name.removeprefix("./").strip("/")
    return f"usr/{clean}" if clean.split("/", 1)[0] in _MERGED else clean


_NOT_WANTED = re.compile(r"^usr/share/(doc|man|locale|info|lintian|bug|bash-completion)/")


def unpack(deb: Path, tree: Path, wanted: Callable[[str], bool] = lambda _name: True) -> None:
    """Unpack the files of *deb* for which *wanted* is true into *tree*, merged into /usr.

    Maintainer scripts are not run; documentation and translations are left out.

    Raises:
        GuestError: dpkg-deb cannot read the package.
    """
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    _extract(archive, member, tree, wanted)
        except tarfile.TarError as error:
            process.kill()
            raise GuestError(f"cannot unpack {deb.name}: {error}") from error
        message = process.stderr.read().decode("utf-8", "replace").strip()
    if process.returncode:
        raise GuestError(f"cannot unpack {deb.name}: {message}")


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, tree: Path, wanted: Callable[[str], bool]
) -> None:
    name = usrmerged(member.name)
    if member.issym() and member.name.removeprefix("./") in _MERGED:
        return  # base-files has the links of the root directory as its own
    if not name or name == "." or _NOT_WANTED.match(name + "/") or not wanted(name):
        return
    target = tree / name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.is_file():
        target.unlink()
    if member.issym():
        target.symlink_to(member.linkname)
    elif member.islnk():
        os.link(tree / usrmerged(member.linkname), target)
    elif member.isfile():
        source = archive.extractfile(member)
        assert source is not None
        with open(target, "wb") as out:
            shutil.copyfileobj(source, out)
        target.chmod(member.mode & 0o777)
