"""Which GPUs an instance uses, and which instances share an engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_triton_backend import placement
from vllm_triton_backend.errors import LoadError
from vllm_triton_backend.parameters import Parameters
from vllm_triton_backend.placement import Instance


def _devices(
    kind: str,
    device: int = 0,
    *,
    visible: str | None = None,
    ids: str = "",
    count: int = 1,
    gpus: int = 0,
    **engine: object,
) -> str | None:
    instance = Instance(kind, device, device, count)
    parameters = Parameters.from_model_config({"parameters": {"GPU_DEVICE_IDS": ids}})
    return placement.visible_devices(instance, engine, parameters, visible, gpus)


def test_kind_gpu_takes_the_gpu_that_triton_assigned() -> None:
    assert _devices("GPU", 1) == "1"
    assert _devices("GPU", 0, visible="3,1") == "3"
    assert _devices("GPU", 1, visible="GPU-aa, GPU-bb") == "GPU-bb"
    assert _devices("MODEL") is None
    assert _devices("CPU") is None


def test_gpu_device_ids_choose_the_gpus_of_an_instance() -> None:
    assert _devices("MODEL", ids="2,3", tensor_parallel_size=2) == "2,3"
    assert _devices("MODEL", 1, ids="0,1;2,3", tensor_parallel_size=2) == "2,3"
    sizes = {"tensor_parallel_size": 2, "data_parallel_size": "2"}
    assert _devices("MODEL", ids="0,1,2,3", **sizes) == "0,1,2,3"
    assert _devices("MODEL", ids="1", visible="5,7") == "7"


def test_who_shares_an_engine() -> None:
    sharing = Parameters(shared_engine=True)
    second = Instance("MODEL", 0, 1, 4)

    assert placement.shares_engine(second, sharing, {})
    assert second.as_only_one() == Instance("MODEL", 0, 0, 1)
    assert not placement.shares_engine(second, Parameters(), {})
    assert not placement.shares_engine(Instance("GPU", 1, 0, 1), sharing, {})


@pytest.mark.parametrize(
    ("instance", "engine_args", "words"),
    [
        (Instance("GPU", 0, 0, 2), {}, "KIND_MODEL"),
        (Instance("MODEL", 0, 0, 4, groups=2), {}, "one 'instance_group'"),
        (Instance("MODEL", 0, 0, 2), {"mm_processor_cache_gb": 4}, "mm_processor_cache_gb"),
    ],
)
def test_what_cannot_share_an_engine_is_refused(
    instance: Instance, engine_args: dict[str, object], words: str
) -> None:
    with pytest.raises(LoadError, match=words):
        placement.shares_engine(instance, Parameters(shared_engine=True), engine_args)


def test_kind_model_instances_take_turns_with_the_gpus() -> None:
    def spread(count: int, **options: object) -> list[str | None]:
        return [_devices("MODEL", i, count=count, **options) for i in range(count)]  # type: ignore[arg-type]

    assert spread(2, gpus=2) == ["0", "1"]
    assert spread(3, gpus=2) == ["0", "1", "0"]
    assert spread(2, gpus=4, tensor_parallel_size=2) == ["0,1", "2,3"]
    assert spread(2, gpus=2, visible="7,5") == ["7", "5"]
    assert spread(2, ids="1,0") == ["1", "0"]
    # Where there is nothing to choose from, vLLM chooses.
    assert spread(2, gpus=1) == [None, None]
    assert spread(2, gpus=2, tensor_parallel_size=2) == [None, None]
    assert spread(1, gpus=2) == [None]


def test_instance_of_triton_arguments() -> None:
    args = {
        "model_instance_kind": "MODEL",
        "model_instance_device_id": "0",
        "model_instance_name": "my_model_0_1",
    }
    groups = {"instance_group": [{"name": "my_model_0", "count": 2, "kind": "KIND_MODEL"}]}
    assert Instance.from_args(args, groups) == Instance("MODEL", 0, 1, 2)
    assert Instance.from_args(args, {}).count == 1


def test_instances_are_counted_over_all_groups() -> None:
    groups = [{"name": "a", "count": 2}, {"name": "b", "count": 1}, {"name": "c", "count": 2}]
    names = ("a_0", "a_1", "b", "c_0", "c_1")
    instances = [
        Instance.from_args({"model_instance_name": name}, {"instance_group": groups})
        for name in names
    ]
    assert [instance.index for instance in instances] == [0, 1, 2, 3, 4]
    assert {(instance.count, instance.groups) for instance in instances} == {(5, 3)}


def test_a_group_of_gpus_has_an_instance_on_each() -> None:
    group = {"name": "m_0", "count": 1, "kind": "KIND_GPU", "gpus": [0, 1]}
    args = {"model_instance_name": "m_0_1", "model_instance_kind": "GPU"}
    instance = Instance.from_args(args, {"instance_group": [group]})
    assert instance.count == 2
    with pytest.raises(LoadError, match="SHARED_ENGINE needs one"):
        placement.shares_engine(instance, Parameters(shared_engine=True), {})


def test_gpus_are_those_that_the_server_sees(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert placement.count_gpus(None, tmp_path) == 2
    assert placement.count_gpus("3", tmp_path) == 1
    assert placement.count_gpus("", tmp_path) == 0


@pytest.mark.parametrize(
    "key", ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"]
)
def test_kind_gpu_refuses_several_gpus(key: str) -> None:
    with pytest.raises(LoadError, match="please specify KIND_MODEL"):
        _devices("GPU", **{key: 2})


@pytest.mark.parametrize(
    ("kind", "ids", "visible", "words"),
    [
        ("GPU", "0", None, "needs KIND_MODEL"),
        ("MODEL", "0", None, "gives 1 GPUs"),
        ("MODEL", "0,9", "0,1", "shows only 2"),
    ],
)
def test_gpu_device_ids_that_cannot_be(
    kind: str, ids: str, visible: str | None, words: str
) -> None:
    size = 2 if kind == "MODEL" else 1
    with pytest.raises(LoadError, match=words):
        _devices(kind, ids=ids, visible=visible, tensor_parallel_size=size)


def test_ranks_of_data_parallelism_are_not_shared() -> None:
    instance, parameters = Instance("MODEL", 0, 0, 2), Parameters(shared_engine=True)
    assert placement.shares_engine(instance, parameters, {"tensor_parallel_size": 2})
    with pytest.raises(LoadError, match="'data_parallel_size' 1"):
        placement.shares_engine(instance, parameters, {"data_parallel_size": 2})
