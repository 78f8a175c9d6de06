"""A chat template is a stranger's program: it may not take the machine's time or memory."""

from __future__ import annotations

import gc
import resource
import threading
import time
from collections.abc import Iterator

import pytest
from tokenizer.test_chat import CHAT, TOOL, with_template

from minserve.tokenizer import ChatTemplateError, template_budget

BOMBS = {
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "nested loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}abcdefgh"
    "{% endfor %}{% endfor %}",
    "a filtered loop": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}"
    "{% endfor %}{% endfor %}",
    "repeated text": "{{ 'x' * 10**10 }}",
    "repeated text, the other way": "{{ 10**10 * 'x' }}",
    "text repeated by a variable": "{% set n = messages|length * 10**10 %}{{ bos_token * n }}",
    "a repeated list": "{{ ([0] * 10**10) | length }}",
    "doubled text": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubled text, joined": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubled text, written": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}{% endfor %}",
    "a tower of powers of a variable": "{{ (messages | length) ** 10000000 }}",
    "a doubled list": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "kept slices": "{% set ns = namespace(l=[], s='x' * 4000000) %}{% for i in range(9999) %}"
    "{% set ns.l = ns.l + [ns.s[i:]] %}{% endfor %}",
    "a doubly nested list, written": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}"
    "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "a doubly nested list as JSON": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}"
    "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
    "a doubly nested list in a namespace": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}"
    "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns }}",
    "two doubly nested lists, compared": "{% set ns = namespace(a=[1], b=[1]) %}"
    "{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}"
    "{% endfor %}{{ ns.a == ns.b }}",
    "a doubly nested tuple as a key": "{% set ns = namespace(s=(1,)) %}{% for i in range(60) %}"
    "{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ {ns.s: 1} }}",
    "a tower of powers": "{{ 9 ** (9 ** 9) }}",
    "squared numbers": "{% set ns = namespace(n=3) %}{% for i in range(99) %}"
    "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "a centered constant": "{{ 'x' | center(10**10) }}",
    "a centered text": "{{ bos_token | center(10**10) }}",
    "a method that pads": "{{ bos_token.ljust(10**10) }}",
    "tabs": "{{ '\\t'.expandtabs(10**10) }}",
    "a width in a format": "{{ '%10000000000d' | format(1) }}",
    "a width in a %": "{{ '%*d' % (10**10, 1) }}",
    "a width in str.format": "{{ '{:>10000000000}'.format(1) }}",
    "a width that is an argument": "{{ '{:>{}}'.format(1, 10**10) }}",
    "replaced by more": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replaced by more, the filter": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "joined by more": "{{ range(99999) | join('b' * 1000000) }}",
    "joined by more, the method": "{{ ('b' * 1000000).join('a' * 1000000) }}",
    "indented": "{{ ('\\n' * 1000000) | indent(10**7) }}",
    "indented JSON": "{{ messages | tojson(indent=10**9) }}",
    "wrapped": "{{ ('a ' * 1000000) | wordwrap(1, wrapstring='b' * 100000) }}",
    "batches": "{{ [1] | batch(10**10, 'x') | list }}",
    "slices": "{{ [1] | slice(10**10) | list }}",
    "summed lists": "{{ ([[1] * 999] * 99999) | sum(start=[]) | length }}",
    "mapped lists": "{{ ([range(99999)] * 99999) | map('list') | map('length') | sum }}",
    "tests in a filter": "{{ range(99999) | select('in', range(99999) | list) | list | length }}",
    "a macro that calls itself": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "a macro that doubles": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}x"
    "{% endmacro %}{{ m(60) }}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "filler text": "{{ lipsum(n=10**6) }}",
    "a date": "{{ strftime_now('%c' * 1000000) }}",
    "a long refusal": "{{ raise_exception('x' * 10000000) }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a long sum": "{{ " + "1+" * 20000 + "1 }}",
    "nested blocks": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
    "a long template": "x" * 1_000_000,
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
}


@pytest.fixture(scope="module", autouse=True)
def _only_objects_of_the_template_are_collected() -> Iterator[None]:
    """Late in a long test run, one full collection of a million objects of other tests takes most
    of the second that a template is allowed here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_time_and_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Many of them run until they are stopped: a tenth of the time shows the same.
    monkeypatch.setattr(template_budget, "MAX_SECONDS", 0.1)
    tokenizer = with_template(BOMBS[name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises(ChatTemplateError, match="chat template") as caught:
        tokenizer.apply_chat_template(CHAT)
    assert time.thread_time() - start < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 600_000  # KiB
    assert len(str(caught.value)) < 2000
    assert threading.active_count() < 20


def test_the_time_that_is_allowed_is_short() -> None:
    start = time.thread_time()
    with pytest.raises(ChatTemplateError, match=r"was stopped: it computes for more than 1\.0"):
        with_template(BOMBS["nested loops"]).apply_chat_template(CHAT)
    assert time.thread_time() - start < 1.5


# Constructs of real templates, each beside the rewritten loops, operators and comparisons.
LEGIT = """\
{%- set ns = namespace(found=false, n=0, text='') -%}
{%- for message in messages[::-1] -%}
  {%- if not ns.found and message.role == 'user' and message.content is string -%}
    {%- set ns.found = true -%}{%- set ns.n = (messages|length - 1) - loop.index0 -%}
  {%- endif -%}
{%- endfor -%}
{%- macro show(value, depth=0) -%}
  {%- if value is mapping -%}
    {%- for key, item in value.items() -%}
      {{ '  ' * depth }}{{ key }}: {{ show(item, depth + 1) }}
    {%- endfor -%}
  {%- elif value is iterable and value is not string -%}
    [{%- for item in value %}{{ show(item) }}{{ ', ' if not loop.last }}{% endfor %}]
  {%- else -%}{{ value | string | upper }}{%- endif -%}
{%- endmacro -%}
{{ bos_token ~ ns.n ~ '|' ~ ns.found }}
{% for message in messages if message.role != 'system' %}
{{ loop.index }}/{{ loop.length }} {{ loop.previtem.role if loop.previtem is defined }}
{%- if message['role'] in ['user', 'assistant'] and loop.index0 >= 0 != false %}
{{ '<|' + message.role + '|>' }}{{ message.content[:200] | trim }}
{{ message.content.split('o')[-1] }}
{%- endif %}
{{ message.content.replace('l', 'LL').strip().ljust(30) + '|' }}
{{ '%s has %d' % (message.role, message.content | length) }}
{{ '{}-{:>5}'.format(message.role, loop.index) }}
{{ message.content | replace('e', 'E') | center(40) | indent(2) }}
{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}
{{ messages | map(attribute='role') | unique | sort | list | tojson }}
{{ messages | groupby('role') | list | length }} {{ [1, 2, 3] | sum }} {{ 2 ** 10 }} {{ 7 % 3 }}
{{ (tools or []) | tojson(indent=4) }} {{ show(tools or [{'a': [1, 'b']}]) }}
{% set a, b = 1, (2, 3) %}{{ a }}{{ b }}{{ {'k': b}['k'] }}{{ ('x', 1) in [('x', 1)] }}
{% for row in [1, 2, 3, 4, 5] | batch(2, 'fill') %}{{ row }}{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}
{% call(x) show_call() %}{{ x }}{% endcall %}
"""
LEGIT = "{% macro show_call() %}<{{ caller(1) }}>{% endmacro %}" + LEGIT


@pytest.mark.parametrize("tools", [None, [TOOL, {"name": "g", "parameters": {"type": "object"}}]])
def test_what_real_templates_do_is_rendered_as_by_transformers(tools: object) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    ours = with_template(LEGIT).apply_chat_template(CHAT, True, tools=tools)
    theirs, _ = render_jinja_template(
        [CHAT], tools=tools, chat_template=LEGIT, add_generation_prompt=True,
        bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    # transformers leaves entries of None in the messages, where ours count as absent.
    assert ours == theirs[0]


def test_a_long_chat_is_far_from_the_budget() -> None:
    chat = [
        {"role": "user", "content": "hello world " * 100},
        {"role": "assistant", "content": "x"},
    ]
    tokenizer = with_template(LEGIT)
    tokenizer.apply_chat_template(chat)
    start = time.thread_time()
    tokenizer.apply_chat_template(chat * 200)
    assert time.thread_time() - start < 0.5


def test_threads_have_budgets_of_their_own() -> None:
    template = "{% for i in range(9000) %}{{ 'x' * 500 }}{% endfor %}"
    tokenizer, lengths = with_template(template), []
    threads = [
        threading.Thread(target=lambda: lengths.append(len(tokenizer.apply_chat_template(CHAT))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [4_500_000] * 3
