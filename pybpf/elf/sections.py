# SPDX-License-Identifier: BSD-2-Clause
"""SEC() names: which program type, attach type and flags a section's name stands for.

The vocabulary is libbpf's (section_table.py, which tools/gen_sections writes); the kernel tree's
document "Program Types and ELF Sections" describes it. A name that is written out wins over one
that takes a target.
"""

from __future__ import annotations

from pybpf.elf.section_table import SECTION_TABLE
from pybpf.sys import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from pybpf.record import NamedTuple

__all__ = ["SECTIONS", "SectionDef", "find", "nearest", "split"]

SLEEPABLE = abi.BPF_F_SLEEPABLE
FRAGS = abi.BPF_F_XDP_HAS_FRAGS


class SectionDef(NamedTuple):
    """One SEC() definition.

    pattern: "name" matches exactly, "name+" also "name/target".
    btf:     how the attach target is named in kernel BTF: (prefix, kind name), or None.
    multi:   many targets, chosen when attaching rather than when loading.
    optional_attach_type: kernels before 4.17 know no expected attach type: it may be left out.
    """

    pattern: str
    type: int
    attach_type: int = 0
    flags: int = 0
    btf: tuple[str, str] | None = None
    multi: bool = False
    optional_attach_type: bool = False

    @property
    def prefix(self) -> str:
        """The name without the marker for targets."""
        return self.pattern.rstrip("+")

    @property
    def takes_target(self) -> bool:
        """Whether "name/target" is understood."""
        return self.pattern.endswith("+")


_FUNC = ("", "FUNC")
# Attach type → how the target that a section names is called in kernel BTF.
_BTF_NAMES = {
    abi.BPF_TRACE_RAW_TP: ("btf_trace_", "TYPEDEF"),
    abi.BPF_TRACE_ITER: ("bpf_iter_", "FUNC"),
    abi.BPF_LSM_MAC: ("bpf_lsm_", "FUNC"),
    abi.BPF_LSM_CGROUP: ("bpf_lsm_", "FUNC"),
}


def _definition(pattern: str, program: str, attach: str, letters: str) -> SectionDef:
    attach_type = getattr(abi, f"BPF_{attach}") if attach else 0
    return SectionDef(
        pattern,
        getattr(abi, f"BPF_PROG_TYPE_{program}"),
        attach_type,
        (SLEEPABLE if "s" in letters else 0) | (FRAGS if "f" in letters else 0),
        btf=_BTF_NAMES.get(attach_type, _FUNC) if "b" in letters else None,
        multi="m" in letters,
        optional_attach_type="o" in letters,
    )


SECTIONS: tuple[SectionDef, ...] = tuple(_definition(*row) for row in SECTION_TABLE)
_EXACT = {d.prefix: d for d in reversed(SECTIONS)}


def split(section: str) -> tuple[str, bool]:
    """(name without a leading "?", whether its programs are loaded by default)."""
    if section.startswith("?"):
        return section[1:], False
    return section, True


def find(section: str) -> tuple[SectionDef, str | None] | None:
    """The definition for a section's name (without "?") and its target, or None if unknown."""
    exact = _EXACT.get(section)
    if exact is not None:
        return exact, None
    cut = section.find("/")
    while cut >= 0:  # "uprobe//usr/bin/x:f" has slashes in its target
        definition = _EXACT.get(section[:cut])
        if definition is not None and definition.takes_target:
            return definition, section[cut + 1 :]
        cut = section.find("/", cut + 1)
    return None


def nearest(section: str) -> list[str]:
    """Known names that look like an unknown one, nearest first (at most three)."""
    import difflib

    head = section.split("/", 1)[0]
    names = list(_EXACT)
    return difflib.get_close_matches(section, names, 3) or difflib.get_close_matches(head, names, 3)
