"""Models and processes that the tests of the launchers start, and how to look at them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from pytest_vllm_triton.launchers.base import ModelSpec, ServerHandle

SHM = Path("/dev/shm")

CONFIG = """
backend: "python"
input [{ name: "IN" data_type: TYPE_STRING dims: [1] }]
output [{ name: "OUT" data_type: TYPE_STRING dims: [1] }]
instance_group [{ kind: KIND_CPU }]
"""

ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(r, "IN").as_numpy())]
            )
            for r in requests
        ]
"""

STALL = """
    def initialize(self, args):
        import os, pathlib, signal, subprocess
        marker = pathlib.Path(MARKER)
        if marker.exists():
            return
        marker.touch()
        subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT {os.getpid()}"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
"""

#: What a vLLM engine process looks like at its worst: a session of its own, deaf to SIGTERM, with a
#: region of shared memory that it never removes.
ENGINE = """
import json, os, subprocess
import triton_python_backend_utils as pb_utils

CHILD = '''
import mmap, os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR, 0o600)
os.ftruncate(fd, 4096)
region = mmap.mmap(fd, 4096)
os.close(fd)
print("mapped", flush=True)
time.sleep(600)
'''

class TritonPythonModel:
    def initialize(self, args):
        region = "/dev/shm/psm_test" + os.urandom(4).hex()
        child = subprocess.Popen(
            ["python3", "-c", CHILD, region], start_new_session=True, stdout=subprocess.PIPE
        )
        child.stdout.readline()
        with open(os.path.join(args["model_repository"], "engine.json"), "w") as file:
            json.dump({"pid": child.pid, "region": region}, file)

    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""

#: No Triton, but says what a tritonserver might, its token too; $THEN is what it does then.
TALKATIVE = """
import http.server, json, os, sys, time

token, then = os.environ["HF_TOKEN"], os.environ["THEN"]
print("the token is", token, flush=True)
if then == "end":
    sys.exit(f"error: no access with {token}")
if then == "fail":
    said = f"failed to load 'm' version 1: Internal: no access with {token}"
    print(f"E1 x.cc:642] {json.dumps(said)}", flush=True)
if then == "wait":
    time.sleep(600)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(400 if then == "answer" and "/models/" in self.path else 200)
        self.end_headers()

    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        state = {"name": "m", "state": "UNAVAILABLE", "reason": f"no access with {token}"}
        self.wfile.write(json.dumps([state]).encode())

(port,) = (word.partition("=")[2] for word in sys.argv if word.startswith("--http-port="))
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def model(name: str, code: str = ECHO, config: str = CONFIG) -> ModelSpec:
    return ModelSpec(name, None, config, files={"1/model.py": textwrap.dedent(code).encode()})


def stalling_model(marker: Path) -> ModelSpec:
    """A model whose stub stands still for some seconds in its first load, as on a host that does.

    Args:
        marker: a file that says that it did, where the server sees it.
    """
    return model("stalls", ECHO + STALL.replace("MARKER", repr(str(marker))))


def regions(prefix: str) -> list[str]:
    return sorted(path.name for path in SHM.glob(f"{prefix}*"))


Launch = Callable[..., ServerHandle]
