"""Chat templates: from a conversation to the text that a model was trained to continue.

Templates are programs that come with a checkpoint, so they run in jinja2's sandbox and within a
budget, with the settings and the few functions that transformers gives them (its
`apply_chat_template` is the oracle of the tests).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from minserve.files.json_file import shorten
from minserve.inputs.params import InvalidRequestError
from minserve.tokenizer.settings import MAX_TEMPLATE_BYTES

if TYPE_CHECKING:
    from jinja2 import Template


class ChatTemplateError(InvalidRequestError):
    """A conversation that cannot be rendered. The message says why, and what to do."""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    """The conversation as text.

    `messages`: mappings with `role` and `content`, and any other key the template reads; entries
    that are None count as absent. `variables`: further names for the template (special tokens,
    tools). Raises ChatTemplateError.
    """
    if not messages:
        raise ChatTemplateError("The conversation is empty: give at least one message.")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise ChatTemplateError(
                "A chat message is a mapping with 'role' and 'content', not "
                f"{shorten(repr(message))}."
            )
    present = [{k: v for k, v in each.items() if v is not None} for each in messages]
    from jinja2 import TemplateError

    from minserve.tokenizer.template_budget import TemplateLimit, spending

    compiled = _compile(template)
    try:
        with spending():
            text = compiled.render(
                messages=present,
                add_generation_prompt=add_generation_prompt,
                **{"tools": None, "documents": None, **variables},
            )
    except TemplateLimit as error:
        raise ChatTemplateError(
            f"The model's chat template was stopped: {error}. A template takes milliseconds; this "
            "one may be broken, or made to use up the machine. Give the text to generate() "
            "yourself, or another template as chat_template.jinja."
        ) from None
    except TemplateError as error:
        raise ChatTemplateError(f"The model's chat template refused: {_short(error)}") from error
    except Exception as error:  # a template may raise anything
        raise ChatTemplateError(
            "The model's chat template failed on these messages: "
            f"{type(error).__name__}: {_short(error)}"
        ) from error
    return text


def _short(error: Exception) -> str:
    return shorten(str(error), 1000)


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    """A template ready to render. Raises ChatTemplateError if it is not valid jinja2."""
    # Imported here, so that the command line starts faster.
    import jinja2

    from minserve.tokenizer.template_sandbox import TemplateEnvironment

    if len(template) > MAX_TEMPLATE_BYTES:
        raise ChatTemplateError(
            f"The model's chat template has {len(template):,} characters: expected at most "
            f"{MAX_TEMPLATE_BYTES:,}."
        )
    environment = TemplateEnvironment(
        {"tojson": _to_json},
        {"raise_exception": _raise_exception, "strftime_now": _strftime_now},
    )
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"The model's chat template is not valid jinja2 (line {error.lineno}): "
            f"{shorten(error.message or '', 300)}"
        ) from error
    except Exception as error:  # nested too deeply for jinja2, or for Python's own compiler
        raise ChatTemplateError(
            f"The model's chat template cannot be compiled: {type(error).__name__}: {_short(error)}"
        ) from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replaces jinja2's own filter, which escapes HTML; no model was trained on that."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    # The date that some templates write into the system prompt. It is text, not a measurement, so
    # it does not come from the engine's clock.
    if len(pattern) > 1000:
        raise ValueError(f"a date format has at most 1000 characters, not {len(pattern):,}")
    return datetime.now().strftime(pattern)
