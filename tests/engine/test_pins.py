"""Pinned prefixes: computed once, never evicted, never so many that nothing else can run."""

from __future__ import annotations

import pytest
from engine.fakes import make_engine, run

from minserve import (
    LLM,
    AsyncLLM,
    ConfigError,
    EngineConfig,
    InvalidRequestError,
    SamplingParams,
)
from minserve.engine.pins import check_pin, pin_computed

PAGE, PAGES = 16, 24
GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
SYSTEM = list(range(100, 100 + 5 * PAGE + 3))
"""Five pages and a bit."""
OTHERS = [[500 + 97 * n + at for at in range(8 * PAGE)] for n in range(6)]
"""Together more than the pool."""


def config(prefix_cache: str = "radix") -> EngineConfig:
    return EngineConfig(dtype="float32", device="cpu").with_values(
        {
            "memory.prefix_cache": prefix_cache,
            "memory.kv_bytes": PAGES * PAGE * 8192,
            "memory.check_integrity": True,
            "scheduling.max_model_len": 256,
        }
    )


@pytest.fixture(params=["hash", "radix"])
def llm(request):
    with LLM("zoo/base", config(request.param)) as model:
        assert model.engine.memory.pool.num_blocks == PAGES
        yield model


def cached(llm: LLM, prompt: list[int]) -> int:
    return llm.generate([prompt], GREEDY)[0].metrics.num_cached_tokens


def test_a_pinned_prefix_outlives_a_workload_larger_than_the_pool_and_an_unpinned_one_does_not(llm):
    expected = llm.generate([[*SYSTEM, 7]], GREEDY)[0].token_ids
    with llm.pin(SYSTEM) as pinned:
        assert pinned.num_tokens == 5 * PAGE and pinned.active
        llm.generate(OTHERS, GREEDY)
        again = llm.generate([[*SYSTEM, 7]], GREEDY)[0]
        assert again.metrics.num_cached_tokens >= 5 * PAGE
        assert again.token_ids == expected
    assert not pinned.active
    llm.generate(OTHERS, GREEDY)
    assert cached(llm, [*SYSTEM, 8]) < PAGE
    assert llm.engine.memory.pool.num_owned == 0


@pytest.mark.parametrize("windows", [(None,), (None, 6), (9, None, 20), (None, 1)])
@pytest.mark.parametrize("longer", [0, 1, 5])
def test_a_prompt_of_just_the_pinned_tokens_finds_them_behind_any_window(windows, longer):
    """It computes its last token again, and so begins from one page less than a longer prompt."""
    values = {
        "memory.block_size": 8,
        "memory.prefix_cache": "hash",
        "scheduling.max_num_seqs": 1,
        "scheduling.max_num_batched_tokens": 16,
    }
    engine = make_engine(EngineConfig().with_values(values), 20, windows=windows)[0]
    prompt = [7 * at % 90 for at in range(40)]
    engine.add("first", prompt, GREEDY)
    run(engine)
    check_pin(engine, prompt)
    assert pin_computed(engine, prompt) is not None
    for number in range(12):
        engine.add(f"other {number}", [number + 1] * 60, GREEDY)
        run(engine)
    (request,) = engine.add("again", prompt + [91] * longer, GREEDY)
    run(engine)
    assert request.num_cached_tokens == (40 if longer else 32)


def test_pinning_computes_what_is_missing_and_nothing_that_is_there(llm):
    first = llm.pin(SYSTEM)
    assert llm.trace.totals.prefill_tokens == len(SYSTEM)
    before = llm.trace
    second = llm.pin(SYSTEM)
    assert llm.trace is before, "nothing had to run"
    assert llm.engine.memory.pins.num_blocks() == 5
    first.unpin()
    assert llm.engine.memory.pins.num_blocks() == 5
    llm.unpin(second)
    llm.unpin(second)
    assert llm.engine.memory.pins.num_blocks() == 0


def test_a_salt_pins_for_its_own_requests_only(llm):
    salted = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, cache_salt="a")
    with llm.pin(SYSTEM, cache_salt="a"):
        assert cached(llm, SYSTEM) < PAGE
        assert llm.generate([SYSTEM], salted)[0].metrics.num_cached_tokens >= 5 * PAGE


def test_no_more_than_half_of_the_pool_is_pinned_and_long_requests_are_refused_at_admission(llm):
    with llm.pin(SYSTEM), llm.pin([9, *SYSTEM]):
        with pytest.raises(InvalidRequestError, match="half of the pool of 24"):
            llm.pin([8, *SYSTEM])
        assert llm.engine.memory.pins.num_blocks() == 10
        # 14 pages are left: 224 tokens, and the last one is drawn, never computed.
        assert len(llm.generate([OTHERS[0] + OTHERS[1][:93]], GREEDY)[0].token_ids) == 4
        with pytest.raises(InvalidRequestError, match="KV pool, which holds 225"):
            llm.generate([OTHERS[0] + OTHERS[1][:94]], GREEDY)
    assert llm.engine.max_request_tokens == 256


def test_what_cannot_be_pinned_is_refused_in_a_sentence():
    with LLM("zoo/base", config("off")) as llm, pytest.raises(ConfigError, match="prefix_cache="):
        llm.pin(SYSTEM)
    with LLM("zoo/base", config()) as llm:
        with pytest.raises(InvalidRequestError, match="do not fill a page of 16"):
            llm.pin(SYSTEM[:15])
        with pytest.raises(InvalidRequestError, match="outside the vocabulary"):
            llm.pin([99_999] * PAGE)
        assert llm.engine.memory.pins.num_blocks() == 0
    pinned = None
    with LLM("zoo/base", config()) as llm:
        pinned = llm.pin(SYSTEM)
    pinned.unpin()  # the engine is gone, and that is fine


def test_a_pin_never_takes_the_pages_that_a_request_being_served_may_need():
    settings = {"memory.block_size": 4, "memory.prefix_cache": "radix"}
    engine, _, _ = make_engine(EngineConfig().with_values(settings), num_blocks=16)
    long = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    prefix = list(range(1, 17))
    engine.add("first", prefix, GREEDY)
    run(engine)
    engine.add("long", [50] * 16, long)
    with pytest.raises(InvalidRequestError, match="would leave 12, fewer than a request"):
        check_pin(engine, prefix)
    run(engine)
    check_pin(engine, prefix)
    assert pin_computed(engine, prefix) is None, "the long one pushed it out"
    assert engine.memory.pins.num_blocks() == 0


def test_an_engine_on_its_own_thread_pins_while_it_serves():
    with AsyncLLM("zoo/base", config()) as llm:
        busy = llm.add(
            OTHERS[0][:32], SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
        )
        with llm.pin(SYSTEM) as pinned:
            assert pinned.num_tokens == 5 * PAGE
            chunks = list(llm.add([*SYSTEM, 5], GREEDY))
            assert chunks[-1].metrics.num_cached_tokens >= 5 * PAGE
            with pytest.raises(InvalidRequestError, match="do not fill a page"):
                llm.pin([1, 2, 3])
        assert sum(len(chunk.token_ids) for chunk in busy) == 60
    with pytest.raises(RuntimeError, match="closed"):
        llm.pin(SYSTEM)
