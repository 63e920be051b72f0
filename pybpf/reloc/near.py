# SPDX-License-Identifier: BSD-2-Clause
"""Names like one that is missing, in kernel BTF and /proc/kallsyms; imported after a failure."""

from __future__ import annotations

import difflib
from weakref import WeakKeyDictionary

from pybpf.btf.model import Btf
from pybpf.errors import FormatError
from pybpf.kernel.kallsyms import symbols

__all__ = ["did_you_mean", "nearest_addresses", "nearest_symbols"]

# Parts of kernel names that are put before the name a programmer writes.
_PREFIXES = ("bpf_lsm_", "btf_trace_", "bpf_iter_", "bpf_struct_ops_")
_MAX_COMPARED = 500  # difflib takes some 20 us a name
_MAX_FOUND = 4000  # places where a word of the name stands in the kernel's strings
_WORDS = 6
_KEPT = 256  # answers


def nearest_addresses(name: str, count: int = 3) -> list[str]:
    """Symbols in /proc/kallsyms that look like ``name``, nearest first."""
    # Those that begin or end as the name does, and are about as long.
    found = {
        text
        for _, text in symbols()
        if abs(len(text) - len(name)) <= 3 and (text[:4] == name[:4] or text[-4:] == name[-4:])
    }
    return difflib.get_close_matches(name, sorted(found)[:_MAX_FOUND], count, cutoff=0.75)


def did_you_mean(name: str, kind: int, btf: Btf) -> str:
    """ " (did you mean …?)" to end a sentence with, or nothing."""
    near = nearest_symbols(name, kind, btf)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def nearest_symbols(name: str, kind: int, btf: Btf | None = None, count: int = 3) -> list[str]:
    """Names of ``kind`` in kernel BTF that look like ``name``, nearest first.

    btf: None for the running kernel's vmlinux. An empty list where it cannot be read.
    """
    try:
        btf = btf or Btf.vmlinux()
        # Each program of an object may miss the same name; looking for it takes some 30 ms.
        answers = _answers.setdefault(btf, {})
        if (name, kind) not in answers:
            if len(answers) >= _KEPT:
                answers.clear()
            answers[name, kind] = _nearest(name, kind, btf, 3)
        return answers[name, kind][:count]
    except (OSError, FormatError):
        return []


_answers: WeakKeyDictionary[Btf, dict[tuple[str, int], list[str]]] = WeakKeyDictionary()


def _nearest(name: str, kind: int, btf: Btf, count: int) -> list[str]:
    prefix = next((p for p in _PREFIXES if name.startswith(p)), "")
    bare = name[len(prefix) :]
    # The rarest words are the long ones. Looking for them in all strings at once is faster by
    # far than looking at each string.
    words = sorted({w for w in bare.split("_") if len(w) > 2}, key=lambda w: (-len(w), w))
    wanted = [w.encode() for w in words[:_WORDS]]
    if not prefix:
        wanted.append(b"\0" + bare[:3].encode())
    wanted.append(bare[-4:].encode() + b"\0")
    start, end = btf.header.str_range
    strings = bytes(btf.data[start:end])
    apart = max(2, len(bare) // 3)
    found: dict[bytes, None] = {}
    for word in wanted:
        at = strings.find(word)
        left = _MAX_FOUND
        while at >= 0 and left:
            left -= 1
            first = strings.rfind(b"\0", 0, at + 1) + 1
            last = strings.find(b"\0", at + 1)
            # Only names of about the same length are worth comparing.
            if abs(last - first - len(name)) <= apart:
                found[strings[first:last]] = None
            at = strings.find(word, max(last, at + 1))
    compared = []
    for raw in found:
        text = raw.decode("ascii", "replace")
        if not text.startswith(prefix):
            continue
        shared = len(set(words).intersection(text[len(prefix) :].split("_")))
        compared.append((-shared, text))
    compared.sort()
    texts = [text for _, text in compared[:_MAX_COMPARED]]
    near = difflib.get_close_matches(name, texts, 4 * count, cutoff=0.75)
    return [n for n in near if btf.find(n, kind)][:count]
