# SPDX-License-Identifier: BSD-2-Clause
"""One self-running bundle on both kernels: the same bytes, made once on the host.

tests/kernel/test_pyz.py runs them on the host's own kernel. The guest gets them on a signed drive
and has no other part in making them.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from functools import cache
from pathlib import Path

from tests.vm.scenario import Drive, Guest, Scenario


@cache
def _bytes() -> bytes:
    from tests.kernel.bundles import features_bundle

    return features_bundle()


def _digest() -> bytes:
    return hashlib.sha256(_bytes()).hexdigest().encode()


bundles = Scenario("bundles", drives={"bundle": Drive({"features.pyz": _bytes, "sha256": _digest})})


@bundles.setup
def prepare(guest: Guest) -> None:
    guest.mount(guest.verity("bundle"), "/run/bundle")
    if not os.path.ismount("/sys/fs/bpf"):
        subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], check=True)


FILE = "/run/bundle/features.pyz"
COMMAND = ["/usr/bin/python3", "-I", "-S", FILE]


@bundles.case()
def the_same_bytes_load(guest: Guest) -> None:
    data = Path(FILE).read_bytes()
    told = Path("/run/bundle/sha256").read_text()
    assert hashlib.sha256(data).hexdigest() == told
    guest.note(f"Linux {os.uname().release}: bundle {told}")
    done = subprocess.run([*COMMAND, "--no-attach", "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found = json.loads(done.stdout)
    assert len(found["programs"]) >= 3
    assert found["links"] == {}


@bundles.case()
def they_attach_and_go_on_a_signal(guest: Guest) -> None:
    process = subprocess.Popen([*COMMAND, "--json"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = json.loads(process.stdout.readline())
    assert len(found["links"]) >= 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@bundles.case()
def damaged_ones_do_nothing(guest: Guest) -> None:
    data = bytearray(Path(FILE).read_bytes())
    data[len(data) // 2] ^= 4
    Path("/tmp/damaged.pyz").write_bytes(data)
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "/tmp/damaged.pyz", "--no-attach"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "damaged or cut short" in done.stderr
