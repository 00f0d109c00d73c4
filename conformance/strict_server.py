"""The server for checks that harm one, or that need other flags than the shared one's."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pytest_vllm_triton.clients import GrpcClient, HttpClient
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.base import ServerHandle
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.transcript import Transcript

# A model in the hub cache of the strict server: no more than a configuration.
HUB_ID, HUB_ARCHITECTURE = "nobody/nothing", "NoSuchArchitecture"
HUB_COMMIT = "0" * 40


@dataclass
class StrictServer:
    """A server for checks that harm it, or that need other flags than the shared one's.

    It completes no configuration and forwards all headers, and it has a hub cache of its own. It
    is booted when first asked for, and again after `discard`. It shares /dev/shm with the shared
    server, and has the same prefix there, as two servers have that are started without the option.

    Attributes:
        load_error: why its model did not load, which is CFG-004's to judge; None if it did, or if
            no server runs.
    """

    harness: Harness
    load_error: str | None = field(default=None, init=False)
    _handle: ServerHandle | None = field(default=None, init=False)

    @property
    def handle(self) -> ServerHandle:
        """The running server, with the sample model loaded under its complete configuration.

        Raises:
            ServerFailed: it does not boot, or the model does not load.
        """
        if self._handle is None:
            self._handle = self._boot()
            try:
                self.load_error = self._load(self._handle)
            except BaseException:
                self.discard()
                raise
        if self.load_error is not None:
            raise ServerFailed(f"the strict server's model did not load: {self.load_error}")
        return self._handle

    def _boot(self) -> ServerHandle:
        shared = self.harness.shared_server()
        spec = self.harness.server_spec(
            args=(
                "--disable-auto-complete-config",
                "--http-header-forward-pattern=.*",
                "--grpc-header-forward-pattern=.*",
            ),
            env={"HF_HUB_CACHE": str(self._hub_cache()), "HF_HUB_OFFLINE": "1"},
            load=(),
            control_mode_as_two_words=True,
            shm_prefix=shared.shm_prefix,
            shm_domain=shared.shm_domain,
        )
        return self.harness.boot(spec, "strict configuration, and checks that harm it")

    def _load(self, server: ServerHandle) -> str | None:
        with closing(ModelRepository(server)) as repository:
            return repository.load(self.model, {"config": self.config}).error

    @cached_property
    def config(self) -> str:
        """The configuration that the shared server completed, with parameters that switch nothing
        on: only "true" does."""
        with HttpClient(self.harness.shared_server().endpoints.http, self.model) as client:
            config = client.get(client.path("config")).json()
        off = {"REPORT_CUSTOM_METRICS": "false", "ENABLE_VLLM_HEALTH_CHECK": "1"}
        config["parameters"] = {name: {"string_value": value} for name, value in off.items()}
        return json.dumps(config)

    def _hub_cache(self) -> Path:
        """As the hub's client leaves it; in the work folder, which containers see too."""
        cache = self.harness.provision.work_dir / "hub"
        model = cache / f"models--{HUB_ID.replace('/', '--')}"
        snapshot = model / "snapshots" / HUB_COMMIT
        if not snapshot.is_dir():
            snapshot.mkdir(parents=True)
            config = {"model_type": "opt", "architectures": [HUB_ARCHITECTURE]}
            (snapshot / "config.json").write_text(json.dumps(config))
            (model / "refs").mkdir()
            (model / "refs" / "main").write_text(HUB_COMMIT)
        return cache

    @property
    def model(self) -> str:
        return self.harness.model_name

    def http(self, transcript: Transcript) -> HttpClient:
        return HttpClient(self.handle.endpoints.http, self.model, transcript)

    def grpc(self, transcript: Transcript) -> GrpcClient:
        return GrpcClient(self.handle.endpoints.grpc, self.model, transcript)

    def repository(self, transcript: Transcript | None = None) -> ModelRepository:
        return ModelRepository(self.handle, transcript)

    def discard(self) -> None:
        """End the server by force: it may be past a graceful stop."""
        if self._handle is not None:
            self._handle.kill()
            self.harness.forget(self._handle)
            self._handle = None
            self.load_error = None
