"""What was asked -> what will run: `resolve()` fills in every "auto" and refuses the impossible.

The compatibility table between the fields is `minserve.config.rules`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from minserve.config.engine import EngineConfig
from minserve.config.question import Facts, Question
from minserve.config.resolved import ResolvedConfig
from minserve.config.rules import RULES
from minserve.spec import ModelSpec


def resolve(
    config: EngineConfig,
    model: ModelSpec,
    device: str | torch.device | None = None,
    facts: Facts | None = None,
) -> ResolvedConfig:
    """What will run for this model, with nothing left to guess.

    `device` stands in for `config.device`; `facts` say how the engine is built, where that is known
    already. Raises ConfigError for a combination that cannot work, naming both fields and a way
    out. What is resolved resolves to itself.
    """
    if device is not None:
        config = config.with_values({"device": str(device)})
    question = Question(config, model, facts or Facts())
    notes = list(model.notes)
    for rule in RULES:
        answer = rule(question)
        if answer is not None:
            question = question.with_values(answer.values)
            notes += answer.notes
    return replace(question.resolved, notes=tuple(notes))
