"""What stands in the model.json of the model under test, and of the suite's own models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_vllm_triton.models.under_test import OTHER_MODEL_ARGS, TINY_MODEL_ARGS, ModelUnderTest
from pytest_vllm_triton.servers.harness import Harness
from pytest_vllm_triton.servers.provision import Provision
from pytest_vllm_triton.session.state import SETTINGS

MakeHarness = Callable[[ModelUnderTest], Harness]


@pytest.fixture
def harness(pytester: pytest.Pytester) -> MakeHarness:
    """One of a user who gave --vllm-model-json."""

    def make(model: ModelUnderTest) -> Harness:
        config = pytester.parseconfigure('--vllm-model-json={"max_num_seqs": 3, "dtype": "half"}')
        made = Harness(Provision(config.stash[SETTINGS], lambda: pytester.path))
        config._ensure_unconfigure()
        made.provision.model = model
        return made

    return make


def test_model_under_test(harness: MakeHarness) -> None:
    made = harness(
        ModelUnderTest("mine", Path("/mine"), engine_args={"max_num_seqs": 8, "seed": 1})
    )
    given = made.model_spec(engine_args={"dtype": None}).engine_args
    assert given["model"] == "/mine"
    assert (given["max_num_seqs"], given["seed"]) == (3, 1)
    assert "dtype" not in given


def test_arguments_for_the_users_model_are_not_for_another(harness: MakeHarness) -> None:
    mine = ModelUnderTest("mine", Path("/mine"), engine_args={"seed": 1})
    given = harness(mine).model_spec("tiny", {"model": "/tiny", "max_model_len": 200}).engine_args
    assert given["model"] == "/tiny"
    assert given["max_model_len"] == 200
    assert given["gpu_memory_utilization"] == TINY_MODEL_ARGS["gpu_memory_utilization"]
    assert not {"max_num_seqs", "dtype", "seed"} & set(given)


def test_another_model_of_a_user_is_not_taken_for_a_tiny_one(harness: MakeHarness) -> None:
    made = harness(ModelUnderTest("known-answer", Path("/mine"), engine_args=TINY_MODEL_ARGS))
    given = made.model_spec(engine_args={"model": "my/7b", "seed": 2}, tiny=False).engine_args
    assert (given["model"], given["seed"]) == ("my/7b", 2)
    assert given["gpu_memory_utilization"] == OTHER_MODEL_ARGS["gpu_memory_utilization"]
    assert not {"max_num_seqs", "max_model_len", "kv_cache_memory_bytes"} & set(given)
