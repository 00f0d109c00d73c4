"""``pytest-vllm-triton render`` and ``compare``: what can be done with reports after a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.report.formats import check_suffix, write_report

EXIT_REGRESSION = 1


def add_parser(commands: Any) -> None:
    """Add both sub-commands."""
    render: argparse.ArgumentParser = commands.add_parser(
        "render", help="turn a JSON report into a page (.html) or a job summary (.md)"
    )
    render.add_argument("report", type=Path, help="the JSON report")
    render.add_argument(
        "--to",
        type=Path,
        action="append",
        required=True,
        metavar="PATH",
        help="the file to write; its suffix says the format; may be repeated",
    )
    render.set_defaults(run=run_render)
    compare: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="say what changed between two JSON reports",
        description="The exit status is 0 without a regression, 1 with one, 2 if a file is no "
        "report. A regression: a requirement that fails and did not, or one of level MUST that "
        "passed and is not decided any more.",
    )
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    compare.add_argument("--format", choices=("text", "markdown"), default="text")
    compare.set_defaults(run=run_compare)


def run_render(arguments: argparse.Namespace) -> int:
    from pytest_vllm_triton.report.document import load_document

    for path in arguments.to:
        check_suffix(path)
    document = load_document(arguments.report)
    for path in arguments.to:
        try:
            write_report(document, path)
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be written: {error}.") from None
        print(path)
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    from pytest_vllm_triton.report import compare_text
    from pytest_vllm_triton.report.compare import compare
    from pytest_vllm_triton.report.document import load_document
    from pytest_vllm_triton.requirements import load_catalogue

    old, new = load_document(arguments.old), load_document(arguments.new)
    comparison = compare(old, new, load_catalogue())
    write = compare_text.to_markdown if arguments.format == "markdown" else compare_text.to_text
    print(write(comparison))
    return EXIT_REGRESSION if comparison.has_regressions else 0
