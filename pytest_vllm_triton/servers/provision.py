"""What servers are made from: launcher, runtime, GPUs, the model and the backend under test.

Everything is made on first use, so that a session that needs no server pays for none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pytest_vllm_triton import assets
from pytest_vllm_triton.launchers.base import Launcher
from pytest_vllm_triton.options.launcher_kinds import DEFAULT_IMAGE, LauncherKind
from pytest_vllm_triton.options.settings import Settings
from pytest_vllm_triton.options.values import BackendSource
from pytest_vllm_triton.progress import Progress, silent
from pytest_vllm_triton.servers.revision import revision

if TYPE_CHECKING:
    import subprocess

    from pytest_vllm_triton.gpus import Gpu
    from pytest_vllm_triton.launchers.choice import Choice
    from pytest_vllm_triton.launchers.container import ContainerLauncher, ContainerOptions
    from pytest_vllm_triton.models.under_test import ModelUnderTest
    from pytest_vllm_triton.runtime import Accelerator, Runtime
    from pytest_vllm_triton.servers.gpu_leases import GpuLeases


class ServerPython(Protocol):
    """The Python that runs the servers' models: it imports vLLM."""

    def run_python(
        self, script: str, args: Sequence[str] = (), *, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a script (its text) with the environment that servers have."""


def hub_cache() -> Path:
    """Where the Hugging Face hub's client keeps what it downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _no_work_dir() -> Path:
    raise RuntimeError("this Provision was made without a folder for servers")


@dataclass
class Provision:
    """What the settings ask for, on this host.

    Attributes:
        settings: what the user asked for.
        make_work_dir: makes the folder of model repositories and logs, when the first is needed;
            who starts no server needs none.
        progress: shows the user what takes time.
        worker: the number of this process among those that pytest-xdist spreads the tests over.
        workers: how many those are; 1 without it.
    """

    settings: Settings
    make_work_dir: Callable[[], Path] = _no_work_dir
    progress: Progress = silent
    worker: int = 0
    workers: int = 1
    _launcher: Launcher | None = field(default=None, init=False, repr=False)
    _leases: GpuLeases | None = field(default=None, init=False, repr=False)

    @cached_property
    def choice(self) -> Choice:
        """Which launcher, and why."""
        from pytest_vllm_triton.launchers.choice import choose

        return choose(self.settings)

    @cached_property
    def runtime(self) -> Runtime | None:
        """The embedded runtime, when it is what runs the servers.

        The first call makes it, if it does not exist yet: that takes minutes.
        """
        if not self.uses_embedded_runtime:
            return None
        from pytest_vllm_triton import runtime
        from pytest_vllm_triton.runtime.choice import check_gpu
        from pytest_vllm_triton.runtime.progress import sparsely

        accelerator = self.accelerator
        check_gpu(accelerator)
        return runtime.create_runtime(
            self.settings.vllm_version, sparsely(self.progress), accelerator=accelerator
        )

    @cached_property
    def accelerator(self) -> Accelerator:
        """What the embedded runtime computes on."""
        from pytest_vllm_triton.runtime.choice import choose_accelerator

        return choose_accelerator(self.settings.accelerator, self.settings.vllm_version)

    @property
    def launcher(self) -> Launcher:
        """The launcher that the settings select.

        The first call gets what it runs: it may make the runtime, or reach Docker, remove what
        earlier runs left, pull the image and get the model. And it leases this worker's GPUs.

        Raises:
            UserError: it cannot work on this host.
        """
        if self._launcher is None:
            self._launcher = self._make_launcher()
        return self._launcher

    def _make_launcher(self) -> Launcher:
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
        if self.choice.kind is LauncherKind.ATTACH:
            return ()
        if self.workers < 2 or self.settings.xdist_gpus == "share" or self.settings.gpus == "none":
            return ()
        if self.uses_embedded_runtime and not self.accelerator.needs_gpu:
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
        from pytest_vllm_triton.servers.gpu_leases import share_of

        if self.gpus_to_divide:
            share_of(self.gpus_to_divide, self.workers)

    @cached_property
    def leased_gpus(self) -> str | None:
        """The GPUs that only this worker of pytest-xdist uses, divided by commas; None: any.

        The first call takes them, and nobody else can until `close`.

        Raises:
            UserError: there are not enough for all workers.
        """
        if not self.gpus_to_divide:
            return None
        from pytest_vllm_triton.paths import cache_home
        from pytest_vllm_triton.servers.gpu_leases import GpuLeases

        self._leases = GpuLeases(cache_home() / "gpu-leases")
        leased = self._leases.acquire(self.gpus_to_divide, self.workers)
        return ",".join(str(gpu.index) for gpu in leased)

    @property
    def own_gpus(self) -> dict[str, str]:
        """Environment that limits a process to the GPUs of this worker; containers get theirs from
        Docker. The first call leases them, as that of `leased_gpus`."""
        from pytest_vllm_triton.gpus import VISIBLE_DEVICES

        if self.choice.kind is LauncherKind.CONTAINER or self.leased_gpus is None:
            return {}
        return {VISIBLE_DEVICES: self.leased_gpus}

    def _container_launcher(self) -> ContainerLauncher:
        from pytest_vllm_triton.launchers.container import ContainerLauncher
        from pytest_vllm_triton.paths import cache_home

        options = self._container_options(self.leased_gpus or self.settings.gpus)
        hub = hub_cache()
        path = self.model.path
        # Of the hub's cache the whole: its snapshots are links to files elsewhere in it.
        own = [path] if path is not None and hub not in path.parents else []
        checkpoints = cache_home() / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        visible = [checkpoints, *(folder for folder in own if checkpoints not in folder.parents)]
        return ContainerLauncher(options, self.work_dir, visible, hub_cache=hub)

    def _container_options(self, gpus: str | None) -> ContainerOptions:
        from pytest_vllm_triton.launchers.container import ContainerOptions

        settings = self.settings
        return ContainerOptions(
            settings.image or DEFAULT_IMAGE, gpus, settings.ipc, settings.shm_size
        )

    @property
    def has_server_python(self) -> bool:
        """Whether scripts can be run in the servers' Python. Starts nothing."""
        return self.choice.kind is LauncherKind.CONTAINER or self.uses_embedded_runtime

    @property
    def server_python(self) -> ServerPython | None:
        """The servers' Python, where scripts can be run in it.

        The first call gets it, as that of `runtime` does, or for a container that of `launcher`.
        """
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
    def uses_embedded_runtime(self) -> bool:
        """Whether the servers' Triton and vLLM are this package's own."""
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
        from pytest_vllm_triton.models.under_test import resolve_model

        return resolve_model(self.settings, self.progress)

    @property
    def backend_dir(self) -> Path | None:
        """The vLLM backend under test; None: the one that the image holds."""
        chosen = self.settings.backend_dir
        if isinstance(chosen, BackendSource):
            return None
        return chosen or assets.backend_dir()

    @property
    def samples_dir(self) -> Path:
        """The folder of the sample client that is checked: the one beside the backend under test,
        else this package's."""
        if self.backend_dir is not None:
            beside = self.backend_dir.parent / "samples"
            if (beside / "client.py").is_file():
                return beside
        return assets.samples_dir()

    def prepare(self) -> None:
        """Get everything that can fail for the user's reasons before any test runs.

        Raises:
            UserError: in one sentence, what is missing and what to do.
        """
        _ = self.model
        _ = self.launcher

    def close(self) -> None:
        """Give back what is held for the servers, which have ended."""
        if self._launcher is not None:
            self._launcher.close()
        if self._leases is not None:
            self._leases.release()

    def describe(self) -> dict[str, str]:
        """What is under test, for the header and the report. Boots and downloads nothing."""
        facts = {"launcher": self._describe_launcher(), "model": self._describe_model()}
        if self.choice.kind is not LauncherKind.ATTACH:
            facts["backend"] = self._describe_backend()
        facts["client"] = self._describe_client()
        return facts

    def _describe_client(self) -> str:
        if self.samples_dir != assets.samples_dir():
            return str(self.samples_dir / "client.py")
        if self.backend_dir in (None, assets.backend_dir()):
            return "this package's"
        return "this package's (none in ../samples of the backend)"

    def _describe_backend(self) -> str:
        folder = self.backend_dir
        if folder is None:
            return "the image's"
        own = "" if self.settings.backend_dir else "this package's"
        notes = ", ".join(filter(None, (own, revision(folder, "model.py"))))
        return f"{folder} ({notes})" if notes else str(folder)

    def _describe_launcher(self) -> str:
        settings = self.settings
        if self.choice.kind is LauncherKind.ATTACH:
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
        from pytest_vllm_triton.launchers.container import ContainerLauncher

        if isinstance(self._launcher, ContainerLauncher):
            return self._launcher.describe()
        options = self._container_options(self.settings.gpus)
        return ContainerLauncher(options, Path()).describe()

    def _describe_model(self) -> str:
        extra = f" + {dict(self.settings.model_json)}" if self.settings.model_json else ""
        if self.choice.kind is LauncherKind.ATTACH and not self.settings.model_is_explicit:
            return f"{self.settings.model_name}, whatever it serves"
        return f"{self.settings.model}{extra}"
