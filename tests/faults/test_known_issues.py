"""What users of comparable engines reported, tried here: each was wrong once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from engine.fakes import make_engine, run

from minserve import LLM, EngineConfig, SamplingParams
from minserve.loading import find_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=4)
HEAD = """
import faulthandler, os, sys, threading, time
from minserve import LLM, AsyncLLM, EngineConfig, SamplingParams
CONFIG = EngineConfig(dtype="float32")
LONG = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
"""


@pytest.fixture(scope="module")
def llm():
    with LLM("zoo/draft", EngineConfig(dtype="float64", device="cpu")) as made:
        yield made


def script(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("call", ["list(llm.stream([5, 6], LONG))", "llm.generate([5, 6], LONG)"])
def test_an_exit_while_a_daemon_thread_generates_keeps_its_code(call):
    code = f"""
        llm = LLM("zoo/draft", CONFIG, progress=False)
        threading.Thread(target=lambda: {call}, daemon=True).start()
        time.sleep(0.2)
        sys.exit(4)"""
    done = script(code)
    assert done.returncode == 4, done.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("front", ["LLM", "AsyncLLM"])
def test_a_stream_begun_before_a_fork_says_so_in_the_child(front):
    stream = "llm.stream([5, 6] * 200, LONG)" if front == "LLM" else "iter(llm.add([5, 6], LONG))"
    code = f"""
        llm = {front}("zoo/base", CONFIG, progress=False)
        stream = {stream}
        next(stream)
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(20, exit=True)
            try:
                list(stream)
            except RuntimeError as error:
                os._exit(42 if "forked" in str(error) else 2)
            os._exit(3)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"""
    done = script(code, OMP_NUM_THREADS="2")
    assert "child 42" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("word", ["same", "single", "self"])
def test_a_banned_word_does_not_come_behind_a_space_either(llm, word):
    params = SamplingParams(temperature=0.0, max_tokens=40, bad_words=[word])
    for prompt in ("# This function computes the", "class Reader:\n    def read(", "for key in "):
        text = llm.generate(prompt, params, progress=False)[0].text
        assert not text.startswith(word) and f" {word}" not in text


@pytest.mark.parametrize("prompts", [[5, 6, -1], "x" * 70_000, {"prompt": 5}, np.array([5, -1])])
def test_one_prompt_that_cannot_be_served_is_returned_as_one_output(llm, prompts):
    (only,) = llm.generate(prompts, GREEDY, errors="return", progress=False)
    assert only.finish_reason == "error"


def test_a_refused_prompt_has_as_many_samples_as_were_asked_for(llm):
    params = SamplingParams(max_tokens=2, n=3, seed=1)
    refused, served = llm.generate([[10**7], [5]], params, errors="return", progress=False)
    assert [sample.finish_reason for sample in refused.samples] == ["error"] * 3
    assert len(served.samples) == 3


def test_conversations_that_cannot_be_answered_are_returned_beside_the_others(tmp_path):
    for path in find_model("zoo/draft").iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    template = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    said = [{"role": "user", "content": "sort"}]
    long = [{"role": "user", "content": "sort " * 50_000}]
    with LLM(tmp_path, EngineConfig(dtype="float32", device="cpu")) as chatty:
        answers = chatty.chat([said, long, [], said, [{"role": 3}]], GREEDY, errors="return")
        reasons = ["length", "error", "error", "length", "error"]
        assert [answer.finish_reason for answer in answers] == reasons
        assert answers[0].token_ids == answers[3].token_ids == chatty.chat(said, GREEDY).token_ids


def test_a_row_with_no_token_left_says_so(llm):
    (token,) = llm.tokenizer.encode("the", add_special_tokens=False)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=4,
        min_tokens=1,
        bad_words=["the"],
        allowed_token_ids=[0, token],
    )
    (output,) = llm.generate([[5, 6]], params, errors="return", progress=False)
    assert output.finish_reason == "error"
    assert "no token was left to draw" in (output.samples[0].error or "")


def test_prompt_logprobs_are_those_of_a_sample_that_came_to_the_prompts_end():
    engine, _, _ = make_engine(
        EngineConfig().with_values(
            {"scheduling.max_num_batched_tokens": 8, "scheduling.max_num_seqs": 2}
        )
    )
    params = SamplingParams(max_tokens=3, temperature=0, n=2, prompt_logprobs=0)
    samples = engine.add("scored", [(3 * i) % 90 + 1 for i in range(20)], params)
    engine.step()
    engine.abort_requests(samples[:1])
    run(engine)
    from minserve.frontend.outputs import make_output

    output = make_output(engine, samples, None)
    assert len(output.prompt_logprobs or ()) == 20


def test_a_pin_of_before_a_new_start_holds_nothing_and_says_so():
    config = EngineConfig(dtype="float32", device="cpu").with_values(
        {"memory.prefix_cache": "radix", "memory.kv_bytes": 4 << 20}
    )
    with LLM("zoo/draft", config) as llm:
        pinned = llm.pin("import os\n" * 30)
        assert pinned.active
        llm.engine._books.start_over(RuntimeError("damage"))
        assert not pinned.active
        again = llm.pin("import os\n" * 30)
        pinned.unpin()
        assert again.active and llm.engine.memory.pins.num_blocks()
        again.unpin()
