"""The backend's modules outside Triton: `triton_python_backend_utils` is replaced by a stand-in."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "backend"))

OUTPUT_NAMES = (
    *("text_output", "finish_reason", "cumulative_logprob", "logprobs"),
    *("num_input_tokens", "num_output_tokens"),
)


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError:
    INVALID_ARG, UNAVAILABLE, CANCELLED, INTERNAL, NOT_FOUND = range(5)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.message, self.code = message, code


class TritonModelException(Exception):
    pass


class Logger:
    @staticmethod
    def log_info(_: str) -> None: ...

    @staticmethod
    def log_warn(_: str) -> None: ...


class InferenceResponse:
    def __init__(self, output_tensors: Any = (), error: Any = None) -> None:
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


def _stand_in() -> types.ModuleType:
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor = Tensor  # type: ignore[attr-defined]
    module.TritonError = TritonError  # type: ignore[attr-defined]
    module.TritonModelException = TritonModelException  # type: ignore[attr-defined]
    module.Logger = Logger  # type: ignore[attr-defined]
    module.InferenceResponse = InferenceResponse  # type: ignore[attr-defined]
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1  # type: ignore[attr-defined]
    return module


sys.modules.setdefault("triton_python_backend_utils", _stand_in())


class FakeRequest:
    """A pb_utils.InferenceRequest from keyword arguments: bool, str and bytes become tensors."""

    def __init__(
        self,
        parameters: str = "{}",
        request_id: str = "",
        named: Sequence[str] = OUTPUT_NAMES,
        **inputs: Any,
    ) -> None:
        self._parameters, self._id, self._named = parameters, request_id, named
        self._tensors = []
        for name, value in inputs.items():
            if isinstance(value, bool):
                array = np.array([value])
            else:
                data = value.encode() if isinstance(value, str) else value
                array = np.array([data], dtype=np.object_)
            self._tensors.append(Tensor(name, array))

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def parameters(self) -> str:
        return self._parameters

    def request_id(self) -> str:
        return self._id

    def requested_output_names(self) -> list[str]:
        return list(self._named)

    def timeout(self) -> int:
        return 0
