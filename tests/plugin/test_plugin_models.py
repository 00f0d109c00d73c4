"""The model under test: folders that are no checkpoints, downloads, and no network."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub import Hub
from plugin_helpers import environment

OPT = "facebook/opt-125m"
CONFIG = json.dumps({"architectures": ["OPTForCausalLM"], "model_type": "opt"})
# No server: the model is what is looked at.
ONE_TEST = """
import pytest
@pytest.mark.requirement("GEN-001")
def test_it(vllm_model):
    print("files:", *sorted(path.name for path in vllm_model.path.iterdir()))
    print("tokenizer:", vllm_model.tokenizer)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    (folder / "tokenizer_config.json").write_text("{}")
    # Not wanted where there are safetensors.
    (folder / "pytorch_model.bin").write_bytes(b"old weights")
    (folder / "README.md").write_text("# A model\n")
    return folder


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    with Hub({OPT: checkpoint}) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, lying_server: Path) -> Run:
    """One run with a hub at this address; the hub client's cache is new for each test."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "test_model.py").write_text(ONE_TEST)

    def start(model: str, endpoint: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-s", f"--vllm-model={model}"),
                *(f"--triton-server-bin={lying_server}", "test_model.py"),
            ],
            cwd=folder,
            env=environment(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hf"), HF_TOKEN=""),
            text=True,
            capture_output=True,
            timeout=120,
        )

    return start


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a run that could not begin."""
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    head = "no check was run"
    lines = done.stdout.splitlines()
    sentence = lines[next(i for i, line in enumerate(lines) if head in line) + 1]
    assert sentence.startswith("--vllm-model: ")
    return sentence


# -- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("rm config.json", "is no Hugging Face checkpoint: it holds no config.json"),
        ("echo '{' > config.json", "config.json' is not valid JSON"),
        ("echo '[]' > config.json", "config.json' is not a JSON object"),
        ("echo '{}' > config.json", "config.json' names no architecture"),
        (r"printf '\377' > config.json", "config.json' is not valid JSON"),
        ("rm *.safetensors *.bin", "holds no weights (*.safetensors or *.bin)"),
        (
            """echo '{"weight_map": {"a": "model-2.safetensors"}}' > x.safetensors.index.json""",
            "lacks model-2.safetensors, which x.safetensors.index.json names",
        ),
        (
            "rm -r ../checkpoint && touch ../checkpoint",
            "is a file; give the",
        ),
        ("mv ../checkpoint ../checkpoints", "does not exist. Did you mean '*/checkpoints'?"),
    ],
)
def test_folder_that_is_no_checkpoint(run: Run, checkpoint: Path, spoil: str, message: str) -> None:
    subprocess.run(spoil, shell=True, cwd=checkpoint, check=True)
    begin, _, end = message.partition("*/")
    sentence = error_of(run(str(checkpoint)))
    assert begin in sentence or message in sentence
    assert end in sentence


def test_folder(run: Run, checkpoint: Path) -> None:
    done = run(str(checkpoint))
    assert done.returncode == 0, done.stdout
    assert "tokenizer: None" in done.stdout


@pytest.mark.parametrize("name", ["no such name!", "a/b/c", "x" * 5000, "../elsewhere"])
def test_what_is_no_name(run: Run, name: str) -> None:
    error_of(run(name))


# -- downloads -----------------------------------------------------------------------------------


def test_download_is_cached(run: Run, hub: Hub) -> None:
    done = run(OPT, hub.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Downloading {OPT} from {hub.url}" in done.stdout
    assert "files: config.json model.safetensors tokenizer_config.json" in done.stdout
    assert hub.files_sent() == ["config.json", "model.safetensors", "tokenizer_config.json"]
    hub.close()
    again = run(OPT, hub.url)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Downloading" not in again.stdout
    assert "files: config.json model.safetensors tokenizer_config.json" in again.stdout


def test_old_weights_where_there_are_no_others(run: Run, hub: Hub, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    done = run(OPT, hub.url)
    assert done.returncode == 0, done.stdout
    assert "pytorch_model.bin" in done.stdout


def test_interrupted_download(run: Run, hub: Hub) -> None:
    """Half of the weights is no model; when the hub is well again, the rest is fetched."""
    hub.cut.add("model.safetensors")
    assert "could not be downloaded" in error_of(run(OPT, hub.url))
    hub.cut.clear()
    done = run(OPT, hub.url)
    assert done.returncode == 0, done.stdout
    assert "model.safetensors" in done.stdout


def test_interrupted_download_is_no_model_offline(run: Run, hub: Hub) -> None:
    hub.cut.add("model.safetensors")
    error_of(run(OPT, hub.url))
    hub.close()
    error_of(run(OPT, hub.url))


def test_no_network(run: Run) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        started = time.monotonic()
        sentence = error_of(run(OPT, endpoint))
        assert time.monotonic() - started < 30
    assert repr(OPT) in sentence
    assert endpoint in sentence
    assert "--vllm-model known-answer" in sentence


def test_silent_hub(run: Run) -> None:
    """Something takes the connection and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        started = time.monotonic()
        sentence = error_of(run(OPT, f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert time.monotonic() - started < 30
    assert "could not be downloaded" in sentence


def test_unknown_model(run: Run, hub: Hub) -> None:
    sentence = error_of(run("facebook/opt-126m", hub.url))
    assert f"{hub.url} knows no model 'facebook/opt-126m'" in sentence


def test_gated_model(run: Run, hub: Hub) -> None:
    hub.gated.add(OPT)
    assert "is gated: accept its licence" in error_of(run(OPT, hub.url))
