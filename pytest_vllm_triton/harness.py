"""What a test session needs to get servers: launcher, model under test, the servers it booted.

Everything is made on first use, so that a session that needs no server pays for none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_vllm_triton import assets
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.launcher_kinds import DEFAULT_IMAGE, LauncherKind
from pytest_vllm_triton.launchers.base import Launcher, ModelSpec, ServerHandle, ServerSpec
from pytest_vllm_triton.options import Settings

if TYPE_CHECKING:
    import subprocess

    from pytest_vllm_triton.gpus import Gpu
    from pytest_vllm_triton.launchers.choice import Choice
    from pytest_vllm_triton.launchers.container import ContainerLauncher
    from pytest_vllm_triton.launchers.turns import LoadTurns
    from pytest_vllm_triton.leases import GpuLeases
    from pytest_vllm_triton.models import ModelUnderTest
    from pytest_vllm_triton.runtime import Accelerator, Runtime

Progress = Callable[[str], None]


class ServerPython(Protocol):
    """The Python that runs the servers' models: it imports vLLM."""

    def run_python(
        self, script: str, args: Sequence[str] = (), *, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a script (its text) with the environment that servers have."""


# Of a backend that brings the server down now and then, the other checks are worth a boot each;
# one that does so at every turn is not.
_REPLACEMENTS = 2

#: Begins the line on which the script for `Harness.reference_texts` tells its result.
REFERENCE = "reference texts: "


def hub_cache() -> Path:
    """Where the Hugging Face hub's client keeps what it downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True)
class Boot:
    """One start of a server.

    Attributes:
        purpose: why it was started.
        seconds: until it was ready, or had failed.
        ready: whether it got ready.
        command: a line for a shell that starts the same server; "" if there is none.
    """

    purpose: str
    seconds: float
    ready: bool
    command: str = ""


@dataclass
class Harness:
    """Launcher, model and servers of one session.

    Attributes:
        settings: what the user asked for.
        work_dir: makes a folder for model repositories and logs; called when the first is needed.
        progress: shows the user what takes time.
        worker: the number of this process among those that pytest-xdist spreads the tests over.
        workers: how many those are; 1 without it.
    """

    settings: Settings
    make_work_dir: Callable[[], Path]
    progress: Progress = lambda line: None
    worker: int = 0
    workers: int = 1
    boots: list[Boot] = field(default_factory=list)
    servers: list[ServerHandle] = field(default_factory=list)
    _shared: ServerHandle | None = None
    _shared_failure: ServerFailed | None = None
    _replaced: int = 0
    _triton_version: str = ""
    _leases: GpuLeases | None = None

    @cached_property
    def choice(self) -> Choice:
        """Which launcher, and why."""
        from pytest_vllm_triton.launchers.choice import choose

        return choose(self.settings)

    @cached_property
    def runtime(self) -> Runtime | None:
        """The embedded runtime, when it is what runs the servers; made if it does not exist yet."""
        if not self._uses_embedded_runtime:
            return None
        from pytest_vllm_triton import runtime
        from pytest_vllm_triton.runtime.choice import check_gpu

        accelerator = self.accelerator
        check_gpu(accelerator)
        return runtime.create_runtime(
            self.settings.vllm_version, self.progress, accelerator=accelerator
        )

    @cached_property
    def accelerator(self) -> Accelerator:
        """What the embedded runtime computes on."""
        from pytest_vllm_triton.runtime.choice import choose_accelerator

        return choose_accelerator(self.settings.accelerator, self.settings.vllm_version)

    @cached_property
    def launcher(self) -> Launcher:
        """The launcher that the settings select.

        Raises:
            UserError: it cannot work on this host.
        """
        kind = self.choice.kind
        if kind is LauncherKind.CONTAINER:
            launcher = self._container_launcher()
            launcher.prepare(self.progress)
            return launcher
        if kind is LauncherKind.ATTACH:
            from pytest_vllm_triton.launchers.attach import AttachLauncher

            assert self.settings.url is not None
            return AttachLauncher(
                self.settings.url,
                self.settings.grpc_url,
                self.settings.metrics_url,
                model=self.settings.model_name,
            )
        from pytest_vllm_triton.launchers.process import ProcessLauncher

        if self.runtime is not None:
            return ProcessLauncher(
                tritonserver=self.runtime.tritonserver,
                backends=self.runtime.backends,
                environment={**self.runtime.environment(), **self.own_gpus},
                work_dir=self.work_dir,
            )
        binary = self.local_tritonserver
        assert binary is not None
        return ProcessLauncher(
            tritonserver=binary,
            backends=binary.resolve().parent.parent / "backends",
            environment=self.own_gpus,
            work_dir=self.work_dir,
        )

    @cached_property
    def gpus_to_divide(self) -> tuple[Gpu, ...]:
        """The GPUs that the workers of pytest-xdist divide among themselves; none: no need to."""
        if self.workers < 2 or self.settings.xdist_gpus == "share" or self.settings.gpus == "none":
            return ()
        if self._uses_embedded_runtime and not self.accelerator.needs_gpu:
            return ()
        from pytest_vllm_triton.gpus import VISIBLE_DEVICES, list_gpus, visible_gpus

        visible = os.environ.get(VISIBLE_DEVICES)
        if self.choice.kind is LauncherKind.CONTAINER:
            visible = None if self.settings.gpus == "all" else self.settings.gpus
        return visible_gpus(visible, list_gpus())

    def check_gpus(self) -> None:
        """Say at once, and once, when there are not enough GPUs for all workers.

        Raises:
            UserError: there are fewer GPUs than workers.
        """
        from pytest_vllm_triton.leases import share_of

        if self.gpus_to_divide:
            share_of(self.gpus_to_divide, self.workers)

    @cached_property
    def load_turns(self) -> LoadTurns:
        """The turns that the workers of pytest-xdist take at loading models."""
        from pytest_vllm_triton.launchers.turns import LoadTurns
        from pytest_vllm_triton.paths import cache_home

        return LoadTurns(cache_home() / "loads", self.worker, self.workers)

    @cached_property
    def leased_gpus(self) -> str | None:
        """The GPUs that only this worker of pytest-xdist uses, divided by commas; None: any.

        Raises:
            UserError: there are not enough for all workers.
        """
        if not self.gpus_to_divide:
            return None
        from pytest_vllm_triton.leases import GpuLeases
        from pytest_vllm_triton.paths import cache_home

        self._leases = GpuLeases(cache_home() / "gpu-leases")
        leased = self._leases.acquire(self.gpus_to_divide, self.workers)
        return ",".join(str(gpu.index) for gpu in leased)

    @property
    def own_gpus(self) -> dict[str, str]:
        """What shows a process of this worker its GPUs only; containers get theirs from Docker."""
        from pytest_vllm_triton.gpus import VISIBLE_DEVICES

        if self.choice.kind is LauncherKind.CONTAINER or self.leased_gpus is None:
            return {}
        return {VISIBLE_DEVICES: self.leased_gpus}

    def _container_launcher(self) -> ContainerLauncher:
        from pytest_vllm_triton.launchers.container import ContainerLauncher, ContainerOptions
        from pytest_vllm_triton.paths import cache_home

        settings = self.settings
        options = ContainerOptions(
            settings.image or DEFAULT_IMAGE,
            self.leased_gpus or settings.gpus,
            settings.ipc,
            settings.shm_size,
        )
        hub = hub_cache()
        path = self.model.path
        # Of the hub's cache the whole: its snapshots are links to files elsewhere in it.
        own = [path] if path is not None and hub not in path.parents else []
        checkpoints = cache_home() / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        visible = [checkpoints, *(folder for folder in own if checkpoints not in folder.parents)]
        return ContainerLauncher(options, self.work_dir, visible, hub_cache=hub)

    @property
    def server_python(self) -> ServerPython | None:
        """The servers' Python, where scripts can be run in it."""
        if self.choice.kind is LauncherKind.CONTAINER:
            from pytest_vllm_triton.launchers.container import ContainerLauncher

            assert isinstance(self.launcher, ContainerLauncher)
            return self.launcher
        return self.runtime

    @cached_property
    def local_tritonserver(self) -> Path | None:
        """The tritonserver of this host: the given one, else the one on PATH, if it is wanted."""
        import shutil

        if self.settings.embedded:
            return None
        if self.settings.server_bin is not None:
            return self.settings.server_bin
        found = shutil.which("tritonserver")
        return Path(found) if found else None

    @property
    def _uses_embedded_runtime(self) -> bool:
        return self.choice.kind is LauncherKind.PROCESS and self.local_tritonserver is None

    @cached_property
    def work_dir(self) -> Path:
        return self.make_work_dir()

    @cached_property
    def model(self) -> ModelUnderTest:
        """The model under test, downloaded or generated if it is not there yet.

        Raises:
            ModelUnavailable: it cannot be had.
        """
        from pytest_vllm_triton.models import resolve_model

        return resolve_model(self.settings, self.progress)

    @property
    def backend_dir(self) -> Path | None:
        """The vLLM backend under test; None: the one that the image holds."""
        if self.settings.backend_of_image:
            return None
        return self.settings.backend_dir or assets.backend_dir()

    def prepare(self) -> None:
        """Get everything that can fail for the user's reasons before any test runs.

        Raises:
            UserError: in one sentence, what is missing and what to do.
        """
        _ = self.model
        _ = self.launcher

    def model_spec(
        self,
        name: str | None = None,
        engine_args: Mapping[str, Any] | None = None,
        config: str | None = None,
        **fields: Any,
    ) -> ModelSpec:
        """The sample model of the repository with another ``model``, as a user would edit it.

        Args:
            name: the model's name.
            engine_args: merged over the sample's and the user's; None as a value removes a key.
                If they name another ``model``, the user's are left out: they are for his model.
            config: text of config.pbtxt (default: the sample's).
            fields: further fields of `ModelSpec`.
        """
        from pytest_vllm_triton.models import TINY_MODEL_ARGS

        sample = assets.fixtures_dir() / "model_repository" / "vllm_model"
        merged = json.loads((sample / "1" / "model.json").read_text(encoding="utf-8"))
        if "model" in (engine_args or {}):
            merged.update(TINY_MODEL_ARGS)
        else:
            merged["model"] = str(self.model.path)
            merged.update(self.model.engine_args)
            merged.update(self.settings.model_json)
        merged.update(engine_args or {})
        if config is None:
            config = (sample / "config.pbtxt").read_text(encoding="utf-8")
        return ModelSpec.create(
            name or self.settings.model_name,
            {key: value for key, value in merged.items() if value is not None},
            config,
            **fields,
        )

    def server_spec(self, *models: ModelSpec, **fields: Any) -> ServerSpec:
        """A server with these models (default: the sample model) and the backend under test."""
        return ServerSpec(
            models=models or (self.model_spec(),), backend_dir=self.backend_dir, **fields
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
                if self._replaced:
                    purpose += ", after the one before had ended"
                self._shared = self.boot(self.server_spec(), purpose)
            except ServerFailed as error:
                self._shared_failure = error
                raise
            if not self._uses_embedded_runtime:
                # The embedded runtime's is known; two reports of others could not be compared.
                from pytest_vllm_triton.server_facts import triton_version

                self._triton_version = triton_version(self._shared.endpoints.http)
        return self._shared

    def replace_shared_server(self) -> bool:
        """Let go of the shared server, which has ended; the next call of `shared_server` boots one.

        Returns False, and does nothing, when that has happened too often: the next would end too.
        """
        if self._shared is None or self._replaced >= _REPLACEMENTS:
            return False
        self._replaced += 1
        self._shared.stop()
        self.forget(self._shared)
        self._shared = None
        return True

    def shared_death(self, when: str, failed: bool = False) -> ServerFailed | None:
        """That the shared server has ended by itself, e.g. "during test_x"; None while it lives.

        Args:
            failed: something did not work. If the server is dying, its end is waited for.
        """
        from pytest_vllm_triton.launchers.death import await_death, ended_by_itself

        server = self._shared
        if server is None:
            return None
        if failed:
            await_death(server)
        return None if server.exit_code() is None else ended_by_itself(server, when)

    def shared_segfaulted(self) -> bool:
        """Whether the shared server, on which something did not work, has ended with SIGSEGV."""
        from pytest_vllm_triton.launchers.death import await_death, segfaulted

        if self._shared is None:
            return False
        await_death(self._shared)
        return segfaulted(self._shared)

    def boot(self, spec: ServerSpec, purpose: str) -> ServerHandle:
        """Start a server; it is stopped at the end of the session if nobody does before.

        Raises:
            ServerFailed: it did not get ready.
        """
        started = time.monotonic()
        ready, command = False, ""
        try:
            with self.load_turns.one():
                started = time.monotonic()
                handle = self._launch(spec)
            handle.load_turns = self.load_turns
            handle.load_seconds = max(handle.load_seconds, self.settings.boot_timeout)
            ready, command = True, handle.reproduce()
        except ServerFailed as failure:
            command = failure.command
            raise
        finally:
            self.boots.append(Boot(purpose, time.monotonic() - started, ready, command))
        self.servers.append(handle)
        return handle

    def _launch(self, spec: ServerSpec) -> ServerHandle:
        from pytest_vllm_triton.launchers.given_up import ATTEMPTS
        from pytest_vllm_triton.launchers.readiness import LoadStumbled

        launch = partial(
            self.launcher.launch, timeout=self.settings.boot_timeout, on_progress=self.progress
        )
        for _ in range(1, ATTEMPTS):
            try:
                return launch(spec)
            except LoadStumbled:
                self.progress("Triton itself stumbled over the load of a model. Starting again")
        return launch(spec)

    def forget(self, server: ServerHandle) -> None:
        """A server that was ended by others; its log is not looked at any more."""
        self.servers.remove(server)

    def reference_texts(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What vLLM itself, without Triton, generates with the same engine arguments.

        Needs `server_python`.

        Args:
            requests: prompts, each with keyword arguments of vLLM's SamplingParams.
        """
        assert self.server_python is not None
        job = {
            "environment": self.own_gpus,
            "engine_args": self.model_spec().engine_args,
            "requests": list(requests),
        }
        script = Path(__file__).with_name("reference_engine.py").read_text(encoding="utf-8")
        done = self.server_python.run_python(
            script, [json.dumps(job)], timeout=self.settings.boot_timeout
        )
        told = [line for line in done.stdout.splitlines() if line.startswith(REFERENCE)]
        if done.returncode != 0 or not told:
            raise ServerFailed("vLLM without Triton failed", done.stderr[-4000:])
        return list(json.loads(told[-1].removeprefix(REFERENCE)))

    def close(self) -> None:
        """Stop every server that still runs, the last one started first."""
        while self.servers:
            self.servers.pop().stop()
        self._shared = None
        if "launcher" in self.__dict__:
            self.launcher.close()
        if self._leases is not None:
            self._leases.release()

    def describe(self) -> dict[str, str]:
        """What is under test, for the header and the report. Boots and downloads nothing."""
        facts = {"launcher": self._describe_launcher()}
        if self._triton_version:
            facts["triton"] = self._triton_version
        facts["model"] = self._describe_model()
        if self.settings.launcher is not LauncherKind.ATTACH:
            own = "" if self.settings.backend_dir else " (this package's)"
            facts["backend"] = f"{self.backend_dir}{own}" if self.backend_dir else "the image's"
        lines = [boot.command for boot in self.boots if boot.command]
        if lines and self.choice.kind is LauncherKind.CONTAINER:
            facts["by hand"] = lines[0]  # the shared server's, as a rule
        return facts

    def _describe_launcher(self) -> str:
        settings = self.settings
        if settings.launcher is LauncherKind.ATTACH:
            return f"attach: {settings.url}"
        why = self.choice.why
        if self.choice.kind is LauncherKind.CONTAINER:
            return f"container ({why}): {self._describe_container()}"
        if self.local_tritonserver is not None:
            return f"process ({why}): {self.local_tritonserver}"
        from pytest_vllm_triton import runtime

        accelerator = self.accelerator
        version = settings.vllm_version or accelerator.default_version
        vllm = f"vLLM {version} on {accelerator.device}"
        found = runtime.find_runtime(version, accelerator)
        if found is None:
            return f"process ({why}): the embedded runtime ({vllm}), to be made first"
        return f"process ({why}): Triton {found.triton_version}, {vllm} (embedded runtime)"

    def _describe_container(self) -> str:
        from pytest_vllm_triton.launchers.container import ContainerLauncher, ContainerOptions

        if "launcher" in self.__dict__:
            assert isinstance(self.launcher, ContainerLauncher)
            return self.launcher.describe()
        settings = self.settings
        options = ContainerOptions(
            settings.image or DEFAULT_IMAGE, settings.gpus, settings.ipc, settings.shm_size
        )
        return ContainerLauncher(options, Path()).describe()

    def _describe_model(self) -> str:
        extra = f" + {dict(self.settings.model_json)}" if self.settings.model_json else ""
        if self.settings.launcher is LauncherKind.ATTACH and not self.settings.model_is_explicit:
            return f"{self.settings.model_name}, whatever it serves"
        return f"{self.settings.model}{extra}"
