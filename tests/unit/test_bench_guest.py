# SPDX-License-Identifier: BSD-2-Clause
"""What the benchmark makes of the guest's answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tools.benchmarks.acts import digest_acts
from tools.benchmarks.guest import digest
from tools.benchmarks.report import guest_text


def _raw() -> dict[str, Any]:
    def samples(factor: float) -> list[dict[str, float]]:
        return [
            {"whole_ms": factor * load, "cpu_ms": 1.0, "rss_mb": 10.0, "in_process_ms": factor}
            for load in (10.0, 30.0, 20.0)
        ]

    return {
        "kernel": "7.3.4-test",
        "loading": {
            "fsaccess": {"bundle": samples(0.5), "C on libbpf, static": samples(1.0)},
            "other": {
                "C on libbpf, static": samples(1.0),
                "bpftool loadall": [{"whole_ms": 1.0, "cpu_ms": 1.0, "rss_mb": 1.0}] * 3,
            },
        },
        "phases": {"bundle": {"interpreter": 8.0, "import": 7.0, "bpf(2)": 2.5, "end": 1.0}},
        "operations": [["MapCreate", "a", 1.0], ["ProgLoad", "p", 2.0], ["MapCreate", "b", 3.0]],
        "enable_ms": {"load": [1.0, 2.0, 3.0], "arm": [0.5, 0.5, 0.5]},
        "rates": {"exec": {"off": [200.0, 100.0], "audit": [160.0, 80.0], "on": [100.0, 50.0]}},
        "hooks": {
            "inert": {"fsaccess_exec": {"runs": 10, "ns": 1000}},
            "audit": {"fsaccess_exec": {"runs": 10, "ns": 5000}},
            "on": {
                "fsaccess_exec": {"runs": 20, "ns": 10000},
                "fsaccess_status": {"runs": 0, "ns": 0},
            },
            "denied": {"fsaccess_exec": {"runs": 2, "ns": 4000, "denied": 2}},
        },
    }


def test_ratios_are_times_with_the_policy_over_without() -> None:
    found = digest(_raw())
    loading = found["loading"]["fsaccess"]["bundle"]
    assert loading["whole_over_libbpf"]["median"] == pytest.approx(0.5)
    assert loading["in_process_over_libbpf"]["median"] == pytest.approx(0.5)
    assert "in_process_ms" not in found["loading"]["other"]["bpftool loadall"]
    rates = found["rates"]["exec"]
    assert rates["on"]["median"] == 75
    assert rates["on_over_off"]["median"] == pytest.approx(2.0)
    assert rates["audit_over_off"]["median"] == pytest.approx(1.25)
    assert found["operations"]["MapCreate"] == {"count": 2, "ms": 4.0}


def test_guest_report() -> None:
    result = json.loads(json.dumps(digest(_raw())))
    acts = {"ioctl": {"off": [100.0, 100.0, 100.0], "on": [108.0, 110.0, 110.0]}}
    result["acts"] = digest_acts({"acts": {"userns": acts}})
    boot = {
        "kernel_ms": 1500.0,
        "said": [[12.5, "armed: 13 programs"]],
        "begun": [[2.0, "load"], [7.5, "arm"]],
    }
    result["boot"] = {"exec": boot}
    text = guest_text({"7.3": result})
    assert "lane 7.3: Linux 7.3.4-test" in text
    assert "counts instructions" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["fsaccess_exec"] == ["fsaccess_exec", "20", "100", "500", "500", "2,000"]
    assert lines["fsaccess_status"] == ["fsaccess_status", "0"]
    assert lines["interpreter"] == ["interpreter", "import", "bpf(2)", "end"]
    assert lines["armed:"][-1] == "12.5"
    assert lines["load"] == ["load", "5.50"]
    assert lines["arm"] == ["arm", "5.00"]
    assert lines["of"][-2:] == ["1", "2.00"]
    assert lines["ioctl"][:4] == ["ioctl", "100", "110", "1.10"]
    assert lines["MapCreate"] == ["MapCreate", "2", "4.00"]
