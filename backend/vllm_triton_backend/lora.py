"""LoRA adapters: `multi_lora.json`, stable ids, and reloading of changed files."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_triton_backend.errors import Code, LoadError, RequestError, invalid
from vllm_triton_backend.model_files import LORA_FILE, read_lora_paths

Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """One state of one adapter's files.

    `number` is vLLM's lora_int_id, made from the name and the state of the files, so that it is the
    same in every process that uses the engine. It is part of `engine_name`, because vLLM's prefix
    cache knows adapters by name and would answer from the weights before a change.
    """

    name: str
    engine_name: str
    number: int
    path: str


class LoraRegistry:
    """The adapters of one model version; files are looked at again for every request.

    Args:
        version_dir: folder with multi_lora.json.
        make_request: vLLM's LoRARequest.

    Raises:
        LoadError: see `read_lora_paths`.
    """

    def __init__(self, version_dir: Path, make_request: Callable[..., Any]) -> None:
        self._dir = version_dir
        self._make_request = make_request
        self._lock = threading.Lock()
        self._paths = read_lora_paths(version_dir)
        self._paths_stamp = _stamp_of(version_dir / LORA_FILE)
        self._adapters: dict[str, tuple[Stamp, Adapter]] = {}
        self._loaded: dict[int, Any] = {}
        self._loading: dict[int, asyncio.Lock] = {}
        for name in self._paths:
            self.find(name)

    def find(self, name: str) -> Adapter:
        """The adapter as its files are now.

        Raises:
            RequestError: INVALID_ARG, unknown adapter (upstream's text).
        """
        with self._lock:
            self._refresh()
            path = self._paths.get(name)
            if path is None:
                raise invalid(
                    f"LoRA {name} is not supported, we currently support {list(self._paths)}"
                )
            stamp = ((path, 0, 0), *_stamp_of(Path(path)))
            known = self._adapters.get(name)
            if known is not None and known[0] == stamp:
                return known[1]
            number = _number(name, stamp)
            adapter = Adapter(name, f"{name}@{number}", number, path)
            self._adapters[name] = (stamp, adapter)
            return adapter

    def _refresh(self) -> None:
        stamp = _stamp_of(self._dir / LORA_FILE)
        if stamp == self._paths_stamp:
            return
        self._paths_stamp = stamp
        try:
            self._paths = read_lora_paths(self._dir)
        except LoadError:
            # Half-written by an operator: keep what works, look again at the next change.
            return

    async def activate(self, adapter: Adapter, engine: Any) -> Any:
        """vLLM's LoRARequest for `adapter`, loaded into the engine first.

        Raises:
            RequestError: INTERNAL with vLLM's reason; the engine and other requests go on.
            Exception: vLLM's, where the engine is dead.
        """
        if adapter.number in self._loaded:
            return self._loaded[adapter.number]
        lock = self._loading.setdefault(adapter.number, asyncio.Lock())
        async with lock:
            if adapter.number not in self._loaded:
                try:
                    request = self._make_request(adapter.engine_name, adapter.number, adapter.path)
                    await engine.add_lora(request)
                except Exception as error:
                    if not engine.alive:
                        raise
                    raise RequestError(
                        Code.INTERNAL, f"LoRA {adapter.name} cannot be loaded: {error}"
                    ) from None
                self._loaded[adapter.number] = request
        return self._loaded[adapter.number]


def _number(name: str, stamp: Stamp) -> int:
    """A positive number of 31 bits (vLLM has arrays of int32)."""
    digest = hashlib.sha256(repr((name, stamp)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1 or 1


def _stamp_of(path: Path) -> Stamp:
    """Names, times and sizes of the file, or of the files in the folder, `path`."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return ()
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
