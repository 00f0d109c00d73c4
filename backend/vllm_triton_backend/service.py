"""One loaded model: puts the parts together at load, takes requests, and takes itself apart."""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from vllm_triton_backend import config
from vllm_triton_backend.adapter import Engine, Vllm, stat_logger_factory
from vllm_triton_backend.claims import Claim
from vllm_triton_backend.errors import Code, LoadError, RequestError, invalid
from vllm_triton_backend.lora import Adapter, LoraRegistry
from vllm_triton_backend.metrics import MetricsExporter, Stats
from vllm_triton_backend.requests import EmbedRequest, GenerateRequest, parse
from vllm_triton_backend.responses import EmbedFormatter, GenerateFormatter
from vllm_triton_backend.runner import EventLoop, RequestRunner
from vllm_triton_backend.sampling import SamplingParser
from vllm_triton_backend.server import can_unload, has_metrics, socket_name
from vllm_triton_backend.sharing import Alone, EngineGuest, EngineHost, EngineShare, FrontEnd
from vllm_triton_backend.streams import Formatter, ResponseStream, SenderPool
from vllm_triton_backend.watchdog import Watchdog, stub_shm_regions

_STOP_SECONDS = 5.0
# Below this many live requests every token is sent at once; above, a reader of text cannot tell a
# pause of a tenth of a second from none.
_CROWD = 16
_LONGEST_PAUSE_SECONDS = 0.1
_DEFAULT_MODEL_LEN = 4096


class StatsRelay:
    """Takes vLLM's statistics, which begin before Triton's metrics can be made.

    `exporter` is None until then, and for good on a server without metrics.
    """

    def __init__(self, share: EngineShare) -> None:
        self.exporter: MetricsExporter | None = None
        self._share = share

    def record(self, stats: Stats) -> None:
        """Statistics that this instance was given."""
        self.export(self._share.record(stats))

    def export(self, stats: Stats) -> None:
        if self.exporter is not None:
            self.exporter.record(stats)

    def count_abort(self) -> None:
        """A request was taken out of the engine, of which vLLM keeps no statistics."""
        self.record(Stats(finished=("abort",)))

    def close(self) -> None:
        exporter, self.exporter = self.exporter, None
        if exporter is not None:
            exporter.close()


def _exit_at_once() -> None:
    """Skip the interpreter's teardown, the last thing a stub does after `finalize`.

    With torch and vLLM loaded it takes seconds, which an unload has to wait for, and it destroys
    Triton's objects after their shared memory, which crashes the stub if one is still about.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Service:
    """A vLLM engine behind Triton. Made by `load`, ended by `close`."""

    def __init__(
        self,
        model_name: str,
        parameters: config.Parameters,
        vllm: Vllm,
        engine: Engine,
        loop: EventLoop,
        loras: LoraRegistry | None,
        watchdog: Watchdog,
        relay: StatsRelay,
        share: EngineShare,
    ) -> None:
        self._model_name = model_name
        self._parameters = parameters
        self._vllm = vllm
        self._engine = engine
        self._loop = loop
        self._loras = loras
        self._watchdog = watchdog
        self._sampling = SamplingParser(vllm.sampling_params)
        self._pooling = SamplingParser(vllm.pooling_params)
        self._relay = relay
        self._share = share
        self._runner = RequestRunner(
            vllm,
            engine,
            loop,
            loras=loras,
            max_inflight=parameters.max_inflight_requests,
            health_check=parameters.health_check,
            on_unhealthy=self._unload,
            on_given_up=relay.count_abort,
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
        model_config = json.loads(args["model_config"])
        config.check_completed(model_config)
        version_dir = Path(pb_utils.get_model_dir())
        parameters = config.Parameters.from_model_config(model_config)
        engine_args = config.read_engine_args(version_dir)
        visible = config.environment_devices()
        instance = config.Instance.from_args(args, model_config)
        shared = config.shares_engine(instance, parameters, engine_args)
        devices = config.visible_devices(
            instance.as_only_one() if shared else instance,
            engine_args,
            parameters,
            visible,
            config.count_gpus(visible),
        )
        enable_lora = config.pop_bool(engine_args, "enable_lora")
        if enable_lora:
            config.read_lora_paths(version_dir)
        log_stats = not config.pop_bool(engine_args, "disable_log_stats")
        # vLLM's own loggers would do work for every token that nobody reads here.
        engine_args["disable_log_stats"] = True
        if devices is not None:
            pb_utils.Logger.log_info(f"[vllm] {args['model_instance_name']} uses GPU {devices}")
            os.environ["CUDA_VISIBLE_DEVICES"] = devices

        # Registered before vLLM's own handlers, and so called after them.
        atexit.register(_exit_at_once)
        vllm = Vllm()
        pb_utils.Logger.log_info(f"[vllm] vLLM {vllm.version}")
        loras = LoraRegistry(version_dir, vllm.lora_request) if enable_lora else None
        watchdog = Watchdog(stub_shm_regions())
        loop = EventLoop("vllm-engine")
        share: EngineShare = Alone()
        try:
            if shared:
                engine_args["mm_processor_cache_gb"] = 0
                name = socket_name("engine", args["model_name"], args["model_version"])
                role = EngineHost if instance.index == 0 else EngineGuest
                share = role(name, instance.count)
            relay = StatsRelay(share)
            with_metrics = parameters.report_custom_metrics and log_stats
            loggers = [stat_logger_factory(relay.record)] if with_metrics else []
            engine = loop.call(share.boot(vllm, engine_args, loggers))
        except BaseException:
            share.close(0)
            loop.stop(_STOP_SECONDS)
            watchdog.close()
            raise
        service = cls(
            args["model_name"], parameters, vllm, engine, loop, loras, watchdog, relay, share
        )
        if with_metrics:
            service._export_metrics(args)
        share.begin(FrontEnd(engine, service._runner.is_idle, service._drain, relay.export))
        # What was loaded stays: without this the collector walks all of torch and vLLM now and
        # then, and every stream stands still for a tenth of a second.
        gc.collect()
        gc.freeze()
        return service

    def _export_metrics(self, args: Mapping[str, str]) -> None:
        if not has_metrics():
            pb_utils.Logger.log_info("[vllm] No custom metrics: the server exports none")
            return
        labels = {"model": args["model_name"], "version": args["model_version"]}
        try:
            self._relay.exporter = MetricsExporter(
                pb_utils,
                labels,
                self._engine.max_model_len() or _DEFAULT_MODEL_LEN,
                lambda: self._runner.is_idle() and self._share.is_idle(),
                Claim(socket_name("metrics", args["model_name"], args["model_version"])),
            )
        except Exception as error:
            # A server too old for histograms.
            pb_utils.Logger.log_warn(f"[vllm] REPORT_CUSTOM_METRICS has no effect: {error}")

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
            return self._embed_params(request), None, EmbedFormatter(request.wanted)
        _check_task(self._engine.tasks, "generate", self._model_name)
        if request.images and not self._engine.takes_images:
            # vLLM 0.25 would fail with an AttributeError.
            raise invalid(f"Model {self._model_name} does not take images")
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
        formatter = GenerateFormatter(request, params.n, params.logprobs is not None)
        return params, adapter, formatter

    def _embed_params(self, request: EmbedRequest) -> Any:
        try:
            return self._pooling.build(
                request.pooling, output_kind=self._vllm.output_kind.FINAL_ONLY, task="embed"
            )
        except RequestError as error:
            text = error.message.replace("sampling_parameters", "embedding_request", 1)
            raise invalid(text) from None

    def _pause(self) -> float:
        """Seconds between two responses of one stream: none until many requests are live."""
        # Triton spreads requests evenly over the instances that share the engine.
        count = self._runner.live_count * self._share.instances
        if count < _CROWD:
            return 0.0
        return min(_LONGEST_PAUSE_SECONDS, count * self._parameters.stream_pause)

    def is_ready(self) -> bool:
        """Whether new requests can be served."""
        return self._runner.alive

    def _unload(self) -> None:
        """Upstream's ENABLE_VLLM_HEALTH_CHECK: take the model out of service, where models can."""
        if not can_unload():
            return
        try:
            pb_utils.unload_model(self._model_name)
        except Exception as error:
            pb_utils.Logger.log_warn(f"[vllm] Unhealthy model cannot be unloaded: {error}")

    def _drain(self) -> None:
        self._runner.drain(self._parameters.drain_timeout)

    def close(self) -> None:
        """Drain for a bounded time, end what is left, stop the engine and its processes."""
        # Other instances drain at the same time, and may need all of it where this one has nothing.
        others_end = time.monotonic() + self._parameters.drain_timeout + _STOP_SECONDS
        self._share.leave()
        self._drain()
        self._pool.close(_STOP_SECONDS)
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
