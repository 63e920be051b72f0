# SPDX-License-Identifier: BSD-2-Clause
"""BTF in the kernel: objects by fd and id, and names of modules' types."""

from __future__ import annotations

import os
import struct

import pytest

from pybpf import kernel
from pybpf.errors import FormatError, KernelError, UsageError
from pybpf.kernel import btf_lookup
from pybpf.kernel.btf import BtfObject, load_fd
from pybpf.kernel.map import Map
from tests.kernel.helpers import small_btf

pytestmark = pytest.mark.kernel


def test_an_object_of_ours(prefix: str) -> None:
    with BtfObject.from_fd(load_fd(small_btf())) as mine:
        info = mine.info()
        assert info["kernel_btf"] is False
        assert info["name"] == ""
        assert info["size"] == len(small_btf())
        assert mine.data() == small_btf()
        assert info["id"] in kernel.btf_ids()
        with BtfObject.from_id(mine.id) as again:
            assert again.id == mine.id
        with pytest.raises(UsageError, match="is btf, not a BPF map"):
            Map.from_fd(mine.fd)


def test_the_kernels_own() -> None:
    names = {}
    for ident in kernel.btf_ids():
        with BtfObject.from_id(ident) as found:
            info = found.info()
            if info["kernel_btf"]:
                names[info["name"]] = info["size"]
    assert names["vmlinux"] == os.stat("/sys/kernel/btf/vmlinux").st_size
    assert set(names) == set(os.listdir("/sys/kernel/btf"))


def test_an_id_that_is_gone() -> None:
    with pytest.raises(KernelError, match="ENOENT") as caught:
        BtfObject.from_id(0x7FFFFFFF)
    assert caught.value.call == "BPF_BTF_GET_FD_BY_ID"
    assert caught.value.where == {"btf": "id 2147483647"}


def _names(module: str) -> list[tuple[str, int]]:
    """Names of structs and functions that only this module's BTF has."""
    data = (btf_lookup._read(module) or b"", btf_lookup._read("vmlinux") or b"")
    strings = btf_lookup._strings(data[0])
    base_len = btf_lookup._header(data[1])[4]
    hdr_len, toff, tlen, _, _ = btf_lookup._header(data[0])
    pos, found = hdr_len + toff, []
    while pos < hdr_len + toff + tlen:
        name_off, info = struct.unpack_from("=II", data[0], pos)
        kind = info >> 24 & 0x7F
        if kind in (4, 12) and name_off >= base_len:
            start = name_off - base_len
            found.append((strings[start : strings.index(b"\0", start)].decode(), kind))
        fixed, each = btf_lookup._EXTRA.get(kind, (0, 0))
        pos += 12 + fixed + each * (info & 0xFFFFFF)
    return found


def test_names_of_modules(prefix: str) -> None:
    """Asking the kernel and reading BTF agree on types of every loaded module (up to 4)."""
    modules = sorted(set(os.listdir("/sys/kernel/btf")) - {"vmlinux"})[:4]
    if not modules:
        pytest.skip("no module with BTF is loaded on this machine")
    for module in modules:
        names = _names(module)
        queries = [(name, kind, module) for name, kind in (*names[:5], *names[-5:])]
        asked, read = btf_lookup.resolve(queries), btf_lookup.scan(queries)
        try:
            for query, one, other in zip(queries, asked, read, strict=True):
                assert one is not None, query
                assert other is not None, query
                assert one[1] == other[1], query
                assert btf_lookup._btf_name(one[0]) == btf_lookup._btf_name(other[0]) == module
        finally:
            btf_lookup._close(asked)
            btf_lookup._close(read)
        # The same names without saying which module, and in a module that has not got them.
        free = btf_lookup.resolve([(queries[0][0], queries[0][1], None)])
        assert free[0] is not None
        btf_lookup._close(free)
        assert btf_lookup.resolve([(queries[0][0], queries[0][1], "no_such_module")]) == [None]


def test_broken_btf_is_refused_in_our_words() -> None:
    data = small_btf()
    for broken, sentence in (
        (data[:10], "shorter than its header"),
        (b"\0\0" + data[2:], "starts with 0x0"),
        (data[:-1], "cut short"),
    ):
        with pytest.raises(FormatError, match=sentence):
            btf_lookup.find_ids(broken, [("int", 1)])
    unknown = bytearray(data)
    struct.pack_into("=I", unknown, 28, 99 << 24)
    with pytest.raises(FormatError, match="kind 99"):
        btf_lookup.find_ids(bytes(unknown), [("int", 1)])
    assert btf_lookup.find_ids(data, [("int", 1), ("int", 4), ("in", 1)]) == (1, [1, 0, 0])
