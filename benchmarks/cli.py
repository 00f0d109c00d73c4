"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import cpu, models, profiling, report
from benchmarks.installation import Installation
from benchmarks.load import ClientPool, LoadFailed, client_count
from benchmarks.run import Plan, Run, measure_all, stopping
from benchmarks.systems import OURS, Bench, Server, TritonServer, make_servers
from pytest_vllm_triton.errors import ServerFailed, UserError

ONE_INSTANCE = ("ours-grpc", "ours-http")
VLLM = ("vllm-serve", "async-llm")
#: On a GPU all engines live on it at once: each gets this much KV cache and no more.
GPU_KV_CACHE_BYTES = 6 << 30


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="The same load on our backend, on vllm serve and on AsyncLLM, in one run.",
    )
    add_server_options(made)
    load = made.add_argument_group("load")
    load.add_argument(
        "--levels",
        type=levels,
        help="concurrent streams (default: 1,16,64,128; GPU 1,16,64,256)",
    )
    load.add_argument("--seconds", type=float, default=5.0, help="of each run (default: 5)")
    load.add_argument("--warmup-seconds", type=float, default=1.0, help="per level (default: 1)")
    load.add_argument("--rounds", type=int, default=3, help="runs of each system (default: 3)")
    load.add_argument(
        "--retries",
        type=int,
        default=2,
        help="of a run during which the host was busy with something else (default: 2)",
    )
    load.add_argument("--clients", type=int, help="client processes (default: by the cores)")
    what = made.add_argument_group("systems")
    what.add_argument(
        "--systems",
        help="comma-separated: ours-grpc, ours-http, ours4-grpc, ours4-http (four instances that "
        "share one engine; any number), vllm-serve, vllm-serve-rust, async-llm, "
        "NAME-grpc, NAME-http (default: all but the Rust frontend and several instances)",
    )
    what.add_argument(
        "--backend-dir",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another vLLM backend for Triton; may be given several times",
    )
    what.add_argument(
        "--one-at-a-time",
        action="store_true",
        help="one server at a time, booted anew in each round (else all are up all the time)",
    )
    what.add_argument("--serial-boot", action="store_true", help="boot one after the other")
    out = made.add_argument_group("output")
    out.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    out.add_argument("--raw", action="store_true", help="every request's latencies in the JSON")
    out.add_argument("--profile", action="store_true", help="then sample our stub, highest level")
    return made


def levels(text: str) -> list[int]:
    """The value of --levels."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of positive integers such as 1,16,64"
        )
    return [int(word) for word in words]


def json_object(text: str) -> dict[str, Any]:
    """The value of --engine-args."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return found


def add_server_options(made: argparse.ArgumentParser) -> None:
    """What `memory` shares with the benchmark."""
    made.add_argument("--model", choices=models.NAMES, default=models.KNOWN_ANSWER)
    made.add_argument("--max-tokens", type=int, default=64, help="per request (default: 64)")
    made.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--engine-args", type=json_object, default={}, metavar="JSON")
    made.add_argument(
        "--statistics",
        action="store_true",
        help="vLLM's statistics on, in every system; our backend exports them as metrics",
    )
    made.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of our backend's config.pbtxt",
    )
    made.add_argument("--boot-timeout", type=float, default=600.0)
    made.add_argument("--work-dir", type=Path, help="for logs (default: a temporary folder)")
    made.add_argument("--cache", type=Path, help="for generated checkpoints")
    where = made.add_argument_group("installation (default: the embedded runtime)")
    where.add_argument("--vllm-version", help="of the embedded runtime")
    where.add_argument("--server-bin", type=Path, help="a tritonserver of this host")
    where.add_argument("--backends", type=Path, help="the folder that holds its python backend")
    where.add_argument("--python", type=Path, help="a Python that imports vLLM")
    where.add_argument("--env-file", type=Path, help="a script that exports the environment")


def make_bench(options: argparse.Namespace, work_dir: Path) -> Bench:
    """Installation, model and engine arguments, from the options."""
    if options.server_bin is not None:
        installation = Installation.of_host(
            options.server_bin, options.backends, options.python, options.env_file
        )
    else:
        installation = Installation.embedded(options.vllm_version, options.accelerator)
    return Bench(
        installation=installation,
        model=models.get_model(options.model, options.max_tokens, options.cache),
        engine_args=engine_args(options),
        statistics=options.statistics,
        work_dir=work_dir,
        boot_timeout=options.boot_timeout,
    )


def engine_args(options: argparse.Namespace) -> dict[str, Any]:
    """vLLM's arguments, the same for every system; None as a value in --engine-args removes one."""
    found: dict[str, Any] = {
        "max_num_seqs": 256,
        "max_model_len": 1024,
        # Given, because its default depends on who asks: a server, AsyncLLM, …
        "max_num_batched_tokens": 8192,
        "enable_prefix_caching": False,
        "disable_log_stats": not options.statistics,
    }
    if options.accelerator == "cpu":
        found["enforce_eager"] = True
    else:
        found["compilation_config"] = {"cudagraph_mode": "FULL_DECODE_ONLY", "mode": 0}
        found["gpu_memory_utilization"] = 0.1
        found["kv_cache_memory_bytes"] = GPU_KV_CACHE_BYTES
    found.update(options.engine_args)
    return {key: value for key, value in found.items() if value is not None}


def pairs(given: Sequence[str], what: str) -> dict[str, str]:
    """KEY=VALUE options."""
    found = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UserError(f"{what} must look like KEY=VALUE, not {word!r}.")
        found[key] = value
    return found


def chosen_systems(options: argparse.Namespace, others: Sequence[str]) -> list[str]:
    """The systems asked for, or all."""
    of_others = [f"{name}-{protocol}" for name in others for protocol in ("grpc", "http")]
    if not options.systems:
        return [*ONE_INSTANCE, *VLLM, *of_others]
    known = {*ONE_INSTANCE, *VLLM, "vllm-serve-rust", *of_others}
    asked = [name.strip() for name in options.systems.split(",") if name.strip()]
    unknown = [name for name in asked if name not in known and not OURS.fullmatch(name)]
    if unknown:
        raise UserError(f"Unknown system {unknown[0]!r}; there are: {', '.join(sorted(known))}.")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 when an answer was wrong or a server failed; 2 for wrong options.

    130 when it was interrupted, by SIGINT or SIGTERM; the table then shows what there is.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
            return benchmark(options, words, options.work_dir or Path(temporary))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except (ServerFailed, LoadFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def benchmark(options: argparse.Namespace, words: Sequence[str], work_dir: Path) -> int:
    work_dir.mkdir(parents=True, exist_ok=True)
    others = {
        name: Path(folder) for name, folder in pairs(options.backend_dir, "--backend-dir").items()
    }
    systems = chosen_systems(options, list(others))
    py_spy = profiling.find_py_spy()
    if options.profile and py_spy is None:
        raise UserError("--profile needs py-spy: pip install py-spy")
    if options.profile and options.one_at_a_time:
        raise UserError("--profile needs servers that stay up: leave --one-at-a-time out.")
    bench = make_bench(options, work_dir)
    default_levels = [1, 16, 64, 128] if options.accelerator == "cpu" else [1, 16, 64, 256]
    cores = len(os.sched_getaffinity(0))
    plan = Plan(
        levels=options.levels or default_levels,
        seconds=options.seconds,
        warmup_seconds=options.warmup_seconds,
        rounds=options.rounds,
        retries=options.retries,
        together=not options.one_at_a_time,
        parallel_boot=not options.serial_boot and cores >= 8,
    )
    document: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", *words]),
        "host": report.host_facts(),
        "versions": bench.installation.versions(),
        "model": options.model,
        "max_tokens": options.max_tokens,
        "engine_args": dict(bench.engine_args),
    }
    print(f"{document['versions']} on {document['host']}", flush=True)
    servers = make_servers(bench, systems, others, pairs(options.parameter, "--parameter"))
    clients = client_count(cores, options.clients, plan.levels)
    document["clients"] = clients
    with ClientPool(clients, bench.model.workload) as pool, stopping(servers):
        runs: list[Run] = []
        try:
            measure_all(servers, pool, plan, lambda line: print(line, flush=True), runs)
        finally:  # when it is cut short, what was measured until then
            document["servers"] = {server.name: server.command() for server in servers}
            document["runs"] = [report.run_json(run, options.raw) for run in runs]
            document["rows"] = [vars(row) for row in report.rows(runs)]
            write(options.json, document)
            print(f"\n{report.table(report.rows(runs))}\n", flush=True)
        if options.profile:
            assert py_spy is not None
            document["profiles"] = profiles(servers, pool, plan, py_spy, work_dir)
            write(options.json, document)
    return 1 if any(run.figures.errors for run in runs) else 0


def profiles(
    servers: Sequence[Server], pool: ClientPool, plan: Plan, py_spy: str, folder: Path
) -> dict[str, Any]:
    """Sample the stub of every Triton server at the highest level, through each protocol."""
    found = {}
    level = max(plan.levels)
    for server in servers:
        stubs = cpu.find(server.pids(), "stub")
        if not isinstance(server, TritonServer) or not stubs:
            continue
        for system in server.systems:

            def load(seconds: float, server: Server = server, system: str = system) -> Any:
                return server.measure(system, pool, level, seconds)

            print(f"profile of {system} at {level} streams", flush=True)
            got = profiling.profile(stubs[0], load, max(5.0, plan.seconds), py_spy, folder)
            print(profiling.describe(got), flush=True)
            found[system] = vars(got)
    return found


def write(path: Path | None, document: dict[str, Any]) -> None:
    """The JSON document, if it is wanted."""
    if path is not None:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
