"""Every option of the plugin: one table, read from command line, environment or ini file.

Each option ``--a-b`` has an ini twin ``a_b`` and an environment variable ``PYTEST_A_B``. The
command line wins over the environment, the environment over the ini file. An option that takes
several values is repeated, or its values are separated by commas or line breaks. `Settings` is the
validated result.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_triton.addresses import host_and_port, http_url
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.known_failures import KnownFailure, load_known_failures
from pytest_vllm_triton.launcher_kinds import DEFAULT_IMAGE, DEFAULT_SHM_SIZE, LauncherKind
from pytest_vllm_triton.launcher_options import Distance, Origin, select_launcher
from pytest_vllm_triton.paths import HOME_VARIABLE
from pytest_vllm_triton.report.formats import check_suffix
from pytest_vllm_triton.requirements import Level, Requirement, load_catalogue
from pytest_vllm_triton.suggest import did_you_mean, nearest_sibling

KNOWN_ANSWER = "known-answer"


class BackendSource(Enum):
    """The values of --triton-backend-dir that are no folder."""

    #: The backend which the image holds.
    IMAGE = "image"


@dataclass(frozen=True)
class Option:
    """One option: its flag, its default and the function that validates a text value.

    Attributes:
        several: it takes several values; each is validated, and a tuple of them is the result.
    """

    flag: str
    parse: Callable[[str], Any]
    default: str | None
    metavar: str
    help: str
    selects_suite: bool = False
    several: bool = False

    def values(self, text: str) -> Any:
        """What the text means.

        Raises:
            UserError: it means nothing.
        """
        if not self.several:
            return self.parse(text)
        parts = [part.strip() for part in re.split("[,\n]", text)]
        return tuple(dict.fromkeys(self.parse(part) for part in parts if part))

    def values_or_none(self, text: str | None) -> Any:
        return None if text is None else self.values(text)

    @property
    def ini(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def env(self) -> str:
        return "PYTEST_" + self.ini.upper()


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() in names:
            return text.lower()
        raise UserError(f"{text!r} is not one of {', '.join(names)}.{did_you_mean(text, names)}")

    return parse


def _name(text: str) -> str:
    if not text.strip():
        raise UserError("it is empty.")
    return text


def _vllm_version(text: str) -> str:
    from pytest_vllm_triton.runtime.recipe import check_vllm_version

    check_vllm_version(text)
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError(f"{text!r} is not a number of seconds greater than 0.")
    return value


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"{text!r} is not a whole number of at least 1.")
    return int(text)


def _executable(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{text!r} is not a file.{nearest_sibling(path)}")
    if not os.access(path, os.X_OK):
        raise UserError(f"{text!r} is not executable.")
    return path


def _image(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-zA-Z0-9._\-/:@]*", text):
        raise UserError(
            f"{text!r} is not the name of an image, such as {DEFAULT_IMAGE}: names have no spaces "
            "and begin with a lower-case letter or a digit."
        )
    return text


def _gpus(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    if text.lower() in ("all", "none"):
        return text.lower()
    if not all(re.fullmatch(r"\d+|GPU-[0-9a-fA-F-]+|MIG-[0-9a-fA-F-]+", name) for name in names):
        raise UserError(f"{text!r} is not all, none, or GPUs such as 0 or 0,1.")
    return ",".join(dict.fromkeys(names))


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[bkmg]?", text, re.IGNORECASE):
        raise UserError(f"{text!r} is not a size such as 1G, 512m or a number of bytes.")
    return text


def _backend_dir(text: str) -> Path | BackendSource:
    if text == BackendSource.IMAGE.value:
        return BackendSource.IMAGE
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"{text!r} is not a directory.{nearest_sibling(path)}")
    if not (path / "model.py").is_file():
        found = sorted(str(p.parent) for p in path.glob("*/model.py"))
        hint = f" Did you mean {found[0]!r}?" if found else ""
        raise UserError(
            f"{text!r} holds no model.py, so it is no Python-based Triton backend.{hint}"
        )
    return path


def _model_json(text: str) -> dict[str, Any]:
    """A JSON object of vLLM engine arguments, inline or the path of a file that holds one."""
    source = text.strip()
    where = "the given JSON"
    if not source.startswith("{"):
        path = Path(source).expanduser()
        if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, it takes any text
            raise UserError(
                f"{text!r} is neither a file nor inline JSON such as '{{\"max_num_seqs\": 4}}'."
                f"{nearest_sibling(path.absolute())}"
            )
        try:
            source, where = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{str(path)!r} cannot be read: {error}.") from None
    try:
        value = json.loads(source)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is JSON, but not an object of engine arguments.")
    return value


def _report_path(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    check_suffix(path)
    return path


def _known_failures(text: str) -> dict[str, KnownFailure]:
    """A file, or the name of a list that this package ships."""
    path = Path(text).expanduser().absolute()
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, it takes any text
        from pytest_vllm_triton import assets

        shipped = {file.stem: file for file in assets.known_failures()}
        if text not in shipped:
            hint = nearest_sibling(path) or did_you_mean(text, shipped)
            raise UserError(f"{text!r} is not a file.{hint}")
        path = shipped[text]
    return load_known_failures(path)


def _group_or_id(text: str) -> str:
    catalogue = load_catalogue()
    name = text.upper()
    if name not in catalogue and name not in catalogue.groups:
        hint = did_you_mean(name, [*catalogue.groups, *catalogue])
        raise UserError(f"there is no requirement or group {text!r}.{hint}")
    return name


OPTIONS: tuple[Option, ...] = (
    Option(
        "--vllm-model",
        _name,
        KNOWN_ANSWER,
        "MODEL",
        "the model to serve: known-answer (default, generated offline), a Hugging Face id, "
        "or a local checkpoint directory",
        selects_suite=True,
    ),
    Option(
        "--vllm-model-json",
        _model_json,
        None,
        "JSON",
        "vLLM engine arguments merged into the served model.json: a file or inline JSON",
    ),
    Option(
        "--vllm-version",
        _vllm_version,
        None,
        "VERSION",
        "the vLLM version of the embedded server runtime",
    ),
    Option(
        "--triton-accelerator",
        _choice("auto", "cpu", "cuda"),
        "auto",
        "auto|cpu|cuda",
        "what the embedded server runtime computes on; auto (default): cuda if this host has a GPU "
        "and that runtime is there, else cpu",
    ),
    Option(
        "--triton-launcher",
        _choice(*(kind.value for kind in LauncherKind)),
        LauncherKind.AUTO.value,
        "KIND",
        "how to get a server: auto (default), container, process or attach",
    ),
    Option(
        "--triton-image",
        _image,
        None,
        "IMAGE",
        f"the image to start containers of; it selects the container launcher (its default: "
        f"{DEFAULT_IMAGE})",
    ),
    Option(
        "--triton-gpus",
        _gpus,
        None,
        "all|none|0,1",
        "the GPUs of containers (default: all that this host has)",
    ),
    Option(
        "--triton-xdist-gpus",
        _choice("lease", "share"),
        "lease",
        "lease|share",
        "whether each worker of pytest-xdist has GPUs of its own (lease, the default) or all use "
        "all of them (share)",
    ),
    Option(
        "--triton-ipc",
        _choice("private", "host"),
        "private",
        "private|host",
        "whose /dev/shm containers use: their own (default) or this host's",
    ),
    Option(
        "--triton-shm-size",
        _size,
        DEFAULT_SHM_SIZE,
        "SIZE",
        "the size of a container's own /dev/shm",
    ),
    Option(
        "--triton-server-bin",
        _executable,
        None,
        "PATH",
        "the tritonserver to run (process launcher); default: the one on PATH, else the "
        "embedded runtime's",
    ),
    Option(
        "--triton-backend-dir",
        _backend_dir,
        None,
        "DIR",
        "the vLLM backend under test (default: the one in this package); image: the one that the "
        "image holds",
    ),
    Option(
        "--triton-url",
        http_url,
        None,
        "URL",
        "HTTP address of a running server to check, e.g. http://localhost:8000 (attach)",
        selects_suite=True,
    ),
    Option(
        "--triton-grpc-url",
        host_and_port,
        None,
        "HOST:PORT",
        "its gRPC address (default: the HTTP port + 1)",
    ),
    Option(
        "--triton-metrics-url",
        http_url,
        None,
        "URL",
        "its metrics address (default: the HTTP port + 2, if its metrics are there)",
    ),
    Option(
        "--triton-model-name",
        _name,
        "vllm_model",
        "NAME",
        "the name under which the model is served",
    ),
    Option(
        "--triton-boot-timeout",
        _seconds,
        "300",
        "SECONDS",
        "how long a server may take to get ready",
    ),
    Option(
        "--conformance-level",
        _choice(*(level.value.lower() for level in Level)),
        "may",
        "LEVEL",
        "check requirements of this level and above: must, should or may (default: all)",
        selects_suite=True,
    ),
    Option(
        "--conformance-select",
        _group_or_id,
        None,
        "GROUP_OR_ID",
        "check only this group or requirement; may be repeated (default: all)",
        selects_suite=True,
        several=True,
    ),
    Option(
        "--conformance-examples",
        _count,
        "25",
        "NUMBER",
        "generated inputs per property: the same ones in each run, more go deeper (default: 25)",
    ),
    Option(
        "--conformance-report",
        _report_path,
        None,
        "PATH",
        "write the verdict of every requirement to this file: .json, .md (for a CI job summary) "
        "or .html (one page); may be repeated",
        selects_suite=True,
        several=True,
    ),
    Option(
        "--conformance-require",
        _group_or_id,
        None,
        "GROUP_OR_ID",
        "a group or requirement that this run has to decide: UNTESTED is red; may be repeated",
        selects_suite=True,
        several=True,
    ),
    Option(
        "--known-failures",
        _known_failures,
        None,
        "PATH",
        "TOML file of requirements that are known to fail, or 'upstream' for the shipped list of "
        "NVIDIA's backend: a failure is then XFAIL, a pass XPASS",
    ),
)

# A variable that begins like this is one of ours, or a mistyped one.
ENV_PREFIXES = ("PYTEST_VLLM_", "PYTEST_TRITON_", "PYTEST_CONFORMANCE_", "PYTEST_KNOWN_FAIL")


@dataclass(frozen=True)
class Settings:
    """What the user asked for, validated.

    Attributes:
        embedded: the server that this package makes.
        backend_dir: None for the backend in this package.
    """

    model: str
    model_is_explicit: bool
    model_json: Mapping[str, Any]
    vllm_version: str | None
    accelerator: str
    launcher: LauncherKind
    embedded: bool
    image: str | None
    gpus: str | None
    xdist_gpus: str
    ipc: str
    shm_size: str
    server_bin: Path | None
    backend_dir: Path | BackendSource | None
    url: str | None
    grpc_url: str | None
    metrics_url: str | None
    model_name: str
    boot_timeout: float
    level: Level
    select: tuple[str, ...]
    examples: int
    reports: tuple[Path, ...]
    required: tuple[str, ...]
    known_failures: Mapping[str, KnownFailure]
    selects_suite: bool
    is_default: bool

    def asks_for(self, requirement: Requirement) -> bool:
        """Whether level and selection leave the requirement in."""
        names = (requirement.id, requirement.group)
        selected = not self.select or any(name in self.select for name in names)
        return selected and self.level.includes(requirement.level)


def add_options(parser: pytest.Parser) -> None:
    """Register every option and its ini twin."""
    group = parser.getgroup("vllm-triton", "vLLM backend of Triton: conformance")
    for option in OPTIONS:
        group.addoption(
            option.flag,
            dest=option.ini,
            metavar=option.metavar,
            action="append" if option.several else "store",
            default=None,
            help=f"{option.help} [ini: {option.ini}, env: {option.env}]",
        )
        parser.addini(option.ini, help=option.help, default=None)


def load_settings(config: pytest.Config) -> Settings:
    """Validate all options.

    Raises:
        pytest.UsageError: names the option, the offending value and, where one is close, the value
            that was probably meant.
    """
    _check_environment_names()
    values: dict[str, Any] = {}
    given: dict[str, Origin] = {}
    selects_suite = False
    for option in OPTIONS:
        text, origin = _raw(config, option)
        if origin is not None:
            given[option.ini] = origin
            selects_suite |= option.selects_suite and origin.distance is Distance.COMMAND_LINE
        try:
            values[option.ini] = option.values_or_none(text)
        except UserError as error:
            raise pytest.UsageError(f"{origin.name if origin else option.flag}: {error}") from None
    launcher, embedded = _settle_launcher(values, given)
    if values["vllm_version"]:
        _check_accelerator(values["triton_accelerator"], values["vllm_version"])
    if launcher is LauncherKind.ATTACH and not values["triton_url"]:
        raise pytest.UsageError(
            "--triton-launcher attach needs --triton-url, e.g. http://localhost:8000"
        )
    of_image = values["triton_backend_dir"] is BackendSource.IMAGE
    if of_image and launcher is not LauncherKind.CONTAINER:
        # Never another backend in its place, not even where `image` was only a default.
        raise pytest.UsageError(
            "--triton-backend-dir image needs an image: --triton-image, or --triton-launcher "
            "container (a folder of this name is ./image)"
        )
    return Settings(
        model=values["vllm_model"],
        model_is_explicit="vllm_model" in given,
        model_json=values["vllm_model_json"] or {},
        vllm_version=values["vllm_version"],
        accelerator=values["triton_accelerator"],
        launcher=launcher,
        embedded=embedded,
        image=values["triton_image"],
        gpus=values["triton_gpus"],
        xdist_gpus=values["triton_xdist_gpus"],
        ipc=values["triton_ipc"],
        shm_size=values["triton_shm_size"],
        server_bin=values["triton_server_bin"],
        backend_dir=values["triton_backend_dir"],
        url=values["triton_url"],
        grpc_url=values["triton_grpc_url"],
        metrics_url=values["triton_metrics_url"],
        model_name=values["triton_model_name"],
        boot_timeout=values["triton_boot_timeout"],
        level=Level[values["conformance_level"].upper()],
        select=values["conformance_select"] or (),
        examples=values["conformance_examples"],
        reports=values["conformance_report"] or (),
        required=values["conformance_require"] or (),
        known_failures=values["known_failures"] or {},
        selects_suite=selects_suite,
        is_default=not given,
    )


def _settle_launcher(
    values: dict[str, Any], given: Mapping[str, Origin]
) -> tuple[LauncherKind, bool]:
    """The launcher that is asked for, and whether the embedded runtime is.

    What is given and does not apply to it gets its default.
    """
    defaults = {option.ini: option.values_or_none(option.default) for option in OPTIONS}
    # What equals the default asks for nothing.
    telling = {k: v for k, v in given.items() if values[k] != defaults[k]}
    try:
        selection = select_launcher(telling, values["triton_launcher"])
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    values.update({name: defaults[name] for name in selection.ignored})
    # A tritonserver is no launcher: the header says that it is why there is a process.
    by_server = selection.by == "triton_server_bin"
    launcher = LauncherKind.AUTO if by_server else LauncherKind(selection.launcher)
    return launcher, selection.embedded


def _check_accelerator(accelerator: str, vllm_version: str) -> None:
    from pytest_vllm_triton.runtime.choice import choose_accelerator

    try:
        choose_accelerator(accelerator, vllm_version)
    except UserError as error:
        raise pytest.UsageError(f"--vllm-version: {error}") from None


def _raw(config: pytest.Config, option: Option) -> tuple[str | None, Origin | None]:
    """The option's text and where it came from (None for the default)."""
    from_command_line = config.getoption(option.ini)
    if from_command_line is not None:
        texts = from_command_line if option.several else [from_command_line]
        return ",".join(str(text) for text in texts), Origin(option.flag, Distance.COMMAND_LINE)
    # An empty variable counts as unset: that is what a CI system passes for an empty input.
    if from_environment := os.environ.get(option.env):
        return from_environment, Origin(option.env, Distance.ENVIRONMENT)
    from_ini = config.getini(option.ini)
    if from_ini:
        return str(from_ini), Origin(f"ini option {option.ini}", Distance.INI_FILE)
    return option.default, None


def _check_environment_names() -> None:
    """A mistyped variable must not be ignored in silence: a gate would check the wrong thing."""
    known = [option.env for option in OPTIONS]
    reserved = (*known, HOME_VARIABLE)
    for name in os.environ:
        if name.startswith(ENV_PREFIXES) and name not in reserved:
            raise pytest.UsageError(
                f"unknown environment variable {name}.{did_you_mean(name, reserved)}"
            )
