"""From the configuration given to the one that runs: fills in every "auto", refuses the impossible.

Which fields can be combined is in `minserve.config.rules`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from minserve.config.engine import EngineConfig
from minserve.config.knobs import ConfigError
from minserve.config.question import Facts, Question
from minserve.config.resolved import ResolvedConfig, changes
from minserve.config.rules import RULES
from minserve.inputs.checks import shorten
from minserve.spec import ModelSpec


def resolve(
    config: EngineConfig,
    model: ModelSpec,
    device: str | torch.device | None = None,
    facts: Facts | None = None,
) -> ResolvedConfig:
    """The configuration that will run for this model, with every value filled in.

    `device` replaces `EngineConfig.device`; `facts` say how the engine is built, as far as it is
    known already. Raises ConfigError for a combination that cannot work, naming both fields and
    what to do instead. Resolving twice changes nothing.
    """
    _check_type("config", config, EngineConfig, "an EngineConfig")
    _check_type("model", model, ModelSpec, "a ModelSpec (load_spec reads one)")
    if facts is not None:
        _check_type("facts", facts, Facts, "Facts(...) or None")
    given = config
    if device is not None:
        config = config.with_values({"device": str(device)})
    question = Question(config, model, Facts() if facts is None else facts)
    notes = list(model.notes)
    for rule in RULES:
        answer = rule(question)
        if answer is not None:
            question = question.with_values(answer.values)
            notes += answer.notes
    resolved = question.resolved
    return replace(resolved, notes=tuple(notes), asked=changes(given, resolved.config))


def _check_type(name: str, value: Any, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"resolve: {name}={shorten(value)}: expected {expected}")
