"""``pytest-vllm-triton compare`` and ``render``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_documents import ENVIRONMENT, document, failed, green

from pytest_vllm_triton import cli
from pytest_vllm_triton.report.compare import Kind, compare
from pytest_vllm_triton.report.document import to_json
from pytest_vllm_triton.report.formats import RENDERERS
from pytest_vllm_triton.requirements import load_catalogue

CATALOGUE = load_catalogue()
MUST, SHOULD = "GEN-001", "GEN-014"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str, dict[str, Any]], str]:
    def save(name: str, value: dict[str, Any]) -> str:
        path = tmp_path / f"{name}.json"
        path.write_text(to_json(value), encoding="utf-8")
        return str(path)

    return save


def kind_of(key: str, old: str, new: str) -> Kind | None:
    """What the step between two verdicts of one requirement is; "" for one that is absent."""
    both = [
        document({key: verdict, "STR-001": "PASS"} if verdict else {"STR-001": "PASS"})
        for verdict in (old, new)
    ]
    found = compare(both[0], both[1], CATALOGUE).changes
    return found[0].kind if found else None


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("PASS", "FAIL", Kind.REGRESSION),
        ("PASS", "ERROR", Kind.REGRESSION),
        ("UNTESTED", "FAIL", Kind.REGRESSION),
        ("N/A", "FAIL", Kind.REGRESSION),
        ("XFAIL", "FAIL", Kind.REGRESSION),
        ("FAIL", "FAIL", Kind.STILL_RED),
        ("FAIL", "ERROR", Kind.STILL_RED),
        ("XPASS", "XPASS", Kind.STILL_RED),
        ("FAIL", "PASS", Kind.REPAIR),
        ("ERROR", "PASS", Kind.REPAIR),
        ("XFAIL", "PASS", Kind.REPAIR),
        ("XFAIL", "XPASS", Kind.REPAIR),
        ("FAIL", "UNTESTED", Kind.NEWLY_UNTESTED),
        ("FAIL", "", Kind.NEWLY_UNTESTED),
        ("UNTESTED", "PASS", Kind.NEWLY_DECIDED),
        ("FAIL", "XFAIL", Kind.OTHER),
        ("PASS", "XFAIL", Kind.OTHER),
        ("", "PASS", Kind.NEW),
        ("", "FAIL", Kind.NEW),
        ("PASS", "PASS", None),
        ("UNTESTED", "UNTESTED", None),
        ("UNTESTED", "", None),
        ("XFAIL", "XFAIL", None),
    ],
)
@pytest.mark.parametrize("key", [MUST, SHOULD])
def test_steps(key: str, old: str, new: str, kind: Kind | None) -> None:
    assert kind_of(key, old, new) is kind


@pytest.mark.parametrize("new", ["UNTESTED", "N/A", ""])
def test_a_binding_pass_must_not_be_lost(new: str) -> None:
    assert kind_of(MUST, "PASS", new) is Kind.REGRESSION
    assert kind_of(SHOULD, "PASS", new) is Kind.NEWLY_UNTESTED


def test_removed_from_the_catalogue_is_no_regression() -> None:
    old, new = document({MUST: "PASS", "STR-001": "PASS"}), document({"STR-001": "PASS"})
    (change,) = compare(old, new, set(CATALOGUE) - {MUST}).changes
    assert (change.kind, change.id) == (Kind.REMOVED, MUST)


def test_says_where_the_runs_differ() -> None:
    other = {**ENVIRONMENT, "model": "facebook/opt-125m", "launcher": "process: Triton 2.67.0"}
    found = compare(green(), document({"GEN-001": "PASS"}, environment=other), CATALOGUE)
    assert dict(found.differences) == {
        "launcher": ("process: Triton 2.51.0", "process: Triton 2.67.0"),
        "model": ("known-answer", "facebook/opt-125m"),
    }
    assert compare(green(), green(), CATALOGUE).differences == {}


def test_exit_status_and_text(saved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old = saved("old", document({MUST: "PASS", "GEN-002": "FAIL", SHOULD: "PASS"}))
    changed = document(
        {MUST: "FAIL", "GEN-002": "PASS", SHOULD: "UNTESTED"},
        environment={**ENVIRONMENT, "backend": "/theirs"},
    )
    new = saved("new", changed)
    assert cli.main(["compare", old, new]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("new  NOT CONFORMANT")
    assert "backend differs: /ours  →  /theirs" in lines
    start = lines.index("Regressions (1)")
    assert lines[start + 1].startswith(f"  {MUST} MUST   PASS → FAIL ")
    assert lines[start + 2].strip() == f"why {MUST}"
    assert lines[lines.index("Repairs (1)") + 1].startswith("  GEN-002 MUST   FAIL → PASS ")
    assert lines[lines.index("Not decided any more (1)") + 1].startswith(f"  {SHOULD} SHOULD ")
    assert lines[-1] == "1 regression: 1 repairs, 1 not decided any more."
    assert cli.main(["compare", old, old]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "No regression: 1 still red."


def test_markdown(saved: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old = saved("old", document({MUST: "PASS", "GEN-002": "PASS"}))
    new = saved("new", document({MUST: "FAIL", "GEN-002": "PASS"}, environment={"model": "a|b"}))
    assert cli.main(["compare", old, new, "--format=markdown"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("## ❌ 1 regression: nothing else changed.")
    assert "| model | known-answer | a\\|b |" in text.splitlines()
    assert f"| {MUST} | MUST | PASS → FAIL | " in text
    assert "GEN-002" not in text
    assert cli.main(["compare", old, old, "--format=markdown"]) == 0
    assert capsys.readouterr().out.startswith("## ✅ No regression: nothing else changed.")


@pytest.mark.parametrize("broken", ["old", "new"])
@pytest.mark.parametrize("content", ["{", '{"schema": "pytest-vllm-triton/report/9"}', "{}"])
def test_no_report_is_status_2(
    saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str, content: str
) -> None:
    paths = {"old": saved("old", green()), "new": saved("new", green())}
    Path(paths[broken]).write_text(content)
    assert cli.main(["compare", paths["old"], paths["new"]]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    (line,) = out.err.splitlines()
    assert f"{broken}.json" in line


def test_render(saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = failed()
    page, summary = tmp_path / "new" / "r.html", tmp_path / "r.md"
    assert cli.main(["render", saved("r", value), "--to", str(page), "--to", str(summary)]) == 0
    assert page.read_text(encoding="utf-8") == RENDERERS[".html"](value)
    assert summary.read_text(encoding="utf-8") == RENDERERS[".md"](value)
    assert capsys.readouterr().out.splitlines() == [str(page), str(summary)]


@pytest.mark.parametrize(
    ("to", "part"), [("r.pdf", "'r.pdf': the suffix"), ("file/r.html", "cannot be written")]
)
def test_render_to_nowhere(
    saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, part: str
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["render", saved("r", green()), "--to", str(tmp_path / to)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line
