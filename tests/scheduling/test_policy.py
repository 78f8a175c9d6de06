"""The hook: a policy of one's own takes over two decisions and breaks neither pages nor order."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from engine.fakes import make_engine, oracle, run, tiny_spec

from minserve.bench.workloads.traffic import fixed_length
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.engine.parts import EngineParts
from minserve.hardware import DEVICES
from minserve.scheduling import AdmissionError, ContinuousBatching, StaticBatching
from minserve.virtual import CostModel

COST = CostModel(DEVICES["A100 80GB SXM"])


def virtual(policy=None, num_blocks: int = 64, config: EngineConfig | None = None, **scheduling):
    values = {f"scheduling.{name}": value for name, value in scheduling.items()}
    config = (config or EngineConfig()).with_values({"scheduling.max_num_seqs": 2, **values})
    page = 16 * tiny_spec().kv_bytes_per_token(2)
    config = config.with_values({"memory.kv_bytes": num_blocks * page})
    return build_virtual_engine(tiny_spec(), config, COST, parts=EngineParts(policy))


def serve(engine, lengths=(2, 12, 2, 2)):
    for number, length in enumerate(lengths):
        engine.add(f"{number}", [3] * 16, fixed_length(length))
    run(engine)
    return engine.trace.totals


class OneAtATime(ContinuousBatching):
    def admits(self, view):
        return not view.running and view.has_blocks


class Careless(ContinuousBatching):
    def admits(self, view):
        return True


class Sips(ContinuousBatching):
    def budget(self, limit, running, waiting):
        return 4 if any(request.num_uncomputed_tokens > 1 for request in running) else limit


def test_a_given_policy_stands_in_for_the_one_that_the_configuration_names():
    config = EngineConfig().with_values({"scheduling.policy": "static"})
    named = serve(virtual(config=config))
    given = serve(virtual(StaticBatching()))
    assert named.steps == given.steps > serve(virtual()).steps
    alone = serve(virtual(OneAtATime()))
    assert alone.peak_running == 1 and alone.steps == 18


def test_a_policy_never_gets_more_places_than_there_are():
    assert serve(virtual(Careless())).peak_running == 2


def test_a_policy_that_admits_without_pages_raises_and_nothing_is_lost():
    engine = virtual(Careless(), num_blocks=3, max_num_seqs=4)
    with pytest.raises(AdmissionError, match="need 1 pages, and 0 are free"):
        serve(engine, (20, 20, 20, 20))
    engine.memory.check()


def test_a_smaller_budget_splits_prompts_and_is_never_more_than_the_limit():
    totals = serve(virtual(Sips(), max_num_batched_tokens=8), (3, 3))
    assert totals.steps > serve(virtual(max_num_batched_tokens=8), (3, 3)).steps

    class Greedy(ContinuousBatching):
        def budget(self, limit, running, waiting):
            return 10 * limit

    engine = virtual(Greedy(), max_num_batched_tokens=8)
    serve(engine, (3, 3))
    assert max(step.num_tokens for step in engine.trace.steps) == 8


def test_a_static_batch_knows_which_of_its_places_are_idle():
    policy = StaticBatching()
    one, two, three = "one", "two", "three"

    def admits(running, waiting):
        return policy.admits(
            SimpleNamespace(running=running, waiting=waiting, max_num_seqs=8, has_blocks=True)
        )

    assert admits([], [one, two, three]) and admits([one], [two, three])
    assert policy.idle_places([one, two]) == 0
    # Preempted while the batch is still forming, and back in its own place.
    assert policy.idle_places([one]) == 1 and admits([one], [two, three])
    assert policy.idle_places([one, two]) == 0 and policy.idle_places([two]) == 1
    assert not admits([two], [three])
    assert admits([], [three]) and policy.idle_places([three]) == 0
    assert ContinuousBatching().idle_places([three]) == 0


def test_policies_change_when_tokens_come_and_never_which():
    engine, _, _ = make_engine(EngineConfig().with_values({"scheduling.max_num_seqs": 2}))
    engine._scheduler._policies = replace(engine._scheduler._policies, batching=OneAtATime())
    requests = [engine.add(f"{n}", [n + 1] * 9, fixed_length(6))[0] for n in range(4)]
    run(engine)
    for number, request in enumerate(requests):
        assert request.output_token_ids == oracle([number + 1] * 9, 6, ignore_eos=True)
