"""The command ``pytest-vllm-triton runtime``."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_vllm_triton.errors import UserError
from pytest_vllm_triton.runtime.recipe import ACCELERATORS, CPU, Accelerator, check_vllm_version


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``runtime`` and its sub-commands."""
    runtime = commands.add_parser(
        "runtime",
        help="create, bundle, install, list or remove embedded server runtimes",
        description="The embedded server runtimes: a real Triton and a real vLLM each.",
    )
    actions = runtime.add_subparsers(required=True, metavar="ACTION")

    create = actions.add_parser("create", help="make a runtime, unless it is there")
    _add_which(create)
    create.add_argument("--python", metavar="PATH", help="the Python to make it from")
    create.set_defaults(run=_create)

    bundle = actions.add_parser(
        "bundle", help="gather all that a runtime is made of, for hosts without a package index"
    )
    _add_which(bundle)
    bundle.add_argument(
        "--host-torch", action="store_true", help="without PyTorch, which those hosts have"
    )
    bundle.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="a new folder for it"
    )
    bundle.add_argument(
        "--piece-size",
        metavar="BYTES",
        type=_bytes,
        help="no file of it is larger (default: one file for each package)",
    )
    bundle.add_argument(
        "--python", metavar="PATH", help="the Python to make it with: it is for this version of it"
    )
    bundle.set_defaults(run=_bundle)

    install = actions.add_parser("install", help="make a runtime from a bundle, unless it is there")
    install.add_argument(
        "--from", dest="folder", metavar="DIR", type=Path, required=True, help="the bundle's folder"
    )
    install.add_argument(
        "--python", metavar="PATH", help="the Python to make it from; it has the host's PyTorch"
    )
    install.set_defaults(run=_install)

    listing = actions.add_parser("list", help="show the runtimes that are there")
    listing.set_defaults(run=_list)

    remove = actions.add_parser("remove", help="remove runtimes")
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("key", nargs="?", metavar="KEY", help="the runtime, as 'list' names it")
    which.add_argument("--all", action="store_true", help="all of them, interrupted ones too")
    remove.set_defaults(run=_remove)

    path = actions.add_parser("path", help="print the folder of a runtime")
    _add_which(path)
    path.set_defaults(run=_path)


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accelerator",
        choices=sorted(ACCELERATORS),
        default=CPU.name,
        help="what it computes on (default: %(default)s)",
    )
    versions = "; ".join(
        f"{each.name}: {', '.join(each.versions)} (default: {each.default_version})"
        for each in ACCELERATORS.values()
    )
    parser.add_argument("--vllm-version", metavar="VERSION", help=versions)


def _which(arguments: argparse.Namespace) -> tuple[Accelerator, str]:
    accelerator = ACCELERATORS[arguments.accelerator]
    version = arguments.vllm_version or accelerator.default_version
    return accelerator, check_vllm_version(version, accelerator)


def _bytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes greater than 0")
    return int(text)


def _create(arguments: argparse.Namespace) -> int:
    from pytest_vllm_triton.runtime import create_runtime
    from pytest_vllm_triton.runtime.progress import shown

    accelerator, version = _which(arguments)
    with shown() as progress:
        runtime = create_runtime(
            version, progress, accelerator=accelerator, python=arguments.python
        )
    print(runtime.root)
    return 0


def _bundle(arguments: argparse.Namespace) -> int:
    from pytest_vllm_triton.runtime.bundling import make_bundle
    from pytest_vllm_triton.runtime.progress import shown

    accelerator, version = _which(arguments)
    with shown() as progress:
        bundle = make_bundle(
            arguments.output,
            version,
            progress,
            accelerator=accelerator,
            python=arguments.python,
            host_torch=arguments.host_torch,
            piece_size=arguments.piece_size,
        )
    print(
        f"{arguments.output}: {len(bundle.files)} files, {bundle.size / 2**20:.0f} MiB, for Linux "
        f"x86_64 with Python {bundle.python} and glibc {bundle.glibc[0]}.{bundle.glibc[1]} or newer"
        + (f", and PyTorch {bundle.host_torch} of the host" if bundle.host_torch else "")
    )
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from pytest_vllm_triton.runtime import install_runtime
    from pytest_vllm_triton.runtime.progress import shown

    with shown() as progress:
        runtime = install_runtime(arguments.folder, progress, python=arguments.python)
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
            f"{runtime.key}  Triton {runtime.triton_version}, vLLM {runtime.vllm_version} "
            f"on {runtime.accelerator.device}, Python {runtime.python_version}, "
            f"{runtime.size() / 2**30:.1f} GiB" + (f"  BROKEN: {state}" if state else "")
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

    accelerator, version = _which(arguments)
    runtime = find_runtime(version, accelerator)
    if runtime is None:
        raise UserError(
            f"There is no runtime with vLLM {version} on {accelerator.device} yet: make it with "
            f"'pytest-vllm-triton runtime create --accelerator {accelerator.name} "
            f"--vllm-version {version}'."
        )
    print(runtime.root)
    return 0
