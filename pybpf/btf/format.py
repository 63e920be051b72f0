# SPDX-License-Identifier: BSD-2-Clause
"""The formats of BTF and BTF.ext, declared with construct.

This is the readable definition, and it can build as well as parse. The reading of 100,000
types goes through words instead (model, scan); tests hold the two against each other.
Sources: include/uapi/linux/btf.h, include/uapi/linux/bpf.h, Documentation/bpf/btf.rst.
"""

from __future__ import annotations

from typing import Any

from construct import (
    Adapter,
    Array,
    Bytes,
    Computed,
    Const,
    Construct,
    ConstructError,
    GreedyRange,
    If,
    Int8ub,
    Int8ul,
    Int16ub,
    Int16ul,
    Int32sb,
    Int32sl,
    Int32ub,
    Int32ul,
    Padding,
    Struct,
    Switch,
    this,
)

from pybpf.btf.consts import (
    BTF_MAGIC,
    KIND_ARRAY,
    KIND_DATASEC,
    KIND_DECL_TAG,
    KIND_ENUM,
    KIND_ENUM64,
    KIND_FUNC_PROTO,
    KIND_INT,
    KIND_MASK,
    KIND_SHIFT,
    KIND_STRUCT,
    KIND_UNION,
    KIND_VAR,
    VLEN_MASK,
)
from pybpf.errors import FormatError

__all__ = ["BIG", "LITTLE", "Formats", "formats", "parse"]


class _InfoBits(Adapter):  # type: ignore[misc]
    """Bits of btf_type.info: 0..23 vlen, 24..30 kind, 31 kflag (widths of kernel 7.3)."""

    def _decode(self, obj: int, context: Any, path: Any) -> dict[str, int]:
        return {
            "vlen": obj & VLEN_MASK,
            "kind": (obj >> KIND_SHIFT) & KIND_MASK,
            "kflag": obj >> 31,
        }

    def _encode(self, obj: dict[str, int], context: Any, path: Any) -> int:
        return obj["kflag"] << 31 | obj["kind"] << KIND_SHIFT | obj["vlen"]


class Formats:
    """The declarations for one byte order."""

    def __init__(self, byteorder: str) -> None:
        little = byteorder == "little"
        u8, u16 = (Int8ul, Int16ul) if little else (Int8ub, Int16ub)
        u32, s32 = (Int32ul, Int32sl) if little else (Int32ub, Int32sb)
        self.byteorder = byteorder

        # struct btf_header
        self.header: Construct = Struct(
            "magic" / Const(BTF_MAGIC, u16),
            "version" / u8,
            "flags" / u8,
            "hdr_len" / u32,
            "type_off" / u32,
            "type_len" / u32,
            "str_off" / u32,
            "str_len" / u32,
            "layout_off" / If(this.hdr_len >= 32, u32),
            "layout_len" / If(this.hdr_len >= 32, u32),
        )
        # struct btf_layout, one for each kind (kernel 7.x)
        self.layout: Construct = GreedyRange(
            Struct("info_sz" / u8, "elem_sz" / u8, "flags" / u16)
        )

        member = Struct("name_off" / u32, "type" / u32, "offset" / u32)
        entries = {
            # u32: bits 24..27 encoding, 16..23 offset, 0..7 bits
            KIND_INT: Struct("encoding" / u32),
            KIND_ARRAY: Struct("type" / u32, "index_type" / u32, "nelems" / u32),
            KIND_STRUCT: Array(this.info.vlen, member),
            KIND_UNION: Array(this.info.vlen, member),
            KIND_ENUM: Array(this.info.vlen, Struct("name_off" / u32, "val" / s32)),
            KIND_FUNC_PROTO: Array(this.info.vlen, Struct("name_off" / u32, "type" / u32)),
            KIND_VAR: Struct("linkage" / u32),
            KIND_DATASEC: Array(
                this.info.vlen, Struct("type" / u32, "offset" / u32, "size" / u32)
            ),
            KIND_DECL_TAG: Struct("component_idx" / s32),
            KIND_ENUM64: Array(
                this.info.vlen,
                Struct("name_off" / u32, "val_lo32" / u32, "val_hi32" / u32),
            ),
        }
        # struct btf_type and what follows it
        self.type: Construct = Struct(
            "name_off" / u32,
            "info" / _InfoBits(u32),
            "size_or_type" / u32,
            "data" / Switch(this.info.kind, entries, default=Computed(None)),
        )
        self.types: Construct = GreedyRange(self.type)

        # struct btf_ext_header
        self.ext_header: Construct = Struct(
            "magic" / Const(BTF_MAGIC, u16),
            "version" / u8,
            "flags" / u8,
            "hdr_len" / u32,
            "func_info_off" / u32,
            "func_info_len" / u32,
            "line_info_off" / u32,
            "line_info_len" / u32,
            "core_relo_off" / If(this.hdr_len >= 32, u32),
            "core_relo_len" / If(this.hdr_len >= 32, u32),
        )
        # struct bpf_func_info, bpf_line_info, bpf_core_relo
        self.func_info: Construct = self._ext_part(
            u32, Struct("insn_off" / u32, "type_id" / u32), 8
        )
        self.line_info: Construct = self._ext_part(
            u32,
            Struct("insn_off" / u32, "file_name_off" / u32, "line_off" / u32, "line_col" / u32),
            16,
        )
        self.core_relo: Construct = self._ext_part(
            u32,
            Struct("insn_off" / u32, "type_id" / u32, "access_str_off" / u32, "kind" / u32),
            16,
        )

    @staticmethod
    def _ext_part(u32: Construct, record: Construct, known: int) -> Construct:
        """struct btf_ext_info_sec after the size of one record."""
        return Struct(
            "rec_size" / u32,
            "sections"
            / GreedyRange(
                Struct(
                    "sec_name_off" / u32,
                    "num_info" / u32,
                    "records"
                    / Array(
                        this.num_info,
                        Struct("record" / record, Padding(this._._.rec_size - known)),
                    ),
                )
            ),
        )

    def strings(self, length: int) -> Construct:
        """A string section: NUL-terminated strings, the first one empty."""
        return Bytes(length)


LITTLE = Formats("little")
BIG = Formats("big")


def formats(byteorder: str) -> Formats:
    """The declarations for "little" or "big"."""
    return LITTLE if byteorder == "little" else BIG


def parse(construct: Construct, data: bytes, what: str) -> Any:
    """``construct.parse`` that raises FormatError with the field's path."""
    try:
        return construct.parse(data)
    except ConstructError as e:
        raise FormatError(f"{what} does not parse: {e}") from e
