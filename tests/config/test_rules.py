"""Every rule of every room: what it refuses, naming both fields and a way out; what it fills in."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
from config.asked import Case, config_of, pretend_gpu
from config.refused import REFUSED
from config.settled import SETTLED

from minserve.config import ConfigError, resolve, rules
from minserve.config.question import Answer, Question, Rule
from minserve.config.rules import RULES


def name_of(case: Case) -> str:
    return f"{case.rule.__name__}-{'-'.join(case.values)}"


def in_order(parts: tuple[str, ...], text: str) -> bool:
    at = 0
    for part in parts:
        at = text.lower().find(part.lower(), at) + len(part)
        if at < len(part):
            return False
    return True


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_what_cannot_go_together_is_refused_by_its_rule_with_both_fields_and_a_way_out(
    case, monkeypatch
):
    pretend_gpu(monkeypatch, case.gpu)
    with pytest.raises(ConfigError) as caught:
        resolve(config_of(case.values), case.model, facts=case.facts)
    assert in_order(case.says, str(caught.value)), str(caught.value)
    assert caught.traceback[-1].name == case.rule.__name__


@pytest.mark.parametrize("case", SETTLED, ids=name_of)
def test_what_is_left_open_is_filled_in_by_its_rule_and_said(case, monkeypatch):
    pretend_gpu(monkeypatch, case.gpu)
    asked = config_of(case.values)
    answer = answers(Question(asked, case.model, case.facts))[case.rule]
    assert answer.values == case.fills
    assert in_order(case.says, "\n".join(answer.notes)) and bool(case.says) == bool(answer.notes)
    resolved = resolve(asked, case.model, facts=case.facts)
    assert {path: resolved.config.get(path) for path in case.fills} == case.fills
    assert set(answer.notes) <= set(resolved.notes)
    assert resolve(resolved.config, case.model, facts=case.facts).config == resolved.config


def answers(question: Question) -> dict[Rule, Answer]:
    found = {}
    for rule in RULES:
        answer = rule(question)
        if answer is not None:
            found[rule] = answer
            question = question.with_values(answer.values)
    return found


def test_the_cases_are_of_every_rule_and_every_refusal():
    for rule in RULES:
        source = inspect.getsource(rule)
        refused = sum(case.rule is rule for case in REFUSED)
        assert refused >= source.count("raise ConfigError"), f"{rule.__name__}: a case in REFUSED"
        if inspect.signature(rule).return_annotation != "None":
            assert any(case.rule is rule for case in SETTLED), f"{rule.__name__}: one in SETTLED"
        else:
            assert refused, f"{rule.__name__}: a case in REFUSED"


def test_every_rule_of_every_room_is_asked_once():
    rooms = [getattr(rules, module.name) for module in pkgutil.iter_modules(rules.__path__)]
    written = [rule for room in rooms for rule in vars(room).values() if is_rule(rule, room)]
    assert len(set(RULES)) == len(RULES)
    assert set(RULES) == set(written), "a rule is missing in its room's RULES, or a room in RULES"
    assert len({rule.__name__ for rule in RULES}) == len(RULES)


def is_rule(thing: Callable[..., Any], room: Any) -> bool:
    if not inspect.isfunction(thing) or thing.__module__ != room.__name__:
        return False
    if thing.__name__.startswith("_"):
        return False  # a helper of the rules
    return [each.annotation for each in inspect.signature(thing).parameters.values()] == [
        "Question"
    ]
