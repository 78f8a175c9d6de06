"""Conversations are rendered as transformers renders them; refusals are sentences."""

from __future__ import annotations

import json

import pytest
from tokenizer.vocabularies import BOS, EOS, byte_level, save

from minserve.tokenizer import ChatTemplateError, Tokenizer

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- bos_token }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {{- message['content'] | trim + '<|im_end|>' + '\\n' }}
    {%- if loop.index > 3 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TOOLS = """\
{% if tools %}
{{ tools | tojson(indent=2) }} {{ namespace(x=1).x }} {{ dict(a=1) }}
{% endif %}
{% for message in messages %}
  {% if message.role == 'assistant' %}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
  {% elif message.content is defined %}
{{ message.role }}: {{ message.content }} {{ documents }}
  {% else %}
nothing
  {% endif %}
{% endfor %}
"""
CHAT = [
    {"role": "user", "content": " <b>héllo</b>  "},
    {"role": "assistant", "content": "hi", "tool_calls": None},
    {"role": "user", "content": "bye"},
]
TOOL = {"type": "function", "function": {"name": "f", "description": "a < b & é"}}


@pytest.mark.parametrize("template", [CHATML, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("place", ["config", "file"])
def test_chats_are_rendered_as_by_transformers(template, prompt, tools, place, tmp_path):
    from transformers import AutoTokenizer

    path = save(
        byte_level(), tmp_path, **({"chat_template": template} if place == "config" else {})
    )
    if place == "file":
        (path / "chat_template.jinja").write_text(template)
    ours, theirs = Tokenizer.from_dir(path), AutoTokenizer.from_pretrained(path)
    chat = [*CHAT, {"role": "user", "content": None}] if template is TOOLS else CHAT
    text = theirs.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=prompt, tools=tools
    )
    assert ours.apply_chat_template(chat, prompt, tools=tools) == text
    ids = theirs.apply_chat_template(
        chat, add_generation_prompt=prompt, tools=tools, return_dict=False
    )
    assert ours.encode_chat(chat, prompt, tools=tools) == ids


def test_a_template_of_its_own_is_taken_when_there_are_tools(tmp_path):
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with tools"},
    ]
    tokenizer = Tokenizer.from_dir(save(byte_level(), tmp_path, chat_template=named))
    assert tokenizer.apply_chat_template(CHAT) == "plain"
    assert tokenizer.apply_chat_template(CHAT, tools=[TOOL]) == "with tools"


def test_a_file_wins_over_the_settings(tmp_path):
    path = save(byte_level(), tmp_path, chat_template="old")
    (path / "chat_template.jinja").write_text("new")
    assert Tokenizer.from_dir(path).apply_chat_template(CHAT) == "new"


def with_template(template: str) -> Tokenizer:
    return Tokenizer(byte_level(), {"bos_token": BOS, "eos_token": EOS}, {"default": template})


def test_a_model_without_a_template_says_what_to_do():
    with pytest.raises(ChatTemplateError, match=r"no chat template.*chat_template\.jinja"):
        Tokenizer(byte_level()).apply_chat_template(CHAT)


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        ("{{ raise_exception('roles must alternate') }}", CHAT, "roles must alternate"),
        ("{% if %}", CHAT, "not valid jinja2"),
        ("{{ messages[0].content.nothing.at_all }}", CHAT, "refused"),
        ("{{ ''.__class__.__mro__ }}", CHAT, "refused"),
        ("{{ messages.append(1) }}", CHAT, "refused"),
        ("{{ messages[0]['content'] + 1 }}", CHAT, "failed"),
        ("x", [], "empty"),
        ("x", ["hello"], "mapping"),
        ("x", [{"content": "hello"}], "role"),
    ],
)
def test_what_cannot_be_rendered_is_refused_with_a_sentence(template, messages, expected):
    with pytest.raises(ChatTemplateError, match=expected):
        with_template(template).apply_chat_template(messages)


def test_the_date_is_at_hand():
    rendered = with_template("{{ strftime_now('%Y') }}").apply_chat_template(CHAT)
    assert json.loads(rendered) > 2000


def test_a_conversation_that_cannot_be_rendered_is_an_invalid_request():
    from minserve.request import InvalidRequestError

    assert issubclass(ChatTemplateError, InvalidRequestError)
    assert issubclass(ChatTemplateError, ValueError)
