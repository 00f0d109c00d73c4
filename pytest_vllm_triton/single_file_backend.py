"""The backend as one file, as wget gets it.

The sources stand in the file as they are, readable and in the order of their names, and a finder
on ``sys.meta_path`` imports them from there. Line numbers in tracebacks are those of the bundle.
"""

from __future__ import annotations

import ast
from pathlib import Path

from pytest_vllm_triton import __version__
from pytest_vllm_triton.errors import UserError

#: The name by which Triton finds a Python-based backend.
ENTRY = "model.py"

_HEADER = '''\
"""Triton's entry point of the vLLM backend, with the whole backend in this one file.

Made by `pytest-vllm-triton bundle-backend`, version {version}; do not edit. Copy it to
`<backend directory>/vllm/model.py` of a Triton server.

`_MODULES` holds the modules of the backend as they are in its repository. They are imported
from here, even where a copy of the package lies elsewhere on sys.path; tracebacks show the lines
of this file.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import CodeType
from typing import Any

# Module name -> (line of this file on which its text begins, text).
_MODULES: dict[str, tuple[int, str]] = {{}}

'''

_IMPORTER = '''
class _BundledLoader(importlib.abc.InspectLoader):
    """Imports the modules of `_MODULES`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in _MODULES:
            return None
        is_package = self.is_package(name)
        spec = importlib.machinery.ModuleSpec(name, self, is_package=is_package)
        # No such file: a name by which `inspect` finds the text of one module, not of all.
        tail = "/__init__.py" if is_package else ".py"
        spec.origin = f"{__file__}/{name.replace('.', '/')}{tail}"
        spec.has_location = True
        return spec

    def is_package(self, fullname: str) -> bool:
        return any(name.startswith(f"{fullname}.") for name in _MODULES)

    def get_source(self, fullname: str) -> str:
        return _MODULES[fullname][1]

    def get_code(self, fullname: str) -> CodeType:
        line, source = _MODULES[fullname]
        return compile("\\n" * (line - 1) + source, __file__, "exec", dont_inherit=True)


if not any(type(finder).__name__ == _BundledLoader.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _BundledLoader())

'''


def bundle(backend_dir: Path) -> str:
    """The text of one model.py that holds all of a backend's Python files.

    Args:
        backend_dir: a folder with model.py and packages beside it.

    Raises:
        UserError: the folder holds no backend, or a file of it cannot be embedded.
    """
    entry = backend_dir / ENTRY
    if not entry.is_file():
        raise UserError(f"{backend_dir} holds no {ENTRY}.")
    text = _HEADER.format(version=__version__)
    for file in sorted(backend_dir.rglob("*.py")):
        if file != entry:
            text += _embedded(file, file.relative_to(backend_dir), text)
    text += _IMPORTER + _body(_read(entry), entry)
    _parsed(text, entry)
    return text


def _embedded(file: Path, relative: Path, before: str) -> str:
    source = _read(file)
    _parsed(source, file)
    # A raw text in the kind of quotes that docstrings do not use: nothing needs to be escaped.
    quotes = "'''"
    if quotes in source:
        raise UserError(f"{file} cannot be bundled: it contains {quotes}.")
    parts = list(relative.with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    name = ".".join(parts)
    rule = f"# ==== {relative.as_posix()} ".ljust(100, "=")
    opening = f'\n{rule}\n_MODULES["{name}"] = (\n'
    line = (before + opening).count("\n") + 2
    return f"{opening}    {line},\n    r{quotes}{source}{quotes},\n)\n"


def _body(source: str, entry: Path) -> str:
    """The entry point without its docstring and imports from __future__, which must be first."""
    body = _parsed(source, entry).body
    skipped = 0
    for node in body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not is_docstring and not is_future:
            break
        skipped = node.end_lineno or skipped
    rule = f"# ==== {ENTRY} ".ljust(100, "=")
    return f"\n{rule}\n\n" + "".join(source.splitlines(keepends=True)[skipped:]).lstrip("\n")


def _read(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return text if text.endswith("\n") else text + "\n"


def _parsed(source: str, file: Path) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"{file} is no valid Python: {error}.") from None
