"""A checkpoint that sees: it names the colour of a prompt's last picture.

Idefics3's layout, because vLLM's CPU build runs it without torchvision. A token is a unit vector of
its own. A patch of a picture becomes its mean red, green and blue, +1 or -1 each, in three more
dimensions. The one attention layer looks at pictures only, and at the nearest one most of all: its
rotary angle is so slow that nearer means larger for a hundred tokens, and whatever is farther away
stays behind. It writes each of the three into the dimension of that colour's name, so large that
the name is the next token whatever the text says. Without pictures the last token is said again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._spec import KnownAnswerSpec
from ._vocabulary import BOS, EOS, PAD, Vocabulary, build_vocabulary
from ._weights import exact_float16

Colour = tuple[int, int, int]

# Name, with its leading space -> red, green and blue. Channel n is the n-th of them.
COLOURS: Mapping[str, Colour] = {
    " red": (255, 0, 0),
    " green": (0, 255, 0),
    " blue": (0, 0, 255),
}
# Stands for one picture in a prompt.
IMAGE_TOKEN = "<image>"
# Tokens that one picture occupies. It is cut into 2 x 2 tiles, as vLLM 0.25.1 drops pictures
# that are not; each tile has a frame, a place and 2 x 2 patches. Three line feeds set off its rows,
# and the whole picture follows, as 2 x 2 patches between frames.
IMAGE_TOKENS = 4 * (2 + 4) + 3 + (2 + 4 + 1)
_FRAMES = (
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)
_SPEC = KnownAnswerSpec(story=(*COLOURS, " in", " this", " picture"))
_SIDE, _PATCH = 8, 4
_VISION_HIDDEN = 8
# Of the vision tower's dimensions the one that is 1 for every patch.
_BRIGHT = 6
_HIDDEN, _HEADS, _INNER = 384, 6, 64
_POSITIONS = 4096
_LOUD = 16.0
# This pair of a head's dimensions turns by 0.03 for each token between two.
_SLOW = 12
# Makes an attention score of 200 of the closest patch.
_SHARP = 3.625


def vision_answer(colours: Sequence[str], tokens: int) -> str:
    """What the model tells after a prompt with pictures of these colours.

    Args:
        colours: names of `COLOURS`, in the order of the pictures; four at most.
        tokens: number of tokens to tell; with the text after the last picture fifty at most.
    """
    return colours[-1] * tokens


def vision_documents() -> dict[str, dict[str, Any]]:
    """File name -> content of the checkpoint's JSON files."""
    vocabulary = build_vocabulary(_SPEC)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return {
        "config.json": _config(len(vocabulary), _vocab_size(vocabulary)),
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "Idefics3Processor",
            "clean_up_tokenization_spaces": False,
            "model_max_length": _POSITIONS,
            **special,
        },
        "special_tokens_map.json": special,
        "preprocessor_config.json": {
            "image_processor_type": "Idefics3ImageProcessor",
            "do_image_splitting": True,
            "size": {"longest_edge": 2 * _SIDE},
            "max_image_size": {"longest_edge": _SIDE},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        "processor_config.json": {
            "processor_class": "Idefics3Processor",
            "image_seq_len": (_SIDE // _PATCH) ** 2,
        },
    }


def _vocab_size(vocabulary: Vocabulary) -> int:
    return len(vocabulary) + 1 + len(_FRAMES)


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """The vocabulary's tokenizer with tokens for pictures."""
    described: dict[str, Any] = json.loads(vocabulary.tokenizer_json())
    last = described["added_tokens"][-1]
    described["added_tokens"] += [
        {**last, "id": len(vocabulary) + index, "content": content}
        for index, content in enumerate((IMAGE_TOKEN, *_FRAMES))
    ]
    return described


def _config(image_token_id: int, vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "torch_dtype": "float16",
        "image_token_id": image_token_id,
        "pad_token_id": PAD,
        "scale_factor": 1,
        "tie_word_embeddings": True,
        "vision_config": {
            "model_type": "idefics3_vision",
            "hidden_size": _VISION_HIDDEN,
            "intermediate_size": _VISION_HIDDEN,
            "num_hidden_layers": 0,
            "num_attention_heads": 1,
            "image_size": _SIDE,
            "patch_size": _PATCH,
        },
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float16",
            "vocab_size": vocab_size,
            "hidden_size": _HIDDEN,
            "intermediate_size": _INNER,
            "num_hidden_layers": 1,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS,
            "max_position_embeddings": _POSITIONS,
            "tie_word_embeddings": True,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        },
    }


def vision_weights() -> dict[str, npt.NDArray[np.float16]]:
    """Hugging Face Idefics3 tensors by name, float16, every value exact in bfloat16 too."""
    vocabulary = build_vocabulary(_SPEC)
    vocab_size = _vocab_size(vocabulary)
    patch = np.zeros((_VISION_HIDDEN, 3, _PATCH, _PATCH))
    seen = np.zeros((_HIDDEN, _VISION_HIDDEN))
    query, key, value, written = (np.zeros((_HIDDEN, _HIDDEN)) for _ in range(4))
    # Every token looks; only pictures are looked at.
    looks, looked_at = vocab_size + len(COLOURS), vocab_size + len(COLOURS) + 1
    query[_SLOW, looks] = _SHARP
    key[_SLOW, looked_at] = _SHARP
    seen[[looks, looked_at], _BRIGHT] = 1.0
    bright = np.zeros(_VISION_HIDDEN)
    bright[_BRIGHT] = 1.0
    tokens = np.eye(vocab_size, _HIDDEN)
    tokens[:, looks] = 1.0
    for channel, name in enumerate(COLOURS):
        patch[channel, channel] = 1 / _PATCH**2
        # The opposite beside it makes the mean zero, which layer_norm leaves so.
        patch[channel + 3, channel] = -1 / _PATCH**2
        direction = vocab_size + channel
        seen[direction, channel] = 1.0
        value[channel, direction] = 1.0
        (word,) = vocabulary.tokenizer.encode(name, add_special_tokens=False).ids
        written[word, channel] = _LOUD
    vision, text = "model.vision_model", "model.text_model"
    layer = f"{text}.layers.0"
    weights = {
        f"{vision}.embeddings.patch_embedding.weight": patch,
        f"{vision}.embeddings.patch_embedding.bias": np.zeros(_VISION_HIDDEN),
        f"{vision}.embeddings.position_embedding.weight": np.zeros(
            ((_SIDE // _PATCH) ** 2, _VISION_HIDDEN)
        ),
        f"{vision}.post_layernorm.weight": np.ones(_VISION_HIDDEN),
        f"{vision}.post_layernorm.bias": bright,
        "model.connector.modality_projection.proj.weight": seen,
        f"{text}.embed_tokens.weight": tokens,
        f"{text}.norm.weight": np.ones(_HIDDEN),
        f"{layer}.input_layernorm.weight": np.ones(_HIDDEN),
        f"{layer}.post_attention_layernorm.weight": np.ones(_HIDDEN),
        f"{layer}.self_attn.q_proj.weight": query,
        f"{layer}.self_attn.k_proj.weight": key,
        f"{layer}.self_attn.v_proj.weight": value,
        f"{layer}.self_attn.o_proj.weight": written,
        f"{layer}.mlp.gate_proj.weight": np.zeros((_INNER, _HIDDEN)),
        f"{layer}.mlp.up_proj.weight": np.zeros((_INNER, _HIDDEN)),
        f"{layer}.mlp.down_proj.weight": np.zeros((_HIDDEN, _INNER)),
    }
    return {name: exact_float16(name, values) for name, values in weights.items()}
