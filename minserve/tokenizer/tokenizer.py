"""A model's tokenizer: text to ids, ids to text, conversations to text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minserve.files.json_file import shorten
from minserve.request import InvalidRequestError
from minserve.tokenizer.chat import ChatTemplateError, render_chat
from minserve.tokenizer.detokenizer import (
    ByteDetokenizer,
    Detokenizer,
    WindowDetokenizer,
    byte_level_alphabet,
)
from minserve.tokenizer.loading import read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_SENTENCEPIECE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
"""Types of the parts that decoders of SentencePiece's vocabularies have."""


class Tokenizer:
    """Encodes like transformers' AutoTokenizer for the same directory; may be shared
    between threads.

    `special_tokens`: contents by role (`bos_token`, ...). `chat_templates`: jinja2 sources by name.
    `notes`: if the files contradict each other, which one is used.
    """

    def __init__(
        self,
        backend: Backend,
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._backend = backend
        self.notes = notes
        self.special_tokens = dict(special_tokens or {})
        self.chat_templates = dict(chat_templates or {})
        self.special_ids: frozenset[int] = frozenset(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )
        """Ids that `skip_special_tokens` omits from the text."""
        self._decoder_types = _decoder_types(backend)
        self._bytes: dict[int, bytes] = {}
        self._alphabet = byte_level_alphabet()

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer | None:
        """The tokenizer of a model's directory; None if it has none, so that the model
        takes only token ids.

        Raises TokenizerError if there is one that cannot be used.
        """
        files = read_tokenizer(Path(path))
        if files is None:
            return None
        return cls(files.backend, files.special_tokens, files.chat_templates, files.notes)

    @property
    def vocab_size(self) -> int:
        """Number of ids, including added tokens; a model may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text, if there is one."""
        return self._role("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text, if there is one. If a model's generation_config.json
        names several, they are used instead."""
        return self._role("eos_token")

    def _role(self, name: str) -> int | None:
        content = self.special_tokens.get(name)
        return None if content is None else self._backend.token_to_id(content)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. `add_special_tokens`: with the tokens that the model expects
        around it (BOS).

        Raises InvalidRequestError for text that is not valid Unicode, or on which the tokenizer's
        regular expression fails.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequestError(
                f"The prompt is not text that can be encoded: {error}. A prompt is a string "
                "without lone surrogates, or a list of token ids."
            ) from error
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust panic is a BaseException
            raise InvalidRequestError(
                "The prompt cannot be tokenized: the model's tokenizer failed on it "
                f"({shorten(str(error) or type(error).__name__, 300)}). Give a shorter prompt, or "
                "a list of token ids."
            ) from None
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; incomplete characters as U+FFFD, unknown ids omitted."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str | None:
        """One token in the vocabulary's spelling (a space may be "Ġ" or "▁"); None if unknown."""
        return self._backend.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text: a part of a character, perhaps. Empty for unknown
        ids.

        Raises InvalidRequestError if the tokenizer's tokens are no bytes of their own.
        """
        if self._decoder_types == ["ByteLevel"]:
            return self._to_bytes(token_id)
        if not self._is_sentencepiece:
            raise InvalidRequestError(
                "structured_outputs needs a tokenizer whose tokens are bytes (byte-level BPE or "
                "SentencePiece), and this model's decodes by "
                f"{', '.join(self._decoder_types) or 'nothing'}: use allowed_token_ids"
            )
        text = self.token_text(token_id) or ""
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes.fromhex(text[3:5])
        return text.replace("▁", " ").encode()

    @property
    def _is_sentencepiece(self) -> bool:
        """True if a token is text with "▁" for a space, or a byte such as <0x0A>."""
        return bool(self._decoder_types) and set(self._decoder_types) <= _SENTENCEPIECE

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as text, ready for `encode(text, add_special_tokens=False)`.

        `add_generation_prompt`: end with the beginning of the model's answer. `variables` (such as
        `tools`) are passed to the template. Raises ChatTemplateError.
        """
        name = "tool_use" if variables.get("tools") and "tool_use" in self.chat_templates else ""
        template = self.chat_templates.get(name or "default")
        if template is None:
            raise ChatTemplateError(
                "This model has no chat template: it was trained to continue text, not to chat. "
                "Use generate() with a plain prompt, or put the template of a model of the same "
                "family into its directory as chat_template.jinja."
            )
        return render_chat(
            template, messages, add_generation_prompt, {**self.special_tokens, **variables}
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation (the template writes BOS). Raises ChatTemplateError."""
        text = self.apply_chat_template(messages, add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        """Decodes one sample's tokens as they arrive; together exactly the text that `decode`
        gives."""
        hidden = self.special_ids if skip_special_tokens else frozenset()
        if self._decoder_types == ["ByteLevel"]:
            return ByteDetokenizer(lambda token: b"" if token in hidden else self._to_bytes(token))
        return WindowDetokenizer(
            piece=lambda token: None if token in hidden else self.token_text(token),
            decode=lambda tokens: self.decode(tokens, skip_special_tokens=False),
            byte_level="ByteLevel" in self._decoder_types,
        )

    def _to_bytes(self, token_id: int) -> bytes:
        """A byte-level token's bytes; cached."""
        found = self._bytes.get(token_id)
        if found is None:
            text = self.token_text(token_id) or ""
            if all(character in self._alphabet for character in text):
                found = bytes(self._alphabet[character] for character in text)
            else:  # an added token outside the alphabet represents itself
                found = text.encode()
            self._bytes[token_id] = found
        return found


def _decoder_types(backend: Backend) -> list[str]:
    """Types of the decoder's parts, in order: ["ByteLevel"], ["Replace", "ByteFallback", ...]."""
    if backend.decoder is None:
        return []
    described = json.loads(backend.decoder.__getstate__())
    parts = described["decoders"] if described["type"] == "Sequence" else [described]
    return [str(part["type"]) for part in parts]
