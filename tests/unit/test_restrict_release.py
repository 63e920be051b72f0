# SPDX-License-Identifier: BSD-2-Clause
"""restrict.release: objects that are told to be gone when they are, and not before."""

from __future__ import annotations

import os
import time

import pytest

from pybpf.errors import KernelError
from pybpf.kernel import map as maps
from pybpf.sys import abi
from restrict import release


@pytest.mark.kernel
def test_an_object_is_there_until_its_last_fd_is_closed() -> None:
    try:
        made = maps.create(abi.BPF_MAP_TYPE_ARRAY, 4, 4, 1, name="release")
    except KernelError as e:
        if os.geteuid() == 0:
            raise
        pytest.skip(f"no maps can be made here: {e}")
    command = abi.BPF_MAP_GET_NEXT_ID
    with made:
        idents = [made.id, 0x7FFFFFF0]
        assert release.existing(idents, command) == [made.id]
        before = time.monotonic()
        assert release._wait(idents, command, before + 0.1) == [made.id]
        assert time.monotonic() - before >= 0.1
    # The kernel frees it after a grace period.
    assert release._wait(idents, command, time.monotonic() + 120) == []
