"""Documents of reports for tests, built the way a run builds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_vllm_triton.known_failures import KnownFailure
from pytest_vllm_triton.report.document import build_document
from pytest_vllm_triton.report.gate import Gate
from pytest_vllm_triton.report.results import CheckResult, Results
from pytest_vllm_triton.requirements import load_catalogue
from pytest_vllm_triton.servers.boots import Boot
from pytest_vllm_triton.verdicts import Verdict

ENVIRONMENT = {"launcher": "process: Triton 2.51.0", "model": "known-answer", "backend": "/ours"}
HOSTILE = "<script>document.title='hacked'</script> `tick` | pipe **bold** @someone #12 \x1b[31mred"


def document(
    verdicts: Mapping[str, str],
    *,
    required: Sequence[str] = (),
    known: Mapping[str, KnownFailure] | None = None,
    environment: Mapping[str, str] = ENVIRONMENT,
    **evidence: Any,
) -> dict[str, Any]:
    """A report in which each requirement has one check with this verdict.

    Args:
        evidence: further fields of each check that did not pass.
    """
    results = Results(load_catalogue(), known_failures=known or {})
    for key, verdict in verdicts.items():
        more = {} if verdict == "PASS" else {"reason": f"why {key}", **evidence}
        results.add(CheckResult(f"test_x.py::test_{key}", (key,), Verdict(verdict), 0.5, **more))
    boots = [Boot("shared by all checks that can share", 16.2, True)]
    return build_document(Gate(results, required), environment, boots)


def failed(text: str = "wanted") -> dict[str, Any]:
    """A red report with every kind of evidence, in which this text occurs everywhere."""
    return document(
        {"GEN-001": "PASS", "GEN-002": "FAIL", "STR-001": "ERROR", "CLI-007": "UNTESTED"},
        required=["CLI"],
        environment={**ENVIRONMENT, "model": f"model {text}"},
        expected=f"expected {text}",
        actual=f"actual {text}",
        exchanges=({"request": f"POST {text}", "response": f"500 {text}", "seconds": 0.25},),
        server_log=f"E1 log {text}\n",
    )


def green() -> dict[str, Any]:
    return document({"GEN-001": "PASS", "GEN-014": "PASS", "STR-001": "PASS"})
