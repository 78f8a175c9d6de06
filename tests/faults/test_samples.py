"""The faults that began this room, one by one: what each did to others, and does no more."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from engine.fakes import TOKEN_BYTES, make_engine, oracle, run

from minserve import LLM, AsyncLLM, EngineConfig, EngineError, InvalidRequestError, SamplingParams
from minserve.memory import IntegrityError
from minserve.scheduling import QueueEntry, QueuePolicy
from minserve.scheduling.policies.batching import ContinuousBatching

CONFIG = EngineConfig(dtype="float32", device="cpu").with_values(
    {"memory.kv_bytes": 4 << 20, "memory.prefix_cache": "hash", "scheduling.max_model_len": 1024}
)
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


class Panic(BaseException):
    """As pyo3's PanicException."""


@pytest.fixture(scope="module")
def llm():
    with LLM("zoo/draft", CONFIG) as model:
        yield model


@pytest.fixture(scope="module")
def served():
    with AsyncLLM("zoo/draft", CONFIG) as model:
        yield model


def tokens(stream) -> tuple[int, ...]:
    return sum((chunk.token_ids for chunk in stream), ())


def once(function, error: BaseException):
    """The function, raising the error at its first call."""
    errors = [error]

    def wrapped(*args, **values):
        if errors:
            raise errors.pop()
        return function(*args, **values)

    return wrapped


def expect_as_new(llm: LLM) -> None:
    assert not llm.engine.has_work and llm.engine.memory.pool.num_owned == 0
    assert len(llm.generate(["a", "b"], GREEDY)) == 2


def test_a_salt_that_is_no_text_is_refused_and_the_next_request_is_served(llm, served):
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        SamplingParams(cache_salt="\ud800")
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        llm.pin("x" * 200, cache_salt="\ud800")
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        served.pin("x" * 200, cache_salt="\ud800")
    expect_as_new(llm)
    assert len(tokens(served.add("def f():", GREEDY))) == 6


@pytest.mark.parametrize("error", [RuntimeError("no pages"), Panic("no pages")])
def test_an_admission_that_fails_once_ends_one_request_with_its_own_cause(llm, monkeypatch, error):
    memory = llm.engine.memory
    monkeypatch.setattr(memory, "admit", once(memory.admit, error))
    with pytest.raises(EngineError, match="no pages") as caught:
        llm.generate(["a", "b", "c"], GREEDY)
    assert caught.value.__cause__ is error
    expect_as_new(llm)
    monkeypatch.setattr(memory, "admit", once(memory.admit, error))
    outputs = llm.generate(["a", "b", "c"], GREEDY, errors="return")
    assert [output.finish_reason for output in outputs] == ["error", "length", "length"]
    assert outputs[0].samples[0].error == f"{type(error).__name__}: no pages"


def test_a_rank_that_cannot_be_compared_is_refused_and_hurts_no_stream(llm, served):
    stream = served.add("def f():", GREEDY)
    broken = served.add("def f():", GREEDY, priority=None)
    with pytest.raises(InvalidRequestError, match="priority=None"):
        list(broken)
    assert len(tokens(stream)) == 6
    with pytest.raises(InvalidRequestError, match="priority"):
        llm.generate(["a", "b"], GREEDY, priority=[1, None])
    expect_as_new(llm)


def test_a_readers_order_that_fails_ends_the_request_it_failed_on():
    class Picky(QueuePolicy):
        preemptive = True

        def rank(self, entry: QueueEntry) -> float:
            if entry.request.num_output_tokens == 2 and entry.request.request_id == "bad":
                raise ZeroDivisionError("no rank")
            return 0.0

    engine, _, _ = make_engine(order=Picky())
    bad, good = (engine.add(name, [3, 4], GREEDY)[0] for name in ("bad", "good"))
    failures = 0
    while engine.has_work:
        try:
            engine.step()
        except ZeroDivisionError:
            failures += 1
    assert failures == 1 and bad.finish_reason == "error" and "no rank" in (bad.error or "")
    assert good.output_token_ids == oracle([3, 4], 6, ignore_eos=True)


def test_a_policy_that_always_fails_ends_all_and_the_engine_goes_on_without_it():
    class Broken(ContinuousBatching):
        def budget(self, limit, running, waiting):
            raise KeyError("budget")

    engine, _, _ = make_engine()
    working = engine._scheduler._policies
    engine._scheduler._policies = replace(working, batching=Broken())
    requests = [engine.add(str(i), [3, 4 + i], GREEDY)[0] for i in range(3)]
    with pytest.raises(KeyError):
        engine.step()
    assert [request.finish_reason for request in requests] == ["error"] * 3
    assert not engine.has_work
    engine._scheduler._policies = working
    again = engine.add("again", [3, 4], GREEDY)[0]
    run(engine)
    assert again.output_token_ids == oracle([3, 4], 6, ignore_eos=True)


def test_failures_that_no_request_is_to_blame_for_end_all_at_the_second(monkeypatch):
    engine, _, _ = make_engine()
    requests = [engine.add(str(i), [3, 4 + i], GREEDY)[0] for i in range(3)]

    def broken(*args):
        raise OSError("the counter is gone")

    monkeypatch.setattr(engine._counter, "count", broken)
    with pytest.raises(OSError):
        engine.step()
    assert not any(request.finished for request in requests)
    with pytest.raises(OSError):
        engine.step()
    assert [request.finish_reason for request in requests] == ["error"] * 3
    assert not engine.has_work


def test_books_that_do_not_add_up_end_everything_and_are_begun_anew():
    engine, _, _ = make_engine(EngineConfig().with_values({"memory.check_integrity": True}))
    requests = [engine.add(str(i), [3, 4 + i], GREEDY)[0] for i in range(3)]
    engine.step()
    engine.memory.pool._free.pop()
    with pytest.raises(IntegrityError):
        engine.step()
    assert [request.finish_reason for request in requests] == ["error"] * 3
    assert "some are lost" in (requests[0].error or "")
    assert any("nothing was certain" in note for note in engine.trace.header.notes)
    again = engine.add("again", [3, 4], GREEDY)[0]
    run(engine)
    assert again.output_token_ids == oracle([3, 4], 6, ignore_eos=True)
    assert engine.memory.pool.num_free == engine.memory.pool.num_blocks


def test_one_row_that_cannot_be_planned_ends_one_request(monkeypatch):
    engine, _, _ = make_engine()
    bad, good = (engine.add(name, [3, 4], GREEDY)[0] for name in ("bad", "good"))
    bad.seed = bad.params = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        engine.step()
    assert bad.finish_reason == "error" and good.finish_reason is None
    run(engine)
    assert good.output_token_ids == oracle([3, 4], 6, ignore_eos=True)


def test_one_row_that_the_sampler_cannot_draw_ends_one_request(llm, monkeypatch):
    params = [
        GREEDY,
        SamplingParams(max_tokens=6, temperature=0.7, seed=5, top_p=0.9, logprobs=3),
        SamplingParams(max_tokens=6, temperature=0, logit_bias={3: 1.5}, logprobs=1),
    ]
    expected = llm.generate(["a", "b", "c"], params)
    sampler = llm.engine._runner._sampler
    sample, failed = sampler.sample, []

    def failing(logits, batch):
        if batch.bias_tokens.shape[1] and not failed[1:]:
            failed.append(batch)
            raise IndexError("a bias out of range")
        return sample(logits, batch)

    monkeypatch.setattr(sampler, "sample", failing)
    outputs = llm.generate(["a", "b", "c"], params, errors="return")
    assert len(failed) == 2  # the batch, then that row alone
    assert outputs[2].finish_reason == "error" and "out of range" in outputs[2].samples[0].error
    for output, same in zip(outputs[:2], expected[:2], strict=True):
        assert output.token_ids == same.token_ids
        assert output.samples[0].logprobs == same.samples[0].logprobs


@pytest.mark.parametrize("front", ["generate", "stream", "async"])
def test_a_detokenizer_that_panics_ends_one_request(llm, served, monkeypatch, front):
    from minserve.tokenizer import TextStream

    push, seen = TextStream.push, []

    def panics(self, token_ids):
        seen.append(self)
        if self is seen[0] and len([one for one in seen if one is self]) == 3:
            raise Panic("a character that is none")
        return push(self, token_ids)

    monkeypatch.setattr(TextStream, "push", panics)
    stops = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, stop="never")
    if front == "generate":
        outputs = llm.generate(["a", "b"], stops, errors="return")
        assert [output.finish_reason for output in outputs] == ["error", "length"]
    elif front == "stream":
        bad, good = llm.stream("a", stops), llm.stream("b", stops)
        next(bad)
        assert len(tokens(good)) == 6
        with pytest.raises(EngineError, match="a character that is none"):
            list(bad)
    else:
        bad, good = served.add("a", stops), served.add("b", stops)
        with pytest.raises(EngineError, match="a character that is none"):
            list(bad)
        assert len(tokens(good)) == 6
    expect_as_new(llm)


def test_a_tokenizer_that_panics_refuses_one_prompt(llm, served, monkeypatch):
    tokenizer = type(llm.tokenizer)
    encode = tokenizer.encode

    def panics(self, text, *args, **values):
        if text == "boom":
            raise Panic("regex")
        return encode(self, text, *args, **values)

    monkeypatch.setattr(tokenizer, "encode", panics)
    with pytest.raises(InvalidRequestError, match="tokenizer cannot take this prompt of 4 char"):
        llm.generate(["a", "boom"], GREEDY)
    outputs = llm.generate(["a", "boom", "c"], GREEDY, errors="return")
    assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
    with pytest.raises(InvalidRequestError, match="Panic: regex"):
        list(served.add("boom", GREEDY))
    assert len(tokens(served.add("fine", GREEDY))) == 6


def test_long_prompts_are_tokenized_beside_the_engine_and_too_long_ones_not_at_all(
    served, monkeypatch
):
    tokenizer = type(served.tokenizer)
    encode, threads = tokenizer.encode, []

    def seen(self, text, *args, **values):
        threads.append((len(text), threading.current_thread().name))
        return encode(self, text, *args, **values)

    monkeypatch.setattr(tokenizer, "encode", seen)
    most = served.config.max_prompt_chars
    for length in (10, 20_000, most + 1):
        if length <= most:
            with pytest.raises(InvalidRequestError) if length > 1000 else _nothing():
                list(served.add("x " * (length // 2), GREEDY))
        else:
            with pytest.raises(InvalidRequestError, match="max_prompt_chars"):
                list(served.add("x" * length, GREEDY))
    assert [length for length, _ in threads] == [10, 20_000]
    assert threads[0][1] == threading.current_thread().name
    assert threads[1][1].startswith("minserve-tokenizer")


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_a_stop_string_that_cut_the_text_is_named_also_when_the_end_came_otherwise(llm):
    free = SamplingParams(max_tokens=20, temperature=1.0, seed=4, ignore_eos=True)
    ids = llm.generate("import ", free)[0].token_ids
    end = next(i for i in range(8, 20) if ids[i] not in ids[:i])
    shown = llm.tokenizer.decode(ids[:end])
    at = next(i for i in range(2, len(shown)) if shown.index(shown[i : i + 2]) == i)
    # The longer one starts earlier and is never completed, so the decision waits for the end.
    short, longer = shown[at : at + 2], shown[at - 1 :] + "\N{SNOWMAN}"
    params = replace(free, stop=[longer, short], stop_token_ids=[ids[end]])
    output = llm.generate("import ", params)[0]
    assert output.token_ids == ids[: end + 1]
    assert (output.finish_reason, output.samples[0].stop_reason) == ("stop", short)
    assert output.text == shown[:at]


@pytest.mark.parametrize("fault", ["directory", "gone", "read-only"])
def test_a_disk_tier_that_fails_costs_hits_and_no_request(tmp_path, monkeypatch, fault):
    size = 4
    config = EngineConfig().with_values(
        {
            "memory.block_size": size,
            "memory.prefix_cache": "radix",
            "memory.host_bytes": 4 * size * TOKEN_BYTES,
            "memory.disk_bytes": 1 << 20,
            "memory.disk_path": str(tmp_path),
            "memory.resume": "load",
            "memory.check_integrity": True,
        }
    )
    engine, _, _ = make_engine(config, num_blocks=8)
    prompts = [[10 * i + j + 1 for j in range(17)] for i in range(4)]

    def serve(tag: str) -> None:
        for index, prompt in enumerate(prompts):
            request = engine.add(f"{tag}{index}", prompt, GREEDY)[0]
            run(engine)
            assert request.output_token_ids == oracle(prompt, 6, ignore_eos=True)

    serve("before")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 20]
    assert files
    if fault == "directory":
        for path in files:
            path.unlink()
            path.mkdir()
    elif fault == "gone":
        shutil.rmtree(files[0].parent)
    else:
        # Tests may run as root, whom no permission stops.
        refused = OSError(errno.EROFS, os.strerror(errno.EROFS))

        def refuse(*args, **values):
            raise refused

        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr(os, "open", refuse)
        monkeypatch.setattr(Path, "unlink", refuse)
        monkeypatch.setattr(Path, "read_bytes", refuse)
    serve("after")
    monkeypatch.undo()
    engine.close()


def test_what_a_caller_passed_may_change_afterwards(llm):
    bias, ids = {5: -100.0}, [5, 6, 7]
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, logit_bias=bias)
    expected = llm.generate([list(ids)], params)[0].token_ids
    stream = llm.stream(ids, params)
    first = next(stream).token_ids
    bias[5], bias[6] = None, "x"  # type: ignore[assignment, index]
    ids.clear()
    assert first + tokens(stream) == expected


def test_errors_are_raised_or_returned_as_asked(llm):
    prompts = ["a", [10**7], b"bytes", "c", [1, 2.5], {"prompt": "d"}]
    outputs = llm.generate(prompts, GREEDY, errors="return")
    reasons = ["length", "error", "error", "length", "error", "length"]
    assert [output.finish_reason for output in outputs] == reasons
    assert all(o.samples[0].error for o, r in zip(outputs, reasons, strict=True) if r == "error")
    assert outputs[0].token_ids == llm.generate("a", GREEDY)[0].token_ids
    with pytest.raises(InvalidRequestError, match="prompts"):
        llm.generate(prompts, GREEDY)
    with pytest.raises(InvalidRequestError, match="errors='ignore'"):
        llm.generate("a", GREEDY, errors="ignore")  # type: ignore[arg-type]
    expect_as_new(llm)


def test_names_and_forms_that_users_of_vllm_type(llm):
    expected = llm.generate("def f():", GREEDY)[0]
    ids = list(expected.prompt_token_ids)
    import numpy as np
    import torch

    for prompt in ({"prompt": "def f():"}, {"prompt_token_ids": ids}, np.array(ids), ids):
        assert llm.generate(prompt, sampling_params=GREEDY, use_tqdm=False)[0].token_ids == (
            expected.token_ids
        )
    many = llm.generate(torch.tensor([ids, ids]), GREEDY)
    assert [output.token_ids for output in many] == [expected.token_ids] * 2
    with pytest.raises(InvalidRequestError, match="give one"):
        llm.generate("x", GREEDY, sampling_params=GREEDY)
    silent = llm.generate("def f():", SamplingParams(6, temperature=0, detokenize=False))[0]
    assert silent.token_ids == expected.token_ids[: len(silent.token_ids)] and silent.text == ""


def test_unpinning_twice_is_a_mistake_and_ends_no_request():
    config = EngineConfig().with_values({"memory.prefix_cache": "hash", "memory.block_size": 2})
    engine, _, _ = make_engine(config)
    request = engine.add("bystander", [3, 4, 5], GREEDY)[0]
    engine.step()
    for _ in range(4):
        with pytest.raises(KeyError):
            engine.unpin(77)
    run(engine)
    assert request.output_token_ids == oracle([3, 4, 5], 6, ignore_eos=True)


def test_batches_of_ended_requests_that_fail_end_no_request_that_waits():
    config = EngineConfig().with_values(
        {
            "scheduling.async_scheduling": True,
            "scheduling.max_num_seqs": 1,
            "scheduling.order": "priority",
        }
    )
    engine, runner, _ = make_engine(config, lazy=True)
    waits = engine.add("waits", [9, 4], GREEDY, priority=5)[0]
    for number in range(4):
        gone = engine.add(f"gone {number}", [3, 4 + number], GREEDY)
        assert engine._submit()  # a batch of the urgent one alone
        engine.abort_requests(gone)
        runner.fail_late = True
        with pytest.raises(RuntimeError, match="the device is gone"):
            engine.settle()
        assert waits.finish_reason is None
    run(engine)
    assert waits.output_token_ids == oracle([9, 4], 6, ignore_eos=True)
