"""Configuration: model.json, the parameters of config.pbtxt, devices, and the tensor tables.

Imported by Triton's auto-complete pass too, therefore standard library only. All checks here run
before vLLM is imported, so that a mistake is reported within a second and not after twenty.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_triton_backend.errors import LoadError

ENGINE_ARGS_FILE = "model.json"
LORA_FILE = "multi_lora.json"

# Contract of triton-inference-server/vllm_backend, model.py `auto_complete_config`.
_OPTIONAL_FLAGS = (
    "stream",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
INPUTS: tuple[dict[str, Any], ...] = (
    {"name": "text_input", "data_type": "TYPE_STRING", "dims": [1]},
    {"name": "image", "data_type": "TYPE_STRING", "dims": [-1], "optional": True},
    {"name": "sampling_parameters", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
    {"name": "embedding_request", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
    *(
        {"name": name, "data_type": "TYPE_BOOL", "dims": [1], "optional": True}
        for name in _OPTIONAL_FLAGS
    ),
)
OUTPUTS: tuple[dict[str, Any], ...] = (
    {"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]},
    {"name": "finish_reason", "data_type": "TYPE_STRING", "dims": [-1]},
    {"name": "cumulative_logprob", "data_type": "TYPE_FP32", "dims": [-1]},
    {"name": "logprobs", "data_type": "TYPE_STRING", "dims": [-1]},
    {"name": "num_input_tokens", "data_type": "TYPE_UINT32", "dims": [1]},
    {"name": "num_output_tokens", "data_type": "TYPE_UINT32", "dims": [-1]},
)
FLAG_INPUTS = frozenset(_OPTIONAL_FLAGS)


def auto_complete(model_config: Any) -> Any:
    """Add what `config.pbtxt` leaves out; returns the given `pb_utils.ModelConfig`.

    A tensor that config.pbtxt describes stays as it is there.

    Raises:
        ValueError: from `pb_utils`, naming the setting, when config.pbtxt asks for a batch size or
            for a transaction policy that is not decoupled.
    """
    given = model_config.as_dict()
    for key, table, add in (
        ("input", INPUTS, model_config.add_input),
        ("output", OUTPUTS, model_config.add_output),
    ):
        known = {tensor["name"] for tensor in given.get(key, [])}
        for tensor in table:
            if tensor["name"] not in known:
                add(dict(tensor))
    # vLLM batches by itself, and one request may have many responses.
    model_config.set_model_transaction_policy({"decoupled": True})
    model_config.set_max_batch_size(0)
    return model_config


def read_engine_args(version_dir: Path) -> dict[str, Any]:
    """The engine arguments in `<version_dir>/model.json`.

    Raises:
        LoadError: the file is missing, is not JSON, is not an object, or names no model.
    """
    path = version_dir / ENGINE_ARGS_FILE
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise LoadError(
            f"'{ENGINE_ARGS_FILE}' containing vllm engine args must be provided in '{version_dir}'"
        ) from None
    except UnicodeDecodeError as error:
        raise LoadError(f"'{path}' is not UTF-8: {error}") from None
    except OSError as error:
        raise LoadError(f"'{path}' cannot be read: {error.strerror}") from None
    arguments = _json_object(text, path)
    if not isinstance(arguments.get("model"), str) or not arguments["model"]:
        raise LoadError(f'\'{path}\' must name the model to load: {{"model": "<id or path>", …}}')
    return arguments


def _json_object(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise LoadError(f"'{path}' is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise LoadError(f"'{path}' must hold a JSON object, found {type(value).__name__}")
    return value


def read_lora_paths(version_dir: Path) -> dict[str, str]:
    """`{adapter name: path}` of `<version_dir>/multi_lora.json`; relative paths are resolved
    against `version_dir`.

    Raises:
        LoadError: the file is missing or is not an object of strings.
    """
    path = version_dir / LORA_FILE
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise LoadError(f"Triton backend cannot find {path}, which enable_lora needs") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"'{path}' cannot be read: {error}") from None
    adapters = _json_object(text, path)
    for name, target in adapters.items():
        if not isinstance(target, str) or not target:
            raise LoadError(f"'{path}': the path of adapter '{name}' must be a non-empty string")
    return {name: str((version_dir / target).resolve()) for name, target in adapters.items()}


def pop_bool(arguments: dict[str, Any], key: str) -> bool:
    """Normalize a boolean engine argument that users also write as "true"; missing is False.

    Raises:
        LoadError: the value is neither a boolean nor "true"/"false".
    """
    if key not in arguments:
        return False
    value = arguments[key]
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not isinstance(value, bool):
        raise LoadError(f"'{ENGINE_ARGS_FILE}': '{key}' must be true or false, got {value!r}")
    arguments[key] = value
    return value


@dataclass(frozen=True)
class Parameters:
    """The `parameters` of config.pbtxt that this backend reads (values are strings there).

    report_custom_metrics   REPORT_CUSTOM_METRICS: "true" exports vLLM's metrics through Triton
    health_check            ENABLE_VLLM_HEALTH_CHECK: "true" asks the engine before each request
    gpu_device_ids          GPU_DEVICE_IDS: "0,1", or one slice per instance "0,1;2,3"
    max_inflight_requests   MAX_INFLIGHT_REQUESTS: more are refused with UNAVAILABLE; 0 = no limit
    drain_timeout           DRAIN_TIMEOUT_SECONDS: how long unload waits for running requests
    sender_threads          SENDER_THREADS: threads that hand responses to Triton
    shared_engine           SHARED_ENGINE: "true" lets all instances of the model use one engine
    stream_pause            STREAM_PAUSE_MICROSECONDS (here in seconds): a stream waits this long,
                            times the number of live requests, between two responses; 0 = never
    """

    report_custom_metrics: bool = False
    health_check: bool = False
    gpu_device_ids: tuple[tuple[int, ...], ...] = ()
    max_inflight_requests: int = 0
    drain_timeout: float = 20.0
    sender_threads: int = 2
    stream_pause: float = 1e-3
    shared_engine: bool = False

    @classmethod
    def from_model_config(cls, model_config: Mapping[str, Any]) -> Parameters:
        """Read `model_config["parameters"]`.

        Raises:
            LoadError: naming the parameter whose value makes no sense.
        """
        given: Mapping[str, Any] = model_config.get("parameters") or {}

        def text(name: str) -> str:
            value = given.get(name, {})
            return str(value.get("string_value", "") if isinstance(value, Mapping) else value)

        return cls(
            # Upstream's rule: anything but "true" (in any case) is off.
            report_custom_metrics=text("REPORT_CUSTOM_METRICS").lower() == "true",
            health_check=text("ENABLE_VLLM_HEALTH_CHECK").lower() == "true",
            gpu_device_ids=parse_gpu_device_ids(text("GPU_DEVICE_IDS")),
            max_inflight_requests=int(_number("MAX_INFLIGHT_REQUESTS", text, 0, whole=True)),
            drain_timeout=_number("DRAIN_TIMEOUT_SECONDS", text, cls.drain_timeout),
            sender_threads=max(
                1, int(_number("SENDER_THREADS", text, cls.sender_threads, whole=True))
            ),
            shared_engine=text("SHARED_ENGINE").lower() == "true",
            stream_pause=_number("STREAM_PAUSE_MICROSECONDS", text, cls.stream_pause * 1e6) / 1e6,
        )


def _number(name: str, text: Any, default: float, *, whole: bool = False) -> float:
    given = text(name).strip()
    if not given:
        return default
    try:
        value = int(given) if whole else float(given)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        kind = "a whole number" if whole else "a number"
        raise LoadError(f"parameter {name} must be {kind} of at least 0, got '{given}'")
    return value


def parse_gpu_device_ids(text: str) -> tuple[tuple[int, ...], ...]:
    """ "0,1;2,3" -> ((0, 1), (2, 3)); an empty text -> ().

    Raises:
        LoadError: an id is not a whole number of at least 0, or comes twice.
    """
    if not text.strip():
        return ()
    slices = []
    for part in text.split(";"):
        ids = []
        for item in part.split(","):
            if not item.strip().isascii() or not item.strip().isdigit():
                raise LoadError(
                    f"parameter GPU_DEVICE_IDS must list whole numbers of at least 0, got '{text}'"
                )
            ids.append(int(item))
        slices.append(tuple(ids))
    flat = [device for ids in slices for device in ids]
    if len(set(flat)) != len(flat):
        raise LoadError(f"parameter GPU_DEVICE_IDS names a GPU twice: '{text}'")
    return tuple(slices)


@dataclass(frozen=True)
class Instance:
    """Where Triton put this model instance (`args` of `initialize`).

    kind is "GPU", "MODEL" or "CPU"; device_id is Triton's ordinal; index counts the instances of
    the model from 0 (the last number in Triton's name of the instance counts those of its group);
    count is how many there are, and groups in how many instance groups.
    """

    kind: str
    device_id: int
    index: int
    count: int = 1
    groups: int = 1

    @classmethod
    def from_args(cls, args: Mapping[str, str], model_config: Mapping[str, Any]) -> Instance:
        groups = model_config.get("instance_group") or ()
        names = [group.get("name") for group in groups]
        own, tail = args.get("model_instance_name", ""), "0"
        if own not in names:
            own, _, tail = own.rpartition("_")
        # Of a group of KIND_GPU `count` is per GPU.
        counts = [
            int(group.get("count", 1)) * max(1, len(group.get("gpus") or ())) for group in groups
        ]
        earlier = sum(counts[: names.index(own)]) if own in names else 0
        return cls(
            kind=args.get("model_instance_kind", "CPU"),
            device_id=int(args.get("model_instance_device_id", "0") or 0),
            index=earlier + (int(tail) if tail.isdigit() else 0),
            count=sum(counts) or 1,
            groups=len(groups) or 1,
        )

    def as_only_one(self) -> Instance:
        """As if the model had no other instance."""
        return replace(self, index=0, count=1, groups=1)


def shares_engine(
    instance: Instance, parameters: Parameters, engine_args: Mapping[str, Any]
) -> bool:
    """Whether there are other instances that use the engine of this one.

    Raises:
        LoadError: SHARED_ENGINE with KIND_GPU, with several instance groups, or with a cache of
            images, which vLLM keeps for one client of an engine only.
    """
    if not parameters.shared_engine or instance.count == 1:
        return False
    if instance.kind == "GPU" or instance.groups > 1:
        raise LoadError(
            "parameter SHARED_ENGINE needs one 'instance_group' of KIND_MODEL (or KIND_CPU)"
        )
    if engine_args.get("mm_processor_cache_gb"):
        raise LoadError("parameter SHARED_ENGINE needs 'mm_processor_cache_gb' 0")
    return True


def visible_devices(
    instance: Instance,
    engine_args: Mapping[str, Any],
    parameters: Parameters,
    parent_visible: str | None,
    gpu_count: int,
) -> str | None:
    """The CUDA_VISIBLE_DEVICES that this instance's engine must run with; None: leave it alone.

    Triton's ordinals count the devices that the *server* sees, so they are mapped through the
    server's own CUDA_VISIBLE_DEVICES (`parent_visible`), which may hold UUIDs or MIG names.
    Several KIND_MODEL instances take turns with the server's `gpu_count` GPUs: left alone, vLLM
    would put each of them on the first ones (server#6855).

    Raises:
        LoadError: KIND_GPU with a model of several GPUs (upstream's message), GPU_DEVICE_IDS with
            another kind, a wrong number of ids, or an id that the server does not see.
    """
    world = parallel_size(engine_args)
    if instance.kind == "GPU" and world > 1:
        raise LoadError(
            "KIND_GPU is currently for single-GPU models, please specify KIND_MODEL "
            "in the model's 'instance_group' for multi-GPU models"
        )
    if parameters.gpu_device_ids:
        chosen = _chosen_devices(instance, world, parameters.gpu_device_ids)
    elif instance.kind == "MODEL" and instance.count > 1 and gpu_count > world:
        chosen = _turn(instance, world, range(gpu_count))
    elif instance.kind == "GPU" and instance.device_id >= 0:
        chosen = (instance.device_id,)
    else:
        return None
    return ",".join(_physical(device, parent_visible) for device in chosen)


def _chosen_devices(
    instance: Instance, world: int, slices: Sequence[Sequence[int]]
) -> Sequence[int]:
    """What GPU_DEVICE_IDS gives to this instance."""
    if instance.kind != "MODEL":
        raise LoadError(
            "parameter GPU_DEVICE_IDS needs KIND_MODEL in the model's 'instance_group', "
            f"got KIND_{instance.kind}"
        )
    if len(slices) == 1:
        ids = slices[0]
        if instance.count > 1 and len(ids) > world:
            ids = _turn(instance, world, ids)
    elif instance.index < len(slices):
        ids = slices[instance.index]
    else:
        raise LoadError(
            f"parameter GPU_DEVICE_IDS has {len(slices)} slices, but this is instance "
            f"{instance.index + 1} of the model"
        )
    if world > 1 and len(ids) != world:
        raise LoadError(
            f"parameter GPU_DEVICE_IDS gives {len(ids)} GPUs to an instance, but "
            f"tensor_parallel_size x pipeline_parallel_size is {world}"
        )
    return ids


def _turn(instance: Instance, world: int, devices: Sequence[int]) -> Sequence[int]:
    """The part of the devices, `world` of them, whose turn it is with this instance."""
    first = instance.index % (len(devices) // world) * world
    return devices[first : first + world]


def parallel_size(engine_args: Mapping[str, Any]) -> int:
    """Number of GPUs of one engine: tensor_parallel_size x pipeline_parallel_size.

    Raises:
        LoadError: one of them is not a whole number of at least 1.
    """
    world = 1
    for key in ("tensor_parallel_size", "pipeline_parallel_size"):
        value = engine_args.get(key, 1)
        try:
            size = int(str(value))
        except ValueError:
            size = 0
        if size < 1:
            raise LoadError(f"'{ENGINE_ARGS_FILE}': '{key}' must be at least 1, got {value!r}")
        world *= size
    return world


def _physical(ordinal: int, parent_visible: str | None) -> str:
    if parent_visible is None:
        return str(ordinal)
    names = [name.strip() for name in parent_visible.split(",") if name.strip()]
    if ordinal >= len(names):
        raise LoadError(
            f"GPU {ordinal} is asked for, but the server's CUDA_VISIBLE_DEVICES shows only "
            f"{len(names)}: '{parent_visible}'"
        )
    return names[ordinal]


def check_completed(model_config: Mapping[str, Any]) -> None:
    """Refuse a configuration that the auto-complete pass did not see and that is incomplete.

    Raises:
        LoadError: saying what config.pbtxt must hold under --disable-auto-complete-config.
    """

    def names(tensors: Sequence[Mapping[str, Any]]) -> set[str]:
        return {str(tensor["name"]) for tensor in tensors}

    missing = []
    if not (model_config.get("model_transaction_policy") or {}).get("decoupled"):
        missing.append("model_transaction_policy { decoupled: true }")
    if "text_input" not in names(model_config.get("input") or ()):
        missing.append("input 'text_input' (TYPE_STRING, dims [1])")
    if "text_output" not in names(model_config.get("output") or ()):
        missing.append("output 'text_output' (TYPE_STRING, dims [-1])")
    if missing:
        raise LoadError(
            "config.pbtxt is incomplete and the server runs with --disable-auto-complete-config; "
            f"it must also hold {', '.join(missing)}"
        )


def environment_devices() -> str | None:
    """The server's CUDA_VISIBLE_DEVICES, None when it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def count_gpus(parent_visible: str | None, devices: Path = Path("/dev")) -> int:
    """How many GPUs the server sees, without asking CUDA, which must not be initialized yet."""
    if parent_visible is not None:
        return len([name for name in parent_visible.split(",") if name.strip()])
    return len(list(devices.glob("nvidia[0-9]*")))
