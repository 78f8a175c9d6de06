"""Any sequence of engine operations over several cache groups: in each of them pages are conserved,
nothing is owned twice, and every page that a later token sees is held."""

from __future__ import annotations

import tempfile

import pytest
import sampled
from engine import test_properties
from engine.fakes import TOKEN_BYTES, make_engine
from engine.test_properties import DISCIPLINES, EngineMachine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, run_state_machine_as_test
from sampled import examples

from minserve.config import EngineConfig

LAYERS: tuple[tuple[int | None, ...], ...] = ((None, 6), (None, 1), (11, None, 3), (None, 6, 40))
EVENTS = ["hit_tokens", "copied_blocks", "evicted_blocks", "preemptions"]
SWAPS = ["swapped_out_blocks", "swapped_in_blocks"]


class GroupMachine(EngineMachine):
    """An `EngineMachine` whose model has layers with different windows."""

    swaps = False

    @initialize(
        windows=st.sampled_from(LAYERS),
        block_size=st.sampled_from([1, 2, 5, 16]),
        pool_tokens=st.integers(16, 120),
        budget=st.sampled_from([4, 7, 32, 128]),
        max_num_seqs=st.integers(1, 4),
        mode=st.sampled_from(["chunked"] * 3 + ["whole", "no cache"]),
        discipline=st.sampled_from(DISCIPLINES),
        limit_s=st.sampled_from([0.0, 0.5, 1000.0]),
        prefix_cache=st.sampled_from(["off", "hash", "radix"]),
        overlap=st.booleans(),
        lazy=st.booleans(),
        scarce=st.booleans(),
    )
    def start(
        self,
        windows,
        block_size,
        pool_tokens,
        budget,
        max_num_seqs,
        mode,
        discipline,
        limit_s,
        prefix_cache,
        overlap,
        lazy,
        scarce,
    ):
        caches, swaps = mode != "no cache", self.swaps
        prefix_cache = prefix_cache if caches else "off"
        if prefix_cache == "off" and discipline.get("order") == "lpm":
            discipline = {"policy": "continuous"}
        host_bytes = 3 * -(-40 // block_size) * block_size * TOKEN_BYTES
        config = EngineConfig().with_values(
            {
                "memory.block_size": block_size,
                "memory.watermark": 0.0,
                "memory.kv_cache": caches,
                "memory.check_integrity": True,
                "memory.prefix_cache": prefix_cache,
                "memory.host_bytes": host_bytes if swaps and caches else 0,
                "scheduling.preemption": "swap" if swaps and caches else "recompute",
                "scheduling.max_num_seqs": max_num_seqs,
                "scheduling.max_num_batched_tokens": budget if mode == "chunked" else 64,
                "scheduling.max_model_len": 64,
                "scheduling.enable_chunked_prefill": mode != "whole",
                "scheduling.starvation_limit_s": limit_s,
                "scheduling.async_scheduling": overlap and caches,
                **{f"scheduling.{name}": value for name, value in discipline.items()},
            }
        )
        self.folder = tempfile.TemporaryDirectory()
        self.engine, self.runner, self.clock = make_engine(
            config, -(-pool_tokens // block_size), lazy=lazy, windows=windows, scarce=scarce
        )
        self.limit_s = limit_s
        self.requests = []
        self.failed = set()

    @invariant()
    def windows_hold_what_is_seen_and_little_more(self):
        if not hasattr(self, "engine"):
            return
        memory = self.engine.memory
        for group in memory.groups:
            window = group.plan.group.spec.window
            for request, table in group.tables.by_request.items():
                computed = request.num_computed_tokens
                first = 0 if window is None else max(0, computed - window + 1)
                held = table.first * memory.block_size
                assert held <= first
                # One token more than is seen, and the rest of its page.
                assert window is None or first - held <= memory.block_size


class SwapMachine(GroupMachine):
    """The same with preempted requests in host slots."""

    swaps = True


@pytest.mark.parametrize("machine", [GroupMachine, SwapMachine])
def test_a_few_thousand_operations_over_several_groups_lose_no_page(machine):
    test_properties.operations = 0
    test_properties.seen.clear()
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples(300, 60),
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert test_properties.operations >= 2000
    # Some are rare: a quick run may not draw them.
    expected = EVENTS + (SWAPS if machine.swaps else []) if sampled.full else ["preemptions"]
    idle = [name for name in expected if not test_properties.seen[name]]
    assert not idle, f"these never happened: {', '.join(idle)}"
