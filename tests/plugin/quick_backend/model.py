"""A backend that is ready in a second: it echoes the prompt, once for each token of a stream."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

INPUTS = {"text_input": "STRING", "sampling_parameters": "STRING", "stream": "BOOL"}
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        for name, datatype in INPUTS.items():
            optional = name != "text_input"
            config.add_input(
                {"name": name, "data_type": f"TYPE_{datatype}", "dims": [1], "optional": optional}
            )
        config.add_output({"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def execute(self, requests):
        for request in requests:
            given = {tensor.name(): tensor.as_numpy()[0] for tensor in request.inputs()}
            sampling = json.loads(given.get("sampling_parameters", b"{}"))
            sender = request.get_response_sender()
            if sampling.get("temperature", 0) < 0:
                error = pb_utils.TritonError("negative", pb_utils.TritonError.INVALID_ARG)
                sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
                continue
            count = sampling.get("max_tokens", 16) if given.get("stream") else 1
            for left in reversed(range(count)):
                text = pb_utils.Tensor("text_output", np.array([given["text_input"]], np.object_))
                sender.send(pb_utils.InferenceResponse([text]), flags=0 if left else FINAL)
