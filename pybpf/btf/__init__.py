# SPDX-License-Identifier: BSD-2-Clause
"""BTF: read (lazily), write, BTF.ext, value layouts, C declarations.

Import what you need from the modules: model (Btf, Type), ext (BtfExt), write (BtfWriter),
layout, cdecl, format.
"""
