"""The servers of a test session: specified, booted, shared, replaced and stopped."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllm_triton import assets
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle, ServerSpec
from pytest_vllm_triton.launchers.redact import Redactor
from pytest_vllm_triton.options.launcher_kinds import LauncherKind
from pytest_vllm_triton.servers.boots import Boot
from pytest_vllm_triton.servers.provision import Provision

if TYPE_CHECKING:
    from pytest_vllm_triton.launchers.load_slots import LoadSlots

# Of a backend that brings the server down now and then, the other checks are worth a boot each;
# one that does so at every turn is not.
_REPLACEMENTS = 2
# Crashes that are Triton's own come with many checks: more of them than of the others.
_OWN_CRASHES = 5

# Begins the line on which reference_engine.py tells its result.
_REFERENCE = "reference texts: "


@dataclass
class Harness:
    """The servers of one session.

    Attributes:
        provision: what they are made from.
        boots: every start of a server so far.
        servers: those whose logs are looked at: they have not been stopped by the suite.
    """

    provision: Provision
    boots: list[Boot] = field(default_factory=list)
    servers: list[ServerHandle] = field(default_factory=list)
    _shared: ServerHandle | None = field(default=None, init=False)
    _shared_failure: ServerFailed | None = field(default=None, init=False)
    _shared_command: str = field(default="", init=False)
    _replaced: int = field(default=0, init=False)
    _own_crashes: int = field(default=0, init=False)
    _triton_version: str = field(default="", init=False)

    @cached_property
    def load_slots(self) -> LoadSlots:
        """For the workers of pytest-xdist: as many load a model at once as the host can take."""
        from pytest_vllm_triton.launchers.load_slots import LoadSlots
        from pytest_vllm_triton.paths import cache_home

        return LoadSlots(cache_home() / "loads", self.provision.worker, self.provision.workers)

    @property
    def model_name(self) -> str:
        """The name under which servers serve the model under test."""
        return self.provision.settings.model_name

    def model_spec(
        self,
        name: str | None = None,
        engine_args: Mapping[str, Any] | None = None,
        config: str | None = None,
        *,
        tiny: bool = True,
        **fields: Any,
    ) -> ModelSpec:
        """The sample model of the repository with another ``model``, as a user would edit it.

        Args:
            name: the model's name.
            engine_args: merged over the sample's and the user's; None as a value removes a key.
                If they name another ``model``, the user's are left out: they are for that model.
            config: text of config.pbtxt (default: the sample's).
            tiny: another ``model`` is one of the suite's own, which need little of a GPU; if not,
                it gets what the model under test gets where it is not the known-answer one.
            fields: further fields of `ModelSpec`.
        """
        from pytest_vllm_triton.models.under_test import OTHER_MODEL_ARGS, TINY_MODEL_ARGS

        sample = assets.fixtures_dir() / "model_repository" / "vllm_model"
        merged = json.loads((sample / "1" / "model.json").read_text(encoding="utf-8"))
        if "model" in (engine_args or {}):
            merged.update(TINY_MODEL_ARGS if tiny else OTHER_MODEL_ARGS)
        else:
            merged["model"] = str(self.provision.model.path)
            merged.update(self.provision.model.engine_args)
            merged.update(self.provision.settings.model_json)
        merged.update(engine_args or {})
        if config is None:
            config = (sample / "config.pbtxt").read_text(encoding="utf-8")
        return ModelSpec.create(
            name or self.model_name,
            {key: value for key, value in merged.items() if value is not None},
            config,
            **fields,
        )

    def server_spec(self, *models: ModelSpec, **fields: Any) -> ServerSpec:
        """A server with these models (default: the sample model) and the backend under test."""
        return ServerSpec(
            models=models or (self.model_spec(),),
            backend_dir=self.provision.backend_dir,
            **fields,
        )

    def shared_server(self) -> ServerHandle:
        """The server that all checks share which do not need one of their own.

        Raises:
            ServerFailed: it does not boot; the second and later calls say so without the log.
        """
        if self._shared_failure is not None:
            raise ServerFailed("the shared server did not boot (see the first error)")
        if self._shared is None:
            try:
                purpose = "shared by all checks that can share"
                if self._replaced or self._own_crashes:
                    purpose += ", after the one before had ended"
                self._shared = self.boot(self.server_spec(), purpose)
                self._shared_command = self._shared.reproduce()
            except ServerFailed as error:
                self._shared_failure = error
                self._shared_command = error.command
                raise
            if not self.provision.uses_embedded_runtime:
                # The embedded runtime's is known; two reports of others could not be compared.
                from pytest_vllm_triton.servers.facts import triton_version

                self._triton_version = triton_version(self._shared.endpoints.http)
        return self._shared

    def replace_shared_server(self, own_crash: bool = False) -> bool:
        """Let go of the shared server, which has ended; the next call of `shared_server` boots one.

        Returns False, and does nothing, when that has happened too often: the next would end too.

        Args:
            own_crash: it was Triton's own, whatever the backend did.
        """
        often = self._own_crashes >= _OWN_CRASHES if own_crash else self._replaced >= _REPLACEMENTS
        if self._shared is None or often:
            return False
        if own_crash:
            self._own_crashes += 1
        else:
            self._replaced += 1
        self._shared.stop()
        self.forget(self._shared)
        self._shared = None
        return True

    def shared_death(self, when: str, failed: bool = False) -> ServerFailed | None:
        """Why the shared server has ended by itself; None while it lives.

        Args:
            when: for the sentence, e.g. "during test_x".
            failed: something did not work. If the server is dying, its end is waited for.
        """
        from pytest_vllm_triton.launchers.death import await_death, ended_by_itself

        server = self._shared
        if server is None:
            return None
        if failed:
            await_death(server)
        return None if server.exit_code() is None else ended_by_itself(server, when)

    def shared_crashed(self) -> bool:
        """Whether the shared server, on which something did not work, has ended by a crash."""
        from pytest_vllm_triton.launchers.death import await_death, crashed

        if self._shared is None:
            return False
        await_death(self._shared)
        return crashed(self._shared)

    def boot(self, spec: ServerSpec, purpose: str) -> ServerHandle:
        """Start a server; it is stopped at the end of the session if nobody does before.

        Raises:
            ServerFailed: it did not get ready.
        """
        from pytest_vllm_triton.launchers.attempts import launch

        provision = self.provision
        started = time.monotonic()
        ready, command = False, ""
        try:
            with self.load_slots.acquire():
                started = time.monotonic()
                handle = launch(
                    provision.launcher,
                    spec,
                    timeout=self._boot_timeout,
                    progress=provision.progress,
                )
            handle.share_loads(self.load_slots, self._boot_timeout)
            ready, command = True, handle.reproduce()
        except ServerFailed as failure:
            command = failure.command
            raise
        finally:
            self.boots.append(Boot(purpose, time.monotonic() - started, ready, command))
        self.servers.append(handle)
        return handle

    @contextmanager
    def booted(self, spec: ServerSpec, purpose: str) -> Iterator[ServerHandle]:
        """A server that is started, and in the end stopped and forgotten.

        Raises:
            ServerFailed: it did not get ready.
        """
        server = self.boot(spec, purpose)
        try:
            yield server
        finally:
            server.stop()
            self.forget(server)

    @property
    def _boot_timeout(self) -> float:
        return self.provision.settings.boot_timeout

    def forget(self, server: ServerHandle) -> None:
        """A server that was ended by others; its log is not looked at any more."""
        self.servers.remove(server)

    def reference_texts(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What vLLM itself, without Triton, generates with the same engine arguments.

        Needs `Provision.server_python`.

        Args:
            requests: prompts, each with keyword arguments of vLLM's SamplingParams.
        """
        python = self.provision.server_python
        assert python is not None
        job = {
            "environment": self.provision.own_gpus,
            "engine_args": self.model_spec().engine_args,
            "requests": list(requests),
            "mark": _REFERENCE,
        }
        script = Path(__file__).with_name("reference_engine.py").read_text(encoding="utf-8")
        try:
            done = python.run_python(script, [json.dumps(job)], timeout=self._boot_timeout)
        except subprocess.TimeoutExpired:
            raise ServerFailed(
                f"vLLM without Triton had not answered after {self._boot_timeout:g} s "
                "(--triton-boot-timeout)"
            ) from None
        results = [line for line in done.stdout.splitlines() if line.startswith(_REFERENCE)]
        if done.returncode != 0 or not results:
            said = Redactor(os.environ).text(done.stderr)
            raise ServerFailed("vLLM without Triton failed", said[-4000:])
        return list(json.loads(results[-1].removeprefix(_REFERENCE)))

    def kill(self) -> None:
        """End every server that still runs, at once; `close` does the rest."""
        for server in self.servers:
            server.kill()

    def close(self) -> None:
        """Stop every server that still runs, the last one started first."""
        while self.servers:
            self.servers.pop().stop()
        self._shared = None
        self.provision.close()

    def describe(self) -> dict[str, str]:
        """What is under test, with what is known of it since the first boot."""
        launcher, *others = self.provision.describe().items()
        triton = [("triton", self._triton_version)] if self._triton_version else []
        facts = dict([launcher, *triton, *others])
        if self.provision.choice.kind is LauncherKind.CONTAINER and self._shared_command:
            facts["by hand"] = self._shared_command
        return facts
