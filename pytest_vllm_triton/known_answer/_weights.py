"""The weights: an associative memory, exact in every floating-point type that vLLM offers.

Every token has a code, a row of a Hadamard matrix: entries of +1 and -1, mean zero, any two codes
exactly orthogonal. The one feed-forward layer is a memory with one cell per token: a cell answers
1 to its own code and 0 to every other, and replaces the code by the token's *target*, a sum of the
codes of the next tokens with whole-number weights (the wanted logits, in quarters). Attention and
positions add nothing. All numbers on the way are whole numbers times powers of two, with eight
significant bits at most, so bfloat16, float16 and float32 give the same logits, on any device and
in any order of summation. The cells are shuffled, so a tensor-parallel rank that loses its half of
them loses every other word of the story.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._spec import KnownAnswerSpec
from ._vocabulary import EOS, Vocabulary

HEADS = 8
MAX_POSITIONS = 4096
QUARTERS = 4
# Logits of the best tokens after the right one. The first is the story's first word, so a token
# that is masked out (EOS under min_tokens, a banned word) has a known deputy.
RIVAL_LOGITS = (4.0, 3.0, 2.0, 1.0)
# Scale of the residual stream: makes layer_norm's epsilon (1e-5) vanish beside the variance.
_SCALE = 4
_CELL_BLOCK = 64

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Successors:
    """What follows each token: the map itself, and the logits that make it so."""

    vocab_size: int
    story_ids: tuple[int, ...]
    next_ids: tuple[int, ...]
    margin: float

    def ranked(self, token_id: int) -> tuple[tuple[int, float], ...]:
        """(token id, logit) of the five best tokens after `token_id`; all others have logit 0."""
        right = self.next_ids[token_id]
        rivals = [i for i in self.story_ids if i != right][: len(RIVAL_LOGITS)]
        best = RIVAL_LOGITS[0] + self.margin
        return ((right, best), *zip(rivals, RIVAL_LOGITS, strict=True))

    def logits(self, token_id: int) -> Floats:
        """Logits of all tokens after `token_id`, shape [vocab_size]."""
        logits = np.zeros(self.vocab_size)
        for next_id, logit in self.ranked(token_id):
            logits[next_id] = logit
        return logits


def build_successors(
    spec: KnownAnswerSpec, vocabulary: Vocabulary, *, links: Mapping[int, int] | None = None
) -> Successors:
    """The story's chain into EOS; every token outside the story leads to its first word.

    `links` (token id -> next token id) overrides single steps, as a LoRA adapter does.
    """
    story = vocabulary.story_ids
    next_ids = [story[0]] * len(vocabulary)
    for token, following in itertools.pairwise((*story, EOS)):
        next_ids[token] = following
    for token, following in (links or {}).items():
        next_ids[token] = following
    return Successors(len(vocabulary), story, tuple(next_ids), spec.margin)


@dataclass(frozen=True)
class Codebook:
    """The vectors that a checkpoint's tokens are written in.

    Attributes:
        token_codes: [vocab_size, hidden].
        ballast: codes of no token, [4, hidden].
        cells: the memory cell of each token, [vocab_size].
        cell_count: cells including those that never answer.
    """

    token_codes: Ints
    ballast: Ints
    cells: Ints
    cell_count: int


def build_codebook(spec: KnownAnswerSpec, vocab_size: int) -> Codebook:
    ballast = 4
    # The first Hadamard row is all ones: its mean is not zero, so layer_norm would erase it.
    hidden = max(128, 1 << (vocab_size + ballast).bit_length())
    cell_count = -(-vocab_size // _CELL_BLOCK) * _CELL_BLOCK
    rows, columns, cells = (
        _permutation(spec.seed, stream, size)
        for stream, size in enumerate((hidden - 1, hidden, cell_count))
    )
    codes = _hadamard(hidden)[1:][rows][:, columns]
    return Codebook(
        token_codes=codes[:vocab_size],
        ballast=codes[vocab_size : vocab_size + ballast],
        cells=cells[:vocab_size],
        cell_count=cell_count,
    )


def _hadamard(size: int) -> Ints:
    matrix = np.ones((1, 1), dtype=np.int64)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _permutation(seed: int, stream: int, size: int) -> Ints:
    # Philox's raw integers are the same in every NumPy; Generator.permutation need not be.
    raw = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(size)
    return np.argsort(raw, kind="stable")


def _ballast_weights(weights: list[int]) -> tuple[int, tuple[int, ...]]:
    """A whole-number length for `weights`, and four more weights that give it.

    The vector's length is the divisor of the last layer_norm; as a whole number the norm's weight
    cancels it exactly. Lagrange: every remainder is a sum of four squares.
    """
    squares = sum(weight * weight for weight in weights)
    length = math.isqrt(squares - 1) + 1
    rest = length * length - squares
    for a in range(math.isqrt(rest), -1, -1):
        for b in range(min(a, math.isqrt(rest - a * a)), -1, -1):
            left = rest - a * a - b * b
            for c in range(min(b, math.isqrt(left)), -1, -1):
                d = math.isqrt(left - c * c)
                if d * d == left - c * c:
                    return length, (a, b, c, d)
    raise AssertionError("Lagrange's four-square theorem does not hold")


def build_target(successors: Successors, codebook: Codebook, token_id: int) -> tuple[int, Ints]:
    """(length, vector of shape [hidden]) that the memory leaves in the residual stream."""
    ranked = successors.ranked(token_id)
    weights = [round(logit * QUARTERS) for _, logit in ranked]
    length, ballast = _ballast_weights(weights)
    codes = codebook.token_codes[[i for i, _ in ranked]]
    vectors = np.concatenate([codes, codebook.ballast])
    target: Ints = np.array([*weights, *ballast], dtype=np.int64).dot(vectors)
    return length, target


def build_weights(
    successors: Successors, codebook: Codebook, layers: int = 1
) -> dict[str, npt.NDArray[np.float16]]:
    """Hugging Face OPT tensors by name, float16, every value exact in bfloat16 too."""
    vocab_size, hidden = codebook.token_codes.shape
    fc1 = np.zeros((codebook.cell_count, hidden))
    fc2 = np.zeros((hidden, codebook.cell_count))
    fc1[codebook.cells] = codebook.token_codes * (2 / hidden)
    length = 0
    for token_id in range(vocab_size):
        length, target = build_target(successors, codebook, token_id)
        fc2[:, codebook.cells[token_id]] = target - _SCALE * codebook.token_codes[token_id]

    weights: dict[str, Floats] = {
        "model.decoder.embed_tokens.weight": _SCALE * codebook.token_codes.astype(np.float64),
        "model.decoder.embed_positions.weight": np.zeros((MAX_POSITIONS + 2, hidden)),
        # (x / length) * length / (hidden * scale * quarters): its dot product with a token's
        # embedding is the token's logit.
        "model.decoder.final_layer_norm.weight": np.full(
            hidden, length / (hidden * _SCALE * QUARTERS)
        ),
        "model.decoder.final_layer_norm.bias": np.zeros(hidden),
    }
    empty = np.zeros_like(fc1), np.zeros_like(fc2)
    for number in range(layers):
        layer = _layer(*((fc1, fc2) if number == 0 else empty))
        weights |= {f"model.decoder.layers.{number}.{name}": v for name, v in layer.items()}
    return {name: exact_float16(name, values) for name, values in weights.items()}


def _layer(fc1: Floats, fc2: Floats) -> dict[str, Floats]:
    """A decoder layer whose attention does nothing."""
    cells, hidden = fc1.shape
    weights: dict[str, Floats] = {
        "self_attn_layer_norm.weight": np.ones(hidden),
        "self_attn_layer_norm.bias": np.zeros(hidden),
        "final_layer_norm.weight": np.ones(hidden),
        "final_layer_norm.bias": np.zeros(hidden),
        "fc1.weight": fc1,
        # A cell sees 2 for its own code and 0 for any other.
        "fc1.bias": np.full(cells, -1.0),
        "fc2.weight": fc2,
        "fc2.bias": np.zeros(hidden),
    }
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        weights[f"self_attn.{projection}.weight"] = np.zeros((hidden, hidden))
        weights[f"self_attn.{projection}.bias"] = np.zeros(hidden)
    return weights


def exact_float16(name: str, values: Floats) -> npt.NDArray[np.float16]:
    """`values` as float16, refused unless bfloat16 (eight significant bits) holds them too."""
    mantissas, _ = np.frexp(values)
    stored = values.astype(np.float16)
    if np.any(mantissas * 256 != np.round(mantissas * 256)) or np.any(stored != values):
        raise ValueError(f"{name} cannot be stored exactly: the margin is too large for this story")
    return np.ascontiguousarray(stored)
