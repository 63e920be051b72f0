# SPDX-License-Identifier: BSD-2-Clause
"""``restrict initramfs build``: whole, and as a segment before another initramfs, it boots to the
signed root with the policy armed."""

from __future__ import annotations

from tests.vm.initramfs_cases import handed_over, kept, pins_stay
from tests.vm.initramfs_images import segment_and_generator, standalone
from tests.vm.restrict_boot import console
from tests.vm.scenario import Guest, Scenario

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

whole = Scenario("whole", initramfs=standalone)
handed_over(whole, "root switched, executing /usr/bin/python3")


@whole.case()
def each_step_was_said(guest: Guest) -> None:
    lines = console()
    assert any(f"armed: {len(guest.state['policy'].links)} programs" in line for line in lines)
    assert not any("still trusted" in line for line in lines)
    keyring = any("1 certificates in .dm-verity, which is restricted now" in x for x in lines)
    assert keyring == (guest.lane == "7.3")


segment = Scenario(
    "segment", initramfs=segment_and_generator, append="rdinit=/restrict/init -- one two"
)
handed_over(segment, "was still trusted")


def _said(name: str) -> str:
    with open(f"/run/test/{name}") as file:
        return file.read().strip()


@segment.case()
def the_generator_ran_under_the_policy(guest: Guest) -> None:
    """Its own programs ran, a copy on a tmpfs did not; it got the kernel's arguments."""
    guest.note(_said("said"))
    assert _said("initramfs") == "allowed"
    assert _said("tmpfs") == "126"
    assert "Operation not permitted" in _said("said")
    assert _said("arguments").startswith("/init one two")  # OVMF adds a word of its own


# ── the same, kept by what no program of the generator knows of ──


def _by_default(run: Mapping[str, Any]) -> bytes:
    return segment_and_generator(run, keep="")


segment_default = Scenario("segment_default", initramfs=_by_default, append="rdinit=/restrict/init")
kept(segment_default, "pins")
pins_stay(segment_default)
