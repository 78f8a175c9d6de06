"""The caller's own policies: checked where they are given, and known to the compatibility rules."""

from __future__ import annotations

import pytest
from engine.fakes import tiny_spec

from minserve.build import build_virtual_engine
from minserve.config import ConfigError, EngineConfig, describe
from minserve.config.rules.scheduling import NAMED_ORDERS
from minserve.engine.parts import EngineParts
from minserve.hardware import DEVICES
from minserve.request import SamplingParams
from minserve.scheduling import (
    ContinuousBatching,
    HookError,
    LengthOracle,
    LongestPrefixFirst,
    PriorityFirst,
    QueuePolicy,
    ShortestFirst,
)
from minserve.scheduling.policies.batching import POLICIES
from minserve.scheduling.policies.queueing import ORDERS
from minserve.scheduling.policies.turns import RANKED_TURNS, TURNS
from minserve.scheduling.policies.victims import VICTIMS
from minserve.virtual import CostModel

COST = CostModel(DEVICES["A100 80GB SXM"])


def build(parts, **values):
    settings = {name.replace("__", "."): value for name, value in values.items()}
    config = EngineConfig().with_values({"memory.kv_bytes": 1 << 20} | settings)
    return build_virtual_engine(tiny_spec(), config, COST, parts=parts)


@pytest.mark.parametrize(
    ("field", "registry"),
    [
        ("order", ORDERS),
        ("policy", POLICIES),
        ("victim", VICTIMS),
        ("prefill", TURNS),
        ("prefill", RANKED_TURNS),
    ],
)
def test_every_choice_of_the_configuration_has_an_object_and_the_reverse(field, registry):
    (knob,) = [one for one in describe() if one.path == f"scheduling.{field}"]
    assert set(knob.choices) == set(registry)


@pytest.mark.parametrize("name", ORDERS)
def test_the_rules_know_the_named_orders_as_they_are(name):
    known, made = NAMED_ORDERS[name], ORDERS[name]().traits()
    assert known.name == name
    for trait in ("preemptive", "needs_lengths", "needs_prefixes", "overtakes"):
        assert getattr(known, trait) == getattr(made, trait), trait


@pytest.mark.parametrize(
    ("parts", "values", "message"),
    [
        ({"order": PriorityFirst()}, {"scheduling__policy": "static"}, "the order PriorityFirst"),
        ({"order": LongestPrefixFirst()}, {}, r"the order LongestPrefixFirst .* prefix_cache"),
        (
            {"order": QueuePolicy(), "predictor": ShortestFirst},
            {"scheduling__order": "sjf"},
            "expected an object with a method predict",
        ),
        ({"policy": object()}, {}, r"EngineParts\(policy=.*expected .* BatchingPolicy, or None"),
        ({"policy": ContinuousBatching}, {}, r"EngineParts\(policy="),
        ({"order": "fcfs"}, {}, r"EngineParts\(order='fcfs'\): expected .* QueuePolicy, or None"),
        ({"predictor": LengthOracle}, {}, r"EngineParts\(predictor=.*expected an object with"),
        ({"predictor": 3}, {}, r"EngineParts\(predictor=3\): expected .* predict"),
    ],
)
def test_a_part_that_cannot_work_is_refused_in_a_sentence(parts, values, message):
    with pytest.raises(ConfigError, match=message):
        build(EngineParts(**parts), **values)


@pytest.mark.parametrize("parts", [None, "x", EngineParts, ContinuousBatching()])
def test_parts_are_engine_parts(parts):
    with pytest.raises(ConfigError, match=r"parts=.*: expected EngineParts\(...\)"):
        build(parts)


class Empty(QueuePolicy):
    """False as long as it holds nothing of its own; the last to come is first."""

    def __len__(self):
        return 0

    def rank(self, entry):
        return -entry.arrival_number


def test_a_part_that_is_false_is_used_all_the_same():
    engine = build(EngineParts(order=Empty()), scheduling__max_num_seqs=1)
    for number in range(3):
        engine.add(f"{number}", [3] * 8, SamplingParams(max_tokens=2, ignore_eos=True))
    while engine.has_work:
        engine.step()
    assert [record.request_id for record in engine.trace.requests] == ["2", "1", "0"]


def test_an_admission_that_is_neither_yes_nor_no_is_refused():
    class Unsure(ContinuousBatching):
        def admits(self, view):
            return "yes"

    engine = build(EngineParts(policy=Unsure()))
    engine.add("r", [3] * 8, SamplingParams(max_tokens=2))
    with pytest.raises(HookError, match=r"Unsure\.admits answered 'yes'.*True or False"):
        engine.step()


def test_an_own_order_is_asked_in_the_place_of_the_named_one():
    values = {"scheduling__order": "priority", "scheduling__policy": "static"}
    built = build(EngineParts(order=QueuePolicy()), **values)
    assert built.config.config.scheduling.starvation_limit_s is None
    own = build(EngineParts(order=PriorityFirst()))
    assert own.config.config.scheduling.starvation_limit_s == 30.0
    assert "the order PriorityFirst lets requests overtake" in "".join(own.config.notes)
