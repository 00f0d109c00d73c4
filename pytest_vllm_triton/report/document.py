"""The report as a document of JSON values, which every format is rendered from.

Its schema is ``schema-1.json`` beside this file; see docs/report.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest_vllm_triton
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.report.gate import Gate
from pytest_vllm_triton.report.results import RequirementResult
from pytest_vllm_triton.servers.boots import Boot
from pytest_vllm_triton.texts import cut
from pytest_vllm_triton.verdicts import Verdict

SCHEMA = "pytest-vllm-triton/report/1"
SCHEMA_FILE = Path(__file__).with_name("schema-1.json")


def build_document(
    gate: Gate, environment: Mapping[str, str], boots: Sequence[Boot]
) -> dict[str, Any]:
    """The report as JSON values.

    Args:
        gate: the results and what they mean.
        environment: what was tested and with what, by name.
        boots: the servers that were started.
    """
    results = gate.results
    totals = results.totals()
    rows = results.requirements()
    shown = {row.requirement.group for row in rows}
    return {
        "schema": SCHEMA,
        "tool": pytest_vllm_triton.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "conformant": gate.conformant,
        "verdict": gate.sentence(),
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
        "groups": {k: name for k, name in results.catalogue.groups.items() if k in shown},
        "unmet": [asdict(unmet) for unmet in gate.unmet],
        "requirements": [_requirement(row) for row in rows],
    }


def to_json(document: Mapping[str, Any]) -> str:
    """The document as the text of a file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def load_document(path: Path) -> dict[str, Any]:
    """Read a report that `to_json` made.

    Raises:
        UserError: it cannot be read, or is no report of this schema; in one sentence.
    """
    name = repr(str(path))
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read: {error}.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{name} is not valid JSON: {error}.") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema is None:
        raise UserError(f"{name} is JSON, but no report of this plugin: it names no schema.")
    if schema != SCHEMA:
        raise UserError(f"{name} is of schema {schema!r}; this version reads {SCHEMA!r}.")
    import jsonschema

    rules = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    found = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(rules).iter_errors(document)
    )
    if found is not None:
        said = cut(found.message, 200)
        raise UserError(f"{name} is a broken report: at {found.json_path}, {said}")
    return dict(document)


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
        "not_selected": result.not_selected,
        "known_failure": asdict(result.known_failure) if result.known_failure else None,
        "checks": [
            {k: v for k, v in check.to_dict().items() if k != "requirements"}
            for check in result.checks
        ],
    }
