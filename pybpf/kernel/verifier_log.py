# SPDX-License-Identifier: BSD-2-Clause
"""One paragraph out of a verifier log: the reason, the instruction, the source line.

The classic log (every kernel so far) is a list of lines of these kinds:

    func#0 @0                                   bookkeeping
    ; return *value; @ count.bpf.c:32           source line (the "@ file:line" since 6.8)
    6: (61) r0 = *(u32 *)(r0 +0)   ; R0=…       an instruction, mostly with state behind it
    R0=map_value_or_null(…) R10=fp0             state
    from 3 to 9: R0=… R10=fp0                   a path taken up again
    R0 invalid mem access 'map_value_or_null'   the reason: what is none of the others
    processed 6 insns (limit 1000000) …         statistics

The reason is the last group of lines of no other kind: the verifier often says half in one line
("invalid access to packet, off=0 size=1, …") and half in the next ("R2 offset is outside of the
packet"). Linux 7.3 appends a structured part, "Verification failed: …" with Reason, At, Causal
path and Suggestion (kernel/bpf/diagnostics.c); its Reason and Suggestion go into the paragraph too.

This runs in an initramfs as well: no regular expressions. tests/unit/verifier_logs has logs of
6.12, 6.18 and 7.3.
"""

from __future__ import annotations

__all__ = ["Explanation", "explain", "summarize"]

_STATISTICS = (
    "processed ", "verification time ", "stack depth ", "subprog ", "insns_", "max_states",
)  # fmt: skip
_BOOKKEEPING = (
    "func#", "Func#", "func '", "last_idx ", "regs=", "parent ", "mark_precise:", "from ", "frame",
    "caller:", "callee:", "returning from callee:", "to caller at ", "propagating ", "Validating ",
    "live regs", "Live regs", "arg#", "processing ", "cur state: ", "old state: ",
)  # fmt: skip
# Calls that a loader writes over instructions it could not complete. The first is libbpf's and
# the kernel's mark of a failed CO-RE relocation (relo_core.c: bpf_core_poison_insn), the second
# range libbpf's mark of a weak kfunc that the kernel lacks.
POISON_CORE = 0xBAD2310
POISON_KFUNC = 2002000000


def _is_instruction(line: str) -> bool:
    """ "12: (85) call …", also as "12: R0=…" (state printed at an instruction)."""
    head, colon, rest = line.partition(":")
    if not colon or not head.strip().isdigit():
        return False
    rest = rest.lstrip()
    return rest.startswith("(") or _is_state(rest)


def _is_state(line: str) -> bool:
    """ "R0=scalar() R10=fp0", "R1_w=ctx()", "fp-8=…", "refs=…"."""
    name, equals, _ = line.split(" ", 1)[0].partition("=")
    if not equals:
        return False
    name = name.split("_")[0]
    if name[:1] == "R" and name[1:].isdigit():
        return True
    return name.startswith("fp-") or name in ("refs", "cb", "async")


def _is_reason(line: str) -> bool:
    if not line.strip() or line.startswith((";", *_STATISTICS)):
        return False
    if line.startswith(_BOOKKEEPING) and not _complains(line):
        return False
    return not _is_instruction(line) and not _is_state(line)


def _complains(line: str) -> bool:
    """Lines that begin like bookkeeping but give the reason."""
    if line.startswith("arg#"):
        return True
    if line.startswith("func '"):
        # "func 'f' arg0 has btf_id 7 type STRUCT 's'" is told of every typed context load.
        return " has btf_id " not in line
    if line.startswith("frame"):
        # "frame1: R0=…" is state, "frame pointer is read only" is not.
        return not line[5:6].isdigit()
    return line.startswith("Func#") and "invalid" in line


class Explanation:
    """The parts of a summary; None where the log does not tell.

    reason: the verifier's words; detail and suggestion: those of 7.3; insn, text: number (slot)
    and disassembly of the instruction; source: "file:line", code: the line of C.
    """

    __slots__ = ("code", "detail", "insn", "reason", "source", "suggestion", "text")

    def __init__(self) -> None:
        self.reason: str | None = None
        self.detail: str | None = None
        self.suggestion: str | None = None
        self.insn: int | None = None
        self.text: str | None = None
        self.source: str | None = None
        self.code: str | None = None

    def paragraph(self) -> str:
        """Reason, detail, instruction and source line in sentences."""
        text = _sentence(self.reason or "The verifier gave no reason")
        if self.detail:
            text += f" {_sentence(self.detail)}"
        if self.insn is not None:
            text += f" At instruction {self.insn}"
            text += f" ({self.text})" if self.text else ""
            text += f", {self._place()}." if self.code or self.source else "."
        elif self.code or self.source:
            text += f" At {self._place()}."
        if self.suggestion:
            text += f" The kernel suggests: {_sentence(self.suggestion)}"
        return text

    def _place(self) -> str:
        if self.source and self.code:
            return f"{self.source}: {self.code}"
        return self.source or f"source line {self.code}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def explain(log: str) -> Explanation:
    """Find what ``Explanation`` has in the log of a refused program."""
    found = Explanation()
    lines = [line.rstrip() for line in log.splitlines()]
    start = _structured(lines, found)
    body = lines if start is None else lines[:start]
    at = next((i for i in range(len(body) - 1, -1, -1) if _is_reason(body[i])), len(body))
    first = at
    while first and at < len(body) and at - first < 4 and _is_reason(body[first - 1]):
        first -= 1
    if at < len(body):
        found.reason = "; ".join(line.strip() for line in body[first : at + 1])
    for line in reversed(body[:first]):
        if found.insn is None and _is_instruction(line):
            head, _, rest = line.partition(":")
            rest = rest.strip()
            if rest.startswith("("):
                found.insn = int(head)
                found.text = rest.split(") ", 1)[-1].split(";", 1)[0].strip()
        if line.startswith(";"):
            code, separator, place = line.lstrip("; ").rpartition(" @ ")
            found.code = (code if separator else place).strip()
            found.source = place.strip() if separator else None
            break
    _poison(found)
    return found


def _poison(found: Explanation) -> None:
    """Say what a call of a made-up helper means: its number was put there by a loader."""
    marker = "invalid func unknown#"
    if not found.reason or marker not in found.reason:
        return
    word = found.reason.split(marker, 1)[1].split(";")[0].strip()
    number = int(word) if word.isdigit() else 0
    if number == POISON_CORE:
        found.detail = (
            "The call marks an instruction whose CO-RE relocation has no match in this kernel, and "
            "which can be reached although the code should ask first (bpf_core_field_exists and "
            "the like)"
        )
    elif POISON_KFUNC <= number < POISON_KFUNC + 1_000_000:
        found.detail = (
            "The call marks a weak kfunc that this kernel does not have, and which can be reached "
            "although the code should ask first (bpf_ksym_exists)"
        )


def _structured(lines: list[str], found: Explanation) -> int | None:
    """Read the structured part of 7.3; returns the line it starts at, None if there is none."""
    start = next(
        (i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("Verification failed")),
        None,
    )
    if start is None:
        return None
    section = ""
    texts: dict[str, list[str]] = {"Reason": [], "Suggestion": []}
    for line in lines[start + 1 :]:
        if line[:1] not in (" ", ""):
            # Headings and what comes behind the part ("processed …") stand at the margin.
            section = line[:-1] if line.endswith(":") else ""
        elif line.strip() and section in texts:
            texts[section].append(line.strip())
        elif section == "At":
            _context(line.strip(), found)
    found.detail = " ".join(texts["Reason"]) or None
    found.suggestion = " ".join(texts["Suggestion"]) or None
    return start


def _context(line: str, found: Explanation) -> None:
    """A line below "At:": "count @ count.bpf.c:32:16", ">>> 6 | (61) r0 = …", ">>> 32 | code"."""
    if line.startswith(">>>"):
        number, bar, text = line[3:].partition("|")
        text = text.strip()
        if bar and number.strip().isdigit() and text.startswith("("):
            found.insn, found.text = int(number), text.split(") ", 1)[-1]
        elif bar:
            found.code = text
    elif " @ " in line and found.source is None:
        place = line.rpartition(" @ ")[2].split(":")
        found.source = ":".join(place[:2])


def summarize(log: str) -> str:
    """One paragraph: ``explain(log).paragraph()``."""
    return explain(log).paragraph()
