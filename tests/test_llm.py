"""The front door: what a caller sends and gets, and what happens when it goes wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from minserve import LLM, ConfigError, EngineConfig, InvalidRequestError, SamplingParams
from minserve.loading import find_model

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
CONFIG = EngineConfig(dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def llm():
    with LLM("zoo/base", CONFIG) as model:
        yield model


def test_a_string_a_list_and_token_ids_give_the_same_text(llm):
    text = "def add(a, b):"
    ids = llm.encode(text)
    single = llm.generate(text, GREEDY)
    many = llm.generate([text, ids], GREEDY)
    alone = llm.generate(ids, GREEDY)
    assert len(single) == len(alone) == 1
    assert {o.text for o in (*single, *many, *alone)} == {single[0].text}
    assert single[0].prompt == text
    assert alone[0].prompt is None
    assert single[0].token_ids == alone[0].token_ids
    assert len(single[0].token_ids) == 12


def test_outputs_come_in_the_order_of_the_prompts_with_params_each(llm):
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (9, 1, 5)]
    outputs = llm.generate(["a =", "b =", "c ="], params)
    assert [len(o.token_ids) for o in outputs] == [9, 1, 5]
    assert [o.prompt for o in outputs] == ["a =", "b =", "c ="]


def test_a_smaller_priority_number_is_served_first():
    config = CONFIG.with_values({"scheduling.order": "priority", "scheduling.max_num_seqs": 1})
    with LLM("zoo/base", config) as llm:
        outputs = llm.generate(["a =", "b =", "c ="], GREEDY, priority=[2, 0, 1])
        order = sorted(outputs, key=lambda output: output.metrics.finished_s)
        assert [output.prompt for output in order] == ["b =", "c =", "a ="]
        with pytest.raises(InvalidRequestError, match="2 priorities for 1 prompts"):
            llm.generate("a =", GREEDY, priority=[1, 2])


def test_metrics_and_trace_say_what_it_cost(llm):
    output = llm.generate("import os\n", GREEDY)[0]
    metrics = output.metrics
    assert 0 < metrics.ttft_s < metrics.e2e_s
    assert metrics.tpot_s == pytest.approx((metrics.e2e_s - metrics.ttft_s) / 11)
    totals = llm.trace.totals
    assert (totals.sampled_tokens, totals.finished_requests) == (12, 1)
    assert totals.decode_tokens == 11
    step = llm.trace.steps[-1]
    assert step.work.flops > 2 * llm.config.model.num_parameters()
    assert step.stages.attention_s > 0
    assert llm.trace.header.config["memory.block_size"] == 16


def test_seeded_sampling_does_not_depend_on_the_company(llm):
    params = SamplingParams(max_tokens=16, temperature=1.0, seed=7, top_p=0.95, ignore_eos=True)
    alone = llm.generate("class Node:", params)[0]
    others = SamplingParams(max_tokens=5, temperature=1.3)
    crowd = llm.generate(
        ["x"] * 5 + ["class Node:"] + ["y = 3"] * 4, [others] * 5 + [params] + [others] * 4
    )
    assert crowd[5].token_ids == alone.token_ids


def test_n_samples_differ_and_each_is_repeatable(llm):
    params = SamplingParams(max_tokens=12, temperature=1.0, n=3, seed=1, ignore_eos=True)
    first = llm.generate("def f(", params)[0]
    second = llm.generate("def f(", params)[0]
    assert len({sample.token_ids for sample in first.samples}) == 3
    assert [s.token_ids for s in first.samples] == [s.token_ids for s in second.samples]


def test_a_stop_string_is_cut_and_never_streamed(llm):
    free = llm.generate("import ", SamplingParams(max_tokens=40, temperature=0, ignore_eos=True))[0]
    stop = free.text[10:16]
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, stop=stop)
    cut = llm.generate("import ", params)[0]
    assert cut.text == free.text[: free.text.index(stop)]
    assert (cut.finish_reason, cut.samples[0].stop_reason) == ("stop", stop)
    chunks = [chunk.text for chunk in llm.stream("import ", params)]
    assert "".join(chunks) == cut.text
    texts = ["".join(chunks[: i + 1]) for i in range(len(chunks))]
    assert all(cut.text.startswith(text) for text in texts)


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_is_in_the_ids_and_in_the_text_only_if_asked_for(llm, include):
    free = llm.generate("import ", SamplingParams(max_tokens=30, temperature=0, ignore_eos=True))[0]
    stop = free.token_ids[12]
    first = free.token_ids.index(stop)
    params = SamplingParams(
        max_tokens=30,
        temperature=0,
        ignore_eos=True,
        stop_token_ids=[stop],
        include_stop_str_in_output=include,
    )
    output = llm.generate("import ", params)[0]
    assert output.token_ids == free.token_ids[: first + 1]
    assert (output.finish_reason, output.samples[0].stop_reason) == ("stop", stop)
    shown = free.token_ids[: first + include]
    assert output.text == llm.tokenizer.decode(shown)
    assert "".join(chunk.text for chunk in llm.stream("import ", params)) == output.text


def test_streaming_gives_the_text_of_generate(llm):
    whole = llm.generate("for i in range(", GREEDY)[0]
    chunks = list(llm.stream("for i in range(", GREEDY))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids
    assert chunks[-1].finish_reason == "length"
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


def test_a_stream_left_early_is_aborted(llm):
    stream = llm.stream("while True:", SamplingParams(max_tokens=500, temperature=0))
    next(stream)
    stream.close()
    assert not llm.engine.has_work
    assert llm.engine.memory.pool.num_owned == 0
    assert llm.generate("x", GREEDY)[0].finish_reason == "length"


def test_a_stream_left_early_waits_for_the_step_in_flight_and_later_runs_are_the_same(llm):
    expected = llm.generate(["x =", "while True:"], GREEDY)
    with LLM("zoo/base", CONFIG.with_values({"scheduling.async_scheduling": True})) as model:
        stream = model.stream("while True:", SamplingParams(max_tokens=500, temperature=0))
        next(stream)
        stream.close()
        assert not model.engine.has_work
        assert model.engine.memory.pool.num_owned == 0
        outputs = model.generate(["x =", "while True:"], GREEDY)
    assert [o.token_ids for o in outputs] == [o.token_ids for o in expected]


def test_logprobs_of_prompt_and_output(llm):
    params = SamplingParams(
        max_tokens=4, temperature=0, logprobs=3, prompt_logprobs=1, ignore_eos=True
    )
    output = llm.generate("return self", params)[0]
    sample = output.samples[0]
    assert len(sample.logprobs) == 4
    for entry, token in zip(sample.logprobs, sample.token_ids, strict=True):
        assert (entry.token_id, entry.rank, len(entry.top)) == (token, 1, 3)
        assert entry.top[0] == (token, entry.logprob)
    assert output.prompt_logprobs[0] is None
    assert [e.token_id for e in output.prompt_logprobs[1:]] == list(output.prompt_token_ids[1:])
    again = llm.generate(
        list(output.prompt_token_ids) + list(sample.token_ids),
        SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
    )[0]
    scored = [entry.logprob for entry in again.prompt_logprobs[-4:]]
    assert scored == pytest.approx([entry.logprob for entry in sample.logprobs], abs=1e-4)


def test_a_bad_prompt_is_refused_before_anything_runs(llm):
    steps = len(llm.trace)
    with pytest.raises(InvalidRequestError, match="outside the vocabulary"):
        llm.generate([[1, 2], [10**6]], GREEDY)
    assert not llm.engine.has_work
    with pytest.raises(InvalidRequestError, match="2 SamplingParams for 1 prompts"):
        llm.generate(["x"], [GREEDY, GREEDY])
    with pytest.raises(InvalidRequestError, match="leaves no room for output"):
        llm.generate([[5] * llm.config.max_model_len], GREEDY)
    assert len(llm.trace) <= steps


def test_two_llms_with_different_configs_share_weights(llm):
    config = CONFIG.with_values({"memory.block_size": 4, "scheduling.max_num_batched_tokens": 64})
    with LLM("zoo/base", config) as other:
        decoders = [each.engine._runner._decoder for each in (llm, other)]
        assert decoders[0].weights is decoders[1].weights
        prompt = "class Stack:\n    def push(self, item):"
        assert other.generate(prompt, GREEDY)[0].text == llm.generate(prompt, GREEDY)[0].text


def test_a_model_without_a_tokenizer_takes_token_ids_and_refuses_strings(tmp_path: Path):
    source = find_model("zoo/base")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path)
    with LLM(tmp_path, CONFIG) as bare:
        assert len(bare.generate([[5, 6, 7]], GREEDY)[0].token_ids) == 12
        assert bare.generate([[5, 6, 7]], GREEDY)[0].text == ""
        with pytest.raises(InvalidRequestError, match="came without a tokenizer"):
            bare.generate("text", GREEDY)
        with pytest.raises(InvalidRequestError, match="came without a tokenizer"):
            bare.chat([{"role": "user", "content": "hi"}])


def test_chat_without_a_template_says_what_to_do(llm):
    with pytest.raises(ValueError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_chat_follows_the_template(tmp_path: Path):
    source = find_model("zoo/base")
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    template = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}# answer:"
    (tmp_path / "chat_template.jinja").write_text(template)
    with LLM(tmp_path, CONFIG) as chatty:
        messages = [{"role": "user", "content": "sort a list"}]
        assert chatty.chat_prompt(messages) == chatty.tokenizer.encode(
            "# user: sort a list\n# answer:", add_special_tokens=False
        )
        answer = chatty.chat(messages, GREEDY)
        assert answer.finish_reason == "length"
        other = [{"role": "user", "content": "open a file"}]
        many = chatty.chat([messages, other], GREEDY, use_tqdm=False)
        assert [output.token_ids for output in many] == [
            answer.token_ids,
            chatty.chat(other, sampling_params=GREEDY).token_ids,
        ]


def test_generation_config_is_honoured(tmp_path: Path):
    source = find_model("zoo/base")
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": 0.3, "top_k": 7, "eos_token_id": [0, 11], "max_new_tokens": 9}'
    )
    with LLM(tmp_path, CONFIG) as llm:
        params = llm.default_sampling_params
        assert (params.temperature, params.top_k, params.max_tokens) == (0.3, 7, 9)
        assert llm.config.model.eos_token_ids == (0, 11)


def test_a_closed_llm_says_so(tmp_path: Path):
    llm = LLM("zoo/base", CONFIG)
    llm.close()
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("x")


def test_an_unknown_zoo_model_names_those_there_are():
    with pytest.raises(FileNotFoundError, match="no model 'zoo/huge' in the zoo; it has: zoo/base"):
        LLM("zoo/huge")


def test_a_pool_too_small_for_a_page_is_refused():
    with pytest.raises(ConfigError, match="holds no page"):
        LLM("zoo/base", CONFIG.with_values({"memory.kv_bytes": 1000}))
