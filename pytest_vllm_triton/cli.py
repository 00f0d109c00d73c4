"""The command ``pytest-vllm-triton``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pytest_vllm_triton.commands import bundle, catalogue, report, runtime
from pytest_vllm_triton.errors import UserError

#: Each adds its sub-command: a parser whose default ``run`` takes the arguments and returns the
#: exit status.
COMMANDS = (
    runtime.add_parser,
    catalogue.add_parser,
    report.add_parser,
    bundle.add_parser,
)

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pytest-vllm-triton",
        description="Companion of the pytest plugin that checks vLLM backends of Triton.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_parser in COMMANDS:
        add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = build_parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except UserError as error:
        print(f"pytest-vllm-triton: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("pytest-vllm-triton: interrupted; run it again to go on.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough (head). Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
