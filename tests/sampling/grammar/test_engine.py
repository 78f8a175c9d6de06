"""Structured outputs end to end: a model of random weights says whatever the form allows."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import threading
from pathlib import Path

import pytest
from decoding.scripted import Scripted, ScriptedTree, sometimes
from sampling.grammar import words

from minserve import LLM, AsyncLLM, InvalidRequestError, SamplingParams, StructuredOutputs
from minserve.engine.parts import EngineParts
from minserve.request import Output

SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["né😀", "ab"]},
    },
    "required": ["ok", "n", "kind"],
    "additionalProperties": False,
}
FORMS = {
    "json": {"json": SCHEMA},
    "compact": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True},
    "regex": {"regex": "(ab|c){2,9}[0-9]{3}😀?"},
    "choice": {"choice": ["ab", "abc", "a", "né😀"]},
    "grammar": {"grammar": 'start: "in" (" t" | "abc")+ "e\\n" | "x" start'},
    "json_object": {"json_object": True},
}
PROMPTS = [[5, 9, 30], [7] * 20, [40, 41], [3]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return words.save_model(tmp_path_factory.mktemp("structured"))


@pytest.fixture(scope="module")
def llm(model: Path):
    with LLM(model, words.config(), progress=False) as llm:
        yield llm


def params(kind: str, **values) -> SamplingParams:
    form = StructuredOutputs(**FORMS[kind])
    how = {"temperature": 1.0, "max_tokens": 120, "seed": 1} | values
    return SamplingParams(structured_outputs=form, **how)


def check_form(kind: str, text: str) -> None:
    if kind in ("json", "compact"):
        found = json.loads(text)
        assert list(found) == ["ok", "n", "kind"] and found["kind"] in ("né😀", "ab")
        assert type(found["ok"]) is bool and 0 <= found["n"] <= 99
        assert kind == "json" or text == json.dumps(
            found, separators=(",", ":"), ensure_ascii=False
        )
    elif kind == "json_object":
        assert isinstance(json.loads(text), dict)
    elif kind == "choice":
        assert text in FORMS[kind]["choice"]
    else:
        pattern = FORMS["regex"]["regex"] if kind == "regex" else r"x*in( t|abc)+e\n"
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("kind", FORMS)
def test_every_text_that_ends_by_itself_has_its_form(kind, llm):
    stopped = 0
    for seed in range(6):
        for temperature in (0.0, 1.0):
            how = params(kind, seed=seed, temperature=temperature, n=2)
            for output in llm.generate(PROMPTS, how, progress=False):
                for sample in output.samples:
                    assert sample.finish_reason in ("stop", "length") and sample.error is None
                    if sample.finish_reason == "stop":
                        assert sample.stop_reason is None and sample.token_ids[-1] == words.EOS
                        check_form(kind, sample.text)
                        stopped += 1
                    else:
                        assert len(sample.token_ids) == 120
    assert stopped >= 20, "too few ended to show anything"


@pytest.mark.parametrize("kind", FORMS)
def test_streams_of_both_ways_in_give_the_same_text(kind, llm, model):
    outputs = llm.generate(PROMPTS, params(kind), progress=False)
    for output, prompt in zip(outputs, PROMPTS, strict=True):
        assert "".join(chunk.text for chunk in llm.stream(prompt, params(kind))) == output.text

    async def read(stream) -> str:
        return "".join([chunk.text async for chunk in stream])

    async def all_at_once(server: AsyncLLM) -> list[str]:
        streams = [server.add(prompt, params(kind)) for prompt in PROMPTS]
        return await asyncio.gather(*map(read, streams))

    with AsyncLLM(model, words.config(), progress=False) as server:
        assert asyncio.run(all_at_once(server)) == [output.text for output in outputs]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """(thread, time) of every compilation."""
    import time

    from minserve.sampling import Grammars

    found: list[tuple[str, float]] = []
    real = Grammars._compile

    def compile_and_note(self, form):
        found.append((threading.current_thread().name, time.perf_counter()))
        return real(self, form)

    monkeypatch.setattr(Grammars, "_compile", compile_and_note)
    return found


def test_a_form_is_compiled_off_the_engine_thread_once_and_counts_in_ttft(model, compilations):
    with AsyncLLM(model, words.config(), progress=False) as server:
        for _ in range(2):
            chunks = list(server.add([3, 4], params("choice")))
            clock = server._engine.clock
        assert [name.startswith("minserve-grammar") for name, _ in compilations] == [True]
        with pytest.raises(InvalidRequestError, match="unclosed group"):
            list(server.add([3], SamplingParams(structured_outputs=StructuredOutputs(regex="a("))))
        assert chunks[-1].finish_reason == "stop" and clock is not None


def test_a_slow_compilation_delays_no_other_request(model, monkeypatch):
    from minserve.sampling import Grammars

    goes_on, real = threading.Event(), Grammars._compile

    def slow(self, form):
        assert goes_on.wait(60)
        return real(self, form)

    monkeypatch.setattr(Grammars, "_compile", slow)
    with AsyncLLM(model, words.config(), progress=False) as server:
        late = server.add([3, 4], params("choice"))
        gone = server.add([3, 5], params("regex"))
        free = list(server.add([7], SamplingParams(max_tokens=5, ignore_eos=True)))
        assert free[-1].finish_reason == "length" and not goes_on.is_set()
        gone.abort()
        goes_on.set()
        text = "".join(chunk.text for chunk in late)
        check_form("choice", text)
        ended = list(gone)
        assert not ended or ended[-1].finish_reason == "abort"


def test_arrival_is_before_the_compilation(model, monkeypatch):
    from minserve.sampling import Grammars

    class Slow:
        """A clock that a compilation moves on by 100 seconds."""

        now_s = 0.0

        def now(self) -> float:
            self.now_s += 1e-6
            return self.now_s

        def wait_until(self, until_s: float) -> None:
            self.now_s = max(self.now_s, until_s)

    clock = Slow()
    real = Grammars._compile

    def slow(self, form):
        clock.now_s += 100.0
        return real(self, form)

    monkeypatch.setattr(Grammars, "_compile", slow)
    with LLM(model, words.config(), progress=False, clock=clock) as llm:
        plain, structured = llm.generate(
            [[3], [4]], [SamplingParams(max_tokens=3), params("choice")], progress=False
        )
        assert structured.metrics.ttft_s > 100 > plain.metrics.ttft_s
        chunks = list(llm.stream([3], params("regex")))
        assert chunks[-1].metrics.ttft_s > 100
        again = llm.generate([4], params("choice"), progress=False)[0]
        assert again.metrics.ttft_s < 100, "it is kept"


def test_a_form_that_cannot_be_compiled_refuses_its_own_request_only(llm):
    bad = SamplingParams(structured_outputs=StructuredOutputs(json={"not": {}}))
    each = [params("choice"), bad, params("choice")]
    with pytest.raises(InvalidRequestError, match=r"structured_outputs\.json.*Unimplemented"):
        llm.generate(PROMPTS[:3], each, progress=False)
    outputs = llm.generate(PROMPTS[:3], each, progress=False, errors="return")
    assert [output.finish_reason for output in outputs] == ["stop", "error", "stop"]
    with pytest.raises(InvalidRequestError, match="Unimplemented"):
        llm.stream([3], bad)


def run_beside_others(llm: LLM, one: SamplingParams) -> Output:
    """The output of a request whose neighbours must not notice it."""
    alone = llm.generate(PROMPTS[:2], params("choice"), progress=False)
    first, output, second = llm.generate(
        [PROMPTS[0], [9, 9], PROMPTS[1]],
        [params("choice"), one, params("choice")],
        progress=False,
        errors="return",
    )
    assert [first.token_ids, second.token_ids] == [each.token_ids for each in alone]
    return output


@pytest.mark.parametrize(
    "values",
    [
        {"min_tokens": 50},
        {"allowed_token_ids": [100]},
        {"logit_bias": {words.EOS: float("-inf")}},
        {"bad_words": ["a", "n"], "logit_bias": dict.fromkeys((258, 259), float("-inf"))},
    ],
    ids=str,
)
def test_a_dead_end_ends_that_request_with_a_sentence(values, llm):
    sample = run_beside_others(llm, params("choice", **values)).samples[0]
    assert sample.finish_reason == "error"
    assert "no token was left to draw: structured_outputs" in (sample.error or "")


def test_a_parser_that_gives_up_ends_that_request_with_a_sentence(llm):
    form = StructuredOutputs(regex="((a{1,300}){1,300}){1,300}")
    on = {words.EOS: float("-inf")}
    grows = SamplingParams(structured_outputs=form, max_tokens=200, logit_bias=on)
    sample = run_beside_others(llm, grows).samples[0]
    assert sample.finish_reason == "error"
    assert "structured_outputs cannot be followed here" in (sample.error or "")


def test_other_parameters_work_beside_a_form(llm):
    def texts(**values) -> list[str]:
        outputs = llm.generate(PROMPTS, params("grammar", **values), progress=False)
        return [output.text for output in outputs]

    plain = texts(temperature=0.0)
    assert all("in" in text for text in plain)
    more_x = {words.tokenizer().encode("x")[0]: 100.0}
    assert all(text == 9 * "x" for text in texts(logit_bias=more_x, max_tokens=9))
    assert not any("x" in text for text in texts(logit_bias=more_x, bad_words=["x"]))
    assert len(set(texts(repetition_penalty=9.0)) | set(plain)) > 1
    ended = llm.generate(PROMPTS, params("grammar", stop=["in"]), progress=False)
    assert {each.samples[0].stop_reason for each in ended} <= {"in", None}
    assert any(each.samples[0].stop_reason == "in" and "in" not in each.text for each in ended)
    short = llm.generate([3], params("json", max_tokens=3), progress=False)[0]
    assert short.finish_reason == "length" and len(short.token_ids) == 3
    scored = llm.generate([3], params("choice", logprobs=2), progress=False)[0].samples[0]
    assert scored.logprobs is not None and len(scored.logprobs) == len(scored.token_ids)
    # Log probabilities are the model's own: the form does not make its tokens likelier.
    assert scored.cumulative_logprob < -1


def test_a_stop_token_of_the_request_ends_a_complete_text(llm):
    stop = 99
    how = params("choice", stop_token_ids=[stop], logit_bias={stop: 200.0})
    outputs = llm.generate(PROMPTS, how, progress=False)
    for output in outputs:
        assert output.samples[0].stop_reason == stop
        check_form("choice", output.text)


def test_a_model_without_end_tokens_needs_a_stop_token(tmp_path):
    path = words.save_model(tmp_path, eos_token_id=None)
    (path / "generation_config.json").unlink(missing_ok=True)
    with LLM(path, words.config(), progress=False) as llm:
        if not llm.config.model.eos_token_ids:
            with pytest.raises(InvalidRequestError, match="give stop_token_ids"):
                llm.generate([3], params("choice"), progress=False)
        output = llm.generate([3], params("choice", stop_token_ids=[99]), progress=False)[0]
        check_form("choice", output.text)


def answers(model: Path, kind: str, values=None, parts=None) -> dict[tuple[str, int], list[int]]:
    engine = words.engine(model, values, parts or EngineParts())
    requests = []
    for index, prompt in enumerate(PROMPTS):
        requests += engine.add(str(index), prompt, params(kind, n=2, max_tokens=40, seed=index))
    while engine.has_work:
        engine.step()
    assert all(request.error is None for request in requests)
    found = {(r.request_id, r.sample_index): r.output_token_ids for r in requests}
    engine.close()
    return found


@pytest.mark.parametrize("proposer", [Scripted, ScriptedTree])
@pytest.mark.parametrize("right", [lambda place: True, sometimes, lambda place: False])
@pytest.mark.parametrize("kind", FORMS)
def test_drafts_right_and_banned_change_no_token(kind, proposer, right, model):
    plain = answers(model, kind)
    drafts = proposer(plain, 269, right=right)
    assert answers(model, kind, parts=EngineParts(proposer=drafts)) == plain
    assert drafts.given


@pytest.mark.parametrize("kind", FORMS)
def test_a_request_that_moves_to_another_engine_goes_on_in_its_form(kind, model):
    plain = answers(model, kind)
    here, there = words.engine(model), words.engine(model)
    requests = []
    for index, prompt in enumerate(PROMPTS):
        requests += here.add(str(index), prompt, params(kind, n=2, max_tokens=40, seed=index))
    while here.has_work and not any(request.num_output_tokens >= 2 for request in requests):
        here.step()
    moved = []
    for name in {request.request_id for request in here.live_requests()}:
        moved += there.import_request(pickle.loads(pickle.dumps(here.export_request(name))))
    while there.has_work:
        there.step()
    found = {(r.request_id, r.sample_index): r.output_token_ids for r in (*requests, *moved)}
    assert moved and found == plain
    here.close()
    there.close()
