# SPDX-License-Identifier: BSD-2-Clause
"""Self-running bundles: a file with a frozen Plan, and everything that is needed to run it.

``python3 -I -S FILE`` loads and attaches; ``FILE --help`` tells the rest. The file is Python
source, so that any Python from 3.11 runs it, and at its heart are the bytes of ``pybpf bundle``
without ``.pyz``, unchanged. (A zip archive, the usual form of such files, is opened by way of
runpy and importlib.util, which cost 5 ms: half of what loading a bundle costs.)

Lines, each ended by a newline:

    ``#coding:latin-1``     so that no damaged byte behind it keeps Python from running the check
    ``#pybpf bundle 1 …``   magic and version of this format; what it is, for people
    the stub                one ``try`` statement: checks the file, unpacks, calls the loader
    ``#P…``                 the Plan's bytes (pybpf.plan.frozen)
    ``#c…``                 the executor's byte code (pybpf.pyz.merge), for the Python that made it
    ``#d…``                 byte code of what is imported on demand
    ``#s…`` ``#t…``         the same two as source, for other versions of Python; "t" also has what
                            is needed too seldom to be in "d"
    ``#=xxxxxxxx``          CRC-32 of everything before this line, in hex

A section is zlib's compression of its bytes in base64; "J" and "M" are written as "!" and "~",
because they are one bit away from the ends of lines. Python reads lines of some thousand
characters fastest, so a section goes on in lines that begin with ``#+``.

The CRC finds every change of up to 32 bits in a row before anything is unpacked; the Plan has its
own SHA-256 inside. Both find damage and not forgery: who can write the file can make it do
anything, as with any program. Damage in the first line or in the stub may end as an error of
Python's own; nothing is loaded then either. A file cut off within its first two lines is an
empty program to Python: it does nothing and says nothing.

The same Plan, pybpf and Python give the same bytes.
"""

from __future__ import annotations

from binascii import Error as _Base64Error
from binascii import a2b_base64, b2a_base64, crc32

from pybpf.errors import FormatError

__all__ = ["HEAD", "VERSION", "build", "is_container", "plan_of"]

VERSION = 1
HEAD = b"#coding:latin-1\n#pybpf bundle "
_TAIL = 11  # "#=", eight hex digits, newline
_SECTIONS = b"Pcdst"
_WIDTH = 7600  # Python's tokenizer reads into 8 KiB at a time

# One statement, which is not whole before its last line: a file that is cut off in it is no
# program. The loader does not come back. o: where the sections begin, from the end of the file.
_STUB = """\
try:
 import sys,_frozen_importlib_external as m
 from binascii import a2b_base64 as a,crc32 as c
 from marshal import loads as l
 from zlib import decompress as z
 with open(__file__,'rb')as f:d=f.read()
 if b'#=%08x\\n'%c(d[:-11])!=d[-11:]:raise EOFError
 o={offsets!r}
 def u(i):return z(a(d[o[i]:o[i+1]-3].replace(b'\\n#+',b'').replace(b'!',b'J').replace(b'~',b'M')))
 k=1 if m.MAGIC_NUMBER=={magic!r}else 3
 n=l(u(k))
 g={{}}
 exec(n[0][2],g)
 g['start'](n,lambda i:l(u(i)),(2,4)if k<2 else(4,),u(0),__file__)
except EOFError:sys.exit(__file__+': the bundle is damaged or cut short: its CRC does not match. \
Make or copy it again.')
except ImportError as e:sys.exit(__file__+': this Python cannot run a bundle: %s.'%e)
"""


def build(plan: bytes) -> bytes:
    """The self-running bundle of a frozen Plan.

    Raises FormatError if ``plan`` is none, ImportError where pybpf was installed without sources.
    """
    from importlib.util import MAGIC_NUMBER

    from pybpf.plan.frozen import from_bytes
    from pybpf.pyz.merge import merge

    thawed = from_bytes(plan)
    merged = merge(thawed)
    title = (
        f"{VERSION} {thawed.name!a:.60}, {len(thawed.programs)} programs, {len(thawed.maps)} maps: "
        "python3 -I -S FILE --help; pybpf inspect FILE"
    )
    sections = [
        _packed(b"%c" % letter, data)
        for letter, data in zip(_SECTIONS, (plan, *merged.code(), *merged.sources()), strict=True)
    ]
    offsets = [-_TAIL]
    for section in reversed(sections):
        offsets.insert(0, offsets[0] - len(section))
    # A section's first two bytes are its mark; its last is the newline.
    stub = _STUB.format(magic=MAGIC_NUMBER, offsets=tuple(offset + 2 for offset in offsets))
    out = HEAD + title.encode() + b"\n" + stub.encode() + b"".join(sections)
    return out + b"#=%08x\n" % crc32(out)


def _packed(letter: bytes, data: bytes) -> bytes:
    """A section's lines."""
    from zlib import compress

    text = b2a_base64(compress(data, 9), newline=False)
    text = text.replace(b"J", b"!").replace(b"M", b"~")
    lines = [text[at : at + _WIDTH] for at in range(0, len(text), _WIDTH)]
    return b"#" + letter + b"\n#+".join(lines) + b"\n"


def is_container(data: bytes) -> bool:
    """Whether a file that begins with ``data`` claims to be a self-running bundle."""
    return data[: len(HEAD)] == HEAD[: len(data)] and len(data) > 4


def plan_of(data: bytes) -> bytes:
    """The frozen Plan in a self-running bundle; nothing of it is executed.

    Raises FormatError: damaged, cut short, or of a later version.
    """
    if data[: len(HEAD)] != HEAD:
        raise FormatError("this is no self-running bundle: it does not start as one.")
    version = data[len(HEAD) : len(HEAD) + 8].partition(b" ")[0]
    whole = b"#=%08x\n" % crc32(data[:-_TAIL]) == data[-_TAIL:]
    if whole and version != b"%d" % VERSION:
        raise FormatError(
            f"the bundle has version {version.decode('latin-1')}, this pybpf reads version "
            f"{VERSION}.",
            hint="Make it again with the pybpf that is to read it.",
        )
    if not whole:
        raise FormatError(
            "the bundle is damaged or cut short: its CRC does not match.",
            hint="Make or copy it again.",
        )
    text = data[data.find(b"\n#P") + 3 : data.find(b"\n#c")].replace(b"\n#+", b"")
    from zlib import decompressobj, error

    try:
        packed = a2b_base64(text.replace(b"!", b"J").replace(b"~", b"M"))
        unpacker = decompressobj()
        plan = unpacker.decompress(packed, _LARGEST)
        if not unpacker.eof:
            raise FormatError(f"the bundle's Plan is cut short or larger than {_LARGEST} bytes.")
    except (_Base64Error, error) as problem:
        raise FormatError(f"the bundle's Plan cannot be unpacked: {problem}.") from None
    return plan


_LARGEST = 1 << 28
