# SPDX-License-Identifier: BSD-2-Clause
"""Virtual machines as a test instrument: packages, images, initramfs, qemu, results.

The modules of this package run on the host.  ``inside/`` holds what runs in the guest.
"""
