"""Two servers on one host, both under load."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pytest_vllm_triton.clients import (
    GrpcClient,
    HttpClient,
)
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.servers.harness import Harness

from ..processes import described, is_stub
from ..record import Seen
from ..traffic import at_once, expected_text, greedy
from ..waits import NOTICED_SECONDS, PATIENCE, until

SHARED_LOAD = 50


def share_the_host(seen: Seen, one: ServerHandle, other: ServerHandle, harness: Harness) -> None:
    """50 requests to each of two servers at the same time; each server counts its own.

    Of a model whose answers are not known, the answers are told apart by their prompts alone.
    """
    model, oracle = harness.model_name, harness.provision.model.known_answer
    seen["one /dev/shm"] = one.shm_domain == other.shm_domain
    servers = {"one": one, "other": other}
    clients = {
        name: GrpcClient(s.endpoints.grpc, model, deadline=PATIENCE) for name, s in servers.items()
    }
    before = {name: requests_served(server, model) for name, server in servers.items()}
    requests = {
        name: [greedy(f"server {name}, request {i}", 16) for i in range(SHARED_LOAD)]
        for name in servers
    }
    with ThreadPoolExecutor(2) as pool:
        running = {
            name: pool.submit(at_once, clients[name].generate, requests[name], SHARED_LOAD)
            for name in servers
        }
        texts = {name: future.result() for name, future in running.items()}
    for name, server in servers.items():
        prompts = [str(request.text_input) for request in requests[name]]
        if oracle is None:
            pairs = zip(texts[name], prompts, strict=True)
            seen[f"texts of {name}"] = [text[: len(prompt)] for text, prompt in pairs]
            seen[f"texts expected of {name}"] = prompts
        else:
            seen[f"texts of {name}"] = texts[name]
            seen[f"texts expected of {name}"] = [expected_text(oracle, r) for r in requests[name]]
        expected = before[name] + SHARED_LOAD
        # Triton counts a request after its answer was sent.
        until(lambda: requests_served(server, model) >= expected, NOTICED_SECONDS)  # noqa: B023
        seen[f"requests counted by {name}"] = requests_served(server, model) - before[name]
        stubs = [process for process in server.processes() if is_stub(process)]
        seen[f"prefix of {name}"] = server.shm_prefix
        seen[f"regions of {name}'s stubs"] = {
            described(stub): sorted(server.regions_of([stub])) for stub in stubs
        }
    for client in clients.values():
        client.close()


def requests_served(server: ServerHandle, model: str) -> int:
    """The server's own count of good requests to a model."""
    with HttpClient(server.endpoints.http, model) as client:
        stats = client.get(client.path("stats")).json()["model_stats"][0]
    return int(stats["inference_stats"]["success"]["count"])
