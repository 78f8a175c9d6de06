"""The bodies of answers: completions, chats, log probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minserve.request import TokenLogprobs
from minserve.tokenizer import Tokenizer


class Speller:
    """Token ids as text and bytes; without a tokenizer as `token_id:N`, as in vLLM."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def text(self, token_id: int) -> str:
        """One token as text; a part of a character is U+FFFD."""
        if self._tokenizer is None:
            return f"token_id:{token_id}"
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def bytes(self, token_id: int) -> list[int] | None:
        """One token as numbers from 0 to 255; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        try:
            return list(self._tokenizer.token_bytes(token_id))
        except ValueError:  # a tokenizer whose tokens are no bytes of their own
            return list(self.text(token_id).encode())


def completion_logprobs(
    entries: Sequence[TokenLogprobs | None], token_ids: Sequence[int], spell: Speller, offset: int
) -> dict[str, Any]:
    """Log probabilities in the shape of completions; `offset` is the characters before them. The
    first token of a prompt has none."""
    tokens = [spell.text(token) for token in token_ids]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [None if each is None else each.logprob for each in entries],
        "top_logprobs": [
            None if each is None else {spell.text(token): value for token, value in each.top}
            for each in entries
        ],
        "text_offset": offsets,
    }


def chat_logprobs(entries: Sequence[TokenLogprobs], spell: Speller) -> dict[str, Any]:
    """Log probabilities in the shape of chats."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": spell.text(token), "logprob": logprob, "bytes": spell.bytes(token)}

    return {
        "content": [
            entry(each.token_id, each.logprob)
            | {"top_logprobs": [entry(token, value) for token, value in each.top]}
            for each in entries
        ],
        "refusal": None,
    }
