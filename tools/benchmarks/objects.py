# SPDX-License-Identifier: BSD-2-Clause
"""The objects whose loading is measured.

Programs on trampolines (fentry, fmod_ret, LSM) cannot be loaded on every host, so the objects
are such whose programs are all of other types; every contender then loads all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.benchmarks.build import HERE, bpf_object
from tools.benchmarks.errors import BenchError
from tools.corpus_compare import find_corpus

__all__ = ["DEFAULT", "Subject", "choose", "corpus_folder"]

#: Words for objects: of the corpus by the beginning of their file's name, else of bpf/ here.
DEFAULT = ("sysctl", "opensnoop", "biolatency", "tcptracer")


@dataclass(frozen=True)
class Subject:
    """An object to load: a short name, the file, and where it is from."""

    name: str
    path: Path
    origin: str


def corpus_folder(given: str | None = None) -> Path | None:
    """The objects of the corpus, where tools/corpus looks for it too; None if there is none.

    Raises BenchError if the folder given is none.
    """
    found = find_corpus(given)
    if given and (found is None or found != Path(given)):
        raise BenchError(f"{given} is no corpus: it has no folder objects")
    return None if found is None else found / "objects"


def _own() -> list[str]:
    return sorted(path.name.removesuffix(".bpf.c") for path in (HERE / "bpf").glob("*.bpf.c"))


def _find(word: str, corpus: Path | None) -> Subject | None:
    if word.endswith(".o"):
        path = Path(word)
        if not path.is_file():
            raise BenchError(f"there is no object {word}")
        return Subject(path.name.partition(".")[0], path, "given")
    if corpus is not None:
        # Names begin with that of the tool, and may go on: "opensnoop-libbpf.56258.bpf.o".
        for path in sorted(corpus.rglob("*.bpf.o")):
            if path.name.partition(".")[0].partition("-")[0] == word:
                return Subject(word, path, "corpus")
    if word in _own():
        return Subject(word, bpf_object(word), "own")
    return None


def choose(words: Iterable[str], corpus: Path | None) -> tuple[list[Subject], list[str]]:
    """(the objects found, the words for which there is none).

    Raises BenchError if none is found, or a file named is not there.
    """
    found = []
    missing = []
    for word in words:
        subject = _find(word, corpus)
        if subject is None:
            missing.append(word)
        else:
            found.append(subject)
    if not found:
        raise BenchError(
            f"none of these objects is there: {', '.join(missing)}; the benchmark's own are "
            f"{', '.join(_own())}, others come from a corpus (--corpus DIR)"
        )
    return found, missing
