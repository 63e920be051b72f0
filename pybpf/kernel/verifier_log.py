# SPDX-License-Identifier: BSD-2-Clause
"""One paragraph out of a verifier log: the reason, the instruction, the source line.

The classic log (every kernel so far) is a list of lines of these kinds:

    func#0 @0                                   bookkeeping
    ; return map->value; @ prog.bpf.c:31        source line (the "@ file:line" since 6.8)
    5: (61) r0 = *(u32 *)(r0 +0)                an instruction, mostly with state behind it
    R0=map_value_or_null(…) R10=fp0             state
    from 3 to 9: R0=… R10=fp0                   a path taken up again
    R0 invalid mem access 'map_value_or_null'   the reason: what is none of the others
    processed 6 insns (limit 1000000) …         statistics

The reason is the last line that is of no other kind, with the lines before it where it says only
half (rules in ``_CONTINUES``). Linux 7.3 appends a structured part (kernel/bpf/diagnostics.c):
its Reason and Suggestion are then preferred.

This runs in an initramfs too: no regular expressions.
"""

from __future__ import annotations

__all__ = ["explain", "summarize"]

_STATISTICS = ("processed ", "verification time ", "stack depth ", "max_states_per_insn")
_BOOKKEEPING = (
    "func#", "last_idx ", "regs=", "parent ", "mark_precise:", "from ", "frame", "caller:",
    "callee:", "returning from callee:", "to caller at ", "propagating ", "Validating ",
    "Func#", "BPF program", "insn_", "-- BEGIN PROG LOAD LOG --", "-- END PROG LOAD LOG --",
    "live regs", "Live regs",
)  # fmt: skip


def _is_instruction(line: str) -> bool:
    """ "12: (85) call …", also as "12: R0=…" (state printed at an instruction)."""
    head, colon, rest = line.partition(":")
    if not colon or not head.strip().isdigit():
        return False
    rest = rest.lstrip()
    return rest.startswith("(") or _is_state(rest)


def _is_state(line: str) -> bool:
    """ "R0=scalar() R10=fp0", "R1_w=ctx(…)", "fp-8=…", "refs=…"."""
    word = line.split(" ", 1)[0]
    name, equals, _ = word.partition("=")
    if not equals:
        return False
    name = name.split("_")[0]
    if name[:1] == "R" and name[1:].isdigit():
        return True
    return name.startswith("fp-") or name in ("refs", "cb", "async", "frame1:")


def _is_reason(line: str) -> bool:
    if not line.strip() or line.startswith(("; ", ";")) or line.startswith(_STATISTICS):
        return False
    if line.startswith(_BOOKKEEPING) and not line.startswith("func#0 not"):
        return False
    return not _is_instruction(line) and not _is_state(line)


class Explanation:
    """The parts of a summary; None where the log does not tell."""

    __slots__ = ("insn", "reason", "source", "suggestion", "text")

    def __init__(self) -> None:
        self.reason: str | None = None
        self.insn: int | None = None
        self.text: str | None = None
        self.source: str | None = None
        self.suggestion: str | None = None


def explain(log: str) -> Explanation:
    """Find reason, instruction (slot number and disassembly), source line in ``log``."""
    found = Explanation()
    lines = [line.rstrip() for line in log.splitlines()]
    structured = _structured(lines, found)
    body = lines[:structured] if structured is not None else lines
    at = next((i for i in range(len(body) - 1, -1, -1) if _is_reason(body[i])), None)
    if at is not None and found.reason is None:
        found.reason = _reason(body, at)
    upto = at if at is not None else len(body)
    for line in reversed(body[:upto]):
        if found.insn is None and _is_instruction(line):
            head, _, rest = line.partition(":")
            rest = rest.strip()
            if rest.startswith("("):
                found.insn = int(head)
                found.text = rest.split(") ", 1)[-1].split(";", 1)[0].strip()
        if found.source is None and line.startswith(";"):
            found.source = line.lstrip("; ").strip()
        if found.insn is not None and found.source is not None:
            break
    return found


# A reason that begins like this needs the line before it: (start of the line, example).
_CONTINUES = (
    ("\t", "a line that is indented goes on from the one before"),
    ("invalid access to ", "R2 min value is outside … / invalid access to map value, …"),
    ("R", "a register's complaint may follow the sentence that explains it"),
    ("should have been in", "At program exit the register R0 has value … / should have been in"),
    ("arg#", "calling kernel function f is not allowed / arg#0 …"),
)


def _reason(body: list[str], at: int) -> str:
    parts = [body[at].strip()]
    first = at
    while first and len(parts) < 4 and _is_reason(body[first - 1]):
        if not body[first].startswith(tuple(start for start, _ in _CONTINUES)):
            break
        first -= 1
        parts.insert(0, body[first].strip())
    return "; ".join(parts)


def _structured(lines: list[str], found: Explanation) -> int | None:
    """Read the structured part of 7.3; returns the line it starts at, None if there is none."""
    start = None
    for i, line in enumerate(lines):
        if line.strip().strip("=- ").lower().startswith("verification failed"):
            start = i
    if start is None:
        return None
    section = ""
    texts: dict[str, list[str]] = {}
    for line in lines[start + 1 :]:
        bare = line.strip().strip("=- ")
        head, colon, rest = bare.partition(":")
        key = head.strip().lower()
        if key in ("reason", "causal path", "suggestion") and (colon or bare == head):
            section = key
            if rest.strip():
                texts.setdefault(section, []).append(rest.strip())
        elif bare and section and not bare.startswith(_STATISTICS):
            texts.setdefault(section, []).append(bare)
    if "reason" in texts:
        found.reason = " ".join(texts["reason"])
    if "suggestion" in texts:
        found.suggestion = " ".join(texts["suggestion"])
    return start


def summarize(log: str) -> str:
    """One paragraph; "the verifier gave no reason" if the log has none."""
    found = explain(log)
    reason = found.reason or "the verifier gave no reason"
    text = reason if reason.endswith((".", "!", "?")) else reason + "."
    if found.insn is not None:
        text += f" At instruction {found.insn}"
        text += f" ({found.text})" if found.text else ""
        text += f", source line: {found.source}." if found.source else "."
    elif found.source:
        text += f" Source line: {found.source}."
    if found.suggestion:
        text += f" The kernel suggests: {found.suggestion}"
    return text
