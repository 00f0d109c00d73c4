"""Where an instance of the model runs: which GPUs its engine has, and whether others use it too.

Decided before vLLM is imported, which must not have looked at the GPUs yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_triton_backend.errors import LoadError
from vllm_triton_backend.model_files import ENGINE_ARGS_FILE
from vllm_triton_backend.parameters import Parameters

# Arguments of vLLM's, each a factor of the number of GPUs that an engine has on this host.
_PARALLEL_SIZES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "data_parallel_size",
)


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
        LoadError: SHARED_ENGINE with KIND_GPU, with several instance groups, with a cache of
            images, which vLLM keeps for one client of an engine only, or with data parallelism,
            whose ranks each client would have to know.
    """
    if not parameters.shared_engine or instance.count == 1:
        return False
    if instance.kind == "GPU" or instance.groups > 1:
        raise LoadError(
            "parameter SHARED_ENGINE needs one 'instance_group' of KIND_MODEL (or KIND_CPU)"
        )
    if engine_args.get("mm_processor_cache_gb"):
        raise LoadError("parameter SHARED_ENGINE needs 'mm_processor_cache_gb' 0")
    if parallel_size(engine_args, ("data_parallel_size",)) > 1:
        raise LoadError("parameter SHARED_ENGINE needs 'data_parallel_size' 1")
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
            f"parameter GPU_DEVICE_IDS gives {len(ids)} GPUs to an instance, whose engine runs on "
            f"{world}: {' x '.join(_PARALLEL_SIZES)}"
        )
    return ids


def _turn(instance: Instance, world: int, devices: Sequence[int]) -> Sequence[int]:
    """The part of the devices, `world` of them, whose turn it is with this instance."""
    first = instance.index % (len(devices) // world) * world
    return devices[first : first + world]


def parallel_size(engine_args: Mapping[str, Any], sizes: Sequence[str] = _PARALLEL_SIZES) -> int:
    """Number of GPUs of one engine: the product of its parallel sizes.

    Raises:
        LoadError: one of them is not a whole number of at least 1.
    """
    world = 1
    for key in sizes:
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


def environment_devices() -> str | None:
    """The server's CUDA_VISIBLE_DEVICES, None when it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def count_gpus(parent_visible: str | None, devices: Path = Path("/dev")) -> int:
    """How many GPUs the server sees, without asking CUDA, which must not be initialized yet."""
    if parent_visible is not None:
        return len([name for name in parent_visible.split(",") if name.strip()])
    return len(list(devices.glob("nvidia[0-9]*")))
