# SPDX-License-Identifier: BSD-2-Clause
"""Whole images: the same bytes everywhere, their size, what is in them, errors, no half a file."""

from __future__ import annotations

import base64
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybpf.errors import PybpfError
from restrict import bundle, initramfs
from restrict.errors import ConfigError, RestrictError
from restrict.initramfs_cpio import Entry, archive
from restrict.initramfs_install import GENERATORS, install
from tests.unit.initramfs_util import unpack

ROOT = Path(__file__).resolve().parents[2]
#: Most bytes of a whole initramfs without kernel modules, as xz.
MOST = 4_500_000
CERTIFICATE = b"\x30\x82\x01\x00" + bytes(range(200))
DEBIAN = Path("/usr/bin/python3")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "cert.der").write_bytes(CERTIFICATE)
    (tmp_path / "root.p7s").write_bytes(b"\x30signature")
    (tmp_path / "init.conf").write_text(
        "# what to boot\n"
        "image = auto\ncertificate = cert.der\nsignature = root.p7s\ninit = /sbin/init -x\n"
    )
    return tmp_path


@pytest.fixture(scope="module")
def made() -> initramfs.Runtime:
    return initramfs.runtime()


def _command(output: Path, config: Path, *more: str) -> list[str]:
    words = ["initramfs", "build", "--standalone", "--config", str(config), "-o", str(output)]
    return [sys.executable, "-m", "restrict", *words, *more]


# ── the same bytes ──


def _copy_of_the_project(target: Path, *, backwards: bool) -> None:
    """The product under another path, its files made in another order, with other times."""
    names = [
        path.relative_to(ROOT)
        for top in ("pybpf", "restrict", "bpf/objects")
        for path in sorted((ROOT / top).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    for name in reversed(names) if backwards else names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)


@pytest.mark.parametrize("form", ["standalone", "segment"])
def test_same_bytes_in_another_place(inputs: Path, form: str) -> None:
    built = []
    for number, (mask, zone, seed) in enumerate((("022", "UTC", "1"), ("077", "Asia/Tokyo", "77"))):
        folder = inputs / f"place {number}" / ("deeper/" * number)
        _copy_of_the_project(folder / "project", backwards=bool(number))
        files = folder / "inputs"
        files.mkdir(mode=0o700)
        for name in sorted(("cert.der", "root.p7s", "init.conf"), reverse=bool(number)):
            shutil.copyfile(inputs / name, files / name)
        output = folder / f"out{number}.cpio"
        command = _command(output, files / "init.conf")
        if form == "segment":
            command.remove("--standalone")
        done = subprocess.run(
            ["sh", "-c", f'umask {mask}; exec "$@"', "sh", *command],
            cwd=folder / "project", capture_output=True, text=True,
            env={
                "PATH": os.environ["PATH"], "TZ": zone, "PYTHONHASHSEED": seed,
                "HOME": str(folder), "LC_ALL": ("C", "C.UTF-8")[number],
            },
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert output.stat().st_mode & 0o777 == 0o666 & ~int(mask, 8)
        built.append(output.read_bytes())
    assert built[0] == built[1]


def test_what_was_put_in_is_in_the_bytes(inputs: Path, made: initramfs.Runtime) -> None:
    """The counterpart: another input gives other bytes, or the test above could not fail."""
    first = initramfs.build(standalone=True, configuration=inputs / "init.conf", made=made).data
    (inputs / "cert.der").write_bytes(CERTIFICATE + b"x")
    again = initramfs.build(standalone=True, configuration=inputs / "init.conf", made=made).data
    assert first != again


# ── what is in it ──


def test_size_and_content(inputs: Path) -> None:
    """With Debian's interpreter, which is one file of 6.8 MB, where there is one."""
    python = str(DEBIAN) if DEBIAN.exists() else sys.executable
    output = inputs / "out.cpio.xz"
    done = subprocess.run(
        [*_command(output, inputs / "init.conf", "--python", python), "--json"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    size = output.stat().st_size
    print(f"{python}: {size} bytes as xz, {told['uncompressed']} uncompressed")
    assert size == told["bytes"] <= MOST
    raw = output.read_bytes()
    assert raw[7] == 1, "the kernel's xz knows no other check than CRC32"
    found = unpack(lzma.decompress(raw))
    assert {name: len(data) for name, (mode, data, *_) in found.items() if mode >> 12 == 8} == {
        name: length for name, length in told["files"].items() if found[name][0] >> 12 == 8
    }
    assert found["init"][1] == b"restrict/init"
    assert found["dev/console"][2] == (5, 1)
    assert found["restrict/etc/certificate0.der"][1] == CERTIFICATE
    lines = found["restrict/etc/init.conf"][1].decode().splitlines()
    assert sorted(lines) == [
        "# what to boot",
        "certificate = /restrict/etc/certificate0.der",
        "image = auto",
        "init = /sbin/init -x",
        "pins_plan = /restrict/etc/pins.plan",
        "plan = /restrict/etc/fsaccess.plan",
        "signature = /restrict/etc/signature.p7s",
    ]
    plan = found["restrict/etc/fsaccess.plan"][1]
    assert plan == (ROOT / "bpf/objects/fsaccess.plan").read_bytes()
    everything = b"".join(data for _mode, data, *_ in found.values())
    assert str(ROOT).encode() not in everything
    assert str(inputs).encode() not in everything


def test_segment_keeps_to_its_folder(made: initramfs.Runtime) -> None:
    found = unpack(initramfs.build(made=made).data)
    assert {name.partition("/")[0] for name in found} == {"restrict"}
    assert b"first\0/init\0" in found["restrict/init"][1]
    assert "restrict/open" not in found
    assert "mode = exec" in found["restrict/etc/init.conf"][1].decode()


def test_zstd(made: initramfs.Runtime, tmp_path: Path) -> None:
    data = archive([Entry.file("file", b"text" * 1000)])
    built = initramfs.Built(data, [], [], made)
    if shutil.which("zstd") is None:
        with pytest.raises(RestrictError, match=r"zstd cannot be started.*Install"):
            initramfs.write(tmp_path / "out.cpio.zst", built)
        assert not list(tmp_path.iterdir())
        return
    size = initramfs.write(tmp_path / "out.cpio.zst", built)
    raw = (tmp_path / "out.cpio.zst").read_bytes()
    assert (len(raw), raw[:4], len(raw) % 4) == (size, b"\x28\xb5\x2f\xfd", 0)
    unpacked = subprocess.run(["zstd", "-dcq"], input=raw, capture_output=True).stdout
    assert unpacked == data


# ── trees: for other generators, and for the root ──


def test_tree_for_another_generator(made: initramfs.Runtime, tmp_path: Path) -> None:
    built = initramfs.build(made=made)
    initramfs.write_tree(tmp_path, built, "restrict")
    assert [path.name for path in tmp_path.iterdir()] == ["restrict"]
    for name, (mode, data, *_rest) in unpack(built.data).items():
        path = tmp_path / name
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o755
            continue
        assert (path.read_bytes(), path.stat().st_mode) == (data, mode)
    # Again: ours is replaced. What is not ours stays.
    (tmp_path / "restrict/lib/left over").touch()
    initramfs.write_tree(tmp_path, built, "restrict")
    assert not (tmp_path / "restrict/lib/left over").exists()
    other = tmp_path / "other"
    (other / "restrict").mkdir(parents=True)
    (other / "restrict/theirs").touch()
    with pytest.raises(RestrictError, match="not made by"):
        initramfs.write_tree(other, built, "restrict")
    assert [path.name for path in other.rglob("*")] == ["restrict", "theirs"]


def test_tree_is_whole_or_not_there(
    made: initramfs.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = initramfs.build(made=made)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RestrictError, match="No space left"):
        initramfs.write_tree(tmp_path, built, "restrict")
    assert not list(tmp_path.iterdir())


def test_a_whole_initramfs_is_no_tree(inputs: Path, made: initramfs.Runtime) -> None:
    built = initramfs.build(standalone=True, configuration=inputs / "init.conf", made=made)
    with pytest.raises(ConfigError, match="no part of another tree"):
        initramfs.write_tree(inputs / "tree", built, "restrict")
    assert not (inputs / "tree").exists()


def test_segment_with_a_configuration_can_open_the_root(
    inputs: Path, made: initramfs.Runtime
) -> None:
    found = unpack(initramfs.build(configuration=inputs / "init.conf", made=made).data)
    assert found["restrict/open"][1].endswith(
        b"restrict: /restrict/lib/" + Path(made.start[0]).name.encode() + b" cannot be executed\n"
    )
    assert b"open\0" in found["restrict/open"][1]


def test_successor_says_that_nothing_was_handed_over(tmp_path: Path) -> None:
    """It runs by itself, as it would on a root that has no Python: here, from its own folder."""
    prefix = str(tmp_path).lstrip("/") + "/tree"
    if any(c in prefix for c in "\"'\\{} "):
        pytest.skip("this temporary folder is no prefix")
    built = initramfs.build_successor("/sbin/init", prefix=prefix)
    initramfs.write_tree("/", built, prefix)
    done = subprocess.run([tmp_path / "tree/init"], capture_output=True, text=True, env={})
    assert done.returncode == 1
    assert "nothing was handed over" in done.stderr
    assert "Traceback" not in done.stderr


def test_start_programs_tell_their_use(tmp_path: Path) -> None:
    prefix = str(tmp_path).lstrip("/") + "/tree"
    if any(c in prefix for c in "\"'\\{} "):
        pytest.skip("this temporary folder is no prefix")
    initramfs.write_tree("/", initramfs.build(prefix=prefix), prefix)
    done = subprocess.run([tmp_path / "tree/init"], capture_output=True, text=True, env={})
    assert done.returncode == 1
    assert "this is for PID 1" in done.stderr
    python = tmp_path / "tree/lib/restrict.pyz"
    done = subprocess.run(
        [sys.executable, "-I", "-S", python, "nothing"], capture_output=True, text=True
    )
    assert (done.returncode, "usage: init | first PROGRAM" in done.stderr) == (2, True)


def test_installing_for_a_generator(tmp_path: Path) -> None:
    with pytest.raises(RestrictError, match="initramfs-tools is not installed"):
        install("initramfs-tools", tmp_path)
    assert not list(tmp_path.iterdir())
    for generator, (sign, files) in GENERATORS.items():
        (tmp_path / sign).mkdir(parents=True)
        written = install(generator, tmp_path)
        assert written == [str(tmp_path / name) for _source, name in files]
        assert install(generator, tmp_path) == written
        for path in map(Path, written):
            assert path.stat().st_mode & 0o777 == 0o755
            assert subprocess.run(["bash", "-n", path]).returncode == 0
            assert os.listdir(path.parent).count(path.name) == 1
    assert not list(tmp_path.rglob(".*"))


def test_installing_is_all_or_nothing(tmp_path: Path) -> None:
    """A hook that puts us into the image, without the script that opens the root, would make an
    image that does not boot."""
    (tmp_path / "usr/share/initramfs-tools").mkdir(parents=True)
    (tmp_path / "etc/initramfs-tools").mkdir(parents=True)
    (tmp_path / "etc/initramfs-tools/scripts").write_text("in the way of a folder")
    with pytest.raises(RestrictError, match=r"scripts/local-top/restrict: .*cannot be written"):
        install("initramfs-tools", tmp_path)
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["scripts"]


# ── errors: each says which file and what to do, and leaves nothing ──


@pytest.fixture
def folder(inputs: Path) -> Iterator[Path]:
    (inputs / "out").mkdir()
    yield inputs
    assert not list((inputs / "out").iterdir()), "something was left"


def _fails(folder: Path, **options: object) -> str:
    from restrict.cli import main

    words = ["initramfs", "build", "-o", str(folder / "out/image.cpio")]
    for key, value in options.items():
        name = "--" + key.replace("_", "-")
        words += [name] if value is True else [name, str(value)]
    import io
    from contextlib import redirect_stderr

    said = io.StringIO()
    with redirect_stderr(said):
        assert main(words) == 1
    text = said.getvalue()
    assert text.startswith("restrict: ")
    assert "Traceback" not in text
    return text


def test_standalone_without_configuration(folder: Path) -> None:
    assert "--config FILE" in _fails(folder, standalone=True)


def test_unreadable_files(folder: Path) -> None:
    text = _fails(folder, standalone=True, config=folder / "none.conf")
    assert "none.conf: the configuration cannot be read: No such file" in text
    (folder / "cert.der").unlink()
    text = _fails(folder, standalone=True, config=folder / "init.conf")
    assert "cert.der: the certificate cannot be read: No such file" in text


def test_certificate_in_pem(folder: Path, made: initramfs.Runtime) -> None:
    block = base64.encodebytes(CERTIFICATE).decode()
    pem = f"-----BEGIN CERTIFICATE-----\n{block}-----END CERTIFICATE-----\n"
    (folder / "cert.der").write_text(f"some words\n{pem}")
    built = initramfs.build(standalone=True, configuration=folder / "init.conf", made=made)
    assert unpack(built.data)["restrict/etc/certificate0.der"][1] == CERTIFICATE
    for wrong in (pem + pem, pem[:100], "-----BEGIN PRIVATE KEY-----\n", "text", "\n\n"):
        (folder / "cert.der").write_text(wrong)
        text = _fails(folder, standalone=True, config=folder / "init.conf")
        assert "no certificate in DER or PEM form" in text
        assert "openssl x509" in text


def test_mistake_in_the_configuration(folder: Path) -> None:
    (folder / "init.conf").write_text("init = /sbin/init\n\ncolour = red\n")
    text = _fails(folder, standalone=True, config=folder / "init.conf")
    assert "line 3: there is no key 'colour'" in text


def test_keep_that_cannot_be(folder: Path) -> None:
    """What would stop the boot is told now."""
    (folder / "init.conf").write_text("init = /sbin/init\nkeep = keeper\n")
    text = _fails(folder, config=folder / "init.conf")
    assert "keep = keeper is for `restrict init` alone" in text
    assert "pins, ownerless and exec" in text
    (folder / "init.conf").write_text("init = /sbin/init\nkeep = ownerless\n")
    text = _fails(folder, config=folder / "init.conf", plan=ROOT / "bpf/objects/fsaccess.plan")
    assert "does not fit the plan, which is not the ownerless policy's" in text
    (folder / "init.conf").write_text("init = /sbin/init\n")
    bundle.write(bundle.build(gate_device_mapper=True), folder / "gate.plan")
    text = _fails(folder, config=folder / "init.conf", plan=folder / "gate.plan")
    assert "gate.plan: this policy lets nobody but PID 1 make device-mapper devices" in text
    assert "--standalone" in text


def test_damaged_plan(folder: Path) -> None:
    data = bytearray((ROOT / "bpf/objects/fsaccess.plan").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "bad.plan").write_bytes(data)
    assert "bad.plan: " in _fails(folder, plan=folder / "bad.plan")


def test_modules_without_a_folder(folder: Path) -> None:
    assert "--modules-from" in _fails(folder, module="virtio_blk")
    assert "the name of a kernel module is missing" in _fails(folder, module=" ")


def test_no_certificate(folder: Path, made: initramfs.Runtime) -> None:
    from tests.unit.test_initramfs import _module

    _module(folder / "m/dm-verity.ko", "depends=", "parm=keyring_unsealed:x")
    _module(folder / "m/erofs.ko", "depends=")
    (folder / "init.conf").write_text("init = /sbin/init\n")
    text = _fails(folder, standalone=True, config=folder / "init.conf", modules_from=folder / "m")
    assert "there is no certificate" in text
    assert "--certificate FILE" in text
    # A kernel without that keyring (before 7.0) has it elsewhere.
    _module(folder / "m/dm-verity.ko", "depends=", "parm=require_signatures:x")
    built = initramfs.build(
        standalone=True, configuration=folder / "init.conf", modules_from=folder / "m", made=made
    )
    text = unpack(built.data)["restrict/etc/init.conf"][1].decode()
    assert "module = /restrict/modules/dm_verity.ko require_signatures=1\n" in text
    assert text.index("dm_verity.ko") < text.index("erofs.ko")


def test_modules_of_the_configuration(folder: Path, made: initramfs.Runtime) -> None:
    """A line of the configuration names a module by its file; the folder's is taken, and what it
    depends on, and nothing else."""
    from tests.unit.test_initramfs import _module

    _module(folder / "m/dm-verity.ko.xz", "depends=dm-mod")
    _module(folder / "m/dm-mod.ko", "depends=")
    _module(folder / "m/erofs.ko", "depends=")
    (folder / "init.conf").write_text(
        "init = /sbin/init\nmodule = /usr/lib/modules/dm-verity.ko require_signatures=0\n"
    )
    built = initramfs.build(
        standalone=True, configuration=folder / "init.conf", modules_from=folder / "m", made=made
    )
    assert [(m.name, m.parameters) for m in built.modules] == [
        ("dm_mod", ""), ("dm_verity", "require_signatures=0"),
    ]  # fmt: skip


def test_name_without_a_known_end(folder: Path) -> None:
    with pytest.raises(ConfigError, match="how to compress"):
        initramfs.kind_of(folder / "out/image.lz4")


def test_an_old_file_stays_when_writing_fails(
    folder: Path, made: initramfs.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / "image.cpio"
    target.write_bytes(b"old")
    before = sorted(folder.iterdir())
    built = initramfs.build(made=made)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PybpfError, match="cannot be written: No space left"):
        initramfs.write(target, built)
    assert target.read_bytes() == b"old"
    assert sorted(folder.iterdir()) == before
    with pytest.raises(PybpfError, match="No such file"):
        initramfs.write(folder / "nowhere/image.cpio", built)
