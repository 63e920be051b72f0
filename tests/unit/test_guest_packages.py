# SPDX-License-Identifier: BSD-2-Clause
"""The apt sources that the guest's packages come from, and how they are unpacked."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tools.guest import apt
from tools.guest.apt import SourceEntry, mirror, parse_sources, unpack, usrmerged
from tools.guest.errors import GuestError
from tools.guest.packages import _depends

ONE_LINE = """
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/vendor.gpg] https://vendor.example/apt stable tool
deb-src http://source.example/debian bookworm main
deb [trusted=no] http://mirror.example/debian  bookworm  main contrib # the mirror
deb http://mirror.example/security bookworm-security main
"""

DEB822 = """
Types: deb deb-src
# a comment within
URIs: http://first.example/debian http://second.example/debian
Suites: trixie trixie-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: trixie
Components: main

Types: deb
URIs: http://inline.example/debian
Suites: sid
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
"""


def test_one_line_format() -> None:
    assert parse_sources("sources.list", ONE_LINE) == [
        SourceEntry(
            "https://vendor.example/apt", "stable", ("tool",), "/usr/share/keyrings/vendor.gpg"
        ),
        SourceEntry("http://mirror.example/debian", "bookworm", ("main", "contrib")),
        SourceEntry("http://mirror.example/security", "bookworm-security", ("main",)),
    ]


def test_deb822_format() -> None:
    entries = parse_sources("debian.sources", DEB822)
    assert [(entry.uri, entry.suite) for entry in entries] == [
        ("http://first.example/debian", "trixie"),
        ("http://first.example/debian", "trixie-updates"),
        ("http://second.example/debian", "trixie"),
        ("http://second.example/debian", "trixie-updates"),
        ("http://inline.example/debian", "sid"),
    ]
    assert entries[0].components == ("main", "contrib")
    assert entries[0].signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert entries[-1].signed_by == ""


def test_mirror_is_the_first_archive_with_main(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list").write_text(ONE_LINE)
    assert mirror(tmp_path).uri == "http://mirror.example/debian"
    (tmp_path / "sources.list").write_text("")
    assert mirror(tmp_path).uri == "http://first.example/debian"
    (tmp_path / "sources.list.d/debian.sources").rename(tmp_path / "sources.list.d/debian.save")
    with pytest.raises(GuestError, match="no archive of Debian"):
        mirror(tmp_path)


def test_usrmerge() -> None:
    assert usrmerged("./bin/sh") == "usr/bin/sh"
    assert usrmerged("lib64/ld.so") == "usr/lib64/ld.so"
    assert usrmerged("./usr/lib/x.so") == "usr/lib/x.so"
    assert usrmerged("./library/x") == "library/x"


def _deb(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """A package as dpkg-deb reads it: an ar archive with two tar files."""

    def archive(entries: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for info, data in entries:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return raw.getvalue()

    control = tarfile.TarInfo("./control")
    text = b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    out = b"!<arch>\n"
    for name, data in (
        ("debian-binary", b"2.0\n"),
        ("control.tar", archive([(control, text)])),
        ("data.tar", archive(members)),
    ):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    path.write_bytes(out)


def test_unpack(tmp_path: Path) -> None:
    program = tarfile.TarInfo("./bin/program")
    program.mode = 0o755
    link = tarfile.TarInfo("./usr/bin/alias")
    link.type, link.linkname = tarfile.SYMTYPE, "program"
    hard = tarfile.TarInfo("./usr/bin/again")
    hard.type, hard.linkname = tarfile.LNKTYPE, "./bin/program"
    documentation = tarfile.TarInfo("./usr/share/doc/x/copyright")
    package = tmp_path / "x.deb"
    _deb(package, [(program, b"code"), (link, b""), (hard, b""), (documentation, b"text")])
    subprocess.run(["dpkg-deb", "--info", package], check=True, stdout=subprocess.DEVNULL)
    unpack(package, tmp_path / "tree")
    assert (tmp_path / "tree/usr/bin/program").read_bytes() == b"code"
    assert (tmp_path / "tree/usr/bin/program").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "tree/usr/bin/alias").readlink() == Path("program")
    assert (tmp_path / "tree/usr/bin/again").samefile(tmp_path / "tree/usr/bin/program")
    assert not (tmp_path / "tree/usr/share").exists()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is what is asked")
def test_packages_that_no_list_has_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTRICT_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "repository"
    repository.mkdir()
    stanza = "Package: tool\nVersion: 1:2+b\nArchitecture: amd64\nFilename: ./tool.deb\nSize: 1\n"
    (repository / "Packages").write_text(stanza + f"SHA256: {'0' * 64}\n")
    world = apt.World("test", ())
    for part in ("state/lists/partial", "cache/archives/partial", "debs"):
        (world.root / part).mkdir(parents=True)
    (world.root / "sources.list").write_text("")
    (world.root / "preferences").write_text("")
    listed, old, used = "tool_1%3a2+b_amd64.deb", "tool_1_amd64.deb", "tool_2_amd64.deb"
    for name in (listed, old, used):
        (world.root / "debs" / name).touch()
        if name != used:
            os.utime(world.root / "debs" / name, (1, 1))
    world._prune()  # lists that know nothing are no reason to remove anything
    assert len(list((world.root / "debs").iterdir())) == 3
    (world.root / "sources.list").write_text(f"deb [trusted=yes] file:{repository} ./\n")
    assert world._run("apt-get", "update").returncode == 0
    world._prune()
    assert sorted(path.name for path in (world.root / "debs").iterdir()) == sorted((listed, used))


def test_unpack_of_garbage(tmp_path: Path) -> None:
    package = tmp_path / "x.deb"
    package.write_bytes(b"this is no package")
    with pytest.raises(GuestError, match=r"cannot unpack x\.deb"):
        unpack(package, tmp_path / "tree")


def test_module_dependencies() -> None:
    assert _depends(b"\0license=GPL\0depends=dm-mod,dm-bufio\0retpoline=Y\0") == [
        "dm-mod",
        "dm-bufio",
    ]
    assert _depends(b"\0depends=\0intree=Y\0") == []
    assert _depends(b"") == []
