# SPDX-License-Identifier: BSD-2-Clause
"""Freeze an object to a bundle. PRODUCT DEPENDENCIES OBJECT BUNDLE."""

import sys

sys.path[0:0] = sys.argv[1:3]

import pybpf  # noqa: E402

with open(sys.argv[4], "wb") as file:
    file.write(pybpf.to_bytes(pybpf.compile(pybpf.read(sys.argv[3]), relocate="kernel")))
