"""The only module that imports vLLM, whose API moves with every release.

Written for vLLM 0.22 to 0.32 (docs/backend.md: with which of them the whole suite was run). Nothing
is decided by version number: what differs between releases is probed, and a vLLM that lacks
something essential is refused at load with one sentence. Written against
vllm/v1/engine/async_llm.py and output_processor.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import locale
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from vllm_triton_backend.engine_limits import EngineLimits
from vllm_triton_backend.errors import Code, LoadError, RequestError, invalid
from vllm_triton_backend.stats import RankGauges, Stats

SUPPORTED = "0.22 to 0.32"

_SHORT_PROMPT = 2048  # characters
# Between two looks whether the engine is still alive.
_ALIVE_SECONDS = 0.5
# vLLM's environment variable for how it starts engines.
_START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"

Sink = Callable[[Any], None]
"""Receives, on the event loop, each RequestOutput of a request, or the Exception that ended it."""


@dataclasses.dataclass(slots=True)
class Handle:
    """One request inside the engine. `abort_id` is the id that `abort` takes; `internal` tells
    which of vLLM's two id spaces it is from; `task` hands on its outputs where vLLM's own loop
    cannot."""

    abort_id: str
    internal: bool
    task: asyncio.Task[None] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class EngineAddresses:
    """ZeroMQ addresses over which one client talks with an engine; the client binds both."""

    input: str
    output: str


class Vllm:
    """vLLM's classes, imported and probed once.

    Raises:
        LoadError: vLLM is not installed, cannot be imported, or is an unsupported version.
    """

    def __init__(self) -> None:
        _use_utf8_locale()
        try:
            import vllm
        except ImportError as error:
            raise LoadError(
                f"vLLM cannot be imported by Triton's Python ({error}); install it with "
                "`pip install vllm` into the environment that the stub uses"
            ) from error
        self.version = str(getattr(vllm, "__version__", "unknown"))
        try:
            from vllm import SamplingParams
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.lora.request import LoRARequest
            from vllm.pooling_params import PoolingParams
            from vllm.sampling_params import RequestOutputKind
            from vllm.v1.engine.async_llm import AsyncLLM
            from vllm.v1.engine.exceptions import EngineDeadError
        except ImportError as error:
            raise self._unsupported(error) from error
        for owner, name in (
            (AsyncLLM, "from_vllm_config"),
            (AsyncLLM, "add_request"),
            (AsyncLLM, "abort"),
            (AsyncLLM, "errored"),
            (RequestOutputKind, "DELTA"),
            (RequestOutputKind, "FINAL_ONLY"),
        ):
            if not hasattr(owner, name):
                raise self._unsupported(f"{owner.__name__} has no '{name}'")
        self.sampling_params = SamplingParams
        self.pooling_params = PoolingParams
        self.lora_request = LoRARequest
        self.output_kind = RequestOutputKind
        # Of every request. Its parameters are its own: vLLM need not copy all that is in them.
        self.sampling_options = (
            {"skip_clone": True} if "skip_clone" in SamplingParams.__annotations__ else {}
        )
        self._engine_class = AsyncLLM
        self._engine_args_class = AsyncEngineArgs
        self.dead_error = EngineDeadError
        self._client_errors = _client_errors()

    def _unsupported(self, detail: object) -> LoadError:
        return LoadError(
            f"vLLM {self.version} is not supported by this backend, which works with vLLM "
            f"{SUPPORTED} ({detail})"
        )

    def engine_args(self, arguments: Mapping[str, Any]) -> Any:
        """`arguments` of model.json as AsyncEngineArgs.

        Raises:
            LoadError: naming the unknown or refused argument.
        """
        known = {field.name for field in dataclasses.fields(self._engine_args_class)}
        unknown = sorted(set(arguments) - known)
        if unknown:
            raise LoadError(
                f"'model.json' has engine arguments that vLLM {self.version} does not know: "
                + ", ".join(f"'{name}'" for name in unknown)
            )
        return self._engine_args_class(**arguments)

    async def start_engine(
        self,
        arguments: Mapping[str, Any],
        stat_loggers: Sequence[Any] = (),
        other_clients: Sequence[EngineAddresses] = (),
    ) -> Engine:
        """Boot an engine; must run on the event loop that will use it.

        `other_clients` may use it too, by `join_engine`; they are its clients 1, 2, …

        Raises:
            LoadError: see `engine_args`; or this vLLM's engines have one client.
        """
        args = self.engine_args(arguments)
        options = {"stat_loggers": list(stat_loggers)} if stat_loggers else {}
        chosen = os.environ.get(_START_METHOD)
        config = args.create_engine_config()
        with self._serving(other_clients), _forked_if_alone(config, chosen):
            engine = self._engine_class.from_vllm_config(
                config,
                disable_log_stats=args.disable_log_stats,
                enable_log_requests=args.enable_log_requests,
                **options,
            )
        return await self._wrap(engine)

    async def join_engine(
        self,
        arguments: Mapping[str, Any],
        stat_loggers: Sequence[Any],
        addresses: EngineAddresses,
        index: int,
    ) -> Engine:
        """Use an engine that another process started, with the same arguments, as its client
        `index`; must run on the event loop that will use it."""
        args = self.engine_args(arguments)
        engine = self._engine_class.from_vllm_config(
            args.create_engine_config(),
            stat_loggers=list(stat_loggers),
            disable_log_stats=True,
            client_addresses={
                "input_address": addresses.input,
                "output_address": addresses.output,
            },
            client_index=index,
        )
        return await self._wrap(engine)

    @contextlib.contextmanager
    def _serving(self, clients: Sequence[EngineAddresses]) -> Iterator[None]:
        """Engines that are started meanwhile have these clients besides their own.

        vLLM has this for its own API servers only, and otherwise tells an engine of one client.
        """
        if not clients:
            yield
            return
        from vllm.v1.engine import core_client

        launch = getattr(core_client, "launch_core_engines", None)
        if launch is None:
            raise self._unsupported("SHARED_ENGINE: no 'launch_core_engines'")

        def launch_for_all(*args: Any, **options: Any) -> Any:
            call = inspect.signature(launch).bind(*args, **options)
            known = call.arguments["addresses"]
            known.inputs.extend(client.input for client in clients)
            known.outputs.extend(client.output for client in clients)
            return launch(*args, **options)

        core_client.launch_core_engines = launch_for_all
        try:
            yield
        finally:
            core_client.launch_core_engines = launch

    async def _wrap(self, engine: Any) -> Engine:
        try:
            return Engine(self, engine, await self._supported_tasks(engine))
        except BaseException:
            engine.shutdown()
            raise

    async def _supported_tasks(self, engine: Any) -> frozenset[str]:
        if not hasattr(engine, "get_supported_tasks"):
            return frozenset({"generate"})
        tasks = await _while_alive(engine, engine.get_supported_tasks(), self.dead_error)
        return frozenset(tasks)

    def to_engine_error(self, error: BaseException) -> RequestError:
        """What to tell the client of a request that the engine had taken and that ends with this
        error. It need not be that request's fault: an exception about any request ends vLLM's
        output loop, and with it all requests in the engine."""
        return RequestError(Code.UNAVAILABLE, self.to_request_error(error).message)

    def to_request_error(self, error: BaseException) -> RequestError:
        """What a failed request tells its client."""
        if isinstance(error, RequestError):
            return error
        text = f"Error generating stream: {str(error) or type(error).__name__}"
        if isinstance(error, self.dead_error):
            return RequestError(Code.UNAVAILABLE, text)
        status = getattr(error, "http_status", None)
        if status is not None and int(status) == 503:
            return RequestError(Code.UNAVAILABLE, text)
        if isinstance(error, self._client_errors):
            return invalid(text)
        return RequestError(Code.INTERNAL, text)


class Engine:
    """A running AsyncLLM. Its coroutines belong to its event loop; the rest may be called anywhere.

    Attributes:
        tasks: vLLM's supported tasks ("generate", "embed", …).
        limits: of what a request may ask for.
    """

    def __init__(self, vllm: Vllm, engine: Any, tasks: frozenset[str]) -> None:
        self._vllm = vllm
        self._engine = engine
        self.tasks = tasks
        self.limits = _limits(engine)
        self._loop = asyncio.get_running_loop()
        self._renderer = _renderer(engine)
        self._takes_text = "prompt_text" in inspect.signature(engine.add_request).parameters
        self.tracing = bool(
            getattr(getattr(engine, "observability_config", None), "otlp_traces_endpoint", None)
        )

    @property
    def runs_on_cpu(self) -> bool:
        """Whether the model is computed by CPUs."""
        return bool(self._engine.vllm_config.device_config.device_type == "cpu")

    @property
    def alive(self) -> bool:
        """Whether the engine's processes are healthy, as far as vLLM has noticed."""
        return not self._engine.errored

    async def check_health(self) -> None:
        """vLLM's own check; raises when the engine is not healthy."""
        await self._engine.check_health()

    async def prepare(self, prompt: Any) -> Any:
        """Tokenize (and process images); all but short texts off the event loop, where this vLLM
        can.

        Args:
            prompt: a vLLM prompt: str, {"prompt": …, "multi_modal_data": …} or
                {"prompt_token_ids": […]}.

        Raises:
            RequestError: INVALID_ARG: the prompt's text and its images do not fit together.
            Exception: vLLM's reason for refusing the prompt.
        """
        if self._renderer is None:
            return prompt
        try:
            return await self._renderer.render(prompt)
        except AssertionError as error:
            # vLLM asserts what its client decides: a place in the prompt for each image.
            raise invalid(f"Error generating stream: {error}") from error

    async def generate(
        self,
        prompt: Any,
        params: Any,
        request_id: str,
        sink: Sink,
        *,
        prompt_text: str | None = None,
        lora: Any | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> Handle:
        """Add a request (SamplingParams or PoolingParams); its outputs go to `sink`.

        Must not be cancelled: vLLM leaks a request that is cancelled while it is being added
        (vllm#57061). Abort it afterwards instead.
        """
        self.limits.fit_to_prompt(params, prompt)
        self.limits.check_bad_words(params)
        options: dict[str, Any] = {"lora_request": lora, "priority": priority}
        if trace_headers and self.tracing:
            options["trace_headers"] = dict(trace_headers)
        if prompt_text is not None and self._takes_text:
            options["prompt_text"] = prompt_text
        try:
            collector = await self._engine.add_request(request_id, prompt, params, **options)
        except Exception:
            # vLLM notes a request before it finds out that it cannot be sent to the engine.
            with contextlib.suppress(Exception):
                await self._engine.abort(request_id)
            raise
        internal = getattr(collector, "request_id", None)
        handle = Handle(internal or request_id, internal is not None)
        if not _tap(collector, sink):
            handle.task = asyncio.get_running_loop().create_task(_pump(collector, sink))
        return handle

    async def abort(self, handle: Handle) -> None:
        """Take the request out of the engine and free its state."""
        if handle.internal:
            await self._engine.abort(handle.abort_id, internal=True)
        else:
            await self._engine.abort(handle.abort_id)
        if handle.task is not None:
            handle.task.cancel()

    async def add_lora(self, lora: Any) -> None:
        """Load an adapter now: inside a running batch a bad one would kill the engine.

        Raises:
            Exception: vLLM's reason, when the adapter cannot be loaded; `Vllm.dead_error`, when
                the engine is dead, or dies while it loads it.
        """
        if not hasattr(self._engine, "add_lora"):
            return
        if not self.alive:
            raise self._vllm.dead_error()
        await _while_alive(self._engine, self._engine.add_lora(lora), self._vllm.dead_error)

    @property
    def most_images(self) -> int | None:
        """How many images a request may have: 0 for a model of text only, None when this vLLM does
        not say."""
        config = getattr(self._engine, "model_config", None)
        if not getattr(config, "is_multimodal_model", True):
            return 0
        limit = getattr(getattr(config, "multimodal_config", None), "get_limit_per_prompt", None)
        return None if limit is None else int(limit("image"))

    def mark_dead(self) -> None:
        """The engine of another process is gone: what runs fails, and `alive` is false.

        vLLM notices by itself only where it started the engine.
        """
        client = self._engine.engine_core
        client.resources.engine_dead = True
        self._loop.call_soon_threadsafe(client.outputs_queue.put_nowait, self._vllm.dead_error())

    def shutdown(self) -> None:
        """Stop the engine's processes, if they are this process's own."""
        # First, or vLLM's output loop would log the end of the engine as a failure.
        output_loop = getattr(self._engine, "output_handler", None)
        if output_loop is not None:
            output_loop.get_loop().call_soon_threadsafe(output_loop.cancel)
        self._engine.shutdown()


@contextlib.contextmanager
def _forked_if_alone(config: Any, chosen: str | None) -> Iterator[None]:
    """An engine for CPUs that is started meanwhile is forked, as one for GPUs is, if it is one
    process and the operator has chosen nothing.

    One that is spawned imports torch and vLLM once more, which is a third of the load of a small
    model. For CPUs vLLM spawns whatever it starts, because of the workers of several processes:
    they must find their settings of OpenMP in the environment when they begin.
    """
    parallel = config.parallel_config
    alone = parallel.world_size * parallel.data_parallel_size == 1
    if chosen is not None or not alone or config.device_config.device_type != "cpu":
        yield
        return
    vllms = os.environ.pop(_START_METHOD, None)
    os.environ[_START_METHOD] = "fork"
    try:
        yield
    finally:
        del os.environ[_START_METHOD]
        if vllms is not None:
            os.environ[_START_METHOD] = vllms


def _use_utf8_locale() -> None:
    """Leave the C locale, in which Triton's stub runs and in which vLLM and torch cannot read
    their own UTF-8 sources ("'ascii' codec can't decode byte 0xe2")."""
    for name in ("", "C.UTF-8", "en_US.UTF-8"):
        try:
            locale.setlocale(locale.LC_CTYPE, name)
        except locale.Error:
            continue
        if "utf" in locale.getpreferredencoding(False).lower():
            return


def _client_errors() -> tuple[type[BaseException], ...]:
    """Exceptions by which vLLM refuses a request: a class of its own in new versions, plain
    ValueError, TypeError or NotImplementedError in old ones (and still in places), OverflowError
    for a number that has no room in the message to the engine."""
    errors = (ValueError, TypeError, NotImplementedError, OverflowError)
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:
        return errors
    return (*errors, VLLMClientError)


async def _while_alive(engine: Any, call: Awaitable[Any], dead_error: type[Exception]) -> Any:
    """What an engine answers to a call, for which vLLM waits for ever if the engine dies meanwhile.

    Raises:
        Exception: that of the call; `dead_error`, the engine died.
    """
    answer = asyncio.ensure_future(call)
    while not (await asyncio.wait({answer}, timeout=_ALIVE_SECONDS))[0]:
        if engine.errored:
            answer.cancel()
            raise dead_error()
    return answer.result()


def _limits(engine: Any) -> EngineLimits:
    model_config = getattr(engine, "model_config", None)
    vocab_size = getattr(model_config, "get_vocab_size", None)
    return EngineLimits(
        max_model_len=getattr(model_config, "max_model_len", None),
        vocab_size=vocab_size() if vocab_size is not None else None,
        has_fixed_tables=bool(
            getattr(getattr(engine, "vllm_config", None), "use_v2_model_runner", False)
        ),
        tokenizer=getattr(engine, "tokenizer", None),
    )


def _renderer(engine: Any) -> PromptRenderer | None:
    """How this vLLM wants prompts prepared; None: it takes raw prompts."""
    renderer = getattr(engine, "renderer", None)
    if renderer is None or not hasattr(renderer, "render_cmpl_async"):
        return None
    try:
        from vllm.renderers.inputs.preprocess import parse_model_prompt
    except ImportError:
        return None
    return PromptRenderer(renderer, functools.partial(parse_model_prompt, engine.model_config))


class PromptRenderer:
    """Prepares prompts by vLLM's renderer: short texts at once, the rest in vLLM's thread.

    The way to that thread and back takes the interpreter lock twice, which with many requests
    is longer than tokenizing a short text. No two threads use the tokenizer at once.

    Args:
        renderer: vLLM's, with `render_cmpl_async`, and `render_cmpl` unless this vLLM lacks it.
        parse: turns a prompt into what `renderer` takes.
    """

    def __init__(self, renderer: Any, parse: Callable[[Any], Any]) -> None:
        self._renderer = renderer
        self._parse = parse
        self._renders_at_once = hasattr(renderer, "render_cmpl")
        self._in_thread = 0

    async def render(self, prompt: Any) -> Any:
        prompts = [self._parse(prompt)]
        short = isinstance(prompt, str) and len(prompt) <= _SHORT_PROMPT
        if short and self._renders_at_once and not self._in_thread:
            (rendered,) = self._renderer.render_cmpl(prompts)
            return rendered
        self._in_thread += 1
        try:
            (rendered,) = await self._renderer.render_cmpl_async(prompts)
        finally:
            self._in_thread -= 1
        return rendered


def _tap(collector: Any, sink: Sink) -> bool:
    """Let vLLM's output loop call `sink` itself, instead of waking one task per request and step.

    False when the collector is not the one this was written for.
    """
    if not hasattr(collector, "put") or not hasattr(collector, "output"):
        return False
    try:
        collector.put = sink
    except AttributeError:
        return False
    # An output may have come while the request was being added.
    early, collector.output = collector.output, None
    if early is not None:
        sink(early)
    return True


async def _pump(collector: Any, sink: Sink) -> None:
    """Hand on the outputs of a collector that cannot be tapped, up to the last one or an error."""
    try:
        finished = False
        while not finished:
            output = await collector.get()
            finished = output.finished
            sink(output)
    except Exception as error:
        sink(error)


def stat_logger_factory(record: Callable[[Stats], None]) -> Callable[..., Any]:
    """A vLLM stat logger that hands every engine step to `record`, on the event loop.

    vLLM calls it with keywords that differ between releases, so it takes any.
    """
    from vllm.v1.metrics.loggers import StatLoggerBase

    gauges = RankGauges()

    class Recorder(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any = None, engine_index: int = 0) -> None:
            self._engine_index = engine_index

        def record(
            self,
            scheduler_stats: Any = None,
            iteration_stats: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> None:
            record(gauges.of_all(self._engine_index, _read_stats(scheduler_stats, iteration_stats)))

        def log_engine_initialized(self) -> None:
            pass

    def make(vllm_config: Any, engine_index: int = 0) -> Any:
        return Recorder(vllm_config, engine_index)

    return make


def _read_stats(scheduler: Any, iteration: Any) -> Stats:
    """vLLM's SchedulerStats and IterationStats (either may be None) as `Stats`."""
    stats = Stats()
    if scheduler is not None:
        stats.running = scheduler.num_running_reqs
        stats.waiting = scheduler.num_waiting_reqs + getattr(
            scheduler, "num_skipped_waiting_reqs", 0
        )
        stats.kv_cache_usage = scheduler.kv_cache_usage
        prefix = getattr(scheduler, "prefix_cache_stats", None)
        if prefix is not None:
            stats.prefix_queries, stats.prefix_hits = prefix.queries, prefix.hits
    if iteration is not None:
        finished = iteration.finished_requests
        stats.prompt_tokens = iteration.num_prompt_tokens
        stats.generation_tokens = iteration.num_generation_tokens
        stats.preemptions = iteration.num_preempted_reqs
        stats.time_to_first_token = iteration.time_to_first_tokens_iter
        stats.time_per_output_token = (
            iteration.inter_token_latencies_iter
            if hasattr(iteration, "inter_token_latencies_iter")
            else getattr(iteration, "time_per_output_tokens_iter", ())
        )
        stats.n_params = iteration.n_params_iter
        stats.e2e_latency = [request.e2e_latency for request in finished]
        stats.request_prompt_tokens = [request.num_prompt_tokens for request in finished]
        stats.request_generation_tokens = [request.num_generation_tokens for request in finished]
        stats.finished = [str(request.finish_reason) for request in finished]
    return stats
