"""INS: the ways to install the backend, and what a broken installation says."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, Generation, GrpcClient, HttpClient
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.options.launcher_kinds import LauncherKind
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.servers.provision import ServerPython
from pytest_vllm_triton.single_file_backend import bundle
from pytest_vllm_triton.verdicts import untested

from .base_requests import PROMPT
from .experiments.bare_server import NO_METRICS
from .extra_models import needs_owned
from .logs import log_of
from .metrics_page import metrics_page
from .record import Seen

REQUEST = GenerateRequest(PROMPT, sampling={"temperature": 0})
# A module of the server's environment that is not there is found missing within this time.
FAILED_LOAD_SECONDS = 60.0
PACKAGE = "vllm_triton_backend"


@dataclass(frozen=True)
class SingleFile:
    """What was seen of a server whose vLLM backend is one file.

    Attributes:
        files: in the backend's folder.
        load_error: of the model.
        answer: of a request; None if the model did not load.
    """

    files: list[str]
    load_error: str | None
    answer: Generation | None


@pytest.fixture(scope="module")
def single_file(
    vllm_harness: Harness, vllm_server: ServerHandle, tmp_path_factory: pytest.TempPathFactory
) -> SingleFile:
    """A server with only model.py, as the seed's ``wget`` leaves it, in the C locale."""
    needs_owned(vllm_server)
    folder = tmp_path_factory.mktemp("single") / "vllm"
    folder.mkdir()
    backend = vllm_harness.provision.backend_dir
    if backend is None:
        untested("the backend is the one that the image holds")
    # What is offered for download: of this package's backend the bundle, of another its model.py.
    ours = (backend / PACKAGE).is_dir()
    text = bundle(backend) if ours else (backend / "model.py").read_text(encoding="utf-8")
    (folder / "model.py").write_text(text, encoding="utf-8")
    model = vllm_harness.model_spec()
    locale = {"LC_ALL": "C", "LANG": "C"} if ours else {}
    spec = vllm_harness.server_spec(model, load=(), env=locale)
    spec = replace(spec, backend_dir=folder)
    with vllm_harness.booted(spec, "a backend of a single file") as handle:
        repository = ModelRepository(handle)
        error = repository.load(model.name).error
        answer = None
        if error is None:
            with HttpClient(handle.endpoints.http, model.name) as client:
                answer = client.generate(REQUEST)
        repository.close()
        backend = server_backend(handle)
        files = sorted(p.name for p in backend.iterdir() if p.name != "__pycache__")
        return SingleFile(files, error, answer)


def server_backend(handle: ServerHandle) -> Path:
    """The folder that the server takes its vLLM backend from."""
    if handle.backend_folder is None:
        untested("the server's backend cannot be seen: it is the one that the image holds")
    return handle.backend_folder


# Service, as the server's log calls it -> its port.
SERVICES = {"GRPCInferenceService": 8001, "HTTPService": 8000, "Metrics Service": 8002}


@pytest.mark.requirement("INS-001")
def test_services_of_an_image(
    vllm_harness: Harness, owned_server: ServerHandle, triton_http: HttpClient
) -> None:
    """Booted by the docker run line of the README, on the image that is under test."""
    if vllm_harness.provision.choice.kind is not LauncherKind.CONTAINER:
        untested("needs an image to test: --triton-image")
    assert owned_server.log is not None
    log = owned_server.log.read()
    for service, port in SERVICES.items():
        expect.contains("log of the boot", log, f"Started {service} at 0.0.0.0:{port}")
    # Behind those lines are services.
    expect.equal("HTTP status of the model", triton_http.get(triton_http.path("ready")).status, 200)
    with GrpcClient(owned_server.endpoints.grpc, triton_http.model) as client:
        expect.starts_with("text_output over gRPC", client.generate(REQUEST).text, PROMPT)
    expect.that("metrics", metrics_page(owned_server).families, bool, "some")


@pytest.mark.requirement("INS-003")
def test_copied_folder(
    vllm_harness: Harness, owned_server: ServerHandle, triton_http: HttpClient
) -> None:
    """The shared server has a copy of the backend's folder and nothing else, as README says."""
    original, copy = vllm_harness.provision.backend_dir, server_backend(owned_server)
    assert original is not None
    expect.equal("files of the copy", files_below(copy), files_below(original))
    expect.starts_with("text_output", triton_http.generate(REQUEST).text, PROMPT)


def files_below(folder: Path) -> dict[str, int]:
    """Relative path -> size of the Python files."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*.py")}


@pytest.mark.requirement("INS-004")
def test_single_file(single_file: SingleFile) -> None:
    expect.equal("files of the backend", single_file.files, ["model.py"])
    expect.equal("load error", single_file.load_error, None)
    assert single_file.answer is not None
    expect.starts_with("text_output", single_file.answer.text, PROMPT)


@pytest.mark.requirement("MET-010")
def test_metrics_asked_of_a_server_without_them(bare_life: Seen) -> None:
    """The model asks for metrics; the server runs with --allow-metrics=false."""
    expect.contains("what a server boots with", bare_life["flags"], NO_METRICS)
    expect.starts_with("text_output", bare_life["answer"].text, "Say alpha")
    # Connections to a container's port are taken by Docker's proxy, and closed at once.
    kind = type(bare_life["refusal of the metrics page"]).__name__
    refused = ("ConnectError", "RemoteProtocolError", "ReadError")
    expect.one_of("asking for the metrics page", kind, refused)


@pytest.mark.requirement("INS-005")
def test_backend_is_found_by_name(
    owned_server: ServerHandle, triton_http: HttpClient, vllm_harness: Harness
) -> None:
    """The model's folder holds no model.py: its code comes from the backend directory."""
    config = triton_http.get(triton_http.path("config")).json()
    expect.equal("backend", config["backend"], "vllm")
    expect.equal("runtime", config.get("runtime"), "model.py")
    assert owned_server.model_repository is not None
    model = owned_server.model_repository / vllm_harness.model_name
    expect.equal("Python files of the model", [str(p) for p in model.rglob("*.py")], [])
    expect.starts_with("text_output", triton_http.generate(REQUEST).text, PROMPT)


@pytest.mark.requirement("INS-005")
def test_table_of_backends(owned_server: ServerHandle) -> None:
    log = log_of(owned_server).read()
    table = dict(re.findall(r"^\| (\w+) +\| (\S+) +\|", log, re.MULTILINE))
    expect.contains("backends in the log", table, "python")
    path = f"{owned_server.backend_path}/model.py"
    expect.equal("path of backend vllm in the log", table.get("vllm"), path)


@pytest.fixture
def server_without_vllm(vllm_harness: Harness, vllm_server: ServerHandle) -> Iterator[ServerHandle]:
    """A server whose Python has NumPy and no vLLM; no model is loaded."""
    needs_owned(vllm_server)
    provision = vllm_harness.provision
    if provision.server_python is None:
        untested("the suite did not choose the Python of this server")
    # In the work folder, which servers in containers see too.
    path = bare_python(provision.server_python, provision.work_dir / "bare")
    spec = vllm_harness.server_spec(env={"PATH": path}, load=())
    with vllm_harness.booted(spec, "vLLM is not installed") as handle:
        yield handle


PYTHON_FACTS = """
import json, os, sys
packages = [os.path.join(folder, name)
            for folder in sys.path if folder.endswith("-packages") and os.path.isdir(folder)
            for name in os.listdir(folder)]
print(json.dumps({
    "python": os.path.realpath(sys.executable),
    "version": "%d.%d" % sys.version_info[:2],
    "packages": [path for path in packages if not os.path.basename(path).startswith("vllm")],
    "path": os.environ["PATH"],
}))
"""


def bare_python(python: ServerPython, folder: Path) -> str:
    """PATH with, as its first, a virtual environment with all the server's packages but vLLM.

    Its links lead to where things are for the server, which may be inside a container.
    """
    facts = json.loads(python.run_python(PYTHON_FACTS, timeout=60.0).stdout)
    site_packages = folder / f"lib/python{facts['version']}/site-packages"
    site_packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    home = Path(facts["python"]).parent
    (folder / "pyvenv.cfg").write_text(f"home = {home}\nversion = {facts['version']}\n")
    for name in ("python3", "python"):
        (folder / "bin" / name).symlink_to(facts["python"])
    for package in map(Path, facts["packages"]):
        # Of several folders of packages the first wins.
        with contextlib.suppress(FileExistsError):
            (site_packages / package.name).symlink_to(package)
    return f"{folder / 'bin'}:{facts['path']}"


@pytest.mark.requirement("INS-006")
def test_vllm_is_not_installed(server_without_vllm: ServerHandle, vllm_harness: Harness) -> None:
    handle = server_without_vllm
    repository = ModelRepository(handle)
    answer = repository.load(vllm_harness.model_name)
    error = answer.failed()
    # Not "vllm_model", which is the model, nor the backend's folder in the path of a file.
    expect.matches("load error", error, r"(?i)(?<![\w/.])vllm(?![\w/])")
    expect.between("seconds of the load", answer.answer.seconds, 0, FAILED_LOAD_SECONDS)
    repository.close()
    with HttpClient(handle.endpoints.http, vllm_harness.model_name) as client:
        expect.equal("HTTP status of /v2/health/live", client.get("/v2/health/live").status, 200)
        ready = client.get(client.path("ready")).status
        expect.that("HTTP status of the model's /ready", ready, lambda s: s != 200, "not 200")
