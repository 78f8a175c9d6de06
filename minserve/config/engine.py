"""`EngineConfig`: every switch of the engine, as the command line and the panels see it.

Frozen nested dataclasses: fields that belong to no room are here, the others in
`minserve.config.sections`. Command-line flags and the panels' controls are generated from the
fields' metadata. Knows nothing about which values can be combined.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, get_args, get_type_hints

import torch

from minserve.config.knobs import ConfigError, Knob, Section, knob
from minserve.config.sections import (
    AdmissionConfig,
    KernelsConfig,
    MemoryConfig,
    QuantizationConfig,
    SchedulingConfig,
    TraceConfig,
)
from minserve.inputs.checks import shorten

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Values of `EngineConfig.dtype`, besides "auto"."""


@dataclass(frozen=True)
class EngineConfig(Section):
    """The whole engine's configuration."""

    dtype: str = knob(
        "auto",
        "Number format of weights, activations and cache. auto: the checkpoint's own; float16 on "
        "a GPU without bfloat16; on a CPU bfloat16 only where the processor has instructions "
        "for it, otherwise float32.",
        trade_off="half the bytes, fewer digits",
        choices=("auto", *DTYPES),
    )
    device: str = knob(
        "auto",
        "cpu, cuda or cuda:N. auto: the first CUDA device, otherwise the CPU.",
        trade_off="a GPU reads memory many times faster",
    )
    seed: int = knob(
        0,
        "Seed for requests that have none of their own.",
        trade_off="same seed, same requests in the same order: same tokens",
        # Each request adds its number to the seed, and the sum must fit in 64 bits.
        at_least=-(2**62),
        at_most=2**62,
    )
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    scheduling: SchedulingConfig = field(default_factory=SchedulingConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in fields(self):
            expected, given = item.default_factory, getattr(self, item.name)
            if isinstance(expected, type) and not isinstance(given, expected):
                raise ConfigError(
                    f"EngineConfig.{item.name}={shorten(given)}: expected {expected.__name__}(...)"
                )

    def get(self, path: str) -> Any:
        """The value at a dotted path such as "memory.block_size"."""
        section, name = _locate(self, path)
        return getattr(section, name)

    def with_values(self, values: Mapping[str, Any]) -> EngineConfig:
        """A copy with fields set by dotted path. Raises ConfigError for an unknown path, and for
        anything else than a mapping."""
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"EngineConfig.with_values: got {shorten(values)}, expected a mapping from paths "
                "to values, such as {'memory.block_size': 32}"
            )
        changed = self
        for path, value in values.items():
            section, name = _locate(changed, path)
            if section is changed:
                changed = replace(changed, **{name: value})
            else:
                part = replace(section, **{name: value})
                changed = replace(changed, **{path.split(".")[0]: part})
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Dotted path -> value, for traces and reports."""
        return {entry.path: self.get(entry.path) for entry in describe()}


@cache
def describe() -> tuple[Knob, ...]:
    """Every field of EngineConfig and its sections, in order."""
    return tuple(_describe(EngineConfig, ""))


def _describe(section: type, prefix: str) -> Iterator[Knob]:
    hints = get_type_hints(section)
    for item in fields(section):
        hint = hints[item.name]
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _describe(hint, f"{prefix}{item.name}.")
            continue
        options = [option for option in get_args(hint) if option is not type(None)]
        meta = item.metadata
        yield Knob(
            path=f"{prefix}{item.name}",
            type=options[0] if options else hint,
            optional=bool(options),
            default=item.default,
            doc=meta["doc"],
            trade_off=meta["trade_off"],
            unit=meta["unit"],
            survey=meta["survey"],
            choices=meta["choices"],
        )


def _locate(config: EngineConfig, path: str) -> tuple[Any, str]:
    known = [entry.path for entry in describe()]
    if path not in known:
        inside = [name for name in known if name.startswith(f"{path}.")]
        if inside:
            raise ConfigError(
                f"EngineConfig.{path} is a section, expected a field: name one of its fields, "
                f"such as {inside[0]!r}"
            )
        close = difflib.get_close_matches(str(path)[:100], known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        raise ConfigError(f"EngineConfig has no field {shorten(path)}{hint}")
    section, _, name = path.rpartition(".")
    return (getattr(config, section) if section else config), name
