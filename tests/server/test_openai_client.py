"""OpenAI's own client over a real port: every feature, and the same texts as offline."""

from __future__ import annotations

import json

import openai
import pytest
from openai import OpenAI

from minserve import SamplingParams, StructuredOutputs

MODEL = "zoo/draft"
PROMPT = "def fibonacci(n):"


@pytest.fixture(scope="module")
def client(server):
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def complete(client, **given):
    return client.completions.create(
        **({"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 12} | given)
    )


def chat(client, **given):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "import os"}]}
    return client.chat.completions.create(**(asked | {"temperature": 0, "max_tokens": 9} | given))


def test_a_completion_is_that_of_generate(client, offline):
    params = SamplingParams(max_tokens=12, temperature=0.0)
    expected = offline.generate([PROMPT], params)[0]
    answer = complete(client)
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.model == MODEL and answer.id.startswith("cmpl-")


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.8, "seed": 7, "top_p": 0.9},
        {"temperature": 1.0, "seed": 3, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": {"50": -100, "60": 5}},
        {"stop": ["\n", "return"]},
        {"n": 3, "temperature": 0.9, "seed": 1},
    ],
)
def test_parameters_mean_what_they_mean_offline(client, offline, given):
    expected = offline.generate(
        [PROMPT], SamplingParams(**({"max_tokens": 12, "temperature": 0.0} | given))
    )[0]
    answer = complete(client, **given)
    assert [each.text for each in answer.choices] == [each.text for each in expected.samples]
    assert [each.index for each in answer.choices] == list(range(len(expected.samples)))


def test_fields_of_vllm(client, offline):
    extra = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2, "min_tokens": 12,
             "return_token_ids": True, "ignore_eos": True}  # fmt: skip
    params = SamplingParams(max_tokens=12, temperature=0.7, seed=5, top_k=5, min_p=0.05,
                            repetition_penalty=1.2, min_tokens=12, ignore_eos=True)  # fmt: skip
    expected = offline.generate([PROMPT], params)[0]
    answer = complete(client, temperature=0.7, seed=5, extra_body=extra)
    assert answer.choices[0].token_ids == list(expected.token_ids)
    assert answer.choices[0].prompt_token_ids == list(expected.prompt_token_ids)


def test_lists_of_prompts_and_of_token_ids(client, offline):
    ids = [offline.encode(text) for text in ("import ", "class A")]
    texts = complete(client, prompt=["import ", "class A"], n=2, best_of=None)
    tokens = complete(client, prompt=ids, n=2)
    assert [each.text for each in texts.choices] == [each.text for each in tokens.choices]
    assert [each.index for each in texts.choices] == [0, 1, 2, 3]
    one = complete(client, prompt=ids[0])
    assert one.choices[0].text == texts.choices[0].text


def test_a_stream_is_the_answer_in_pieces(client):
    whole = complete(client, prompt=["import ", PROMPT], n=2, temperature=0.9, seed=4)
    told = dict.fromkeys(range(4), "")
    ends = {}
    pieces = complete(client, prompt=["import ", PROMPT], n=2, temperature=0.9, seed=4, stream=True,
                      stream_options={"include_usage": True})  # fmt: skip
    usage = None
    for piece in pieces:
        for choice in piece.choices:
            told[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
        usage = piece.usage or usage
    assert told == {each.index: each.text for each in whole.choices}
    assert ends == {each.index: each.finish_reason for each in whole.choices}
    assert usage.total_tokens == whole.usage.total_tokens


def test_usage_in_every_event(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        piece.usage.completion_tokens
        for piece in complete(client, stream=True, extra_body={"stream_options": options})
    ]
    assert counts == sorted(counts) and counts[0] >= 1 and counts[-1] == 12


def test_echo_and_log_probabilities(client, offline):
    params = SamplingParams(max_tokens=12, temperature=0.0, logprobs=2, prompt_logprobs=2)
    expected = offline.generate([PROMPT], params)[0]
    for stream in (False, True):
        answer = complete(client, echo=True, logprobs=2, stream=stream)
        parts = list(answer) if stream else [answer]
        choices = [each.choices[0] for each in parts if each.choices]
        assert "".join(each.text for each in choices) == PROMPT + expected.text
        tokens = [one for each in choices for one in each.logprobs.tokens]
        values = [one for each in choices for one in each.logprobs.token_logprobs]
        offsets = [one for each in choices for one in each.logprobs.text_offset]
        assert "".join(tokens).endswith(PROMPT + expected.text)
        both = [*expected.prompt_logprobs, *expected.samples[0].logprobs]
        assert values[0] is None
        assert values[1:] == pytest.approx([each.logprob for each in both[1:]], abs=1e-4)
        assert len(offsets) == len(tokens) and offsets == sorted(offsets)


def test_a_chat_and_its_log_probabilities(client):
    answer = chat(client, logprobs=True, top_logprobs=2)
    (choice,) = answer.choices
    content = choice.logprobs.content
    assert len(content) == answer.usage.completion_tokens == 9
    assert bytes(byte for one in content for byte in one.bytes).decode() == choice.message.content
    assert all(len(one.top_logprobs) == 2 for one in content)
    assert choice.message.role == "assistant" and answer.object == "chat.completion"


def test_a_streamed_chat(client):
    whole = chat(client, n=2, temperature=0.9, seed=2)
    roles, texts = [], {0: "", 1: ""}
    for piece in chat(client, n=2, temperature=0.9, seed=2, stream=True):
        for choice in piece.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.index] if choice.delta.role else []
    assert roles == [0, 1]
    assert texts == {each.index: each.message.content for each in whole.choices}


def test_a_model_without_a_template_reads_plain_lines(client, server, offline):
    text = "system: Be short.\nuser: import os\nassistant:"
    expected = offline.generate([text], SamplingParams(max_tokens=9, temperature=0.0))[0].text
    messages = [{"role": "system", "content": "Be short."},
                {"role": "user", "content": [{"type": "text", "text": "import os"}]}]  # fmt: skip
    assert chat(client, messages=messages).choices[0].message.content == expected
    assert client.models.retrieve(MODEL).chat_template == "plain"


SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["a", "b"],
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99},
                   "b": {"enum": ["yes", "no"]}},
}  # fmt: skip


def test_an_answer_has_the_form_that_was_asked_for(client, offline):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answer = chat(client, max_tokens=80, response_format=form)
    found = json.loads(answer.choices[0].message.content)
    assert set(found) == {"a", "b"} and found["b"] in ("yes", "no") and 0 <= found["a"] < 100
    params = SamplingParams(max_tokens=40, temperature=0.0,
                            structured_outputs=StructuredOutputs(regex="[a-c]{3,5}"))  # fmt: skip
    expected = offline.generate([PROMPT], params)[0].text
    regex = complete(
        client, max_tokens=40, extra_body={"structured_outputs": {"regex": "[a-c]{3,5}"}}
    )
    assert regex.choices[0].text == expected
    choice = complete(client, extra_body={"structured_outputs": {"choice": ["left", "right"]}})
    assert choice.choices[0].text in ("left", "right")


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({"model": "gpt-4"}, 404, "this server has 'zoo/draft'"),
        ({"prompt": ""}, 400, "empty"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [[1, 2], ["a"]]}, 400, "prompt"),
        ({"prompt": [99999]}, 400, "outside the vocabulary"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"suffix": "x"}, 400, "suffix: this server does not support"),
        ({"best_of": 3}, 400, "best_of: this server does not support"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"stop": 3}, 400, "stop"),
        ({"n": 0}, 400, "n="),
        ({"extra_body": {"bos": 1}}, 400, "bos: this server does not support"),
        ({"stream_options": {"include_usage": True}}, 400, "needs stream=true"),
        ({"extra_body": {"response_format": {"type": "xml"}}}, 400, "response_format"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, 400, "regex"),
        ({"extra_body": {"timeout_s": -1}}, 400, "timeout_s"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_in_a_sentence(client, given, status, words):
    with pytest.raises(openai.APIStatusError) as caught:
        complete(client, **given)
    assert caught.value.status_code == status
    error = caught.value.body
    assert words in error["message"], error
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "renders no tools"),
        ({"top_logprobs": 2}, "needs logprobs=true"),
        ({"max_completion_tokens": 3}, "differ"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text only"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio: this server does not support"),
    ],
)
def test_what_a_chat_cannot_be_is_refused_in_a_sentence(client, given, words):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **given)
    assert words in caught.value.body["message"]


def test_fields_that_ask_for_nothing_are_no_error(client):
    extra = {"suffix": None, "best_of": 1, "response_format": {"type": "text"}}
    assert complete(client, extra_body=extra).choices
    assert chat(client, store=False, parallel_tool_calls=True, service_tier="auto").choices
