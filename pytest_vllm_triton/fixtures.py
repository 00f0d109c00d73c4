"""The fixtures: of the conformance suite, and for anybody's own tests of a vLLM model on Triton."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_vllm_triton.options.launcher_kinds import LauncherKind
from pytest_vllm_triton.session.state import HARNESS, TRANSCRIPT
from pytest_vllm_triton.verdicts import untested

if TYPE_CHECKING:
    from pytest_vllm_triton.clients import Generate, GrpcClient, HttpClient
    from pytest_vllm_triton.known_answer import KnownAnswer
    from pytest_vllm_triton.launchers.base import ServerHandle
    from pytest_vllm_triton.models.under_test import ModelUnderTest
    from pytest_vllm_triton.servers.harness import Harness


class ServerFactory(Protocol):
    """Boots a server with another model.json, configuration or command line."""

    def __call__(
        self,
        engine_args: Mapping[str, Any] | None = None,
        *,
        config: str | None = None,
        args: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> ServerHandle:
        """A ready server; it is stopped when the test that asked for it ends.

        Args:
            engine_args: merged into model.json; None as a value removes a key. If they name another
                ``model``, those of --vllm-model-json, which are for the model under test, are left
                out, and it has a fifth of a GPU's memory unless they say otherwise.
            config: the text of config.pbtxt (default: the sample's).
            args: further tritonserver flags.
            env: further environment variables of the server.

        Raises:
            ServerFailed: it did not get ready.
        """


@pytest.fixture(scope="session")
def vllm_harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """Launcher, model and servers of this session.

    Whether a session needs servers is seen from its tests' fixtures before the first one runs, so a
    test that asks for this one by `getfixturevalue` alone comes too late.
    """
    harness = request.config.stash.get(HARNESS, None)
    if harness is None:
        raise pytest.UsageError(
            "No test of this session names a fixture of a server, so none was prepared. Mark one "
            'that asks getfixturevalue for it with @pytest.mark.usefixtures("vllm_harness").'
        )
    yield harness
    harness.close()


@pytest.fixture(scope="session")
def vllm_model(vllm_harness: Harness) -> ModelUnderTest:
    """The model under test: its checkpoint folder, tokenizer and, if it has one, its oracle."""
    return vllm_harness.provision.model


@pytest.fixture(scope="session")
def vllm_server(vllm_harness: Harness) -> ServerHandle:
    """A running Triton server with the backend and the model under test, shared by the session."""
    return vllm_harness.shared_server()


@pytest.fixture
def vllm_server_factory(vllm_harness: Harness) -> Iterator[ServerFactory]:
    """Boot further servers, each with its own settings, for one test.

    With an attached server, which has the settings that it has, the test is UNTESTED.
    """
    if vllm_harness.provision.choice.kind is LauncherKind.ATTACH:
        untested("needs servers that the suite starts itself, not an attached one")

    def boot(
        engine_args: Mapping[str, Any] | None = None,
        *,
        config: str | None = None,
        args: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> ServerHandle:
        spec = vllm_harness.server_spec(
            vllm_harness.model_spec(engine_args=engine_args, config=config, tiny=False),
            args=args,
            env=env or {},
        )
        return started.enter_context(vllm_harness.booted(spec, "asked for by a test"))

    with ExitStack() as started:
        yield boot


@pytest.fixture
def triton_http(
    request: pytest.FixtureRequest, vllm_harness: Harness, vllm_server: ServerHandle
) -> Iterator[HttpClient]:
    """An HTTP client of the shared server."""
    from pytest_vllm_triton.clients import HttpClient

    with HttpClient(
        vllm_server.endpoints.http,
        vllm_harness.model_name,
        request.node.stash[TRANSCRIPT],
    ) as client:
        yield client


@pytest.fixture
def triton_grpc(
    request: pytest.FixtureRequest, vllm_harness: Harness, vllm_server: ServerHandle
) -> Iterator[GrpcClient]:
    """A gRPC client of the shared server."""
    from pytest_vllm_triton.clients import GrpcClient

    with GrpcClient(
        vllm_server.endpoints.grpc,
        vllm_harness.model_name,
        request.node.stash[TRANSCRIPT],
    ) as client:
        yield client


@pytest.fixture(params=["http", "grpc"])
def triton_client(
    request: pytest.FixtureRequest,
    vllm_harness: Harness,  # Named for pytest, which does not see what getfixturevalue asks for.
) -> HttpClient | GrpcClient:
    """A client of the shared server: the test is run twice, over HTTP and over gRPC."""
    client: HttpClient | GrpcClient = request.getfixturevalue(f"triton_{request.param}")
    return client


@pytest.fixture
def generate(triton_client: HttpClient | GrpcClient) -> Generate:
    """Send a request; the test is run twice, over HTTP and over gRPC."""
    return triton_client.generate


@pytest.fixture
def known_answer(vllm_model: ModelUnderTest) -> KnownAnswer:
    """The oracle of the known-answer model; without that model the test is UNTESTED."""
    if vllm_model.known_answer is None:
        untested(f"needs the known-answer model, not {vllm_model.source}")
    return vllm_model.known_answer


@pytest.fixture
def owned_server(vllm_server: ServerHandle) -> ServerHandle:
    """The shared server, if this session started it; otherwise the test is UNTESTED."""
    if not vllm_server.owned:
        untested("needs a server that the suite starts itself, not an attached one")
    return vllm_server
