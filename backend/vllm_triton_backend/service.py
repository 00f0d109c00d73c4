"""One loaded model: puts the parts together at load, takes requests, and takes itself apart."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton_python_backend_utils as pb_utils

from vllm_triton_backend.adapter import Engine, Vllm, stat_logger_factory
from vllm_triton_backend.errors import Code, LoadError, RequestError, invalid
from vllm_triton_backend.event_loop import EventLoop
from vllm_triton_backend.live_requests import LiveRequests
from vllm_triton_backend.lora import Adapter, LoraRegistry
from vllm_triton_backend.metrics import MetricsExporter
from vllm_triton_backend.parameters import Parameters
from vllm_triton_backend.parent_server import can_unload, has_metrics, socket_name
from vllm_triton_backend.requests import EmbedRequest, GenerateRequest, parse
from vllm_triton_backend.responses import EmbedFormatter, GenerateFormatter
from vllm_triton_backend.runner import RequestRunner
from vllm_triton_backend.sampling import ParameterParser
from vllm_triton_backend.settings import Settings
from vllm_triton_backend.shared_references import SharedReference
from vllm_triton_backend.sharing import (
    EngineClient,
    EngineOwner,
    EngineShare,
    ServingInstance,
    SingleInstance,
)
from vllm_triton_backend.stats_relay import StatsRelay
from vllm_triton_backend.streams import Formatter, ResponseStream, SenderPool
from vllm_triton_backend.watchdog import Watchdog, stub_shm_regions

_STOP_SECONDS = 5.0
# Below this many live requests every token is sent at once. With more of them a stream pauses
# between two responses, for each of at most so many: up to 0.1 s, which a reader of text hardly
# notices.
_CROWD = 16
_MOST_COUNTED = 100
_PAUSE_PER_REQUEST_SECONDS = 1e-3
# Up to 0.2 s where the engine shares its cores with what sends its tokens, and takes longer for
# each.
_PAUSE_PER_REQUEST_ON_CPU_SECONDS = 2e-3
_DEFAULT_MODEL_LEN = 4096


def _use_devices(settings: Settings) -> None:
    """Place the engine on its GPUs, which vLLM must not have looked at yet."""
    if settings.devices is not None:
        pb_utils.Logger.log_info(f"[vllm] {settings.instance_name} uses GPU {settings.devices}")
        os.environ["CUDA_VISIBLE_DEVICES"] = settings.devices


@dataclass(frozen=True, slots=True)
class BootedEngine:
    """An engine, and what it was booted with, in the order in which they are made."""

    watchdog: Watchdog
    loop: EventLoop
    share: EngineShare
    relay: StatsRelay
    engine: Engine

    @classmethod
    def boot(cls, settings: Settings, vllm: Vllm, undo: contextlib.ExitStack) -> BootedEngine:
        """Boot the engine, or come to share it; `undo` is told how to end each part.

        Raises:
            LoadError: vLLM does not know an engine argument, or the instances cannot share.
            Exception: vLLM's reason.
        """
        # First: the engine's processes are known by what they inherit of it.
        watchdog = Watchdog(stub_shm_regions())
        undo.callback(watchdog.close)
        loop = EventLoop("vllm-engine")
        undo.callback(loop.stop, _STOP_SECONDS)
        share = _share(settings)
        # Nobody is waited for: the other instances have no use for an engine that goes.
        undo.callback(share.close, 0)
        relay = StatsRelay(share)
        loggers = [stat_logger_factory(relay.record)] if settings.with_metrics else []
        engine = loop.call(share.boot(vllm, settings.engine_args, loggers))
        undo.callback(_shut_down_quietly, engine)
        return cls(watchdog, loop, share, relay, engine)


def _share(settings: Settings) -> EngineShare:
    if not settings.shared:
        return SingleInstance()
    name = socket_name("engine", settings.model_name, settings.model_version)
    role = EngineOwner if settings.instance.index == 0 else EngineClient
    return role(name, settings.instance.count)


def _shut_down_quietly(engine: Engine) -> None:
    """Used after a failure: the operator must be told of that one, not of another one here."""
    try:
        engine.shutdown()
    except Exception as error:
        pb_utils.Logger.log_warn(f"[vllm] The engine cannot be shut down: {error}")


def _exit_at_once() -> None:
    """Skip the interpreter's teardown, the last thing a stub does after `finalize`.

    With torch and vLLM loaded it takes seconds, which an unload has to wait for, and it destroys
    Triton's objects after their shared memory, which crashes the stub if one is still about.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _pause_per_request(parameters: Parameters, engine: Engine) -> float:
    """Seconds that each live request adds to the pause between two responses of a stream."""
    if parameters.stream_pause is not None:
        return parameters.stream_pause
    if engine.runs_on_cpu:
        return _PAUSE_PER_REQUEST_ON_CPU_SECONDS
    return _PAUSE_PER_REQUEST_SECONDS


class Service:
    """A vLLM engine behind Triton. Made by `load`, ended by `close`."""

    def __init__(
        self,
        settings: Settings,
        vllm: Vllm,
        sampling: ParameterParser,
        pooling: ParameterParser,
        loras: LoraRegistry | None,
        booted: BootedEngine,
    ) -> None:
        parameters = settings.parameters
        self._model_name = settings.model_name
        self._parameters = parameters
        self._vllm = vllm
        self._sampling = sampling
        self._pooling = pooling
        self._loras = loras
        self._watchdog = booted.watchdog
        self._loop = booted.loop
        self._share = booted.share
        self._relay = booted.relay
        self._engine = booted.engine
        self._unload_asked = False
        self._live = LiveRequests(parameters.max_inflight_requests)
        self._pause_per_request = _pause_per_request(parameters, booted.engine)
        self._runner = RequestRunner(
            vllm,
            booted.engine,
            booted.loop,
            self._live,
            loras=loras,
            health_check=parameters.health_check,
            on_unhealthy=self._unload,
            on_given_up=booted.relay.count_abort,
            log=pb_utils.Logger.log_info,
        )
        self._pool = SenderPool(parameters.sender_threads, self._runner.forget, self._pause)

    @classmethod
    def load(cls, args: Mapping[str, str]) -> Service:
        """Boot the model that Triton's `initialize` arguments describe.

        Raises:
            pb_utils.TritonModelException: one sentence for each known way to fail. Nothing is
                left behind then.
        """
        try:
            return cls._load(args)
        except LoadError as error:
            raise pb_utils.TritonModelException(str(error)) from error

    @classmethod
    def _load(cls, args: Mapping[str, str]) -> Service:
        settings = Settings.read(args)
        _use_devices(settings)
        # Registered before vLLM's own handlers, and so called after them.
        atexit.register(_exit_at_once)
        vllm = Vllm()
        pb_utils.Logger.log_info(f"[vllm] vLLM {vllm.version}")
        # What can fail within seconds comes before the boot, which takes minutes.
        sampling = ParameterParser(vllm.sampling_params, "sampling_parameters")
        pooling = ParameterParser(vllm.pooling_params, "embedding_request")
        loras = None
        if settings.enable_lora:
            loras = LoraRegistry(settings.version_dir, vllm.lora_request)
        with contextlib.ExitStack() as undo:
            booted = BootedEngine.boot(settings, vllm, undo)
            undo.callback(booted.relay.close)
            service = cls(settings, vllm, sampling, pooling, loras, booted)
            undo.callback(service._end_requests)
            if settings.with_metrics:
                service._export_metrics(settings)
            booted.share.begin(
                ServingInstance(
                    booted.engine, service._live.is_idle, service._drain, booted.relay.export
                )
            )
            undo.pop_all()
        # What was loaded stays: without this the collector walks all of torch and vLLM now and
        # then, and every stream stands still for a tenth of a second.
        gc.collect()
        gc.freeze()
        return service

    def _export_metrics(self, settings: Settings) -> None:
        if not has_metrics():
            pb_utils.Logger.log_info("[vllm] No custom metrics: the server exports none")
            return
        labels = {"model": settings.model_name, "version": settings.model_version}
        try:
            exporter = MetricsExporter(
                pb_utils,
                labels,
                self._engine.limits.max_model_len or _DEFAULT_MODEL_LEN,
                lambda: self._live.is_idle() and self._share.is_idle(),
                SharedReference(
                    socket_name("metrics", settings.model_name, settings.model_version)
                ),
            )
        except Exception as error:
            # A server too old for histograms.
            pb_utils.Logger.log_warn(f"[vllm] REPORT_CUSTOM_METRICS has no effect: {error}")
        else:
            self._relay.attach(exporter)

    def accept(self, request: Any) -> None:
        """Start one `pb_utils.InferenceRequest`; every failure becomes its final response."""
        sender = request.get_response_sender()
        try:
            parsed = parse(request, self._sampling)
            params, adapter, formatter = self._plan(parsed)
            stream = ResponseStream(sender, formatter, self._pool)
            self._runner.submit(parsed, params, adapter, stream)
        except RequestError as error:
            ResponseStream(sender, None, self._pool).fail(error)
        except Exception as error:
            failure = RequestError(Code.INTERNAL, f"Error generating stream: {error}")
            ResponseStream(sender, None, self._pool).fail(failure)

    def _plan(
        self, request: GenerateRequest | EmbedRequest
    ) -> tuple[Any, Adapter | None, Formatter]:
        """vLLM parameters, LoRA adapter and response formatter for a request."""
        if isinstance(request, EmbedRequest):
            _check_task(self._engine.tasks, "embed", self._model_name)
            params = self._pooling.build(
                request.pooling, output_kind=self._vllm.output_kind.FINAL_ONLY, task="embed"
            )
            return params, None, EmbedFormatter(request.wanted)
        _check_task(self._engine.tasks, "generate", self._model_name)
        _check_images(len(request.images), self._engine.most_images, self._model_name)
        adapter = None
        if request.lora_name is not None:
            if self._loras is None:
                raise invalid("LoRA feature is not enabled.")
            adapter = self._loras.find(request.lora_name)
        kind = self._vllm.output_kind
        params = self._sampling.build(
            request.sampling,
            output_kind=kind.DELTA if request.stream else kind.FINAL_ONLY,
            **self._vllm.sampling_options,
        )
        self._engine.limits.fit(params)
        # Of chosen tokens, in newer versions of vLLM.
        chosen = bool(getattr(params, "logprob_token_ids", None))
        formatter = GenerateFormatter(request, params.n, chosen or params.logprobs is not None)
        return params, adapter, formatter

    def _pause(self) -> float:
        """Seconds between two responses of one stream: none until many requests are live."""
        # Triton spreads requests evenly over the instances that share the engine.
        count = len(self._live) * self._share.instances
        if count < _CROWD:
            return 0.0
        return min(count, _MOST_COUNTED) * self._pause_per_request

    def is_ready(self) -> bool:
        """Whether new requests can be served."""
        return self._runner.alive

    def _unload(self) -> None:
        """Upstream's ENABLE_VLLM_HEALTH_CHECK: take the model out of service, where models can.

        Asked for once only, as a second time would hit a model that was loaded in the place of this
        one. And not on this thread, as Triton does not answer before a load of the model that is
        under way has ended.
        """
        if self._unload_asked or not can_unload():
            return
        self._unload_asked = True
        threading.Thread(target=self._ask_for_unload, daemon=True).start()

    def _ask_for_unload(self) -> None:
        try:
            pb_utils.unload_model(self._model_name)
        except Exception as error:
            pb_utils.Logger.log_warn(f"[vllm] Unhealthy model cannot be unloaded: {error}")
            self._unload_asked = False

    def _drain(self) -> None:
        self._runner.drain(self._parameters.drain_timeout)

    def _end_requests(self) -> None:
        self._drain()
        self._pool.close(_STOP_SECONDS)

    def close(self) -> None:
        """Drain for a bounded time, end what is left, stop the engine and its processes."""
        # Other instances drain at the same time, and may need all of it where this one has nothing.
        others_end = time.monotonic() + self._parameters.drain_timeout + _STOP_SECONDS
        self._share.announce_unload()
        self._end_requests()
        self._relay.close()
        self._share.close(max(0.0, others_end - time.monotonic()))
        self._engine.shutdown()
        self._loop.stop(_STOP_SECONDS)
        self._watchdog.close()


def _check_task(engine_tasks: frozenset[str], task: str, model_name: str) -> None:
    """Refuse a request of the wrong kind with upstream's text.

    Raises:
        RequestError: INVALID_ARG.
    """
    if task not in engine_tasks:
        raise invalid(f"Model {model_name} does not support '{task}' request")


def _check_images(count: int, most: int | None, model_name: str) -> None:
    """Refuse images before they are decoded, which vLLM does when it has them all.

    Raises:
        RequestError: INVALID_ARG.
    """
    if count and most == 0:
        # vLLM 0.25 would fail with an AttributeError.
        raise invalid(f"Model {model_name} does not take images")
    if most is not None and count > most:
        raise invalid(f"Model {model_name} takes at most {most} images, got {count}")
