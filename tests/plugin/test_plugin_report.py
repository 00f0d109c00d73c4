"""What a run says: on the terminal, in the JSON file and in JUnit's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from plugin_helpers import Report

import pytest_vllm_triton.report

Judged = Callable[..., tuple[pytest.RunResult, Report]]

SCHEMA = json.loads(
    (Path(pytest_vllm_triton.report.__file__).parent / "schema-1.json").read_text(encoding="utf-8")
)

EVERY_VERDICT = """
from pytest_vllm_triton.session.state import TRANSCRIPT

@requirement('GEN-001')
def test_good(): pass

@requirement('GEN-002', 'STR-001')
def test_bad(request):
    with request.node.stash[TRANSCRIPT].record("POST /generate {}") as exchange:
        exchange.answered("500 lone \\udc80")
    expect.equal("text_output", "got \\udc80", "wanted")

@requirement('GEN-003')
def test_broken(): raise RuntimeError("lone \\udc80")

@requirement('GEN-004')
def test_untested(): untested("needs a GPU")

@requirement('GEN-005')
@pytest.mark.xfail(reason="https://example.org/1")
def test_known(): expect.equal("a", 1, 2)

@requirement('GEN-006')
@pytest.mark.xfail(reason="listed", strict=False)
def test_stale(): pass

@requirement('GEN-007')
def test_not_claimed(): not_applicable("no such feature")

@pytest.fixture
def breaks(): yield; raise OSError("teardown")

@requirement('GEN-008')
def test_teardown(breaks): pass
"""


@pytest.fixture(scope="module")
def schema() -> Any:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


def row(report: Report, key: str) -> dict[str, Any]:
    return next(entry for entry in report["requirements"] if entry["id"] == key)


def test_document_of_every_verdict(judged: Judged, schema: Any) -> None:
    _, report = judged(EVERY_VERDICT)
    schema.validate(report)
    assert report["totals"] == {
        "PASS": 1,
        "FAIL": 2,
        "ERROR": 2,
        "XPASS": 1,
        "XFAIL": 1,
        "UNTESTED": 1,
        "N/A": 1,
    }
    assert report["conformant"] is False
    assert set(report["environment"]) == {"launcher", "model", "backend", "client"}
    assert report["boots"] == []
    failed = row(report, "STR-001")
    assert failed["level"] == "MUST"
    assert failed["reason"] == "text_output"
    (check,) = failed["checks"]
    assert check["test"] == "test_document_of_every_verdict.py::test_bad"
    assert check["expected"] == "'wanted'"
    assert check["actual"] == "'got \\udc80'"
    (exchange,) = check["exchanges"]
    assert exchange["request"] == "POST /generate {}"
    assert exchange["response"] == "500 lone \\udc80"
    assert [check["verdict"] for check in row(report, "GEN-008")["checks"]] == ["PASS", "ERROR"]
    assert row(report, "GEN-005")["reason"] == "https://example.org/1"
    assert row(report, "GEN-001")["checks"][0]["exchanges"] == []


def test_schema_refuses_what_is_no_report(judged: Judged, schema: Any) -> None:
    """The schema says something: every required field and every word of the verdicts."""
    _, report = judged("@requirement('GEN-001')\ndef test_it(): pass\n")
    for key in SCHEMA["required"]:
        assert not schema.is_valid({k: v for k, v in report.items() if k != key}), key
    report["requirements"][0]["verdict"] = "OK"
    assert not schema.is_valid(report)


def test_schema_is_written_for_this_version() -> None:
    from pytest_vllm_triton.report import document
    from pytest_vllm_triton.verdicts import Verdict

    assert SCHEMA["properties"]["schema"]["const"] == document.SCHEMA
    assert set(SCHEMA["$defs"]["verdict"]["enum"]) == {verdict.value for verdict in Verdict}


def test_report_of_a_run_without_checks(pytester: pytest.Pytester, schema: Any) -> None:
    pytester.makepyfile(
        "import pytest\n@pytest.mark.requirement('GEN-001')\ndef test_it(vllm_model): pass\n"
    )
    result = pytester.runpytest(
        "--conformance-report=new/folder/r.json", "--vllm-model=./absent", str(pytester.path)
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    report = json.loads(Path("new/folder/r.json").read_text(encoding="utf-8"))
    schema.validate(report)
    assert row(report, "GEN-001")["verdict"] == "ERROR"
    assert "does not exist" in row(report, "GEN-001")["reason"]
    assert report["conformant"] is False


def test_no_report_of_a_mere_collection(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n@pytest.mark.requirement('GEN-001')\ndef test_it(vllm_model): pass\n"
    )
    path = str(pytester.path)
    for option in ("--collect-only", "--setup-plan"):
        result = pytester.runpytest(option, "--vllm-model=./absent", path)
        assert result.ret == 0, option
    pytester.runpytest("--collect-only", "--conformance-report=r.json", path)
    assert not Path("r.json").exists()


def test_junit_properties(judged: Judged) -> None:
    judged(EVERY_VERDICT, "--junitxml=junit.xml")
    cases = {
        case.attrib["name"]: {(p.attrib["name"], p.attrib["value"]) for p in case.iter("property")}
        for case in ElementTree.parse("junit.xml").iter("testcase")
    }
    assert cases["test_bad"] == {
        ("requirement", "GEN-002"),
        ("requirement", "STR-001"),
        ("level", "MUST"),
        ("verdict", "FAIL"),
    }
    assert {name: dict(properties)["verdict"] for name, properties in cases.items()} == {
        "test_good": "PASS",
        "test_bad": "FAIL",
        "test_broken": "ERROR",
        "test_untested": "UNTESTED",
        "test_known": "XFAIL",
        "test_stale": "XPASS",
        "test_not_claimed": "N/A",
        "test_teardown": "ERROR",
    }


def test_matrix(judged: Judged) -> None:
    result, _ = judged(EVERY_VERDICT)
    result.stdout.fnmatch_lines(
        [
            "*= vLLM backend conformance =*",
            "launcher *",
            "model *known-answer",
            "backend *",
            "",
            "group * PASS * FAIL * ERROR * XPASS * XFAIL * UNTESTED * N/A",
            "GEN Generate * 1 * 1 * 2 * 1 * 1 * 1 * 1",
            "STR Streaming * . * 1 * . * . * . * . * .",
            "all * 1 * 2 * 2 * 1 * 1 * 1 * 1",
            "",
            "FAIL     GEN-002 MUST   Same request: `text_output` starts with the prompt*",
            "*text_output",
            "*expected  'wanted'",
            "*actual    'got \\udc80'",
            "FAIL     STR-001 MUST *",
            "ERROR    GEN-003 MUST *",
            "*RuntimeError: lone*",
            "ERROR    GEN-008 *",
            "*OSError: teardown",
            "XPASS    GEN-006 *",
            "*listed",
            "XFAIL    GEN-005 *",
            "*https://example.org/1",
            "UNTESTED GEN-004 *",
            "*needs a GPU",
            "N/A      GEN-007 *",
            "*no such feature",
            "",
            "NOT CONFORMANT: MUST 1 of 9 pass, 2 FAIL, 2 ERROR, 1 XPASS, 1 XFAIL, 1 UNTESTED,*",
        ]
    )


def test_many_of_one_reason_are_told_once(judged: Judged) -> None:
    result, _ = judged(
        "@requirement('GEN-001', 'GEN-002', 'GEN-003', 'GEN-004')\n"
        "def test_it(): untested('needs a GPU')\n"
    )
    result.stdout.fnmatch_lines(
        ["UNTESTED 4 requirements: needs a GPU", "         GEN-001 GEN-002 GEN-003 GEN-004"]
    )


VIOLATION = """
from pytest_vllm_triton.session.state import TRANSCRIPT

class Log:
    path = "log"
    text = "before the test\\n"
    def position(self): return len(self.text)
    def read(self, since=0): return self.text[since:]

class Server:
    log = Log()
    def stop(self): pass

@pytest.fixture(scope="session")
def server(vllm_harness):
    vllm_harness.servers.append(Server())
    return vllm_harness.servers[-1]

@pytest.fixture(scope="session", autouse=True)
def started(server): pass

@requirement('GEN-001')
def test_first(server): server.log.text += "of the first test\\n"

@requirement('GEN-002')
def test_second(request, server):
    server.log.text += "of the second test\\n"
    with request.node.stash[TRANSCRIPT].record("POST /v2/models/m/generate") as exchange:
        exchange.answered("200 {}")
    expect.equal("text_output", "cat", "dog")
"""


@pytest.fixture
def model(pytester: pytest.Pytester) -> str:
    """A checkpoint that nobody opens."""
    folder = pytester.mkdir("checkpoint")
    (folder / "config.json").write_text('{"architectures": ["X"]}')
    (folder / "model.safetensors").touch()
    return str(folder)


@pytest.mark.parametrize("style", ["auto", "long"])
def test_failure_text(judged: Judged, model: str, lying_server: Path, style: str) -> None:
    result, report = judged(
        VIOLATION, f"--tb={style}", f"--vllm-model={model}", f"--triton-server-bin={lying_server}"
    )
    sentence = "*GEN-002 MUST  Same request: `text_output` starts with the prompt verbatim*"
    result.stdout.fnmatch_lines(
        [
            "*_ test_second _*",
            *([sentence] if style == "auto" else ["*def test_second(request, server):"]),
            "*text_output*",
            "*expected*'dog'*",
            "*actual*'cat'*",
            *(["at */test_failure_text.py:*"] if style == "auto" else ["*requirement*", sentence]),
            "*requests (>) and responses (<)*",
            "> POST /v2/models/m/generate",
            "< 200 {}  (0.00 s)",
            "*server log since the check began*",
            "of the second test",
        ]
    )
    if style == "auto":
        result.stdout.no_fnmatch_line("*def test_second*")
    (check,) = row(report, "GEN-002")["checks"]
    assert check["server_log"] == "of the second test\n"


def test_a_token_that_the_server_says_is_not_shown(
    judged: Judged, model: str, lying_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1234567890")
    test = "@requirement('GEN-001')\ndef test_it(vllm_server_factory): vllm_server_factory()\n"
    options = (f"--vllm-model={model}", f"--triton-server-bin={lying_server}")
    result, report = judged(test, *options)
    for text in (result.stdout.str(), json.dumps(report)):
        assert "token: ***" in text
        assert "hf_1234567890" not in text


def test_plain_assert_keeps_its_traceback(judged: Judged) -> None:
    result, _ = judged("@requirement('GEN-001')\ndef test_it():\n    assert 1 == 2\n")
    result.stdout.fnmatch_lines(["*assert 1 == 2", "*- requirement -*", "GEN-001 MUST *"])


def test_where_nothing_can_be_written(judged: Judged, pytester: pytest.Pytester) -> None:
    """A report that cannot be written is said in a sentence, and the run is red."""
    pytester.makepyfile("import pytest\n@pytest.mark.requirement('GEN-001')\ndef test_it(): pass\n")
    Path("file").touch()
    result = pytester.runpytest("--conformance-report=file/r.json", str(pytester.path))
    assert result.ret not in (0, pytest.ExitCode.INTERNAL_ERROR)
    result.stdout.fnmatch_lines(["The report was not written: *'*/file'"])
    result.stdout.no_fnmatch_line("*Traceback*")


DEATH = """
class Died:
    log = None
    owned = False
    def exit_code(self): return 7
    def stop(self): pass

@requirement('GEN-001')
def test_it(vllm_harness):
    vllm_harness._shared = Died()
    BODY
"""


@pytest.mark.parametrize(
    "body", ["expect.equal('text_output', 'cat', 'dog')", "assert False, 'plain'", "1 / 0"]
)
def test_death_of_the_server_is_told_first(
    judged: Judged, model: str, lying_server: Path, body: str
) -> None:
    options = (f"--vllm-model={model}", f"--triton-server-bin={lying_server}")
    result, report = judged(DEATH.replace("BODY", body), "--conformance-report=report.md", *options)
    said = "The server ended with exit code 7 during test_it."
    reason = row(report, "GEN-001")["reason"]
    assert reason.startswith(f"{said}\n")
    shown = result.stdout.str()
    failure, _, matrix = shown.partition("= vLLM backend conformance")
    failure = failure.partition("FAILURES")[2]
    assert 0 < failure.index(said) < failure.index("GEN-001 MUST")
    assert said in matrix
    markdown = Path("report.md").read_text(encoding="utf-8").partition("<details>")[0]
    assert "The server ended with exit code 7" in markdown
    if "expect" in body:
        assert r"text\_output" in markdown.partition("The server ended")[2].partition("expected")[0]


MANY = """
from pytest_vllm_triton.session.state import TRANSCRIPT

@requirement('GEN-001')
def test_it(request):
    for number in range(15):
        with request.node.stash[TRANSCRIPT].record(f"request {number}"):
            pass
    expect.equal("text_output", "cat", "dog")
"""


def test_exchanges_that_are_left_out_are_counted(judged: Judged, schema: Any) -> None:
    options = [f"--conformance-report=r.{suffix}" for suffix in ("md", "html")]
    result, report = judged(MANY, *options)
    schema.validate(report)
    (check,) = row(report, "GEN-001")["checks"]
    assert (len(check["exchanges"]), check["exchanges_left_out"]) == (12, 3)
    result.stdout.fnmatch_lines(["*requests (>) and responses (<), 3 in the middle left out*"])
    assert "3 in the middle left out" in Path("r.html").read_text(encoding="utf-8")
    # It shows the last four of fifteen.
    assert "(11 earlier exchanges are not shown)" in Path("r.md").read_text(encoding="utf-8")
