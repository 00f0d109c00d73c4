"""Write what a server is given: a model repository, and a copy of the backend."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pytest_vllm_triton.launchers.base import ModelSpec, ServerSpec, new_shm_prefix


@dataclass(frozen=True)
class ServerFolder:
    """What one server has for itself.

    Attributes:
        path: the folder that holds all the rest.
        models: the model repository.
        backends: holds the backend under test, and is a place for others.
        backend: the copy of the backend under test; None: the server brings its own.
        shm_prefix: the prefix of its shared-memory regions.
    """

    path: Path
    models: Path
    backends: Path
    backend: Path | None
    shm_prefix: str

    @classmethod
    def create(cls, work_dir: Path, spec: ServerSpec) -> ServerFolder:
        """Make and fill a new folder in ``work_dir``.

        Raises:
            ValueError: the models or their files cannot be in one repository.
        """
        path = work_dir / f"server-{secrets.token_hex(4)}"
        models, backends = path / "models", path / "backends"
        write_repository(spec.models, models)
        backends.mkdir()
        backend = None
        if spec.backend_dir is not None:
            backend = copy_backend(spec.backend_dir, backends / "vllm")
        return cls(path, models, backends, backend, spec.shm_prefix or new_shm_prefix())

    @property
    def log(self) -> Path:
        """The file of the server's log."""
        return self.path / "triton.log"


def write_repository(models: Sequence[ModelSpec], root: Path) -> Path:
    """Write the models into the new folder ``root``, and make sure that they are what was asked."""
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise ValueError(f"two models have the same name: {', '.join(sorted(names))}")
    root.mkdir(parents=True)
    for model in models:
        write_model(model, root)
    return root


def write_model(model: ModelSpec, root: Path) -> Path:
    """Write one model into the repository ``root``, which must not hold it yet; its folder."""
    folder = root / _checked(model.name, "model name", parts=1)
    expected = {folder / path: content for path, content in _files(model)}
    (folder / str(model.version)).mkdir(parents=True)
    for file, content in expected.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    written = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    if written != expected:
        wrong = sorted(
            str(file.relative_to(root))
            for file in written.keys() | expected.keys()
            if written.get(file) != expected.get(file)
        )
        raise RuntimeError(f"the model in {folder} is not what was asked: {', '.join(wrong)}")
    return folder


def copy_backend(source: Path, target: Path) -> Path:
    """Copy a backend's folder without compiled files, which may be those of another Python."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def _files(model: ModelSpec) -> Iterator[tuple[PurePosixPath, bytes]]:
    files: dict[PurePosixPath, bytes] = {}
    if model.config:
        files[PurePosixPath("config.pbtxt")] = model.config.encode()
    if model.model_json is not None:
        files[PurePosixPath(str(model.version), "model.json")] = model.model_json.encode()
    for name, content in model.files.items():
        path = _checked(name, "file")
        if path in files:
            raise ValueError(f"model {model.name!r} has the file {name!r} twice")
        files[path] = content
    yield from files.items()


def _checked(name: str, what: str, parts: int | None = None) -> PurePosixPath:
    path = PurePosixPath(name)
    wrong = not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name
    if wrong or (parts is not None and len(path.parts) != parts):
        raise ValueError(f"{what} {name!r} would lie outside its folder of the model repository")
    return path
