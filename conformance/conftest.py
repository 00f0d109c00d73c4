"""Fixtures that several modules of the suite share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from pytest_vllm_triton import fixtures
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.known_answer import KnownAnswer
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.models.under_test import ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.session.state import EARLIER_LOG, TRANSCRIPT
from pytest_vllm_triton.transcript import Transcript
from pytest_vllm_triton.verdicts import not_applicable

from .alternate import Alternate, load_alternate
from .experiments.bare_server import BareLife
from .experiments.deaths import Deaths
from .experiments.plain_server import PlainLife
from .experiments.second_model import SecondModelLife
from .extra_models import (
    ONE_TOKEN,
    ONE_VECTOR,
    ExtraModel,
    embedding_spec,
    lora_spec,
    needs_owned,
    vision_spec,
)
from .record import Seen
from .strict_server import StrictServer

# The plugin's fixtures are named here again, so that the suite does not use fixtures with the same
# names from a user's own conftest.py.
generate = fixtures.generate
known_answer = fixtures.known_answer
owned_server = fixtures.owned_server
triton_client = fixtures.triton_client
triton_grpc = fixtures.triton_grpc
triton_http = fixtures.triton_http


@pytest.fixture
def transcript(request: pytest.FixtureRequest) -> Transcript:
    """What the report of this check shows of requests; for clients that it opens itself."""
    recorded: Transcript = request.node.stash[TRANSCRIPT]
    return recorded


@pytest.fixture
def repository(owned_server: ServerHandle, transcript: Transcript) -> Iterator[ModelRepository]:
    """The shared server's model repository; models that a test adds are unloaded and removed."""
    with closing(ModelRepository(owned_server, transcript)) as opened:
        yield opened


@pytest.fixture(scope="session")
def alternate(vllm_harness: Harness, vllm_server: ServerHandle) -> Iterator[Alternate]:
    """A second model on the shared server, as different as a model can be."""
    with closing(ModelRepository(needs_owned(vllm_server))) as opened:
        yield load_alternate(vllm_harness, opened, several_gpus=len(vllm_server.gpus()) > 1)


@pytest.fixture(scope="session")
def alternate_model(alternate: Alternate) -> str:
    """The name of the alternate model, loaded."""
    return alternate.name


@pytest.fixture(scope="session")
def lora_extra(vllm_harness: Harness, vllm_server: ServerHandle) -> Iterator[ExtraModel]:
    """A model with LoRA adapters and custom metrics on the shared server."""
    spec = lora_spec(vllm_harness)
    with closing(ExtraModel(needs_owned(vllm_server), spec, ONE_TOKEN)) as model:
        yield model


@pytest.fixture
def lora_model(lora_extra: ExtraModel) -> str:
    """The name of the model with LoRA adapters and custom metrics, loaded."""
    return lora_extra.served()


@pytest.fixture(scope="session")
def embedding_extra(vllm_harness: Harness, vllm_server: ServerHandle) -> Iterator[ExtraModel]:
    """A model that embeds, on the shared server."""
    spec = embedding_spec(vllm_harness)
    with closing(ExtraModel(needs_owned(vllm_server), spec, ONE_VECTOR)) as model:
        yield model


@pytest.fixture
def embedding_model(embedding_extra: ExtraModel) -> str:
    """The name of the model that embeds, loaded."""
    return embedding_extra.served()


@pytest.fixture(scope="session")
def vision_extra(vllm_harness: Harness, vllm_server: ServerHandle) -> Iterator[ExtraModel]:
    """A model that names the colour of pictures, on the shared server."""
    spec = vision_spec(vllm_harness)
    with closing(ExtraModel(needs_owned(vllm_server), spec, ONE_TOKEN)) as model:
        yield model


@pytest.fixture
def vision_model(vision_extra: ExtraModel) -> str:
    """The name of the model that names the colour of pictures, loaded."""
    return vision_extra.served()


@pytest.fixture
def story(vllm_model: ModelUnderTest) -> KnownAnswer:
    """The oracle of GEN-005 where the model under test has a known answer."""
    if vllm_model.known_answer is None:
        not_applicable("for other models vLLM itself is the oracle")
    return vllm_model.known_answer


EXPERIMENTS = ("bare_life", "deaths", "many_gpus", "plain_life", "second_model_life")


@pytest.fixture(autouse=True)
def logs_of_experiments(request: pytest.FixtureRequest) -> None:
    """What the servers of an experiment logged is in the report of a check that asks for it."""
    names = [name for name in EXPERIMENTS if name in request.fixturenames]
    experiments: list[Seen] = [request.getfixturevalue(name) for name in names]
    for seen in experiments:
        seen.forget_what_was_asked()
    request.node.stash[EARLIER_LOG] = lambda: "".join(seen.logs() for seen in experiments)


# What an experiment saw stays true when the shared server is replaced. So these fixtures ask the
# harness for that server: if they depended on the fixture `vllm_server`, they would end with it.


@pytest.fixture(scope="session")
def strict_server(vllm_harness: Harness) -> Iterator[StrictServer]:
    needs_owned(vllm_harness.shared_server())
    server = StrictServer(vllm_harness)
    yield server
    server.discard()


@pytest.fixture(scope="session")
def deaths(vllm_harness: Harness, strict_server: StrictServer) -> Seen:
    """What was seen when the processes of the strict server were killed; it is discarded after."""
    shared = vllm_harness.shared_server()
    experiment = Deaths(strict_server, shared)
    seen = experiment.run()
    return Deaths(strict_server, shared).run() if experiment.crashed else seen


@pytest.fixture(scope="session")
def second_model_life(vllm_harness: Harness) -> Seen:
    """What was seen of a second model on the shared server, from a failed load to its unload."""
    shared = needs_owned(vllm_harness.shared_server())
    return SecondModelLife(vllm_harness, shared).run()


@pytest.fixture(scope="session")
def plain_life(vllm_harness: Harness) -> Seen:
    """What was seen of a server without control API, from its boot to SIGTERM."""
    shared = needs_owned(vllm_harness.shared_server())
    return PlainLife(vllm_harness, shared).run()


@pytest.fixture(scope="session")
def bare_life(vllm_harness: Harness) -> Seen:
    """What was seen of a server without metrics page and control API, whose engine was killed."""
    shared = needs_owned(vllm_harness.shared_server())
    experiment = BareLife(vllm_harness, shared)
    seen = experiment.run()
    return BareLife(vllm_harness, shared).run() if experiment.stub_crashed else seen
