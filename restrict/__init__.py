# SPDX-License-Identifier: BSD-2-Clause
"""restrict: policies for a verified Linux system, written as BPF LSM programs and run by pybpf.

Nothing is imported here: PID 1 in an initramfs takes only the modules it needs.
"""
