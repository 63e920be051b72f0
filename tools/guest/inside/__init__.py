# SPDX-License-Identifier: BSD-2-Clause
"""What runs in the guest: PID 1 and what it needs.  Standard library only."""
