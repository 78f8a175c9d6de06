"""Converts conversations to prompts with the chat template of the model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from minserve.frontend.arguments import Errors
from minserve.frontend.generation import Given
from minserve.inputs.conversations import (
    Message,
    parse_conversations,
    parse_each_conversation,
)
from minserve.inputs.prompts import PromptInput, check_prompt_text
from minserve.loading import DescribedModel
from minserve.request import InvalidRequestError


def render_each(
    model: DescribedModel,
    messages: Sequence[Message] | Sequence[Sequence[Message]],
    errors: Errors,
) -> tuple[list[Given], bool]:
    """The prompts of one conversation, or of a list of them; and whether it was a list.

    With `errors="raise"`, raises InvalidRequestError for the first conversation that is refused;
    with "return", the error takes the prompt's place.
    """
    most = model.config.max_prompt_chars
    conversations: Sequence[list[Message] | InvalidRequestError]
    if errors == "raise":
        conversations, many = parse_conversations(messages, most)
    else:
        conversations, many = parse_each_conversation(messages, most)
    return [_rendered(model, conversation, errors) for conversation in conversations], many


def _rendered(
    model: DescribedModel, conversation: list[Message] | InvalidRequestError, errors: Errors
) -> Given:
    if isinstance(conversation, InvalidRequestError):
        return conversation
    try:
        return PromptInput(None, render(model, conversation))
    except InvalidRequestError as error:
        if errors == "raise":
            raise
        return error


def render(model: DescribedModel, conversation: Sequence[Message]) -> list[int]:
    """Token ids of a parsed conversation. Raises InvalidRequestError without a tokenizer or chat
    template, and for a prompt that is too long."""
    tokenizer = model.need_tokenizer("a conversation")
    text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
    check_prompt_text(text, model.config.max_prompt_chars, "the conversation as a prompt")
    # The template adds the special tokens itself.
    return tokenizer.encode(text, add_special_tokens=False)
