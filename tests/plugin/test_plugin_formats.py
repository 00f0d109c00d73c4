"""The report's formats as text. What a browser makes of the page: test_plugin_browser.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from plugin_helpers import Report
from report_documents import HOSTILE, document, failed, green

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.report.document import load_document, to_json
from pytest_vllm_triton.report.formats import RENDERERS, write_report
from pytest_vllm_triton.report.terminal import write_summary
from pytest_vllm_triton.requirements import load_catalogue

Judged = Callable[..., tuple[pytest.RunResult, Report]]
VOID = {"meta", "link", "input", "br"}


def markdown(value: dict[str, Any]) -> str:
    return RENDERERS[".md"](value)


def html(value: dict[str, Any]) -> str:
    return RENDERERS[".html"](value)


class Tags(HTMLParser):
    """Reads a page; collects its tags, and finds those that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_run_writes_all_formats(judged: Judged, pytester: pytest.Pytester) -> None:
    result, report = judged(
        "@requirement('GEN-001')\ndef test_it(): expect.equal('status', 500, 200)\n",
        "--conformance-report=out/r.md",
        "--conformance-report=r.html,copy.json",
    )
    assert json.loads(Path("copy.json").read_text(encoding="utf-8")) == report
    assert Path("out/r.md").read_text(encoding="utf-8") == markdown(report)
    assert Path("r.html").read_text(encoding="utf-8") == html(report)
    for name in ("report.json", "r.md", "r.html", "copy.json"):
        result.stdout.fnmatch_lines([f"report: */{name}"])


def test_a_report_that_cannot_be_written_does_not_stop_the_others(
    judged: Judged,
) -> None:
    Path("file").touch()
    result, report = judged(
        "@requirement('GEN-001')\ndef test_it(): pass\n",
        "--conformance-report=file/r.html",
        "--conformance-report=r.md",
    )
    assert report["conformant"] is True
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["The report was not written: *", "report: */report.json", "report: */r.md"]
    )


# -- Markdown ------------------------------------------------------------------------------------


def test_markdown_says_the_verdict_first() -> None:
    assert (
        markdown(green()).splitlines()[0]
        == "## ✅ CONFORMANT: MUST 2 of 2 pass, SHOULD 1 of 1 pass"
    )
    assert markdown(failed()).startswith("## ❌ NOT CONFORMANT: MUST 1 of 3 pass")
    assert markdown(document({})).startswith("## ❌ NOTHING DECIDED: no requirement was checked")


def test_markdown_counts_by_level() -> None:
    lines = markdown(failed()).splitlines()
    start = lines.index("| level | ✅ PASS | ❌ FAIL | 💥 ERROR | ❔ UNTESTED |")
    assert lines[start + 2 : start + 4] == ["| MUST | 1 | 1 | 1 | 0 |", "| MAY | 0 | 0 | 0 | 1 |"]


def test_markdown_shows_what_failed_and_what_to_do() -> None:
    text = markdown(failed())
    sentence = load_catalogue()["GEN-002"].sentence.partition(" ")[0]
    assert re.search(rf"\*\*❌ FAIL GEN-002 \(MUST\)\*\* {sentence}", text)
    assert "expected  expected wanted\nactual    actual wanted" in text
    assert "> POST wanted\n< 500 wanted  (250 ms)" in text
    assert "E1 log wanted" in text
    assert "- **1 FAIL** (GEN-002). The backend violates" in text
    assert "- **1 ERROR** (STR-001). " in text
    assert "- **CLI is required and was not decided.** UNTESTED: CLI-007: why CLI-007" in text
    assert "- CLI-007: why CLI-007" in text
    assert text.count("<details>") == text.count("</details>") == 4


def test_failure_names_the_check_that_shows_it() -> None:
    report = failed()
    row = next(row for row in report["requirements"] if row["id"] == "GEN-002")
    assert "Seen in test\\_GEN-002: why GEN-002" in markdown(report)
    assert '<span class="mono">test_GEN-002</span>: why GEN-002' in html(report)
    row["checks"].insert(0, {**row["checks"][0], "test": "test_x.py::good", "verdict": "PASS"})
    assert "test_GEN-002 (1 of 2 checks failed)</span>" in html(report)


class Terminal:
    """What the summary writes, as text."""

    def __init__(self) -> None:
        self.text = ""

    def write_line(self, line: str, **markup: bool) -> None:
        self.text += f"{line}\n"

    def write_sep(self, sep: str, title: str, **markup: bool) -> None:
        self.write_line(title)


def test_all_formats_show_the_same_check() -> None:
    """The one that decided the verdict, and not the worst where the worst was expected."""
    report = document({"GEN-002": "ERROR"}, expected="more", actual="less")
    (row,) = report["requirements"]
    (error,) = row["checks"]
    listed = {"verdict": "FAIL", "test": "test_x.py::listed", "reason": "known", "expected": "old"}
    row["checks"].insert(0, {**error, **listed})
    terminal = Terminal()
    write_summary(terminal, report)
    assert "test_GEN-002: why GEN-002\n           expected  more\n" in terminal.text
    assert "Seen in test\\_GEN-002 (2 of 2 checks failed): why GEN-002" in markdown(report)
    assert "test_GEN-002 (2 of 2 checks failed)</span>: why GEN-002" in html(report)
    for text in (terminal.text, markdown(report).partition("<details>")[0]):
        assert "old" not in text


def test_markdown_of_a_green_run_is_short() -> None:
    text = markdown(green())
    assert "What" not in text.replace("What was tested", "")
    assert len(text.splitlines()) < 25


def outside_of_code(text: str) -> str:
    """Markdown without its code blocks and code spans."""
    # A fence is closed by one that is as long or longer.
    text = re.sub(r"(?ms)^(`{3,})text\n.*?^\1`*$", "", text)
    return re.sub(r"(?<!\\)`[^`\n]*`", "", text)


def test_markdown_takes_nothing_for_markup() -> None:
    text = markdown(failed(HOSTILE))
    rest = outside_of_code(text)
    for markup in ("<script", "**bold**", "@someone", "#12", "\x1b"):
        assert markup not in rest
    # What is shown in blocks is shown as it is, without the terminal's colours.
    assert "actual " + HOSTILE.replace("\x1b[31m", "") in text


def test_markdown_block_outlasts_any_fence() -> None:
    inside = "````\n## heading\n````"
    text = markdown(failed(inside))
    assert "\n## heading" not in outside_of_code(text)
    assert inside in text


def test_markdown_stays_below_what_a_job_summary_takes() -> None:
    huge = document(
        dict.fromkeys(load_catalogue(), "FAIL"),
        expected="e" * 50_000,
        actual="a" * 50_000,
        exchanges=({"request": "r" * 2_000, "response": "s" * 2_000, "seconds": 1.0},) * 12,
        server_log="line of the log\n" * 5_000,
    )
    text = markdown(huge)
    assert len(text.encode()) < 1_000_000
    # What is not shown in detail is named.
    assert [row["id"] for row in huge["requirements"] if row["id"] not in text] == []


# -- HTML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [failed(), failed(HOSTILE), green(), document({})],
    ids=["red", "hostile", "green", "empty"],
)
def test_page_is_well_formed_and_loads_nothing(value: dict[str, Any]) -> None:
    page = Tags(html(value))
    assert page.open == []
    allowed = {"data:,", *(row["id"] for row in value["requirements"])}
    for tag, attributes in page.tags:
        assert "src" not in attributes, tag
        if tag == "link":
            assert attributes["href"] == "data:,"
        if tag == "a" and not (attributes["href"] or "").startswith("https://"):
            target = (attributes["href"] or "").removeprefix("#")
            assert target in allowed or "=" in target
    assert [t for t, a in page.tags if t == "script"] == ["script"] * bool(value["requirements"])


def test_page_is_that_of_the_document() -> None:
    """Every text of the evidence is in the page, and none of it as markup."""
    page = html(failed(HOSTILE))
    shown = escape(HOSTILE.replace("\x1b[31m", ""))
    for text in ("model ", "expected ", "actual ", "POST ", "500 ", "E1 log "):
        assert text + shown in page
    assert "<script>document" not in page
    assert "\x1b" not in page


def test_page_does_not_link_what_is_no_address() -> None:
    page = Tags(html(document({"GEN-001": "UNTESTED"}, expected="x", actual="javascript:alert(1)")))
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert [link for link in links if "javascript" in link] == []


def test_report_of_an_older_version_renders() -> None:
    """Fields that came later within the schema's version may be absent."""
    old = failed()
    del old["groups"], old["unmet"]
    for row in old["requirements"]:
        del row["known_failure"]
    assert "GEN-002" in markdown(old)
    assert "GEN-002" in html(old)


@pytest.mark.parametrize("render", [markdown, html])
def test_control_characters_are_spelled_out(render: Callable[[dict[str, Any]], str]) -> None:
    """A NUL is no character of a page, and a carriage return would hide what stands before it."""
    text = render(failed("nul \x00 bell \x07 return \r end"))
    assert r"nul \x00 bell \x07 return \x0d end" in text
    assert re.search(r"[\x00-\x08\x0b-\x1f]", text) is None


# -- reading -------------------------------------------------------------------------------------


def test_document_survives_its_file(tmp_path: Path) -> None:
    value = failed(HOSTILE)
    write_report(value, tmp_path / "new" / "r.json")
    # JSON knows lists only.
    assert load_document(tmp_path / "new" / "r.json") == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "cannot be read"),
        (b"[]", "names no schema"),
        (b"[" * 100_000, "not valid JSON"),
        (
            b'{"schema": "pytest-vllm-triton/report/2"}',
            "is of schema 'pytest-vllm-triton/report/2'",
        ),
        (b'{"schema": "pytest-vllm-triton/report/1"}', "is a broken report: at $"),
        (None, "cannot be read"),
    ],
    ids=["cut", "binary", "list", "deep", "newer", "empty", "absent"],
)
def test_what_is_no_report(tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_document(path)
    assert part in str(caught.value)
    assert "r.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_field_is_named(tmp_path: Path) -> None:
    value = green()
    value["requirements"][1]["verdict"] = "OK"
    path = tmp_path / "r.json"
    path.write_text(to_json(value), encoding="utf-8")
    with pytest.raises(UserError, match=r"at \$\.requirements\[1\]\.verdict"):
        load_document(path)
