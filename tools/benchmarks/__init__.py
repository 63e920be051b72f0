# SPDX-License-Identifier: BSD-2-Clause
"""``tools/bench``: what loading costs, against C; what the policy costs, in a guest."""
