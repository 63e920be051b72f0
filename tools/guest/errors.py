# SPDX-License-Identifier: BSD-2-Clause
"""Errors of the virtual machine instrument."""

from __future__ import annotations

__all__ = ["GuestError"]


class GuestError(Exception):
    """Something the guest needs could not be had; the message says what and what to do."""
