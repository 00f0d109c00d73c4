"""The JSON report. Its schema is ``schema-1.json`` beside this file; see docs/report.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest_vllm_triton
from pytest_vllm_triton.harness import Boot
from pytest_vllm_triton.report.results import RequirementResult, Results
from pytest_vllm_triton.verdicts import Verdict

SCHEMA = "pytest-vllm-triton/report/1"


def build_document(
    results: Results,
    environment: Mapping[str, str],
    boots: Sequence[Boot],
    verdict: str,
    conformant: bool,
) -> dict[str, Any]:
    """The report as JSON values.

    Args:
        environment: what was tested and with what, by name.
        boots: the servers that were started.
        verdict: the sentence that closes the run.
        conformant: whether a gate may let the backend pass.
    """
    totals = results.totals()
    return {
        "schema": SCHEMA,
        "tool": pytest_vllm_triton.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "conformant": conformant,
        "verdict": verdict,
        "environment": dict(environment),
        "boots": [
            {
                "purpose": b.purpose,
                "seconds": round(b.seconds, 1),
                "ready": b.ready,
                "command": b.command,
            }
            for b in boots
        ],
        "totals": {v.value: totals[v] for v in Verdict},
        "requirements": [_requirement(result) for result in results.requirements()],
    }


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """Write the report; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _requirement(result: RequirementResult) -> dict[str, Any]:
    requirement = result.requirement
    return {
        "id": requirement.id,
        "group": requirement.group,
        "level": requirement.level.value,
        "sentence": requirement.sentence,
        "source": requirement.source,
        "verdict": result.verdict.value,
        "reason": result.reason,
        "seconds": round(result.seconds, 3),
        "checks": [
            {k: v for k, v in check.to_dict().items() if k != "requirements"}
            for check in result.checks
        ],
    }
