"""The command ``pytest-vllm-triton runtime``."""

from __future__ import annotations

import argparse

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.runtime.recipe import DEFAULT_VLLM_VERSION, VLLM_VERSIONS


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``runtime`` and its sub-commands."""
    runtime = commands.add_parser(
        "runtime",
        help="create, list or remove embedded server runtimes",
        description="The embedded server runtimes: a real Triton and a real vLLM for CPUs each.",
    )
    actions = runtime.add_subparsers(required=True, metavar="ACTION")

    create = actions.add_parser("create", help="make a runtime, unless it is there")
    _add_vllm_version(create)
    create.add_argument("--python", metavar="PATH", help="the Python to make it from")
    create.set_defaults(run=_create)

    listing = actions.add_parser("list", help="show the runtimes that are there")
    listing.set_defaults(run=_list)

    remove = actions.add_parser("remove", help="remove runtimes")
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("key", nargs="?", metavar="KEY", help="the runtime, as 'list' names it")
    which.add_argument("--all", action="store_true", help="all of them, interrupted ones too")
    remove.set_defaults(run=_remove)

    path = actions.add_parser("path", help="print the folder of a runtime")
    _add_vllm_version(path)
    path.set_defaults(run=_path)


def _add_vllm_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vllm-version",
        metavar="VERSION",
        default=DEFAULT_VLLM_VERSION,
        help=f"one of {', '.join(VLLM_VERSIONS)} (default: %(default)s)",
    )


def _create(arguments: argparse.Namespace) -> int:
    from pytest_vllm_triton.runtime import create_runtime
    from pytest_vllm_triton.runtime.progress import shown

    with shown() as progress:
        runtime = create_runtime(arguments.vllm_version, progress, python=arguments.python)
    print(runtime.root)
    return 0


def _list(_: argparse.Namespace) -> int:
    from pytest_vllm_triton.runtime.store import folder_size, list_partial, list_runtimes
    from pytest_vllm_triton.runtime.store import runtimes_folder as folder

    runtimes, partial = list_runtimes(), list_partial()
    if not runtimes and not partial:
        print(f"no runtimes in {folder()}")
    for runtime in runtimes:
        state = runtime.broken()
        print(
            f"{runtime.key}  Triton {runtime.triton_version}, vLLM {runtime.vllm_version}, "
            f"Python {runtime.python_version}, {runtime.size() / 2**30:.1f} GiB"
            + (f"  BROKEN: {state}" if state else "")
        )
    for path in partial:
        print(f"{path.stem}  interrupted, {folder_size(path) / 2**30:.1f} GiB")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from pytest_vllm_triton.runtime.store import list_partial, list_runtimes, remove_runtime

    if arguments.all:
        keys = {runtime.key for runtime in list_runtimes()}
        keys |= {path.stem for path in list_partial()}
    else:
        keys = {arguments.key}
    for key in sorted(keys):
        remove_runtime(key)
        print(f"removed {key}")
    return 0


def _path(arguments: argparse.Namespace) -> int:
    from pytest_vllm_triton.runtime import find_runtime

    runtime = find_runtime(arguments.vllm_version)
    if runtime is None:
        raise UserError(
            f"There is no runtime with vLLM {arguments.vllm_version} yet: make it with "
            f"'pytest-vllm-triton runtime create --vllm-version {arguments.vllm_version}'."
        )
    print(runtime.root)
    return 0
