"""The checkpoint's files: the same bytes everywhere, cached, whole or made anew."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from pytest_vllm_triton.known_answer import (
    BACKWARDS,
    LEAPS,
    OTHER_STORY,
    AdapterSpec,
    KnownAnswer,
    KnownAnswerSpec,
    build_adapter,
    build_checkpoint,
)

SPEC = KnownAnswerSpec()
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# A change here changes every user's checkpoint: raise FORMAT_VERSION with it.
PINNED = {
    "config.json": "3bebfd129a55f47493d8884f76c4b810eaad00589831926ea81262b7a6a14018",
    "generation_config.json": "7e7ecd4a3a4f66df12b4fbf8de3c455874873b093fbf599d0dcc9636fc006aa5",
    "model.safetensors": "349b363469ada4e97bb421ab40af178518a518adb3aa17c15d11f38ccc821655",
    "special_tokens_map.json": "43d9c2c85329df0cc0c948acc275a639f16a747cb42be9422546aecce9843049",
    "tokenizer.json": "7d702bd2f86713a416f146fb9a185811f2d5edb6ca71d22a72f5126e221636d5",
    "tokenizer_config.json": "5aec01663c83b38c000a757c7a4e2c8f80ced0dcb4b0208e10314b820b18c82f",
}
PINNED_BACKWARDS = "049bcacb003a49bff9b07ee93a8324f028a1a4594cc2460e92be52bc70009aff"


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if not path.name.startswith("MANIFEST")
    }


def left_over(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.is_dir() and path.name.startswith(".")]


def test_bytes_are_pinned(tmp_path: Path) -> None:
    assert digests(build_checkpoint(SPEC, tmp_path)) == PINNED


def test_adapter_bytes_are_pinned(tmp_path: Path) -> None:
    folder = build_adapter(SPEC, BACKWARDS, tmp_path)
    assert digests(folder)["adapter_model.safetensors"] == PINNED_BACKWARDS


def test_is_small_and_quick(tmp_path: Path) -> None:
    started = time.monotonic()
    folder = build_checkpoint(SPEC, tmp_path)
    assert time.monotonic() - started < 10
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000


def test_a_second_call_finds_the_first_ones_work(tmp_path: Path) -> None:
    folder = build_checkpoint(SPEC, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build_checkpoint(KnownAnswerSpec(), tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps


def test_other_specs_live_beside_it(tmp_path: Path) -> None:
    specs = [
        SPEC,
        replace(SPEC, seed=1),
        replace(SPEC, margin=2),
        replace(SPEC, story=OTHER_STORY),
    ]
    folders = [build_checkpoint(spec, tmp_path) for spec in specs]
    assert len({digests(folder)["model.safetensors"] for folder in folders}) == len(specs)


def test_margin_of_either_number_type_is_the_same_spec() -> None:
    assert KnownAnswerSpec(margin=2).key == KnownAnswerSpec(margin=2.0).key


@pytest.mark.parametrize("name", [*FILES, "MANIFEST.sha256.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_damage_is_repaired(tmp_path: Path, name: str, damage: str) -> None:
    folder = build_checkpoint(SPEC, tmp_path)
    victim = folder / name
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0x40
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    else:
        victim.unlink()
    assert digests(build_checkpoint(SPEC, tmp_path)) == PINNED
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", '{"files": []}', '{"files": {}}', '{"files": 1}', "\0"]
)
def test_a_manifest_of_nothing_is_no_manifest(tmp_path: Path, content: str) -> None:
    folder = build_checkpoint(SPEC, tmp_path)
    (folder / "MANIFEST.sha256.json").write_text(content)
    (folder / "config.json").write_text("{}")
    assert digests(build_checkpoint(SPEC, tmp_path)) == PINNED


def test_a_file_in_the_folders_place_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / f"known-answer-{SPEC.key}"
    folder.write_text("in the way")
    assert digests(build_checkpoint(SPEC, tmp_path)) == PINNED


def test_what_a_killed_maker_left_is_swept(tmp_path: Path) -> None:
    abandoned = tmp_path / f".known-answer-{SPEC.key}-abcdef"
    abandoned.mkdir(parents=True)
    (abandoned / "model.safetensors").write_bytes(b"half")
    build_checkpoint(SPEC, tmp_path)
    assert left_over(tmp_path) == []


def test_several_processes_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from pytest_vllm_triton.known_answer import KnownAnswerSpec, build_checkpoint\n"
        "sys.stdin.readline()\n"
        "print(build_checkpoint(KnownAnswerSpec(), Path(sys.argv[1])))\n"
    )
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("go\n")
        maker.stdin.flush()
    told = [maker.communicate(timeout=60)[0].strip() for maker in makers]
    assert [maker.returncode for maker in makers] == [0] * len(makers)
    assert len(set(told)) == 1
    assert digests(Path(told[0])) == PINNED
    assert left_over(tmp_path / "cache") == []


def test_readable_by_a_server_of_another_user(tmp_path: Path) -> None:
    folder = build_checkpoint(SPEC, tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o755


def test_config_describes_the_weights(tmp_path: Path) -> None:
    folder = build_checkpoint(SPEC, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    oracle = KnownAnswer(SPEC)
    assert config["vocab_size"] == oracle.vocab_size
    assert config["eos_token_id"] == oracle.eos_token_id
    assert config["max_position_embeddings"] == oracle.max_model_len
    embeddings = weights["model.decoder.embed_tokens.weight"]
    assert embeddings.shape == (config["vocab_size"], config["hidden_size"])
    fc1 = weights["model.decoder.layers.0.fc1.weight"]
    assert fc1.shape == (config["ffn_dim"], config["hidden_size"])
    # Whole heads, cells and so on for every member of a tensor-parallel group.
    for parallel in (2, 4, 8):
        assert config["num_attention_heads"] % parallel == 0
        assert config["ffn_dim"] % parallel == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"margin": 0}, "margin"),
        ({"margin": 0.1}, "multiple of 0.25"),
        ({"margin": 33}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"seed": -1}, "seed"),
        ({"story": ()}, "at least 6 tokens"),
        ({"story": (" a", " b", "")}, "empty"),
        ({"story": (" one", " two", " one", " four", " five", " six")}, "more than once"),
        ({"story": (*OTHER_STORY, " 🪐")}, "more than once"),
        ({"story": (" sixb", " two", " six", "bc", " ten", " one")}, "does not tokenize"),
    ],
)
def test_impossible_specs_are_refused(
    tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_checkpoint(replace(SPEC, **change), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "links",
    [
        (),
        ((" alpha", " nowhere"),),
        ((" 😀é", " alpha"),),
        ((" alpha", None), (" alpha", " bravo")),
    ],
)
def test_impossible_adapters_are_refused(
    tmp_path: Path, links: tuple[tuple[str, str | None], ...]
) -> None:
    with pytest.raises(ValueError, match=r"step|one-token word"):
        build_adapter(SPEC, AdapterSpec(links), tmp_path)


def test_adapter_rank_can_be_padded_but_not_cut(tmp_path: Path) -> None:
    folder = build_adapter(SPEC, replace(LEAPS, rank=32), tmp_path)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 32
    with pytest.raises(ValueError, match="rank"):
        replace(LEAPS, rank=2)
