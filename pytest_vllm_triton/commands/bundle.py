"""``pytest-vllm-triton bundle-backend``: write the backend as one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pytest_vllm_triton import assets
from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.single_file_backend import ENTRY, bundle


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bundle-backend", help="write the vLLM backend as one file"
    )
    parser.add_argument("out", type=Path, metavar="OUT/model.py", help="the file to write")
    parser.add_argument(
        "--backend-dir", type=Path, help="another backend's folder (default: this package's)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if out.is_dir() or out.suffix != ".py":
        out = out / ENTRY
    text = bundle(arguments.backend_dir or assets.backend_dir())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None
    print(f"{out}: {len(text.splitlines())} lines")
    return 0
