"""What a compatibility rule receives and returns.

A rule is a function of a `Question`. It raises ConfigError for an impossible combination, with a
message that names both fields and what to do instead. It returns an `Answer` if it fills in a value
or adds a note, and None otherwise. The rules are in `minserve.config.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from minserve.config.engine import DTYPES, EngineConfig
from minserve.config.resolved import ResolvedConfig
from minserve.spec import ModelSpec, StoragePlan


@dataclass(frozen=True)
class OrderTraits:
    """What rules must know of a queue policy."""

    name: str
    """As errors say it: "scheduling.order='sjf'", or the class of the caller's own."""
    preemptive: bool = False
    """It takes places from running requests."""
    needs_lengths: bool = False
    """It asks a predictor of lengths."""
    needs_prefixes: bool = False
    """It asks how much of a request is in the prefix cache."""
    overtakes: bool = True
    """A later request may go before an earlier one."""


@dataclass(frozen=True)
class Facts:
    """How the engine is built: facts that rules need besides the configuration and the model."""

    modelled: bool = False
    """Time is modelled, and nothing is computed."""
    modelled_bytes: int | None = None
    """Memory of the modelled device; None: its cost model does not say."""
    own_order: OrderTraits | None = None
    """The queue policy that the caller brings; None: the one that `scheduling.order` names."""
    own_predictor: bool = False
    """The caller passes a predictor of lengths."""
    proposer: str | None = None
    """Class of the proposer that drafts tokens; None: every step gives one token."""
    proposes_trees: bool = False
    """Its drafts may have branches."""
    operators: str | None = None
    """Name of the operators chosen for `kernels.backend`; None: not chosen yet."""
    storage: StoragePlan | None = None
    """How weights in `quantization.weight_format` are stored; None: not looked up yet."""
    why_no_compiler: Callable[[], str | None] | None = None
    """Looks for a C++ compiler and returns why there is none; None: too early to look."""


@dataclass(frozen=True)
class Question:
    """Can this configuration serve this model? Values are filled in rule by rule, so each rule sees
    what earlier rules filled in."""

    config: EngineConfig
    model: ModelSpec
    facts: Facts

    @property
    def device(self) -> torch.device:
        """The device. Filled in by the device rules."""
        return torch.device(self.config.device)

    @property
    def dtype(self) -> torch.dtype:
        """The number format. Filled in by the device rules."""
        return DTYPES[self.config.dtype]

    @property
    def max_model_len(self) -> int:
        """Longest request, in tokens. Raises LookupError before a rule has filled it in."""
        return _settled("max_model_len", self.config.scheduling.max_model_len)

    @property
    def max_num_batched_tokens(self) -> int:
        """Budget of a step, in tokens. Raises LookupError before a rule has filled it in."""
        return _settled("max_num_batched_tokens", self.config.scheduling.max_num_batched_tokens)

    @property
    def resolved(self) -> ResolvedConfig:
        """The configuration as it will run, without the notes. Raises LookupError before its
        lengths are filled in."""
        return ResolvedConfig(
            config=self.config,
            model=self.model.up_to(self.max_model_len),
            device=self.device,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            max_num_batched_tokens=self.max_num_batched_tokens,
            notes=(),
            stored=self.facts.storage,
        )

    def with_values(self, values: Mapping[str, Any]) -> Question:
        """The same question with fields of the configuration filled in, by dotted path."""
        return replace(self, config=self.config.with_values(values)) if values else self


@dataclass(frozen=True)
class Answer:
    """What a rule decided."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration to fill in, by dotted path."""
    notes: tuple[str, ...] = ()
    """Sentences that describe the choices made."""


Rule = Callable[[Question], Answer | None]


def _settled(name: str, value: int | None) -> int:
    if value is None:
        raise LookupError(
            f"scheduling.{name} is not settled yet: ask after the rule that fills it in"
        )
    return value
