# SPDX-License-Identifier: BSD-2-Clause
"""What our part of a generator refuses while the image is made: the generator fails, and says why.

No guest is booted; the generator runs in its own tree.
"""

from __future__ import annotations

import os

import pytest

from tests.vm.initramfs_generators import DRACUT, PLAIN, SYSTEMD
from tools.guest.errors import GuestError
from tools.guest.generators import generator_tree, run_generator
from tools.guest.lanes import LANES
from tools.guest.packages import kernel

_INITRAMFS_TOOLS = "restrict initramfs install initramfs-tools\nmkinitramfs -o /tmp/initrd VERSION"
_CONFIGURATION = "image = auto\ninit = /sbin/init\n"


@pytest.mark.vm
@pytest.mark.parametrize(
    ("script", "configuration", "said"),
    [
        (DRACUT.replace("MODULES", f"{PLAIN} {SYSTEMD}"), f"{_CONFIGURATION}keep = exec\n",
         "systemd in the initramfs closes the fds that keep the policy"),
        (DRACUT.replace("MODULES", PLAIN), _CONFIGURATION, "there is no certificate"),
        (_INITRAMFS_TOOLS, _CONFIGURATION, "there is no certificate"),
        (_INITRAMFS_TOOLS, None, "there is no /etc/restrict/init.conf"),
    ],
    ids=["exec_and_systemd", "dracut", "initramfs_tools", "no_configuration"],
)  # fmt: skip
def test_generator_fails(script: str, configuration: str | None, said: str) -> None:
    try:
        found = kernel(LANES["7.3"])
        generator_tree("initramfs")
        if os.geteuid():
            raise GuestError("running an initramfs generator in a tree of its own needs root")
    except GuestError as e:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(e))
    files = {} if configuration is None else {"etc/restrict/init.conf": configuration.encode()}
    files |= {"etc/initramfs-tools/conf.d/test": b"MODULES=list\n"}
    with pytest.raises(GuestError, match=said):
        run_generator(found, "initramfs", script.replace("VERSION", found.release), files, [])
