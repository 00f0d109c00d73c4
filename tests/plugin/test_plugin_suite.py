"""Which tests are run, the packaged suite or the user's own; and the ids of the suite."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_helpers import environment

from pytest_vllm_triton import assets
from pytest_vllm_triton.requirements import load_catalogue

MODULES = {
    "test_configuration.py",
    "test_errors.py",
    "test_generate.py",
    "test_outputs.py",
    "test_parameter_forms.py",
    "test_sampling.py",
    "test_streaming.py",
}


def collected(cwd: Path, *args: str, status: int = 0) -> list[str]:
    """Ids of the tests that would be run."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *args],
        cwd=cwd,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def modules(ids: list[str]) -> set[str]:
    return {test.partition("::")[0] for test in ids}


@pytest.fixture
def own_tests(tmp_path: Path) -> Path:
    (tmp_path / "test_own.py").write_text("def test_it(): pass\n")
    return tmp_path


SELECTING = ["--vllm-model=known-answer", "--triton-url=h:1", "--conformance-level=may"]


@pytest.mark.parametrize("option", SELECTING)
def test_no_path_runs_the_packaged_suite(tmp_path: Path, option: str) -> None:
    ids = collected(tmp_path, option)
    assert modules(ids) >= MODULES
    assert "test_generate.py::test_first_inference_of_the_readme" in ids


def test_own_tests_of_the_folder_are_not_run_then(own_tests: Path) -> None:
    assert "test_own.py" not in modules(collected(own_tests, "--vllm-model=known-answer"))


def test_a_path_runs_that(own_tests: Path) -> None:
    assert collected(own_tests, "--vllm-model=known-answer", "test_own.py") == [
        "test_own.py::test_it"
    ]
    assert modules(collected(own_tests, "--vllm-model=known-answer", ".")) == {"test_own.py"}


def test_testpaths_runs_those(own_tests: Path) -> None:
    (own_tests / "pytest.ini").write_text("[pytest]\ntestpaths = test_own.py\n")
    assert collected(own_tests, "--vllm-model=known-answer") == ["test_own.py::test_it"]


def test_no_option_runs_the_own_tests(own_tests: Path) -> None:
    assert collected(own_tests) == ["test_own.py::test_it"]


def test_in_the_checkout() -> None:
    """The repository's own configuration must not name testpaths."""
    ids = collected(assets.suite_dir().parent, "--vllm-model=known-answer")
    assert modules(ids) >= {f"conformance/{name}" for name in MODULES}
    one = next(test for test in ids if "::test_first_inference" in test)
    assert collected(assets.suite_dir().parent, one) == [one]


@pytest.mark.parametrize(
    "ini",
    [
        "python_files = check_*.py\npython_functions = check_*\npython_classes = Check*",
        "addopts = --strict-config --strict-markers -W error --import-mode=importlib",
        "filterwarnings = error\nasyncio_mode = auto",
        "strict = true",
        "norecursedirs = * .*",
        "asyncio_mode = strict\nasyncio_default_fixture_loop_scope = session",
    ],
    ids=lambda text: text.partition(" ")[0],
)
def test_whatever_the_user_configures(tmp_path: Path, ini: str) -> None:
    if ini.startswith("strict") and pytest.version_tuple < (9,):
        pytest.skip("strict came with pytest 9")
    reference = collected(assets.suite_dir(), "--vllm-model=known-answer")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    ids = collected(tmp_path, "--vllm-model=known-answer")
    assert ids == [test.removeprefix("conformance/") for test in reference]


def test_virtual_environment_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "pyvenv.cfg").touch()
    (tmp_path / ".venv" / "test_inside.py").write_text("def test_it(): pass\n")
    assert modules(collected(tmp_path, "--vllm-model=known-answer")) >= MODULES


def test_level_must_leaves_shoulds_out(tmp_path: Path) -> None:
    everything = collected(tmp_path, "--vllm-model=known-answer")
    musts = collected(tmp_path, "--conformance-level=must")
    assert "test_errors.py::test_wrong_json_types" in musts
    assert set(musts) < set(everything)


def test_keyword_that_matches_nothing_is_red(tmp_path: Path) -> None:
    collected(
        tmp_path,
        "--vllm-model=known-answer",
        "-k",
        "no_such",
        status=pytest.ExitCode.NO_TESTS_COLLECTED,
    )


def checked_requirements() -> set[str]:
    """The ids that stand in a marker of the suite."""
    text = "".join(path.read_text() for path in assets.suite_dir().glob("test_*.py"))
    markers = re.findall(r"mark\.requirement\(([^)]*)\)", text)
    return {key for marker in markers for key in re.findall(r'"([A-Z]{3}-\d{3})"', marker)}


def test_suite_names_only_known_requirements() -> None:
    assert checked_requirements() <= set(load_catalogue())
