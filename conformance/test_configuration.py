"""CFG: config.pbtxt, model.json and what the server tells about the model."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from pytest_vllm_triton import expect
from pytest_vllm_triton.clients import GenerateRequest, HttpClient
from pytest_vllm_triton.clients.repository import ModelRepository
from pytest_vllm_triton.errors import ServerFailed
from pytest_vllm_triton.gpus import MemoryUnknown
from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle
from pytest_vllm_triton.models.under_test import known_answer_model
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.transcript import Transcript
from pytest_vllm_triton.verdicts import untested

from .alternate import MAX_MODEL_LEN
from .extra_models import config_with
from .metrics_page import NO_METRICS_SECONDS, page_with_lines
from .record import Seen
from .strict_server import HUB_ARCHITECTURE, HUB_ID, StrictServer
from .traffic import second_oracle
from .waits import until

# Seconds that an engine may take to give its memory back.
ROOM_SECONDS = 60

# What the code of a checkpoint raises when it is run.
CODE_RAN = "the code of the checkpoint was run"

STRING = "BYTES"
# name -> (datatype, shape, optional); the contract of the newest upstream backend.
INPUTS = {
    "text_input": (STRING, [1], False),
    "image": (STRING, [-1], True),
    "stream": ("BOOL", [1], True),
    "sampling_parameters": (STRING, [1], True),
    "exclude_input_in_output": ("BOOL", [1], True),
    "return_finish_reason": ("BOOL", [1], True),
    "return_cumulative_logprob": ("BOOL", [1], True),
    "return_logprobs": ("BOOL", [1], True),
    "return_num_input_tokens": ("BOOL", [1], True),
    "return_num_output_tokens": ("BOOL", [1], True),
    "embedding_request": (STRING, [1], True),
}
OUTPUTS = {
    "text_output": (STRING, [-1]),
    "finish_reason": (STRING, [-1]),
    "cumulative_logprob": ("FP32", [-1]),
    "logprobs": (STRING, [-1]),
    "num_input_tokens": ("UINT32", [1]),
    "num_output_tokens": ("UINT32", [-1]),
}


def config_of(client: HttpClient) -> dict[str, Any]:
    """The model's configuration as the server completed it."""
    answer = client.get(client.path("config"))
    expect.equal("HTTP status of /config", answer.status, 200)
    return dict(answer.json())


@pytest.mark.requirement("CFG-001")
def test_sample_repository_is_completed(triton_http: HttpClient) -> None:
    """The shared server serves the sample model: config.pbtxt names backend and instance group."""
    config = config_of(triton_http)
    expect.equal("backend", config.get("backend"), "vllm")
    expect.equal("max_batch_size", config.get("max_batch_size"), 0)
    policy = config.get("model_transaction_policy", {})
    expect.equal("decoupled", policy.get("decoupled"), True)


@pytest.mark.requirement("CFG-002")
def test_inputs_and_outputs(triton_http: HttpClient) -> None:
    metadata = triton_http.get(triton_http.path("")).json()
    optional = {
        entry["name"]: entry.get("optional", False) for entry in config_of(triton_http)["input"]
    }
    inputs = {
        entry["name"]: (entry["datatype"], entry["shape"], optional[entry["name"]])
        for entry in metadata["inputs"]
    }
    outputs = {entry["name"]: (entry["datatype"], entry["shape"]) for entry in metadata["outputs"]}
    for name, contract in INPUTS.items():
        expect.equal(f"input {name} (datatype, shape, optional)", inputs.get(name), contract)
    for name, declared in OUTPUTS.items():
        expect.equal(f"output {name} (datatype, shape)", outputs.get(name), declared)
    required = [name for name, (_, _, is_optional) in inputs.items() if not is_optional]
    expect.equal("required inputs", required, ["text_input"])


@pytest.mark.requirement("CFG-002")
def test_configuration_of_an_early_version(second_model_life: Seen) -> None:
    """It names three inputs and one output; the others are added."""
    expect.equal("load error", second_model_life["error of the second load"], None)
    config = second_model_life["inputs and outputs of an early configuration"]
    for kind, contract in (("input", INPUTS), ("output", OUTPUTS)):
        names = {entry["name"] for entry in config.get(kind, [])}
        expect.equal(f"{kind}s that are not declared", sorted(set(contract) - names), [])


@pytest.mark.requirement("CFG-003")
@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("max_batch_size: 4", "max_batch_size"),
        ("model_transaction_policy { decoupled: false }", "decoupled"),
    ],
    ids=["max_batch_size", "decoupled"],
)
def test_contradicting_configuration_is_refused(
    repository: ModelRepository, vllm_harness: Harness, setting: str, name: str
) -> None:
    spec = vllm_harness.model_spec("contradicting", config=f'backend: "vllm"\n{setting}\n')
    repository.add(spec)
    expect.contains("load error", repository.load(spec.name).failed(), name)
    expect.equal("model is ready", repository.is_ready(spec.name), False)


@pytest.mark.requirement("CFG-004")
def test_complete_configuration_without_auto_complete(
    strict_server: StrictServer, transcript: Transcript
) -> None:
    """The strict server loaded its model with the completed configuration of the shared one."""
    try:
        client = strict_server.http(transcript)
    except ServerFailed:
        expect.equal("load error", strict_server.load_error, None)
        raise
    with client:
        answer = client.generate(GenerateRequest("Hello"))
    expect.starts_with("text_output", answer.text, "Hello")


@pytest.mark.requirement("MET-001")
def test_no_vllm_metrics_with_false(strict_server: StrictServer, transcript: Transcript) -> None:
    """The strict server's model has REPORT_CUSTOM_METRICS "false"."""
    try:
        client = strict_server.http(transcript)
    except ServerFailed:
        if strict_server.load_error is None:
            raise
        untested("a complete configuration does not load, which is CFG-004's")
    with client:
        client.generate(GenerateRequest("Hello")).ok()
    page = page_with_lines(strict_server.handle, strict_server.model, NO_METRICS_SECONDS)
    expect.equal("lines of the model", page.vllm_lines(strict_server.model), [])


@pytest.mark.requirement("CFG-004")
def test_minimal_configuration_without_auto_complete(
    strict_server: StrictServer, vllm_harness: Harness, transcript: Transcript
) -> None:
    spec = vllm_harness.model_spec("minimal", config='backend: "vllm"\n')
    error = load_error(strict_server, transcript, spec)
    expect.matches("load error", error, r"input|output|decoupled|auto.?complete")
    expect.that("load error", error, lambda e: "NoneType" not in e, "no NoneType message")


@pytest.mark.requirement("CFG-004")
def test_undecoupled_configuration_without_auto_complete(
    strict_server: StrictServer, vllm_harness: Harness, transcript: Transcript
) -> None:
    """Complete but for its transaction policy: no request of such a model could be answered."""
    spec = vllm_harness.model_spec("undecoupled", config='backend: "vllm"\n')
    config = {**json.loads(strict_server.config), "name": spec.name}
    del config["model_transaction_policy"]
    error = load_error(strict_server, transcript, spec, {"config": json.dumps(config)})
    expect.contains("load error", error, "decoupled")


def load_error(
    server: StrictServer,
    transcript: Transcript,
    spec: ModelSpec,
    parameters: dict[str, str] | None = None,
) -> str:
    """What the load of a model that must not load brings."""
    with contextlib.closing(server.repository(transcript)) as opened:
        opened.add(spec)
        return opened.load(spec.name, parameters).failed()


@pytest.mark.requirement("CFG-005")
def test_engine_arguments_reach_the_engine(triton_http: HttpClient, alternate_model: str) -> None:
    """max_model_len is the alternate model's own: a prompt below it fits, one above does not."""
    client = triton_http.for_model(alternate_model)
    fitting = " venus" * (MAX_MODEL_LEN - 10)
    answer = client.generate(GenerateRequest(fitting, sampling={"max_tokens": 4}))
    expect.equal(f"HTTP status of a fitting prompt ({answer.error})", answer.status, 200)
    long = client.generate(GenerateRequest(" venus" * (MAX_MODEL_LEN + 6)))
    expect.matches("error", long.failed(), rf"(?i)length|{MAX_MODEL_LEN}")
    many = client.generate(GenerateRequest("venus", sampling={"logprobs": 1}))
    expect.matches("error with max_logprobs 0", many.failed(), "(?i)logprobs")


@pytest.mark.requirement("CFG-005")
def test_length_is_the_models_own_by_default(triton_http: HttpClient, vision_model: str) -> None:
    """Its model.json says nothing of it, and its config.json 4096."""
    request = GenerateRequest(" picture" * 3000, sampling={"temperature": 0, "max_tokens": 3})
    answer = triton_http.for_model(vision_model).generate(request)
    expect.equal("text_output", answer.text, " picture" * 3003)


@pytest.mark.requirement("CFG-005")
def test_hub_id_is_that_of_a_cached_model(
    strict_server: StrictServer, vllm_harness: Harness, transcript: Transcript
) -> None:
    """Its architecture is none that vLLM knows, so that the load soon ends, and names it."""
    spec = vllm_harness.model_spec("from_the_hub", {"model": HUB_ID}, 'backend: "vllm"\n')
    config = {**json.loads(strict_server.config), "name": spec.name}
    error = load_error(strict_server, transcript, spec, {"config": json.dumps(config)})
    expect.contains("load error", error, HUB_ARCHITECTURE)


@pytest.mark.requirement("CFG-009")
def test_code_of_a_checkpoint_is_not_run_by_default(
    repository: ModelRepository, vllm_harness: Harness
) -> None:
    """vLLM runs it only where model.json says trust_remote_code."""
    folder = vllm_harness.provision.work_dir / "with-code"
    folder.mkdir(exist_ok=True)
    (folder / "configuration_own.py").write_text(f'raise RuntimeError("{CODE_RAN}")\n')
    config = {
        "model_type": "own",
        "architectures": ["OPTForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_own.OwnConfig"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    spec = vllm_harness.model_spec("with_code", {"model": str(folder)})
    repository.add(spec)
    expect.lacks("load error", repository.load(spec.name).failed(), CODE_RAN)


@pytest.mark.requirement("CFG-009")
def test_prompts_are_cached_by_default(triton_http: HttpClient, alternate_model: str) -> None:
    """Its model.json says nothing of the prefix cache, which vLLM has on. It takes 16 tokens of a
    prompt at a step, so a prompt of which nothing is known takes long."""
    client = triton_http.for_model(alternate_model)
    ratios = []
    for index in range(3):
        prompt = f"{index} suns" + " venus" * 1500
        request = GenerateRequest(prompt, sampling={"max_tokens": 1})
        first, second = (client.generate(request).ok().seconds for _ in range(2))
        ratios.append(second / first)
        if ratios[-1] < 0.5:
            break
    expect.between("time of a prompt that comes again / comes first", min(ratios), 0, 0.5)


@pytest.mark.requirement("CFG-005")
def test_another_model_value_serves_that_model(
    triton_http: HttpClient, alternate_model: str
) -> None:
    request = GenerateRequest("mercury", sampling={"temperature": 0}, exclude_input_in_output=True)
    answer = triton_http.for_model(alternate_model).generate(request)
    expect.equal("text_output", answer.text, second_oracle().answer("mercury").text)


@pytest.mark.requirement("CFG-006")
@pytest.mark.parametrize(
    ("utilization", "free", "least", "most"),
    # vLLM refuses to start where less is free than its share, which is 0.9 or 0.92 if unset.
    [(0.5, 0.55, 0.4, 0.55), (None, 0.93, 0.8, 0.97)],
    ids=["half", "unset"],
)
def test_share_of_gpu_memory(
    repository: ModelRepository,
    owned_server: ServerHandle,
    vllm_harness: Harness,
    utilization: float | None,
    free: float,
    least: float,
    most: float,
) -> None:
    gpus = owned_server.gpus()
    if not gpus:
        untested("the server sees no GPU")
    provision = vllm_harness.provision
    if provision.workers > 1 and provision.leased_gpus is None:
        untested("other workers of pytest-xdist need memory of the same GPU")

    def left() -> float:
        return gpus[0].free_memory() / gpus[0].memory

    # A model's engine may still hold its memory for a while after the model was unloaded.
    if until(lambda: left() >= free, ROOM_SECONDS) is None:
        untested(f"only {left():.0%} of the memory of {gpus[0].name} is free, of {free:.0%}")
    spec = vllm_harness.model_spec(
        "greedy_model",
        {
            "model": str(known_answer_model().path),
            "gpu_memory_utilization": utilization,
            "kv_cache_memory_bytes": None,
            # Blocks of a tiny model are small: millions of them would take a while to count.
            "block_size": 128,
            "enforce_eager": True,
        },
        config=config_with(),
    )
    repository.add(spec)
    before = set(owned_server.processes())
    repository.load(spec.name).ok()
    own = set(owned_server.processes()) - before
    try:
        (held,) = owned_server.gpu_memory(own, gpus[:1])
    except MemoryUnknown as error:
        untested(str(error))
    share = held / gpus[0].memory
    expect.between("share of the GPU's memory that the model's processes hold", share, least, most)


@pytest.mark.requirement("CFG-007")
def test_kind_model_serves(triton_http: HttpClient, owned_server: ServerHandle) -> None:
    groups = config_of(triton_http)["instance_group"]
    expect.equal("kinds", [group["kind"] for group in groups], ["KIND_MODEL"])
    expect.equal("HTTP status", triton_http.generate(GenerateRequest("Hello")).status, 200)


@pytest.mark.requirement("CFG-007")
def test_other_instance_groups_serve(triton_http: HttpClient, alternate_model: str) -> None:
    """None in config.pbtxt; on several GPUs, where that means one on each (MGP-006), one GPU."""
    client = triton_http.for_model(alternate_model)
    expect.equal("HTTP status", client.generate(GenerateRequest("Hello")).status, 200)


@pytest.mark.requirement("CFG-008")
@pytest.mark.parametrize(
    ("ids", "engine_args"),
    [
        ("a", {}),
        ("-1", {}),
        ("0,0", {}),
        ("0, 0", {}),
        ("0,00", {}),
        ("0;0", {}),
        ("0,1,2", {"tensor_parallel_size": 2}),
        ("0", {"tensor_parallel_size": 2}),
    ],
    ids=[
        *("no-number", "negative", "twice", "twice-with-a-blank", "twice-with-a-zero"),
        *("twice-in-slices", "too-many", "too-few"),
    ],
)
def test_impossible_device_ids_are_refused(
    repository: ModelRepository, vllm_harness: Harness, ids: str, engine_args: dict[str, Any]
) -> None:
    """Whatever GPUs there are."""
    config = config_with(GPU_DEVICE_IDS=ids)
    spec = vllm_harness.model_spec("impossible_ids", engine_args, config)
    repository.add(spec)
    expect.contains("load error", repository.load(spec.name).failed(), "GPU_DEVICE_IDS")


@pytest.mark.requirement("LIF-003")
@pytest.mark.parametrize(
    ("engine_args", "cause"),
    [
        ({"no_such_argument": 1}, "no_such_argument"),
        ({"model": "/no/such/checkpoint"}, "/no/such/checkpoint"),
    ],
    ids=["unknown-argument", "missing-model"],
)
def test_bad_engine_arguments_are_quoted(
    repository: ModelRepository,
    vllm_harness: Harness,
    triton_http: HttpClient,
    engine_args: dict[str, Any],
    cause: str,
) -> None:
    spec = vllm_harness.model_spec("broken", engine_args)
    repository.add(spec)
    expect.contains("load error", repository.load(spec.name).failed(), cause)
    expect.equal("/v2/health/live", triton_http.get("/v2/health/live").status, 200)
    expect.equal(
        "HTTP status of the other model", triton_http.generate(GenerateRequest("Hello")).status, 200
    )


@pytest.mark.requirement("CFG-010")
def test_model_json_is_utf_8(repository: ModelRepository, vllm_harness: Harness) -> None:
    """Whatever the server's locale: a key that vLLM does not know is quoted as it was written."""
    spec = vllm_harness.model_spec("umlaut", {"größe-你好_A": 1})
    repository.add(spec)
    expect.contains("load error", repository.load(spec.name).failed(), "größe-你好_A")


@pytest.mark.requirement("LIF-004")
@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (None, "model.json"),
        ('{"model": ', "(?i)json"),
        ("[1, 2]", "(?i)json|object|dict|mapping|list"),
    ],
    ids=["missing", "malformed", "not-an-object"],
)
def test_bad_model_json_is_named(repository: ModelRepository, text: str | None, cause: str) -> None:
    files = {} if text is not None else {"1/README": b"no model.json here\n"}
    config = 'backend: "vllm"\ninstance_group [{ kind: KIND_MODEL }]\n'
    repository.add(ModelSpec("unreadable", model_json=text, config=config, files=files))
    error = repository.load("unreadable").failed()
    expect.matches("load error", error, cause)
    if text is None:
        expect.contains("load error", error, "must be provided in")
    expect.that("load error", error, lambda e: "AttributeError" not in e, "no AttributeError")
