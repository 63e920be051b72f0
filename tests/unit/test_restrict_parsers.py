# SPDX-License-Identifier: BSD-2-Clause
"""restrict: what it reads from the kernel as text, and the configuration file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from restrict import (
    config,
    keep,
    keep_init,
    keep_keeper,
    keyring,
    modules,
    mounts,
    preflight,
    simulate,
    status,
)
from restrict.errors import ConfigError, PreflightError, RestrictError

# ── the kernel's command line ──


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", None),
        ("quiet", None),
        ("proc_mem.force_override=never", "never"),
        ("proc-mem.force-override=never", "never"),
        ("proc_mem.force_override=always", "always"),
        ("proc_mem.force_override=never proc_mem.force_override=ptrace", "ptrace"),
        ("proc_mem.force_override=ptrace proc_mem.force_override=never", "never"),
        ('dyndbg="file a.c proc_mem.force_override=never" quiet', None),
        ('"proc_mem.force_override=never"', "never"),
        ("quiet -- proc_mem.force_override=never", None),
        ("xproc_mem.force_override=never", None),
        ("proc_mem.force_override", None),
        ("proc_mem.force_override=", ""),
    ],
)
def test_force_override_is_the_last_word_the_kernel_would_parse(
    line: str, expected: str | None
) -> None:
    assert preflight.force_override(line) == expected


def test_command_line_words_keep_quoted_blanks() -> None:
    assert preflight.command_line_words('a "b c" d="e f"\tg\n') == ["a", "b c", "d=e f", "g"]


def test_findings_say_what_blocks() -> None:
    with pytest.raises(PreflightError) as caught:
        preflight.require(
            [
                preflight.Finding("one", True, "fine."),
                preflight.Finding("two", False, "missing.", "Do this."),
                preflight.Finding("three", None, "unknown.", "Do that."),
                preflight.Finding("four", False, "a note.", "Perhaps.", required=False),
            ]
        )
    assert str(caught.value) == "two: missing. Do this.; three: unknown. Do that."


# ── the mount table ──

MOUNTINFO = """\
1 1 0:2 / / rw - rootfs none rw
23 1 0:21 / /proc rw,nosuid - proc proc rw
30 1 254:0 / /sysroot ro,relatime shared:1 master:2 - erofs /dev/dm-0 ro,user_xattr
31 30 254:1 / /sysroot/a\\040b\\134c ro - erofs /dev/dm-1 ro
"""


def test_mountinfo() -> None:
    table = mounts.parse_mountinfo(MOUNTINFO)
    assert [m.target for m in table] == ["/", "/proc", "/sysroot", "/sysroot/a b\\c"]
    assert (table[2].fstype, table[2].source, os.major(table[2].dev)) == ("erofs", "/dev/dm-0", 254)
    assert mounts.in_initramfs(table)
    found = mounts.mount_of("/sysroot/usr/bin", table)
    assert found is table[2]
    assert mounts.mount_of("/sysrootx", table) is table[0]


def test_the_upper_mount_on_one_place_counts() -> None:
    table = mounts.parse_mountinfo(MOUNTINFO + "40 1 254:5 / / ro - erofs /dev/dm-5 ro\n")
    assert not mounts.in_initramfs(table)


@pytest.mark.parametrize("text", ["x", "1 1 0:2 / /", "1 1 0:2 / / rw rootfs none rw"])
def test_mountinfo_out_of_form_is_refused(text: str) -> None:
    with pytest.raises(RestrictError, match="cannot be read"):
        mounts.parse_mountinfo(text)


def test_mountinfo_of_this_machine() -> None:
    table = mounts.mounts()
    root = mounts.mount_of("/", table)
    assert root is not None
    assert root.dev == os.stat("/").st_dev


# ── keys, modules, maps ──


def test_keys() -> None:
    found = keyring.parse_keys(
        "0a0b44ad I------     1 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: empty\n"
        "2d4049eb I------     1 perm 082f0000     0     0 keyring   .dm-verity: 1\n"
        "244ff15c I--Q---     1 perm 39010000     0     0 asymmetri a: name: 7280: X509.rsa 72 []\n"
    )
    assert [(hex(k.serial), k.type, k.description, k.payload) for k in found] == [
        ("0xa0b44ad", "keyring", ".builtin_trusted_keys", "empty"),
        ("0x2d4049eb", "keyring", ".dm-verity", "1"),
        ("0x244ff15c", "asymmetri", "a: name: 7280", "X509.rsa 72 []"),
    ]


def test_find_keyring_needs_the_very_name(tmp_path: Path) -> None:
    line = "2d4049eb I------     1 perm 082f0000     0     0 keyring   .dm-verity-x: 1\n"
    (tmp_path / "keys").write_text(line)
    assert keyring.find_keyring(proc=str(tmp_path)) is None
    (tmp_path / "keys").write_text(line + line.replace("verity-x", "verity"))
    found = keyring.find_keyring(proc=str(tmp_path))
    assert found is not None
    assert found.serial == 0x2D4049EB


@pytest.mark.parametrize(
    ("path", "name"),
    [("/m/dm-mod.ko", "dm_mod"), ("/m/erofs.ko.xz", "erofs"), ("/a-b/x-y.ko.zst", "x_y")],
)
def test_module_names(path: str, name: str) -> None:
    assert modules.module_name(path) == name


def test_module_lines() -> None:
    assert modules.parse_module_line("/m/dm-verity.ko  require_signatures=1 a=2") == (
        "/m/dm-verity.ko", "require_signatures=1 a=2",
    )  # fmt: skip
    for line in ("", "dm-mod.ko", "/m/dm-mod"):
        with pytest.raises(ConfigError):
            modules.parse_module_line(line)


MAPS = """\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 1234                       /usr/bin/x
55d0c0001000-55d0c0002000 r-xp 00001000 fe:00 1234                       /usr/bin/x
7f0000000000-7f0000001000 rwxp 00000000 00:00 0
7f0000002000-7f0000003000 r-xs 00000000 00:01 99                         /memfd:a b (deleted)
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]
"""


def test_maps_gives_executable_mappings_of_processes() -> None:
    found = simulate.parse_maps(MAPS)
    assert [(m.permissions, m.path, m.inode) for m in found] == [
        ("r-xp", "/usr/bin/x", 1234),
        ("rwxp", "", 0),
        ("r-xs", "/memfd:a b (deleted)", 99),
    ]
    assert found[0].dev == os.makedev(254, 0)


def _mount(fstype: str, dev: int) -> mounts.Mount:
    return mounts.Mount(1, 1, dev, "/", "/m", "ro", fstype, "x", "ro")


DM = os.makedev(253, 0)


@pytest.mark.parametrize(
    ("fstype", "dev", "regular", "trusted", "verity", "reason"),
    [
        ("erofs", DM, True, {DM}, {DM}, "none"),
        ("erofs", DM, False, {DM}, {DM}, "not_regular"),
        ("ext4", DM, True, {DM}, {DM}, "filesystem"),
        ("fuse", DM, True, {DM}, {DM}, "filesystem"),
        ("erofs", DM, True, set(), {DM}, "unsigned_device"),
        ("erofs", DM, True, set(), set(), "untrusted_device"),
        ("erofs", os.makedev(0, 44), True, set(), set(), "no_device"),
        ("overlay", os.makedev(0, 44), True, {DM}, {DM}, "overlay"),
        ("tmpfs", os.makedev(0, 44), True, {DM}, {DM}, "filesystem"),
        ("tmpfs", os.makedev(0, 44), True, {os.makedev(0, 44)}, set(), "none"),
    ],
)
def test_simulated_reasons(
    fstype: str, dev: int, regular: bool, trusted: set[int], verity: set[int], reason: str
) -> None:
    found = simulate.judge(
        dev, regular, _mount(fstype, dev),
        trusted=trusted, filesystems=("erofs", "squashfs"), verity=verity,
    )  # fmt: skip
    assert found == reason


def test_simulate_sees_this_process() -> None:
    result = simulate.simulate(filesystems=["squashfs"])
    pids = {pid for denial in result.denials for pid in denial.processes}
    assert os.getpid() in pids
    everything = simulate.simulate(assume=[os.path.realpath("/proc/self/exe")])
    mine = [d for d in everything.denials if os.getpid() in d.processes and d.operation == "exec"]
    assert mine == []
    with pytest.raises(ConfigError, match="no filesystem type"):
        simulate.simulate(filesystems=["fuse"])


# ── the status text ──

STATUS = """\
armed 1
audit 0
initramfs_dev 0:2
owner 1 start_ticks 0
guard_map 5
guard_map 6
guard_program 11
guard_link 3
counter exec allowed 4 denied 2 audited 0 dropped 0
device 254:0 signed 1 lenient 0 first_seen 1500000000 changed 2 algorithm sha256 root_hash abcd
device 254:1 signed 0 lenient 1 first_seen 3 changed 3
device 254:2 signed 0 lenient 0 held 1 first_seen 3 changed 3
"""


def test_status() -> None:
    found = status.Status(STATUS)
    assert found.armed
    assert found.mode == "exec"
    assert found.initramfs_dev == os.makedev(0, 2)
    assert found.guard == {"map": [5, 6], "program": [11], "link": [3]}
    assert found.counters["exec"]["denied"] == 2
    assert [(d.number, d.signed, d.held, d.root_hash) for d in found.devices] == [
        ("254:0", True, False, "abcd"), ("254:1", False, False, None), ("254:2", False, True, None),
    ]  # fmt: skip
    report = found.text()
    assert "254:1 ?: NOT trusted (lenient table)" in report
    assert "254:2 ?: NOT trusted (held: suspended until its own table is back)" in report
    assert "open for initramfs 0:2" in report
    assert found.as_dict()["trust_window"] == {"open": True, "device": "0:2"}


@pytest.mark.parametrize("text", ["", "armed 1\n", "armed 1\nowner 1\ndevice 254 signed 1\n"])
def test_status_out_of_form_is_refused(text: str) -> None:
    with pytest.raises(RestrictError):
        status.Status(text)


@pytest.mark.skipif(os.getuid() != 0, reason="the folders must be root's")
def test_no_status_is_none(tmp_path: Path) -> None:
    assert status.read(str(tmp_path / "nothing")) is None


@pytest.mark.skipif(os.getuid() != 0, reason="the files must be root's")
def test_a_status_that_others_could_have_made_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "restrict"
    folder.mkdir(0o755)
    (folder / "real").write_text(STATUS)
    assert status.read(str(folder / "real")) is not None
    (folder / "link").symlink_to("real")
    with pytest.raises(RestrictError, match="cannot be read"):
        status.read(str(folder / "link"))
    folder.chmod(0o777)
    with pytest.raises(RestrictError, match="root alone"):
        status.read(str(folder / "real"))


# ── the configuration of init ──

CONFIG = """\
# the root
data = /dev/vda
data_blocks = 100
root_hash = {hash}
salt = 5e5e
signature = /etc/restrict/root.p7s
init = /sbin/init --flag
module = /m/dm-mod.ko
module = /m/dm-verity.ko require_signatures=1
certificate = /etc/restrict/cert.der
""".format(hash="ab" * 32)


def test_config() -> None:
    found = config.parse(CONFIG)
    assert found.modules == [("/m/dm-mod.ko", ""), ("/m/dm-verity.ko", "require_signatures=1")]
    assert found.init == ["/sbin/init", "--flag"]
    assert not found.audit
    assert found.deny_poke
    assert not config.parse(CONFIG + "ptrace_poke = allow\n").deny_poke
    assert found.verity is not None
    line = found.verity.target()
    assert line.length == 800
    assert line.params == (
        f"1 /dev/vda /dev/vda 4096 4096 100 100 sha256 {'ab' * 32} 5e5e 2 "
        "root_hash_sig_key_desc restrict:root"
    )


def test_config_with_a_hash_device_of_its_own() -> None:
    found = config.parse(CONFIG + "hash = /dev/vdb\n")
    assert found.verity is not None
    assert (found.verity.hash, found.verity.hash_start) == ("/dev/vdb", 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("root_hash = zz", "twice"),
        ("colour = red", "no key 'colour'"),
        ("nonsense", "no `key = value`"),
        ("mode = lenient", "none of exec, audit"),
        ("filesystem = fuse", "none of auto, erofs"),
        ("filesystem = btrfs", "none of auto, erofs"),
        ("hash = vdb", "not an absolute path"),
        ("plan = /etc/../x", "not an absolute path"),
        ("data_block_size = 1000", "no power of 2"),
        ("data_block_size = -4096", "not a whole number"),
        ("hash_start = 0x10", "not a whole number"),
        ("hash_type = 7", "hash types"),
        ("algorithm = sha 256", "one word"),
        ("name = a b", "one plain word"),
        ("module = dm-mod", "absolute path"),
        ("on_failure = shell", "none of exit"),
        ("ptrace_poke = no", "none of deny, allow"),
    ],
)
def test_config_mistakes_are_told(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.parse(CONFIG + line + "\n", file="init.conf")
    assert "init.conf" in str(caught.value)


@pytest.mark.parametrize("key", ["root_hash", "signature", "init"])
def test_config_needs(key: str) -> None:
    text = "\n".join(x for x in CONFIG.splitlines() if not x.startswith(f"{key} ="))
    with pytest.raises(ConfigError, match=f"{key} must be given"):
        config.parse(text)


IMAGE = "init = /sbin/init\n"
PLAIN = f"{IMAGE}data = /dev/vda\nroot_hash = {'ab' * 32}\nsignature = /s\n"


def test_config_of_an_image_needs_no_more_than_an_init() -> None:
    found = config.parse(IMAGE)
    assert (found.image, found.part, found.data, found.verity) == ("", "", "", None)
    assert (found.filesystem, found.root, found.command_line) == ("auto", None, True)


def test_config_of_images(tmp_path: Path) -> None:
    (tmp_path / "x.usrhash").write_text("AB" * 32 + "\n")
    found = config.parse(
        f"{IMAGE}image = /run/restrict/carrier/x.raw\npart = usr\ncommand_line = no\n"
        "carrier = /dev/vda1 ext4 noload\nroot = /dev/vdb btrfs\n"
        f"root_hash = {tmp_path}/x.usrhash\n"
    )
    assert (found.image, found.part, found.command_line) == (
        "/run/restrict/carrier/x.raw", "usr", False,
    )  # fmt: skip
    assert found.carrier == ("/dev/vda1", "ext4", "noload")
    assert found.root == ("/dev/vdb", "btrfs", "")
    assert found.root_hash == "ab" * 32
    found = config.parse(PLAIN + "hash = /dev/vdb\n")
    assert (found.verity, found.hash, found.hash_offset) == (None, "/dev/vdb", 0)
    assert config.parse(PLAIN + "hash_offset = 4096\n").hash_offset == 4096


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (IMAGE + "data_blocks = 5\n", "data_blocks says nothing without data"),
        (IMAGE + "salt = aa\n", "salt says nothing without data"),
        (IMAGE + "image = vda\n", "not an absolute path"),
        (IMAGE + "part = home\n", "none of root, usr"),
        (IMAGE + "carrier = /dev/vda\n", "DEVICE TYPE"),
        (IMAGE + "root = overlay\n", "DEVICE TYPE"),
        (IMAGE + "root_hash = /nowhere\n", "cannot be read"),
        (PLAIN, "hash, hash_offset or data_blocks must be given"),
        (PLAIN + "image = auto\n", "two ways"),
        (PLAIN + "hash = /dev/vdb\nsalt = aa\n", "in the superblock"),
        (PLAIN + "data_blocks = 3\nhash_offset = 1\n", "of a superblock"),
    ],
)
def test_config_contradictions_are_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.parse(text)


def test_init_offers_the_ways_of_keeping_that_there_are() -> None:
    assert config._CHOICES["keep"] == ("auto", *keep.names("init"))
    assert set(keep.names("init")) == set(keep_init._SAID)
    assert [keep.method(name).number for name in ("exec", "pins", "ownerless", "keeper")] == [
        1, 2, 3, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["ab" * 10 + "a", "ab" * 4, "zz" * 32, "ab" * 65, "ab " * 32])
def test_root_hashes_are_checked(value: str) -> None:
    with pytest.raises(ConfigError, match="root hash"):
        config.parse(CONFIG.replace("ab" * 32, value))


def test_every_documented_key_has_its_default() -> None:
    documented = {
        line.split("=")[0].strip()
        for line in (config.__doc__ or "").splitlines()
        if line.startswith("    ") and " = " in line
    }
    assert documented == {*config._DEFAULTS, *config._REPEATED}


# ── the keeper's mark ──


def test_place_of_the_command_line() -> None:
    with open("/proc/self/stat") as file:
        start = keep_keeper.argument_start(file.read())
    with open("/proc/self/mem", "rb") as memory, open("/proc/self/cmdline", "rb") as line:
        memory.seek(start)
        expected = line.read()
        assert memory.read(len(expected)) == expected


@pytest.mark.parametrize("text", ["", "1 (a) S 1 2 3", "1 (a) " + "0 " * 60, "1 (a) " + "x " * 60])
def test_no_place_of_the_command_line(text: str) -> None:
    with pytest.raises(RestrictError, match="not known"):
        keep_keeper.argument_start(text)
