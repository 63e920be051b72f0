# SPDX-License-Identifier: BSD-2-Clause
"""The corpus: what libbpf made of other people's objects, for three kernels."""

from __future__ import annotations

import os

import pytest

from tools.corpus_compare import compare, find_corpus


def test_maps_and_instructions_equal_libbpf() -> None:
    corpus = find_corpus()
    if corpus is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no corpus at ../shared/corpus beside the checkout")
        pytest.skip("no corpus (RESTRICT_CORPUS, ../shared/corpus)")
    report = compare(corpus)
    assert report.objects >= 100
    assert report.programs > 1500
    assert [f"{d.kernel} {d.object}: {d.what} {d.detail}" for d in report.ours] == []
