"""What one load of a model is told: Triton's arguments, config.pbtxt, and the version's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from vllm_triton_backend.model_files import read_bool, read_engine_args, read_lora_paths
from vllm_triton_backend.parameters import Parameters
from vllm_triton_backend.placement import (
    Instance,
    count_gpus,
    environment_devices,
    shares_engine,
    visible_devices,
)
from vllm_triton_backend.tensors import check_completed


@dataclass(frozen=True, slots=True)
class Settings:
    """What Triton's arguments and the model's files say of one load.

    Attributes:
        engine_args: for vLLM.
        shared: whether other instances use the engine of this one.
        devices: the CUDA_VISIBLE_DEVICES that the engine must run with; None: leave it alone.
        with_metrics: whether vLLM's statistics are wanted.
    """

    model_name: str
    model_version: str
    instance_name: str
    version_dir: Path
    parameters: Parameters
    engine_args: dict[str, Any]
    instance: Instance
    shared: bool
    devices: str | None
    enable_lora: bool
    with_metrics: bool

    @classmethod
    def read(cls, args: Mapping[str, str]) -> Settings:
        """From the arguments of `initialize`; changes nothing.

        Raises:
            LoadError: one of the files is missing, or something in them makes no sense.
        """
        model_config = json.loads(args["model_config"])
        check_completed(model_config)
        version_dir = Path(pb_utils.get_model_dir())
        parameters = Parameters.from_model_config(model_config)
        engine_args = read_engine_args(version_dir)
        visible = environment_devices()
        instance = Instance.from_args(args, model_config)
        shared = shares_engine(instance, parameters, engine_args)
        if shared:
            engine_args["mm_processor_cache_gb"] = 0
        devices = visible_devices(
            instance.as_only_one() if shared else instance,
            engine_args,
            parameters,
            visible,
            count_gpus(visible),
        )
        enable_lora = read_bool(engine_args, "enable_lora")
        if enable_lora:
            read_lora_paths(version_dir)
        log_stats = not read_bool(engine_args, "disable_log_stats")
        # vLLM's own loggers would do work for every token that nobody reads here.
        engine_args["disable_log_stats"] = True
        return cls(
            model_name=args["model_name"],
            model_version=args["model_version"],
            instance_name=args["model_instance_name"],
            version_dir=version_dir,
            parameters=parameters,
            engine_args=engine_args,
            instance=instance,
            shared=shared,
            devices=devices,
            enable_lora=enable_lora,
            with_metrics=parameters.report_custom_metrics and log_stats,
        )
