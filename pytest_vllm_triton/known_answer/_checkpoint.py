"""Writes known-answer checkpoints and their adapters, once per cache directory."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors.numpy import save

from ._adapter import AdapterSpec, adapter_config, adapter_weights
from ._spec import FORMAT_VERSION, KnownAnswerSpec
from ._vision import vision_documents, vision_weights
from ._vocabulary import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, Vocabulary, build_vocabulary
from ._weights import HEADS, MAX_POSITIONS, build_codebook, build_successors, build_weights

# Written last and read first: a folder without it, or that disagrees with it, is not used.
MANIFEST = "MANIFEST.sha256.json"


def build_checkpoint(spec: KnownAnswerSpec, cache_dir: Path) -> Path:
    """The folder of `spec`'s Hugging Face OPT checkpoint under `cache_dir`, made if need be.

    Safe against several makers at once, in threads or processes; a damaged folder is made anew.
    """
    return _cached(cache_dir / f"known-answer-{spec.key}", partial(checkpoint_files, spec))


def build_adapter(spec: KnownAnswerSpec, adapter: AdapterSpec, cache_dir: Path) -> Path:
    """The folder of a PEFT LoRA adapter for `spec`'s checkpoint; cached like the checkpoint."""
    return _cached(
        cache_dir / f"known-answer-lora-{adapter.key(spec)}", partial(adapter_files, spec, adapter)
    )


def build_vision_checkpoint(cache_dir: Path) -> Path:
    """The folder of the checkpoint that names the colour of pictures; cached like the others."""
    return _cached(cache_dir / f"known-answer-vision-{FORMAT_VERSION}", vision_checkpoint_files)


def _cached(folder: Path, make_files: Callable[[], dict[str, bytes]]) -> Path:
    if is_intact(folder):  # also where the cache may be read but not written
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not is_intact(folder):
            replace_folder(folder, make_files())
    return folder


def is_intact(folder: Path) -> bool:
    """Whether every file of `folder` has the content that it was written with."""
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(expected) and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in expected.items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Put `files` and their manifest at `folder`; whoever looks sees the whole folder or none.

    The caller holds the folder's lock.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for abandoned in folder.parent.glob(f".{folder.name}-*"):  # by a maker that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, content in {**files, MANIFEST: _json({"files": digests})}.items():
            (made / name).write_bytes(content)
        made.chmod(0o755)  # mkdtemp's 0700 would lock out a server of another user in a container
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def checkpoint_files(spec: KnownAnswerSpec) -> dict[str, bytes]:
    """File name -> content of the checkpoint, the same bytes on every machine."""
    vocabulary = build_vocabulary(spec)
    codebook = build_codebook(spec, len(vocabulary))
    weights = build_weights(build_successors(spec, vocabulary), codebook, spec.layers)
    hidden = codebook.token_codes.shape[1]
    return {
        "config.json": _json(_config(spec, vocabulary, hidden, codebook.cell_count)),
        "generation_config.json": _json(
            {
                "bos_token_id": BOS,
                "eos_token_id": EOS,
                "pad_token_id": PAD,
                # Defaults of chat servers: a backend that takes them for its own tells nonsense.
                "do_sample": True,
                "temperature": 1.75,
                "top_k": 3,
            }
        ),
        "tokenizer.json": vocabulary.tokenizer_json().encode(),
        "tokenizer_config.json": _json(
            {
                # Takes tokenizer.json as it is; the classes named after a model rebuild it.
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
                "model_max_length": MAX_POSITIONS,
                # Not for the prompts of a generate endpoint, which are taken as they are.
                "chat_template": "{{ 'This is a chat.' }}",
                **_special_tokens(),
            }
        ),
        "special_tokens_map.json": _json(_special_tokens()),
        "model.safetensors": save(weights, metadata={"format": "pt"}),
    }


def adapter_files(spec: KnownAnswerSpec, adapter: AdapterSpec) -> dict[str, bytes]:
    """File name -> content of the adapter, the same bytes on every machine."""
    vocabulary = build_vocabulary(spec)
    links = adapter.link_ids(vocabulary)
    weights = adapter_weights(
        adapter,
        vocabulary=vocabulary,
        codebook=build_codebook(spec, len(vocabulary)),
        base=build_successors(spec, vocabulary),
        changed=build_successors(spec, vocabulary, links=links),
    )
    return {
        "adapter_config.json": _json(adapter_config(adapter)),
        "adapter_model.safetensors": save(weights, metadata={"format": "pt"}),
    }


def vision_checkpoint_files() -> dict[str, bytes]:
    """File name -> content of the checkpoint that sees, the same bytes on every machine."""
    return {
        **{name: _json(content) for name, content in vision_documents().items()},
        "model.safetensors": save(vision_weights(), metadata={"format": "pt"}),
    }


def _special_tokens() -> dict[str, str]:
    ids = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
    return {role: SPECIAL_TOKENS[i] for role, i in ids.items()}


def _config(
    spec: KnownAnswerSpec, vocabulary: Vocabulary, hidden: int, cell_count: int
) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "torch_dtype": "float16",
        "vocab_size": len(vocabulary),
        "hidden_size": hidden,
        "word_embed_proj_dim": hidden,
        "ffn_dim": cell_count,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": MAX_POSITIONS,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "init_std": 0.02,
        "use_cache": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()
