# SPDX-License-Identifier: BSD-2-Clause
"""Fuzzing of everything that pybpf reads and others may have written (see tools/fuzz)."""
