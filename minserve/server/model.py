"""The model behind a server: its name, its defaults, and how text and chats become tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minserve.async_llm import AsyncLLM
from minserve.inputs.conversations import parse_conversations
from minserve.inputs.prompts import Prompt, check_prompt_text, parse_prompt
from minserve.server.errors import ApiError
from minserve.tokenizer import Tokenizer


class ServedModel:
    """One engine under one name."""

    def __init__(self, llm: AsyncLLM, name: str) -> None:
        self.llm = llm
        self.name = name
        self.defaults = llm.default_sampling_params
        self._most_chars = llm.config.max_prompt_chars

    @property
    def has_chat_template(self) -> bool:
        """False if chats are written plainly, a line for each message."""
        tokenizer = self.llm.tokenizer
        return tokenizer is not None and bool(tokenizer.chat_templates)

    def check_name(self, asked: str | None) -> None:
        """Raise ApiError 404 if a request names another model."""
        if asked is not None and asked != self.name:
            raise ApiError(
                404,
                f"there is no model {asked!r} here: this server has {self.name!r}",
                "model",
                "model_not_found",
            )

    def encode(self, prompt: Prompt, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt. Raises InvalidRequestError."""
        given = parse_prompt(prompt, self._most_chars)
        if given.text is None:
            return list(given.token_ids or ())
        return self._need_tokenizer("text").encode(given.text, add_special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, ready for the model's answer.

        By the model's chat template; a model without one gets a line "role: content" for each
        message and the beginning of its own. Raises InvalidRequestError.
        """
        tokenizer = self._need_tokenizer("a conversation")
        [conversation], _ = parse_conversations(list(messages), self._most_chars)
        if not self.has_chat_template:
            text = plain_chat(conversation)
            check_prompt_text(text, self._most_chars, "the conversation as a prompt")
            return tokenizer.encode(text)
        given = {"tools": list(tools)} if tools else {}
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, **given)
        check_prompt_text(text, self._most_chars, "the conversation as a prompt")
        return tokenizer.encode(text, add_special_tokens=False)

    def check_tools(self) -> None:
        """Raise ApiError if the model's chat template renders no tools."""
        templates = self.llm.tokenizer.chat_templates if self.llm.tokenizer else {}
        if not any("tools" in text or name == "tool_use" for name, text in templates.items()):
            raise ApiError(
                400, "tools: this model's chat template renders no tools; leave them out", "tools"
            )

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.llm.tokenizer is None:
            raise ApiError(
                400, f"this model came without a tokenizer, so {what} cannot be turned into "
                "tokens: send a list of token ids", "prompt",
            )  # fmt: skip
        return self.llm.tokenizer

    def described(self) -> dict[str, Any]:
        """The model as `/v1/models` lists it."""
        return {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "minserve",
            "max_model_len": self.llm.config.max_model_len,
            "chat_template": "the model's" if self.has_chat_template else "plain",
        }


def plain_chat(conversation: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as lines "role: content", then "assistant:". Parts of a message that are no
    text are refused: raises ApiError."""
    lines = []
    for message in conversation:
        content = message.get("content") or ""
        if not isinstance(content, str):
            parts = [part.get("text") for part in content if part.get("type") == "text"]
            if len(parts) < len(content) or not all(isinstance(part, str) for part in parts):
                raise ApiError(400, "messages: this model reads text only", "messages")
            content = "".join(str(part) for part in parts)
        lines.append(f"{message['role']}: {content}\n")
    return "".join(lines) + "assistant:"
