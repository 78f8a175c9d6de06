"""A model's tokens as llguidance needs them: the bytes of each, and which are no text.

A grammar's end is a token of its own behind the vocabulary. Which of the model's tokens end a text
differs from request to request, so `mask` puts them in its place.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol

from minserve.inputs.errors import InvalidRequestError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Vocabulary(Protocol):
    """The part of a tokenizer that grammars need."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def special_ids(self) -> Collection[int]:
        """Ids that are no text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes, or part of them, that a token adds to a text; empty if it adds none."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...


def need_library() -> Any:
    """The module llguidance. Raises InvalidRequestError if it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise InvalidRequestError(
            "SamplingParams.structured_outputs needs the package llguidance, which cannot be "
            f"imported here ({error}): pip install 'minserve[structured]'"
        ) from None
    return llguidance


class _Wrapped:
    """What llguidance's TokenizerWrapper reads."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, not_text: Collection[int]) -> None:
        size = vocabulary.vocab_size
        self._vocabulary = vocabulary
        hidden = {*vocabulary.special_ids, *not_text}
        self.eos_token_id = size
        self.special_token_ids = sorted({*(token for token in hidden if token < size), size})
        # A special token needs a name that no other has; it is never matched as text.
        self.tokens = [
            b"<|%d|>" % token if token in hidden else vocabulary.token_bytes(token)
            for token in range(size)
        ]
        self.tokens.append(b"<|end of the grammar|>")

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._vocabulary.encode(plain, add_special_tokens=False)


def build_tokens(vocabulary: Vocabulary, not_text: Collection[int]) -> LLTokenizer:
    """llguidance's form of a vocabulary; id `vocab_size` is the end of the grammar. `not_text`: the
    model's end tokens, which no grammar matches as text.

    Raises InvalidRequestError without llguidance, or if the tokenizer does not say which bytes a
    token stands for.
    """
    library = need_library()
    wrapped = library.TokenizerWrapper(_Wrapped(vocabulary, not_text))
    built: LLTokenizer = library.LLTokenizer(wrapped)
    return built
