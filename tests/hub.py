"""A local stand-in of the Hugging Face hub: as much of its HTTP API as a download of a model needs.

    with Hub({"facebook/opt-125m": folder}) as hub: ...  # HF_ENDPOINT=hub.url

Point HF_ENDPOINT at it, with an empty HF_HOME.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "27dcfa74d334bc871f3234de431e71c6eeba5dd6"


class Hub:
    """Serves model folders, each as revision ``main``.

    Attributes:
        requests: method and path of every request so far.
        cut: names of files whose content breaks off in the middle.
        gated: names of models for which a licence must be accepted.
    """

    def __init__(self, models: Mapping[str, Path]) -> None:
        self.models = dict(models)
        self.requests: list[tuple[str, str]] = []
        self.cut: set[str] = set()
        self.gated: set[str] = set()
        hub = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                self.answer(hub)

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Be gone: from now on, connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def files_sent(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return sorted(
            path.rpartition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, hub: Hub) -> None:
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        for name, folder in hub.models.items():
            api, resolve = f"/api/models/{name}", f"/{name}/resolve/"
            if path == api or path.startswith((f"{api}/", resolve)):
                if name in hub.gated:
                    self._refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
                elif path.startswith(f"{api}/tree/"):
                    self._json([_entry(file) for file in _files(folder)])
                elif path.startswith(resolve):
                    self._file(folder, path.removeprefix(resolve).partition("/")[2], hub)
                else:
                    self._json(_model(name, folder))
                return
        self._refuse(404, "RepoNotFound", "Repository not found")

    def _file(self, folder: Path, name: str, hub: Hub) -> None:
        if name not in {file.name for file in _files(folder)}:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        content = (folder / name).read_bytes()
        start = 0
        given = self.headers.get("Range", "")
        if given.startswith("bytes=") and (first := given[6:].partition("-")[0]).isdigit():
            start = int(first)
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_digest(content)}"')
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in hub.cut:
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _digest(content: bytes) -> str:
    """Git's name of a file's content, which the hub uses as its ETag."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(content), "oid": _digest(content)}


def _model(name: str, folder: Path) -> dict[str, Any]:
    return {
        "_id": "0" * 24,
        "id": name,
        "modelId": name,
        "sha": COMMIT,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": file.name} for file in _files(folder)],
    }
