# SPDX-License-Identifier: BSD-2-Clause
"""docs/LIBRARY.md, run as it stands."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.helpers import open_fds

pytestmark = pytest.mark.kernel

TREE = Path(__file__).parent.parent.parent
GUIDE = TREE / "docs" / "LIBRARY.md"


def test_every_block_of_the_guide_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TREE)
    gc.collect()
    before = open_fds()
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) >= 9
    names: dict[str, Any] = {"__name__": "guide"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{GUIDE.name}, block {number}", "exec"), names)
    names.clear()
    gc.collect()
    assert open_fds() == before
