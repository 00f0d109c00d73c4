"""Random-weight checkpoints of real models' shapes, written on the spot: no download.

Greedy decoding of them makes no sense, but every new token is a word with its leading space,
because the vocabulary holds nothing else: the 4 special tokens and the 256 byte letters have
all-zero rows in the (tied) embedding, so their logits are 0, and the largest of many thousand
random logits is not. So tokens can be counted in the text, whatever the system that sends it.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import LETTERS
from pytest_vllm_triton.tokenizer_json import BYTE_LETTERS, bpe_model, tokenizer_json

FORMAT = 1
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_STD = 0.02
_POOL = 1 << 22

Tensors = dict[str, NDArray[np.float16]]


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions, as in its config.json."""

    architecture: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int


SHAPES = {
    # facebook/opt-125m: 125 million parameters
    "opt-125m": Shape("opt", 50272, 768, 12, 12, 12, 3072),
    # Llama 3.2 1B: 1.24 billion
    "llama-1b": Shape("llama", 128256, 2048, 16, 32, 8, 8192),
    # Llama 3.2 3B: 3.21 billion
    "llama-3b": Shape("llama", 128256, 3072, 28, 24, 8, 8192),
}


def build_checkpoint(name: str, cache: Path) -> Path:
    """The folder of a checkpoint of this shape, written if need be."""
    shape = SHAPES[name]
    folder = cache / f"bench-{name}-{FORMAT}"
    if folder.is_dir():
        return folder
    from safetensors.numpy import save_file

    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
    try:
        tokenizer, config = _tokenizer(shape.vocabulary), _config(shape)
        for file, content in (
            ("config.json", config),
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", _tokenizer_config()),
            ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}),
        ):
            (made / file).write_text(json.dumps(content), encoding="utf-8")
        weights = _opt(shape) if shape.architecture == "opt" else _llama(shape)
        for number, tensors in enumerate(weights):
            save_file(tensors, made / f"model-{number:05}.safetensors", {"format": "pt"})
        made.chmod(0o755)
        if folder.is_dir():  # another process was faster
            return folder
        return made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


class _Random:
    """Normal numbers from a pool: a new start in it for every tensor. Fast, and good enough."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)
        pool = self._generator.standard_normal(_POOL, dtype=np.float32) * _STD
        self._pool = pool.astype(np.float16)

    def __call__(self, *shape: int) -> NDArray[np.float16]:
        start = int(self._generator.integers(_POOL))
        return np.resize(np.roll(self._pool, -start), shape)

    def embedding(self, rows: int, width: int) -> NDArray[np.float16]:
        # Drawn in full, not from the pool, so that no two words' rows are equal.
        table = self._generator.standard_normal((rows, width), dtype=np.float32) * _STD
        table[: len(_SPECIAL) + 256] = 0
        return table.astype(np.float16)


def _filled(value: float, *shape: int) -> NDArray[np.float16]:
    return np.full(shape, value, dtype=np.float16)


def _opt(shape: Shape) -> Iterator[Tensors]:
    draw, hidden = _Random(), shape.hidden
    yield {
        "model.decoder.embed_tokens.weight": draw.embedding(shape.vocabulary, hidden),
        "model.decoder.embed_positions.weight": draw(2048 + 2, hidden),
        "model.decoder.final_layer_norm.weight": _filled(1, hidden),
        "model.decoder.final_layer_norm.bias": _filled(0, hidden),
    }
    for layer in range(shape.layers):
        tensors: Tensors = {}
        prefix = f"model.decoder.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", hidden, hidden),
            ("self_attn.v_proj", hidden, hidden),
            ("self_attn.out_proj", hidden, hidden),
            ("fc1", shape.ffn, hidden),
            ("fc2", hidden, shape.ffn),
        ):
            tensors[f"{prefix}{name}.weight"] = draw(rows, columns)
            tensors[f"{prefix}{name}.bias"] = _filled(0, rows)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            tensors[f"{prefix}{name}.weight"] = _filled(1, hidden)
            tensors[f"{prefix}{name}.bias"] = _filled(0, hidden)
        yield tensors


def _llama(shape: Shape) -> Iterator[Tensors]:
    draw, hidden = _Random(), shape.hidden
    kv_size = hidden // shape.heads * shape.kv_heads
    yield {
        "model.embed_tokens.weight": draw.embedding(shape.vocabulary, hidden),
        "model.norm.weight": _filled(1, hidden),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors: Tensors = {
            f"{prefix}{name}.weight": draw(rows, columns)
            for name, rows, columns in (
                ("self_attn.q_proj", hidden, hidden),
                ("self_attn.k_proj", kv_size, hidden),
                ("self_attn.v_proj", kv_size, hidden),
                ("self_attn.o_proj", hidden, hidden),
                ("mlp.gate_proj", shape.ffn, hidden),
                ("mlp.up_proj", shape.ffn, hidden),
                ("mlp.down_proj", hidden, shape.ffn),
            )
        }
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = _filled(1, hidden)
        yield tensors


def _config(shape: Shape) -> dict[str, Any]:
    common: dict[str, Any] = {
        "model_type": shape.architecture,
        "torch_dtype": "float16",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    if shape.architecture == "opt":
        return {
            **common,
            "architectures": ["OPTForCausalLM"],
            "word_embed_proj_dim": shape.hidden,
            "ffn_dim": shape.ffn,
            "activation_function": "relu",
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "layerdrop": 0.0,
        }
    return {
        **common,
        "architectures": ["LlamaForCausalLM"],
        "intermediate_size": shape.ffn,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _tokenizer(size: int) -> dict[str, Any]:
    """Byte-level BPE whose tokens are " a" … " z", " aa" …, until there are `size` of them."""
    space = BYTE_LETTERS[ord(" ")]
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *BYTE_LETTERS))}
    merges: list[list[str]] = []
    for length in itertools.count(1):
        for word in itertools.product(LETTERS, repeat=length):
            if len(vocabulary) == size:
                break
            stem = space + "".join(word[:-1])
            vocabulary[stem + word[-1]] = len(vocabulary)
            merges.append([stem, word[-1]])
        if len(vocabulary) == size:
            break
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "use_regex": True,
        "trim_offsets": True,
    }
    return tokenizer_json(
        _SPECIAL,
        pre_tokenizer=byte_level,
        post_processor=None,
        decoder=byte_level,
        model=bpe_model(vocabulary, merges, ignore_merges=False),
    )


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "bos_token": _SPECIAL[0],
        "pad_token": _SPECIAL[1],
        "eos_token": _SPECIAL[2],
        "unk_token": _SPECIAL[3],
    }
