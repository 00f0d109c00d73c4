"""The way of each request into the engine, and out of it: by its end, a cancellation or a drain."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

from vllm_triton_backend.adapter import Engine, Vllm
from vllm_triton_backend.cancellation import CancellationWatch
from vllm_triton_backend.errors import CANCELLED, SHUTTING_DOWN, UNHEALTHY, Code, RequestError
from vllm_triton_backend.event_loop import EventLoop
from vllm_triton_backend.images import decode_images
from vllm_triton_backend.live_requests import Live, LiveRequests
from vllm_triton_backend.lora import Adapter, LoraRegistry
from vllm_triton_backend.requests import EmbedRequest, GenerateRequest
from vllm_triton_backend.streams import ResponseStream

Log = Callable[[str], None]

_ABORT_SECONDS = 5.0


class RequestRunner:
    """Feeds requests to the engine and their outputs to their streams.

    Args:
        loop: the engine's event loop.
        live: takes the requests in, and knows those that have not ended.
        health_check: ask vLLM's health check before every request and call `on_unhealthy` when
            it fails (upstream's ENABLE_VLLM_HEALTH_CHECK).
        on_given_up: called for every request that is taken out of the engine before its end.
    """

    def __init__(
        self,
        vllm: Vllm,
        engine: Engine,
        loop: EventLoop,
        live: LiveRequests,
        *,
        loras: LoraRegistry | None,
        health_check: bool,
        on_unhealthy: Callable[[], None],
        on_given_up: Callable[[], None],
        log: Log,
    ) -> None:
        self._vllm = vllm
        self._engine = engine
        self._loop = loop
        self._live = live
        self._loras = loras
        self._health_check = health_check
        self._on_unhealthy = on_unhealthy
        self._on_given_up = on_given_up
        self._log = log
        self._numbers = itertools.count()
        self._watch = CancellationWatch(live, self._cancel, log)

    def submit(
        self,
        request: GenerateRequest | EmbedRequest,
        params: Any,
        adapter: Adapter | None,
        stream: ResponseStream,
    ) -> None:
        """Take over a request; returns at once.

        Raises:
            RequestError: UNAVAILABLE, while unloading or over the in-flight limit.
        """
        live = Live(next(self._numbers), request, params, adapter, stream)
        self._live.add(live)
        self._loop.loop.call_soon_threadsafe(self._start, live)

    def forget(self, stream: ResponseStream) -> None:
        """The stream's last response was handed to Triton (called by the sender threads)."""
        live = self._live.remove(stream)
        if live is not None and not live.ended:
            # A response could not be built or sent: nobody waits for what the engine still makes.
            self._cancel(live)

    @property
    def alive(self) -> bool:
        """Whether the engine can serve."""
        return self._engine.alive

    def drain(self, timeout: float) -> None:
        """Refuse new requests, wait for the running ones, then end the rest with UNAVAILABLE."""
        self._live.refuse_more()
        count = len(self._live)
        if count and self._engine.alive:
            self._log(f"[vllm] Awaiting remaining {count} requests")
            self._live.wait_until_idle(timeout, lambda: self._engine.alive)
        rest = self._live.all()
        for live in rest:
            self._stop(live, RequestError(Code.UNAVAILABLE, SHUTTING_DOWN))
        if rest:
            self._log(f"[vllm] Aborted {len(rest)} requests that outlived the drain timeout")
            # Not for the engine, which may be dead, but for the responses.
            self._live.wait_until_idle(_ABORT_SECONDS)
        self._watch.stop(_ABORT_SECONDS)

    def _cancel(self, live: Live) -> None:
        self._stop(live, RequestError(Code.CANCELLED, CANCELLED))

    def _stop(self, live: Live, error: RequestError) -> None:
        """Give it up, from any thread."""
        self._loop.loop.call_soon_threadsafe(self._give_up, live, error)

    # -- event loop ------------------------------------------------------------------------------

    def _start(self, live: Live) -> None:
        if live.ended:
            return
        if live.request.timeout > 0:
            live.timer = self._loop.loop.call_later(live.request.timeout, self._expire, live)
        live.task = self._loop.loop.create_task(self._run(live))

    async def _run(self, live: Live) -> None:
        try:
            if self._health_check:
                await self._check_health()
            await self._add(live)
        except Exception as error:
            self._end(live, self._vllm.to_request_error(error))
        if live.ended:
            # Given up on its way into the engine, which may have it by now.
            await self._abort(live)
        live.task = None

    async def _check_health(self) -> None:
        try:
            await self._engine.check_health()
        except Exception as error:
            self._log(f"[vllm] Model is not healthy: {error}")
            self._on_unhealthy()
            raise RequestError(Code.UNAVAILABLE, UNHEALTHY) from None

    async def _add(self, live: Live) -> None:
        request = live.request
        prompt: Any
        text: str | None = None
        lora = None
        if isinstance(request, EmbedRequest):
            prompt = (
                request.input
                if isinstance(request.input, str)
                else {"prompt_token_ids": list(request.input)}
            )
        else:
            prompt = text = request.prompt
            if request.images:
                images = await asyncio.to_thread(decode_images, request.images)
                prompt = {"prompt": request.prompt, "multi_modal_data": {"image": images}}
            if live.adapter is not None and self._loras is not None:
                lora = await self._loras.activate(live.adapter, self._engine)
        prompt = await self._engine.prepare(prompt)
        if live.ended:
            return
        live.handle = await self._engine.generate(
            prompt,
            live.params,
            _unique_id(request.request_id, live.number),
            lambda output: self._receive(live, output),
            prompt_text=text,
            lora=lora,
            trace_headers=request.trace_headers,
            priority=request.priority,
        )

    def _receive(self, live: Live, output: Any) -> None:
        if live.ended:
            return
        if isinstance(output, BaseException):
            self._end(live, self._vllm.to_engine_error(output))
        elif output.finished:
            live.ended = True
            self._disarm(live)
            live.stream.put(output, last=True)
        else:
            live.stream.put(output)

    def _expire(self, live: Live) -> None:
        seconds = live.request.timeout
        error = RequestError(Code.CANCELLED, f"Request exceeded its timeout of {seconds:g} s")
        self._give_up(live, error)

    def _give_up(self, live: Live, error: RequestError) -> None:
        if live.ended:
            return
        self._end(live, error)
        self._on_given_up()
        # Else it is on its way into the engine, at the end of which `_run` sees it.
        if live.task is None:
            live.task = self._loop.loop.create_task(self._abort(live))

    def _end(self, live: Live, error: RequestError) -> None:
        live.ended = True
        self._disarm(live)
        live.stream.fail(error)

    def _disarm(self, live: Live) -> None:
        if live.timer is not None:
            live.timer.cancel()
            live.timer = None

    async def _abort(self, live: Live) -> None:
        """Take it out of the engine, if it is there."""
        handle, live.handle = live.handle, None
        if handle is not None:
            try:
                await self._engine.abort(handle)
            except Exception as error:
                self._log(f"[vllm] Aborting a request failed: {error}")
                return
        if live.cancelling:
            self._log("[vllm] Successfully cancelled the request")


def _unique_id(request_id: str, number: int) -> str:
    """Triton's id made unique: the ids of two clients may be equal, vLLM's may not."""
    return f"{request_id or 'triton'}-{time.time_ns():x}-{number}"
