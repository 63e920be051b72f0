# SPDX-License-Identifier: BSD-2-Clause
"""The kernels the guest is run on."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import GuestError

__all__ = ["LANES", "Lane", "lane_of"]


@dataclass(frozen=True)
class Lane:
    """A kernel and how it is started.

    *series* is the version the lane is about; *suite* where its packages come from; *firmware*
    whether it starts under OVMF, with the project's certificate in UEFI ``db`` (kernels before
    7.0 have no ``.dm-verity`` keyring, so ``.platform`` must hold the certificate).
    """

    name: str
    series: str
    suite: str
    firmware: bool
    dm_verity_keyring: bool

    @property
    def main_modules(self) -> tuple[tuple[str, str], ...]:
        """(module, parameters) in the order in which the guest loads them.

        Dependencies are added when the initramfs is made.  insmod does not read module
        parameters from the kernel command line, so they are given here.
        """
        verity = "require_signatures=1"
        if self.dm_verity_keyring:
            verity += " keyring_unsealed=1"
        return (
            ("virtio_blk", ""),
            ("loop", ""),
            ("dm_mod", ""),
            ("dm_verity", verity),
            ("overlay", ""),
            ("squashfs", ""),
            ("erofs", ""),
        )


LANES: dict[str, Lane] = {
    lane.name: lane
    for lane in (
        Lane("7.3", "7.3", "trixie-backports", firmware=False, dm_verity_keyring=True),
        Lane("6.12", "6.12", "trixie", firmware=True, dm_verity_keyring=False),
    )
}


def lane_of(name: str) -> Lane:
    """The lane *name*.

    Raises:
        GuestError: there is no such lane.
    """
    try:
        return LANES[name]
    except KeyError:
        raise GuestError(f"no lane {name!r}; there are {', '.join(LANES)}") from None
