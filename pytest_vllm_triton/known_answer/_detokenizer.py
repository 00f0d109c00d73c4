"""Text from tokens, one token at a time, as vLLM's incremental detokenizer gives it.

A model of its own, in bytes, not a call to the library that vLLM uses: an oracle that shares the
code under test shares its faults. tests/known_answer compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Emits text as soon as it is whole: bytes of an unfinished character are held back."""

    def __init__(self, token_bytes: Callable[[int], bytes], prompt_ids: Sequence[int] = ()) -> None:
        self._token_bytes = token_bytes
        self._window = list(prompt_ids)
        self._prefix = ""
        self._prefix_length = 0
        # A prompt that ends in U+FFFD looks unfinished: vLLM repeats all of it with the first text.
        decoded = self._decode(self._window)
        if not decoded.endswith(_REPLACEMENT):
            self._prefix, self._prefix_length = decoded, len(self._window)

    def step(self, token_id: int) -> str:
        """Text that becomes final with `token_id`, "" while a character is unfinished."""
        self._window.append(token_id)
        decoded = self._decode(self._window)
        if len(decoded.encode()) <= len(self._prefix.encode()) or decoded.endswith(_REPLACEMENT):
            return ""
        if not decoded.startswith(self._prefix):
            # Stray bytes changed the meaning of what was sent; vLLM starts over from this token.
            self._window, self._prefix, self._prefix_length = [], "", 0
            return self.step(token_id)
        text = decoded[len(self._prefix) :]
        kept = self._window[self._prefix_length :]
        self._prefix_length = len(self._window) - self._prefix_length
        self._window, self._prefix = kept, self._decode(kept)
        return text

    def _decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self._token_bytes, token_ids)).decode("utf-8", "replace")
