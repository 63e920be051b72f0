# SPDX-License-Identifier: BSD-2-Clause
"""Commands of the work tree, and the packages behind them."""
