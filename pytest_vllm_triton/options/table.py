"""The table of options: all that there is to know of each, in one place.

Each option ``--a-b`` has an ini twin ``a_b`` and an environment variable ``PYTEST_A_B``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_vllm_triton.addresses import host_and_port, http_url
from pytest_vllm_triton.options import values
from pytest_vllm_triton.options.launcher_kinds import DEFAULT_IMAGE, DEFAULT_SHM_SIZE, LauncherKind
from pytest_vllm_triton.requirements import Level

_GROUP = re.compile("^(vllm|triton|conformance)_")


@dataclass(frozen=True)
class Option:
    """One option: its flag, its default and the function that validates a text value.

    Attributes:
        default: None: where it is not given it has no value, and `Settings` says what that means.
        several: it takes several values; each is validated, and a tuple of them is the result.
        renamed: its field of `Settings`, where that is not the flag without ``--vllm-``,
            ``--triton-`` or ``--conformance-``.
    """

    flag: str
    parse: Callable[[str], Any]
    default: str | None
    metavar: str
    help: str
    selects_suite: bool = False
    several: bool = False
    renamed: str = ""

    def value(self, text: str) -> Any:
        """What the text means.

        Raises:
            UserError: it means nothing.
        """
        if not self.several:
            return self.parse(text)
        parts = [part.strip() for part in re.split("[,\n]", text)]
        return tuple(dict.fromkeys(self.parse(part) for part in parts if part))

    @property
    def default_value(self) -> Any:
        return None if self.default is None else self.value(self.default)

    @property
    def ini(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def env(self) -> str:
        return "PYTEST_" + self.ini.upper()

    @property
    def field(self) -> str:
        """The field of `Settings` that holds its value."""
        return self.renamed or _GROUP.sub("", self.ini)


OPTIONS: tuple[Option, ...] = (
    Option(
        "--vllm-model",
        values.not_empty,
        values.KNOWN_ANSWER,
        "MODEL",
        "the model to serve: known-answer (default, generated offline), a Hugging Face id, "
        "or a local checkpoint directory",
        selects_suite=True,
    ),
    Option(
        "--vllm-model-json",
        values.model_json,
        None,
        "JSON",
        "vLLM engine arguments merged into the served model.json: a file or inline JSON",
    ),
    Option(
        "--vllm-version",
        values.vllm_version,
        None,
        "VERSION",
        "the vLLM version of the embedded server runtime",
        renamed="vllm_version",
    ),
    Option(
        "--triton-accelerator",
        values.choice("auto", "cpu", "cuda"),
        "auto",
        "auto|cpu|cuda",
        "what the embedded server runtime computes on; auto (default): cuda if this host has a GPU "
        "and that runtime is there, else cpu",
    ),
    Option(
        "--triton-launcher",
        values.one_of({kind.value: kind for kind in LauncherKind}),
        LauncherKind.AUTO.value,
        "KIND",
        "how to get a server: auto (default), container, process or attach",
    ),
    Option(
        "--triton-image",
        values.image,
        None,
        "IMAGE",
        f"the image to start containers of; it selects the container launcher (its default: "
        f"{DEFAULT_IMAGE})",
    ),
    Option(
        "--triton-gpus",
        values.gpus,
        None,
        "all|none|0,1",
        "the GPUs of containers (default: all that this host has)",
    ),
    Option(
        "--triton-xdist-gpus",
        values.choice("lease", "share"),
        "lease",
        "lease|share",
        "whether each worker of pytest-xdist has GPUs of its own (lease, the default) or all use "
        "all of them (share)",
    ),
    Option(
        "--triton-ipc",
        values.choice("private", "host"),
        "private",
        "private|host",
        "whose /dev/shm containers use: their own (default) or this host's",
    ),
    Option(
        "--triton-shm-size",
        values.size,
        DEFAULT_SHM_SIZE,
        "SIZE",
        "the size of a container's own /dev/shm",
    ),
    Option(
        "--triton-server-bin",
        values.executable,
        None,
        "PATH",
        "the tritonserver to run (process launcher); default: the one on PATH, else the "
        "embedded runtime's",
    ),
    Option(
        "--triton-backend-dir",
        values.backend_dir,
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
        values.not_empty,
        "vllm_model",
        "NAME",
        "the name under which the model is served",
    ),
    Option(
        "--triton-boot-timeout",
        values.seconds,
        "300",
        "SECONDS",
        "how long a server may take to get ready",
    ),
    Option(
        "--conformance-level",
        values.one_of({level.value.lower(): level for level in Level}),
        "may",
        "LEVEL",
        "check requirements of this level and above: must, should or may (default: all)",
        selects_suite=True,
    ),
    Option(
        "--conformance-select",
        values.group_or_id,
        None,
        "GROUP_OR_ID",
        "check only this group or requirement; may be repeated (default: all)",
        selects_suite=True,
        several=True,
    ),
    Option(
        "--conformance-examples",
        values.count,
        "25",
        "NUMBER",
        "generated inputs per property: the same ones in each run, more go deeper (default: 25)",
    ),
    Option(
        "--conformance-report",
        values.report_path,
        None,
        "PATH",
        "write the verdict of every requirement to this file: .json, .md (for a CI job summary) "
        "or .html (one page); may be repeated",
        selects_suite=True,
        several=True,
        renamed="reports",
    ),
    Option(
        "--conformance-require",
        values.group_or_id,
        None,
        "GROUP_OR_ID",
        "a group or requirement that this run has to decide: UNTESTED is red; may be repeated",
        selects_suite=True,
        several=True,
        renamed="required",
    ),
    Option(
        "--known-failures",
        values.known_failures,
        None,
        "PATH",
        "TOML file of requirements that are known to fail, or 'upstream' for the shipped list of "
        "NVIDIA's backend: a failure is then XFAIL, a pass XPASS",
    ),
)
