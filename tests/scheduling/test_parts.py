"""The caller's own policies: checked where they are given, and known to the compatibility rules."""

from __future__ import annotations

import pytest
from engine.fakes import tiny_spec

from minserve.build import build_virtual_engine
from minserve.config import ConfigError, EngineConfig, describe
from minserve.config.rules.scheduling import NAMED_ORDERS
from minserve.engine.parts import EngineParts
from minserve.hardware import DEVICES
from minserve.scheduling import (
    ContinuousBatching,
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


def test_an_own_order_is_asked_in_the_place_of_the_named_one():
    values = {"scheduling__order": "priority", "scheduling__policy": "static"}
    built = build(EngineParts(order=QueuePolicy()), **values)
    assert built.config.config.scheduling.starvation_limit_s is None
    own = build(EngineParts(order=PriorityFirst()))
    assert own.config.config.scheduling.starvation_limit_s == 30.0
    assert "the order PriorityFirst lets requests overtake" in "".join(own.config.notes)
