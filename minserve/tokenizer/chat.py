"""Chat templates: a conversation to the text a model was trained to continue.

Templates are programs that come with a checkpoint, so they run in jinja2's sandbox, with the
settings and the few functions that transformers gives them (its `apply_chat_template` is the
oracle of the tests).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


class ChatTemplateError(ValueError):
    """A conversation that cannot be rendered. The message says why, and what to do."""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    """The conversation as text.

    `messages`: mappings with `role` and `content`, and what else the template reads; entries that
    are None count as absent. `variables`: further names the template sees (special tokens, tools).
    Raises ChatTemplateError.
    """
    from jinja2 import TemplateError

    if not messages:
        raise ChatTemplateError("The conversation is empty: give at least one message.")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise ChatTemplateError(
                f"A chat message is a mapping with 'role' and 'content', not {message!r}."
            )
    present = [{k: v for k, v in each.items() if v is not None} for each in messages]
    try:
        return _compile(template).render(
            messages=present,
            add_generation_prompt=add_generation_prompt,
            **{"tools": None, "documents": None, **variables},
        )
    except TemplateError as error:
        raise ChatTemplateError(f"The model's chat template refused: {error}") from error
    except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
        raise ChatTemplateError(
            f"The model's chat template failed on these messages: {type(error).__name__}: {error}"
        ) from error


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    """A template ready to render. Raises ChatTemplateError when it is not valid jinja2."""
    # Imported here: the command line starts without it.
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_blocks(), loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"The model's chat template is not valid jinja2 (line {error.lineno}): {error.message}"
        ) from error


def _generation_blocks() -> Any:
    """A jinja2 extension: `{% generation %}` marks what training learns; here it does nothing."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationBlocks(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2 reads it from the class

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return GenerationBlocks


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which no model was trained on."""
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
    # The date that some templates write into the system prompt: text, not a measurement, so it
    # does not come from the engine's clock.
    return datetime.now().strftime(pattern)
