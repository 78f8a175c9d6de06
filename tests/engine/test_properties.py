"""Any sequence of engine operations: pages are conserved after every step, every accepted request
ends with exactly one finish reason, and what was not aborted has the oracle's tokens."""

from __future__ import annotations

import os
import tempfile
from collections import Counter

import pytest
from engine.fakes import TOKEN_BYTES, VOCAB, EchoProposer, make_engine, oracle
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.request import InvalidRequestError, Request, SamplingParams

PARTS, EXAMPLES, STEPS = 5, 260, 60
DISCIPLINES = (
    {"policy": "continuous"},
    {"policy": "static"},
    {"order": "priority"},
    {"order": "priority"},
    {"order": "mlfq", "mlfq_quantum": 2},
    {"order": "mlfq", "mlfq_quantum": 1},
    {"order": "sjf", "length_error": 1.0},
    {"order": "lpm"},
    {"order": "lpm", "policy": "static"},
    {"order": "sjf", "policy": "static"},
    {"order": "sjf", "policy": "static", "length_bucket": 8},
)

operations = 0
seen: Counter[str] = Counter()
"""What the runs really did, so that a machine that never swaps cannot pass for one that does."""
EVENTS = (
    "hit_tokens",
    "loaded_tokens",
    "copied_blocks",
    "evicted_blocks",
    "swapped_out_blocks",
    "swapped_in_blocks",
    "preemptions",
    "discarded_tokens",
)


class EngineMachine(RuleBasedStateMachine):
    """One engine with a drawn configuration, driven by drawn operations."""

    engine: Engine

    @initialize(
        block_size=st.sampled_from([1, 2, 5, 16]),
        pool_tokens=st.integers(16, 120),
        budget=st.sampled_from([4, 7, 32, 128]),
        max_num_seqs=st.integers(1, 4),
        watermark=st.sampled_from([0.0, 0.2]),
        victim=st.sampled_from(["last", "least_computed"]),
        mode=st.sampled_from(["chunked"] * 3 + ["whole", "no cache", "contiguous"]),
        discipline=st.sampled_from(DISCIPLINES),
        prefill=st.sampled_from(["mixed", "decode_first", "prefill_first"]),
        prefill_tokens=st.sampled_from([None, 1, 3]),
        limit_s=st.sampled_from([0.0, 0.05, 0.5, 1000.0]),
        prefix_cache=st.sampled_from(["off", "hash", "radix", "radix"]),
        tiers=st.sampled_from(["none", "swap", "host", "disk", "disk"]),
        copy_on_write=st.booleans(),
        resume=st.sampled_from(["auto", "load", "recompute"]),
        reservation=st.sampled_from(["max_model_len", "power_of_two", "oracle"]),
        overlap=st.booleans(),
        lazy=st.booleans(),
        proposer=st.sampled_from(["none", "none", "chains", "trees"]),
        rightness=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    )
    def start(
        self,
        block_size,
        pool_tokens,
        budget,
        max_num_seqs,
        watermark,
        victim,
        mode,
        discipline,
        prefill,
        prefill_tokens,
        limit_s,
        prefix_cache,
        tiers,
        copy_on_write,
        resume,
        reservation,
        overlap,
        lazy,
        proposer,
        rightness,
    ):
        paged = mode in ("chunked", "whole")
        prefix_cache = prefix_cache if paged else "off"
        swaps = paged and tiers != "none"
        host_tokens = {"none": 0, "swap": 40, "host": 100, "disk": 16}[tiers] if swaps else 0
        self.folder = tempfile.TemporaryDirectory()
        if prefix_cache == "off" and discipline.get("order") == "lpm":
            discipline = {"policy": "continuous"}
        config = EngineConfig().with_values(
            {
                "memory.block_size": block_size,
                "memory.watermark": watermark,
                "memory.kv_cache": mode != "no cache",
                "memory.check_integrity": True,
                "memory.layout": "contiguous" if mode == "contiguous" else "paged",
                "memory.reservation": reservation,
                "memory.prefix_cache": prefix_cache,
                "memory.copy_on_write": copy_on_write,
                "memory.host_bytes": -(-host_tokens // block_size) * block_size * TOKEN_BYTES,
                "memory.disk_bytes": 1 << 20 if tiers == "disk" and prefix_cache != "off" else 0,
                "memory.disk_path": self.folder.name,
                "memory.resume": resume,
                "scheduling.preemption": "swap" if swaps else "recompute",
                "scheduling.max_num_seqs": max_num_seqs,
                "scheduling.max_num_batched_tokens": budget if mode == "chunked" else 64,
                "scheduling.max_model_len": 64,
                "scheduling.enable_chunked_prefill": mode != "whole",
                "scheduling.victim": victim,
                "scheduling.prefill": prefill,
                "scheduling.max_num_prefill_tokens": prefill_tokens if mode == "chunked" else None,
                "scheduling.starvation_limit_s": limit_s,
                "scheduling.async_scheduling": overlap and mode != "no cache",
                **{f"scheduling.{name}": value for name, value in discipline.items()},
            }
        )
        drafts = None
        if proposer != "none" and mode != "no cache":
            drafts = EchoProposer(proposer == "trees", rightness)
        self.engine, self.runner, self.clock = make_engine(
            config, -(-pool_tokens // block_size), lazy=lazy, proposer=drafts
        )
        self.limit_s = limit_s
        self.requests: list[Request] = []
        self.failed: set[Request] = set()

    @rule(
        length=st.integers(0, 70),
        first=st.one_of(st.sampled_from([3, 5]), st.integers(1, VOCAB)),
        max_tokens=st.one_of(st.none(), st.integers(1, 40)),
        ignore_eos=st.booleans(),
        n=st.sampled_from([1, 1, 1, 3]),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "other"]),
        scored=st.sampled_from([None, None, None, 0]),
    )
    def add(self, length, first, max_tokens, ignore_eos, n, priority, salt, scored):
        prompt = [(first + 11 * i) % (VOCAB + (first == 13)) for i in range(length)]
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=ignore_eos,
            n=n,
            cache_salt=salt,
            prompt_logprobs=scored,
        )
        try:
            name = f"r{len(self.requests)}"
            self.requests += self.engine.add(name, prompt, params, priority=priority)
        except InvalidRequestError:
            capacity = self.engine.max_request_tokens
            wanted = length + (max_tokens or 1 if ignore_eos else 1)
            assert not prompt or max(prompt) >= VOCAB or length >= 64 or wanted > capacity

    @precondition(lambda self: any(r.finish_reason == "length" for r in self.requests))
    @rule(which=st.integers(0, 1000), max_tokens=st.integers(1, 10))
    def go_on(self, which, max_tokens):
        """The next turn of a conversation whose pages may lie in any tier by now."""
        ended = [r for r in self.requests if r.finish_reason == "length"]
        before = ended[which % len(ended)]
        params = SamplingParams(
            max_tokens=max_tokens, temperature=0.0, cache_salt=before.params.cache_salt
        )
        if before.num_tokens + max_tokens < self.engine.max_request_tokens:
            name = f"r{len(self.requests)}"
            self.requests += self.engine.add(name, before.token_ids, params)

    @precondition(lambda self: self.engine.has_work)
    @rule(times=st.integers(1, 5))
    def step(self, times):
        for _ in range(times):
            if self.engine.has_work:
                self.step_and_overtake_no_urgent_request()

    def step_and_overtake_no_urgent_request(self):
        """The starvation bound: beyond the limit, only earlier arrivals go ahead of a request."""
        queue = self.engine._scheduler.waiting
        waiting, entries = set(queue), {one: queue.entry(one) for one in queue}
        plans_twice = self.engine.config.config.scheduling.async_scheduling
        plans_twice &= not self.engine._in_flight
        self.engine.step()
        if plans_twice:
            return  # Requests of the first plan may have joined before any was urgent.
        left = set(self.engine._scheduler.waiting)
        urgent = [request for request in waiting & left if entries[request].urgent]
        joined = [r for r in waiting - left if r.finish_reason != "abort"]
        for first in urgent:
            number = entries[first].arrival_number
            known = [entries[one] for one in joined]
            assert all(one.urgent and one.arrival_number < number for one in known)
            assert first.arrival_s + self.limit_s <= self.clock.now()

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 1000))
    def abort(self, which):
        self.engine.abort(self.requests[which % len(self.requests)].request_id)

    @precondition(lambda self: self.engine.has_work)
    @rule(doom=st.integers(0, 9), late=st.booleans())
    def runner_fails_now_and_then(self, doom, late):
        if doom:
            return
        self.runner.fail_next, self.runner.fail_late = not late, late
        try:
            self.engine.step()
        except RuntimeError:
            self.failed |= {r for r in self.requests if r.finish_reason == "error"}
        finally:
            self.runner.fail_next = self.runner.fail_late = False

    @invariant()
    def pages_are_conserved(self):
        global operations
        if hasattr(self, "engine"):
            operations += 1
            self.engine.memory.check()
            for group in self.engine.memory.groups:
                pool = group.pool
                assert pool.num_free + pool.num_cached + pool.num_owned == pool.num_blocks

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        for _ in range(20_000):
            if not self.engine.has_work:
                break
            self.step_and_overtake_no_urgent_request()
        assert not self.engine.has_work
        assert all(group.pool.num_owned == 0 for group in self.engine.memory.groups)
        totals = self.engine.trace.totals
        seen.update({name: getattr(totals, name) for name in EVENTS})
        disk = self.engine.memory.host.disk if self.engine.memory.host is not None else None
        drafted = totals.speculation
        seen["accepted_tokens"] += sum(drafted.accepted_tokens)
        seen["rejected_tokens"] += sum(drafted.proposed_tokens) - sum(drafted.accepted_tokens)
        seen["files"] += len(disk) if disk is not None else 0
        self.engine.close()
        assert not os.listdir(self.folder.name)
        self.folder.cleanup()
        records = self.engine.trace.requests
        ended = [(record.request_id, record.sample_index) for record in records]
        assert sorted(ended) == sorted((r.request_id, r.sample_index) for r in self.requests)
        capacity = self.engine.max_request_tokens
        for request in self.requests:
            limit = request.params.max_tokens or capacity
            limit = min(limit, capacity - request.num_prompt_tokens)
            expected = oracle(request.prompt_token_ids, limit, request.params.ignore_eos)
            assert request.finish_reason in ("stop", "length", "abort", "error")
            assert (request.finish_reason == "error") == (request in self.failed)
            if request.finish_reason in ("abort", "error"):
                expected = expected[: request.num_output_tokens]
            assert request.output_token_ids == expected
            if request.params.prompt_logprobs is not None and request.finish_reason == "length":
                assert len(request.prompt_logprobs) == request.num_prompt_tokens


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.full) for part in range(1, PARTS))]
)
def test_fifty_thousand_operations_lose_no_page_and_end_every_request_once(part):
    """In parts, each with its own random choices, so that they can run side by side; `make test`
    runs the first."""
    global operations
    operations = 0
    seen.clear()
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert operations >= 50_000 / PARTS, f"only {operations} operations were run: raise EXAMPLES"
    idle = [
        name for name in (*EVENTS, "files", "accepted_tokens", "rejected_tokens") if not seen[name]
    ]
    assert not idle, f"these never happened: {', '.join(idle)}"
