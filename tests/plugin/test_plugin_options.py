"""Options: where a value comes from, what is refused, and that each one takes effect."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_triton.options.launcher_kinds import LauncherKind
from pytest_vllm_triton.options.settings import Settings
from pytest_vllm_triton.options.table import OPTIONS, Option
from pytest_vllm_triton.options.values import BackendSource
from pytest_vllm_triton.requirements import Level
from pytest_vllm_triton.session.state import SETTINGS

# option -> (text, what it means, another text, what that means); paths are made by the test.
VALUES: dict[str, tuple[str, Any, str, Any]] = {
    "--vllm-model": ("a/b", "a/b", "c/d", "c/d"),
    "--vllm-model-json": ('{"a": 1}', {"a": 1}, "{}", {}),
    "--vllm-version": ("0.27.1", "0.27.1", "0.31.0", "0.31.0"),
    "--triton-accelerator": ("cpu", "cpu", "Cuda", "cuda"),
    "--triton-launcher": ("process", LauncherKind.PROCESS, "Container", LauncherKind.CONTAINER),
    "--triton-image": ("nvcr.io/x/y:1", "nvcr.io/x/y:1", "z@sha256:0", "z@sha256:0"),
    "--triton-gpus": ("0,1", "0,1", "All", "all"),
    "--triton-xdist-gpus": ("share", "share", "Lease", "lease"),
    "--triton-ipc": ("host", "host", "Private", "private"),
    "--triton-shm-size": ("16m", "16m", "2G", "2G"),
    "--triton-server-bin": ("one/bin", "one/bin", "two/bin", "two/bin"),
    "--triton-backend-dir": ("one", "one", "two", "two"),
    "--triton-url": ("http://h:1", "http://h:1", "i:2", "http://i:2"),
    "--triton-grpc-url": ("h:1", "h:1", "grpc://i:2", "i:2"),
    "--triton-metrics-url": ("http://h:1/m", "http://h:1/m", "i:2/metrics", "http://i:2/metrics"),
    "--triton-model-name": ("m", "m", "n", "n"),
    "--triton-boot-timeout": ("5", 5.0, "0.5", 0.5),
    "--conformance-level": ("must", Level.MUST, "should", Level.SHOULD),
    "--conformance-select": ("can,STR-002", ("CAN", "STR-002"), "err", ("ERR",)),
    "--conformance-examples": ("3", 3, "400", 400),
    "--conformance-report": ("one.json,one.md", ("one.json", "one.md"), "b.html", ("b.html",)),
    "--conformance-require": ("gen,STR-001", ("GEN", "STR-001"), "can", ("CAN",)),
    "--known-failures": ("one.toml", ["GEN-001"], "two.toml", ["STR-001"]),
}
every_option = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)


@pytest.fixture(autouse=True)
def paths(pytester: pytest.Pytester) -> None:
    for name in ("one", "two"):
        folder = pytester.mkdir(name)
        (folder / "model.py").touch()
        (folder / "bin").write_text("#!/bin/sh\n")
        (folder / "bin").chmod(0o755)
    for name, key in (("one", "GEN-001"), ("two", "STR-001")):
        (pytester.path / f"{name}.toml").write_text(
            f'[{key}]\nreason = "x"\nlink = "https://example.org"\n'
        )


def settings_of(pytester: pytest.Pytester, *args: str) -> Settings:
    config = pytester.parseconfigure(*args)
    try:
        return config.stash[SETTINGS]
    finally:
        config._ensure_unconfigure()


def refusal(pytester: pytest.Pytester, *args: str) -> str:
    with pytest.raises(pytest.UsageError) as caught:
        settings_of(pytester, *args)
    return str(caught.value)


def value_of(settings: Settings, option: Option, cwd: Path) -> Any:
    value = getattr(settings, option.field)
    if option.flag == "--known-failures":
        return list(value)
    if isinstance(value, tuple):
        return tuple(str(v.relative_to(cwd)) if isinstance(v, Path) else v for v in value)
    return str(value.relative_to(cwd)) if isinstance(value, Path) else value


def write_ini(pytester: pytest.Pytester, option: Option, text: str) -> None:
    pytester.makeini(f"[pytest]\n{option.ini} = {text}\n")


def test_every_option_is_listed_here() -> None:
    assert [option.flag for option in OPTIONS] == list(VALUES)


@every_option
def test_from_the_command_line(pytester: pytest.Pytester, option: Option) -> None:
    text, meaning, *_ = VALUES[option.flag]
    settings = settings_of(pytester, f"{option.flag}={text}")
    assert value_of(settings, option, pytester.path) == meaning
    assert not settings.is_default


@every_option
def test_from_the_environment(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: Option
) -> None:
    text, meaning, *_ = VALUES[option.flag]
    monkeypatch.setenv(option.env, text)
    assert value_of(settings_of(pytester), option, pytester.path) == meaning


@every_option
def test_from_the_ini_file(pytester: pytest.Pytester, option: Option) -> None:
    text, meaning, *_ = VALUES[option.flag]
    write_ini(pytester, option, text)
    assert value_of(settings_of(pytester), option, pytester.path) == meaning


@every_option
def test_environment_wins_over_ini(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: Option
) -> None:
    other, _, text, meaning = VALUES[option.flag]
    write_ini(pytester, option, other)
    monkeypatch.setenv(option.env, text)
    assert value_of(settings_of(pytester), option, pytester.path) == meaning


@every_option
def test_command_line_wins_over_both(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: Option
) -> None:
    other, _, text, meaning = VALUES[option.flag]
    write_ini(pytester, option, other)
    monkeypatch.setenv(option.env, other)
    settings = settings_of(pytester, f"{option.flag}={text}")
    assert value_of(settings, option, pytester.path) == meaning


def test_defaults(pytester: pytest.Pytester) -> None:
    settings = settings_of(pytester)
    assert settings.is_default
    assert (settings.model, settings.launcher) == ("known-answer", LauncherKind.AUTO)
    assert (settings.level, settings.reports, settings.model_json) == (Level.MAY, (), {})
    assert (settings.required, settings.known_failures) == ((), {})


def test_several_values(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated, with commas, or line by line in an ini file; each counts once."""
    args = ["--conformance-require=GEN", "--conformance-require=STR, GEN"]
    assert settings_of(pytester, *args).required == ("GEN", "STR")
    pytester.makeini("[pytest]\nconformance_require =\n    CAN\n    STR-001\n")
    assert settings_of(pytester).required == ("CAN", "STR-001")


def test_shipped_list_by_its_name(pytester: pytest.Pytester) -> None:
    assert "ERR-009" in settings_of(pytester, "--known-failures=upstream").known_failures


def test_empty_variable_counts_as_unset(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CI system passes an empty text for an input that nobody gave."""
    monkeypatch.setenv("PYTEST_VLLM_MODEL", "")
    pytester.makeini("[pytest]\nvllm_model = from/ini\n")
    assert settings_of(pytester).model == "from/ini"


def test_native_toml(pytester: pytest.Pytester) -> None:
    if pytest.version_tuple < (9,):
        pytest.skip("[tool.pytest] came with pytest 9")
    pytester.makepyprojecttoml('[tool.pytest]\nconformance_level = "must"\n')
    assert settings_of(pytester).level is Level.MUST


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (
            ["--triton-launcher=proces"],
            ["--triton-launcher", "'proces'", "Did you mean 'process'?"],
        ),
        (["--conformance-level=shuold"], ["'shuold'", "Did you mean 'should'?"]),
        (["--conformance-select=STR,CAM-001"], ["group 'CAM-001'", "Did you mean 'CAN-001'?"]),
        (["--triton-backend-dir=onee"], ["'onee' is not a directory", "/one'?"]),
        (["--triton-backend-dir=bare"], ["no model.py", "bare/src'?"]),
        (["--triton-server-bin=one/bim"], ["'one/bim' is not a file", "one/bin'?"]),
        (["--triton-server-bin=one/model.py"], ["is not executable"]),
        (["--vllm-model="], ["--vllm-model: it is empty"]),
        (["--vllm-model-json={bad"], ["not valid JSON", "line 1"]),
        (["--vllm-model-json=[1]"], ["neither a file nor inline JSON"]),
        (["--vllm-model-json=list.json"], ["list.json", "not an object"]),
        (["--vllm-model-json=bad.json"], ["bad.json is not valid JSON"]),
        (["--vllm-model-json=latin.json"], ["latin.json' cannot be read"]),
        (["--vllm-model-json=bat.json"], ["Did you mean", "/bad.json'?"]),
        (["--vllm-model-json=" + "x" * 5000], ["neither a file nor inline JSON"]),
        (["--triton-url=https://h"], ["http://HOST:PORT"]),
        (["--triton-url=http://h"], ["http://HOST:PORT"]),
        (["--triton-grpc-url=h"], ["HOST:PORT"]),
        (["--triton-metrics-url=:1"], ["http://HOST:PORT"]),
        (["--conformance-examples=0"], ["'0' is not a whole number of at least 1"]),
        (["--triton-boot-timeout=0"], ["'0' is not a number of seconds"]),
        (["--triton-boot-timeout=nan"], ["'nan' is not a number of seconds"]),
        (["--triton-boot-timeout=soon"], ["'soon' is not a number of seconds"]),
        (["--conformance-report=r.xml"], ["'r.xml'", ".json, .md, .html"]),
        (["--conformance-report=r.json,r.htm"], ["'r.htm'", "Did you mean '.html'?"]),
        (["--conformance-require=GEN-0001"], ["'GEN-0001'", "Did you mean 'GEN-001'?"]),
        (["--conformance-require=GENN"], ["'GENN'", "Did you mean 'GEN'?"]),
        (["--known-failures=one.tml"], ["'one.tml' is not a file", "/one.toml'?"]),
        (["--known-failures=upstraem"], ["Did you mean 'upstream'?"]),
        (
            ["--vllm-version=0.27.1", "--triton-accelerator=cuda"],
            ["--vllm-version", "on CUDA", "There is one on the CPU (accelerator cpu)"],
        ),
        (["--vllm-version=0.27.11"], ["--vllm-version", "Did you mean 0.27.1?"]),
        (["--triton-launcher=attach"], ["needs --triton-url"]),
    ],
    ids=lambda value: value[0][:40] if value[0].startswith("--") else "",
)
def test_wrong_values(pytester: pytest.Pytester, args: list[str], parts: list[str]) -> None:
    bare = pytester.mkdir("bare")
    (bare / "src").mkdir()
    (bare / "src" / "model.py").touch()
    Path("list.json").write_text("[1]")
    Path("bad.json").write_text("{")
    Path("latin.json").write_bytes(b'{"a": "\xe9"}')
    message = refusal(pytester, *args)
    for part in parts:
        assert part in message
    assert "\n" not in message


def test_refusal_names_its_origin(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\nconformance_level = no\n")
    assert refusal(pytester).startswith("ini option conformance_level:")
    monkeypatch.setenv("PYTEST_CONFORMANCE_LEVEL", "no")
    assert refusal(pytester).startswith("PYTEST_CONFORMANCE_LEVEL:")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PYTEST_VLLM_MODLE", "PYTEST_VLLM_MODEL"),
        ("PYTEST_TRITON_LAUNCHR", "PYTEST_TRITON_LAUNCHER"),
        ("PYTEST_CONFORMANCE_LEVELS", "PYTEST_CONFORMANCE_LEVEL"),
        ("PYTEST_KNOWN_FAILURE", "PYTEST_KNOWN_FAILURES"),
        ("PYTEST_VLLM_TRITON_HOMES", "PYTEST_VLLM_TRITON_HOME"),
    ],
)
def test_mistyped_variable(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "x")
    message = refusal(pytester, "--vllm-model=a/b")
    assert name in message
    assert f"Did you mean '{meant}'?" in message


MISTYPED = "PYTEST_VLLM_MODLE"


def test_mistyped_variable_beside_an_option(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the option was given; and the name is said before a value is looked at."""
    monkeypatch.setenv(MISTYPED, "x")
    assert MISTYPED in refusal(pytester, "--conformance-level=no")
    monkeypatch.setenv("PYTEST_TRITON_IPC", "host")
    assert MISTYPED in refusal(pytester)
    monkeypatch.delenv("PYTEST_TRITON_IPC")
    pytester.makeini("[pytest]\ntriton_ipc = host\n")
    assert MISTYPED in refusal(pytester)


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.requirement('GEN-001')\ndef test_it(): pass\n",
        "def test_it(vllm_server): pass\n",
    ],
    ids=["check", "own-test"],
)
def test_mistyped_variable_beside_a_test_of_a_server(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """No option is given, as the mistyped one was to be the only one."""
    monkeypatch.setenv(MISTYPED, "x")
    pytester.makepyfile(f"import pytest\n{source}")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*unknown environment variable {MISTYPED}. Did you mean *"])


def test_mistyped_variable_beside_a_check_of_a_worker(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest-xdist's controller sees no tests, and a worker cannot end the run with a reason."""
    monkeypatch.setenv(MISTYPED, "x")
    pytester.makepyfile("import pytest\n@pytest.mark.requirement('GEN-001')\ndef test_it(): pass\n")
    result = pytester.runpytest_subprocess("-n1")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [f"*test_it: UsageError: unknown environment variable {MISTYPED}.*"]
    )


def test_mistyped_variable_is_no_matter_of_other_runs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MISTYPED, "x")
    assert settings_of(pytester).is_default
    pytester.makepyfile("def test_it(): pass\n")
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    assert MISTYPED not in result.stdout.str() + result.stderr.str()


def test_json_from_a_file(pytester: pytest.Pytester) -> None:
    Path("args.json").write_text('{"max_num_seqs": 4}', encoding="utf-8")
    assert settings_of(pytester, "--vllm-model-json=args.json").model_json == {"max_num_seqs": 4}


def test_url_selects_attach(pytester: pytest.Pytester) -> None:
    assert settings_of(pytester, "--triton-url=h:1").launcher is LauncherKind.ATTACH


# -- options that exclude each other ---------------------------------------------------------------

URL, IMAGE, PROCESS = "--triton-url=h:1", "--triton-image=x", "--triton-launcher=process"
BIN = "--triton-server-bin=one/bin"


@pytest.mark.parametrize(
    ("args", "refused", "decisive"),
    [
        ([URL, IMAGE], "--triton-image", "--triton-url"),
        ([URL, "--triton-backend-dir=one"], "--triton-backend-dir", "--triton-url"),
        ([URL, "--triton-backend-dir=image"], "--triton-backend-dir", "--triton-url"),
        ([URL, "--vllm-version=0.27.1"], "--vllm-version", "--triton-url"),
        ([URL, BIN], "--triton-server-bin", "--triton-url"),
        ([URL, PROCESS], "--triton-url", "--triton-launcher"),
        ([IMAGE, PROCESS], "--triton-image", "--triton-launcher"),
        ([IMAGE, "--triton-launcher=attach", URL], "--triton-image", "--triton-launcher"),
        ([IMAGE, "--vllm-version=0.27.1"], "--vllm-version", "--triton-image"),
        ([IMAGE, "--triton-accelerator=cpu"], "--triton-accelerator", "--triton-image"),
        ([IMAGE, "--triton-metrics-url=h:3"], "--triton-metrics-url", "--triton-image"),
        ([PROCESS, "--triton-gpus=0"], "--triton-gpus", "--triton-launcher"),
        ([PROCESS, "--triton-shm-size=2G"], "--triton-shm-size", "--triton-launcher"),
        ([BIN, "--vllm-version=0.27.1"], "--vllm-version", "--triton-server-bin"),
        ([BIN, "--triton-accelerator=cpu"], "--triton-accelerator", "--triton-server-bin"),
        ([BIN, "--triton-ipc=host"], "--triton-ipc", "--triton-server-bin"),
        (["--triton-gpus=0", "--vllm-version=0.27.1"], "--triton-gpus", "--vllm-version"),
    ],
)
def test_contradictory_options(
    pytester: pytest.Pytester, args: list[str], refused: str, decisive: str
) -> None:
    message = refusal(pytester, *args)
    assert message.startswith(f"{refused} ")
    assert f" {decisive} " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "args",
    [
        [URL, "--triton-ipc=private", "--triton-accelerator=auto"],  # the defaults say nothing
        [PROCESS, BIN, "--triton-backend-dir=one", "--triton-xdist-gpus=share"],
        [IMAGE, "--triton-gpus=0", "--triton-backend-dir=one"],
    ],
)
def test_options_that_agree(pytester: pytest.Pytester, args: list[str]) -> None:
    settings_of(pytester, *args)


@pytest.mark.parametrize(
    ("ini", "args", "launcher"),
    [
        ("triton_image = x\ntriton_ipc = host", [PROCESS], LauncherKind.PROCESS),
        ("triton_image = x", [URL], LauncherKind.ATTACH),
        ("triton_url = h:1", [IMAGE], LauncherKind.CONTAINER),
        ("triton_launcher = process\nvllm_version = 0.27.1", [IMAGE], LauncherKind.CONTAINER),
        ("triton_launcher = process", [URL], LauncherKind.ATTACH),
        ("triton_url = h:1\ntriton_image = y", [BIN], LauncherKind.PROCESS),
    ],
)
def test_what_is_given_closer_wins(
    pytester: pytest.Pytester, ini: str, args: list[str], launcher: LauncherKind
) -> None:
    """A default of the ini file which does not fit to this command line is left out."""
    pytester.makeini(f"[pytest]\n{ini}\n")
    settings = settings_of(pytester, *args)
    assert settings.launcher is launcher
    assert (settings.image is None) == (launcher is not LauncherKind.CONTAINER)
    assert (settings.url is None) == (launcher is not LauncherKind.ATTACH)
    assert settings.vllm_version is None
    assert settings.ipc == "private"


def test_an_option_closer_than_the_launcher_is_not_lost(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\ntriton_image = x\n")
    monkeypatch.setenv("PYTEST_VLLM_VERSION", "0.27.1")
    message = refusal(pytester)
    assert message.startswith("PYTEST_VLLM_VERSION ")
    assert " ini option triton_image " in message


@pytest.mark.parametrize(
    ("option", "value", "launcher", "embedded"),
    [
        ("vllm_version", "0.27.1", LauncherKind.PROCESS, True),
        ("triton_accelerator", "cpu", LauncherKind.PROCESS, True),
        ("triton_gpus", "0", LauncherKind.CONTAINER, False),
        ("triton_ipc", "host", LauncherKind.CONTAINER, False),
        ("triton_shm_size", "2G", LauncherKind.CONTAINER, False),
    ],
)
def test_an_option_of_one_launcher_selects_it(
    pytester: pytest.Pytester, option: str, value: str, launcher: LauncherKind, embedded: bool
) -> None:
    """`auto` would else go by the host, and perhaps ignore it; a default of the ini file may be."""
    given = settings_of(pytester, f"--{option.replace('_', '-')}={value}")
    assert (given.launcher, given.embedded) == (launcher, embedded)
    pytester.makeini(f"[pytest]\n{option} = {value}\n")
    by_default = settings_of(pytester)
    assert (by_default.launcher, by_default.embedded) == (LauncherKind.AUTO, embedded)


def test_the_backend_of_an_image_is_not_exchanged_for_another(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ntriton_backend_dir = image\n")
    assert "needs an image" in refusal(pytester, PROCESS)


def test_the_backend_of_an_image_may_stay_a_default(pytester: pytest.Pytester) -> None:
    """A running server has a backend already: no other is put in the place of the image's."""
    pytester.makeini("[pytest]\ntriton_backend_dir = image\n")
    attached = settings_of(pytester, URL)
    assert (attached.launcher, attached.backend_dir) == (LauncherKind.ATTACH, None)
    assert settings_of(pytester, IMAGE).backend_dir is BackendSource.IMAGE


# -- each option takes effect ----------------------------------------------------------------------

ONE_TEST = "def test_it(vllm_server): pass\n"


@pytest.fixture
def booted(pytester: pytest.Pytester, lying_server: Path) -> Any:
    """The output of a run whose server says what it was started with, and dies."""

    def run(*args: str) -> str:
        pytester.makepyfile(ONE_TEST)
        result = pytester.runpytest(
            f"--triton-server-bin={lying_server}", *args, str(pytester.path)
        )
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        return result.stdout.str()

    return run


def test_server_bin_is_what_runs(booted: Any) -> None:
    output = booted()
    assert "arguments: --model-repository=" in output
    assert "3" in output


def test_model_json_is_merged_into_the_served_one(booted: Any) -> None:
    output = booted('--vllm-model-json={"max_num_seqs": 7, "enforce_eager": null}')
    assert '"max_num_seqs": 7' in output
    assert '"gpu_memory_utilization"' in output
    assert '"enforce_eager"' not in output


def test_model_name_is_what_is_loaded(booted: Any) -> None:
    assert "--load-model=renamed" in booted("--triton-model-name=renamed")


def test_backend_dir_is_what_is_served(booted: Any, pytester: pytest.Pytester) -> None:
    Path("one/model.py").write_text("# the backend under test\n")
    assert "# the backend under test" in booted("--triton-backend-dir=one")


def test_model_is_what_is_served(booted: Any, pytester: pytest.Pytester) -> None:
    checkpoint = pytester.mkdir("checkpoint")
    (checkpoint / "config.json").write_text(json.dumps({"architectures": ["OPTForCausalLM"]}))
    (checkpoint / "model.safetensors").touch()
    assert f'"model": "{checkpoint}"' in booted(f"--vllm-model={checkpoint}")


def test_boot_timeout_ends_the_wait(booted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIE_SLEEP", "60")
    assert "1 s" in booted("--triton-boot-timeout=1")


def test_container_without_docker(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{pytester.path}/no.sock")
    pytester.makepyfile(ONE_TEST)
    result = pytester.runpytest_subprocess("--triton-image=some/image:1", str(pytester.path))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*Docker does not run here: install it*"])
    result.stdout.fnmatch_lines(["*container (--triton-image): some/image:1, GPUs: *"])


def test_attach_to_nobody(pytester: pytest.Pytester) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        pytester.makepyfile(ONE_TEST)
        result = pytester.runpytest(
            f"--triton-url={url}", "--triton-boot-timeout=1", str(pytester.path)
        )
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.TESTS_FAILED)
    result.stdout.fnmatch_lines([f"*{url.removeprefix('http://')}*"])
    result.stdout.no_fnmatch_line("*Traceback*")


FACTORY_TEST = "def test_it(vllm_server_factory): vllm_server_factory({'max_num_seqs': 7})\n"
OTHER_MODEL_TEST = "def test_it(vllm_server_factory): vllm_server_factory({'model': 'my/7b'})\n"


def test_factory_boots_what_a_test_asks_for(pytester: pytest.Pytester, lying_server: Path) -> None:
    pytester.makepyfile(FACTORY_TEST)
    result = pytester.runpytest(f"--triton-server-bin={lying_server}", str(pytester.path))
    assert '"max_num_seqs": 7' in result.stdout.str()


def test_factory_gives_another_model_its_share_of_a_gpu(
    pytester: pytest.Pytester, lying_server: Path
) -> None:
    pytester.makepyfile(OTHER_MODEL_TEST)
    result = pytester.runpytest(f"--triton-server-bin={lying_server}", str(pytester.path))
    assert '"gpu_memory_utilization": 0.2' in result.stdout.str()


def test_factory_does_not_take_an_attached_server_for_another(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FACTORY_TEST)
    result = pytester.runpytest("--triton-url=http://127.0.0.1:9", "-rs", str(pytester.path))
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*needs servers that the suite starts itself*"])
