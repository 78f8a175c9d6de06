"""What is compared: one base configuration, up to three variants, a workload, a model, a clock.

Plain data. A variant is the base plus changed fields. Knows nothing about how it is run or shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.gpu import Gpu
from minserve.bench.compare.workload import Sources, Workload
from minserve.bench.workloads.shapes import SHAPES, Shape
from minserve.bench.workloads.traffic import Traffic
from minserve.build import resolve_virtual
from minserve.config import ConfigError, EngineConfig, Facts, ResolvedConfig, resolve
from minserve.hardware import describe_machine
from minserve.loading import find_model, format_plan
from minserve.memory.plan import plan_groups
from minserve.models import load_spec
from minserve.spec import ModelSpec
from minserve.tokenizer import Tokenizer

MOST_VARIANTS, MOST_NAME = 3, 40
MOST_ROUNDS = 9
MOST_PAGES = 1 << 24
"""Of the device, and of the host. A list of this machine has a place for each, also on the virtual
clock."""
MOST_TABLES = 1 << 28
"""Entries of all block tables together, four bytes each."""
CLOCKS = ("wall", "virtual")
KEPT_OUT = {
    "memory.disk_path": "a setup may come from elsewhere, and must not choose where files are "
    "written",
    "device": "the clock of the comparison says where it runs",
}
"""Fields that no setup may change, and why."""

FieldValue = bool | int | float | str | None
Changes = Mapping[str, FieldValue]


@dataclass(frozen=True)
class Variant:
    """The base plus changed fields: dotted path -> value."""

    name: str
    changes: Mapping[str, FieldValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """One comparison. Raises SetupError or ConfigError for one that says nothing possible; whether
    the configurations can serve the model, `resolved` says."""

    model: str = "zoo/base"
    """zoo/NAME, a shape without weights (virtual clock only), or a directory."""
    base: Mapping[str, FieldValue] = field(default_factory=dict)
    """Fields that differ from `EngineConfig()`."""
    base_name: str = "base"
    variants: tuple[Variant, ...] = ()
    workload: Workload = field(default_factory=Workload)
    clock: str = "wall"
    gpu: Gpu = field(default_factory=Gpu)
    """Of the virtual clock."""
    headline: str = "ttft_p50_s"
    """The metric that the verdict is about."""
    rounds: int = 3
    """On the wall clock."""

    def __post_init__(self) -> None:
        if self.clock not in CLOCKS:
            raise SetupError(f"clock={self.clock[:40]!r}: expected wall or virtual")
        if not isinstance(self.rounds, int) or not 1 <= self.rounds <= MOST_ROUNDS:
            raise SetupError(
                f"rounds={str(self.rounds)[:40]}: expected a whole number from 1 to {MOST_ROUNDS}"
            )
        if not 0 < len(self.model) <= 400 or not self.model.isprintable():
            raise SetupError("model: expected the name of a model")
        if len(self.variants) > MOST_VARIANTS:
            raise SetupError(
                f"{len(self.variants)} variants: expected at most {MOST_VARIANTS} beside the base"
            )
        for name in self.names:
            if not 0 < len(name) <= MOST_NAME or not name.isprintable() or name != name.strip():
                raise SetupError(
                    f"a side is called {name[:MOST_NAME]!r}: expected a name of 1 to {MOST_NAME} "
                    "characters"
                )
        if len(set(self.names)) < len(self.names):
            raise SetupError("two sides have the same name: give each its own")
        self.configs()  # Every field exists and is within its bounds.

    @property
    def names(self) -> tuple[str, ...]:
        """The base's name, then the variants'."""
        return (self.base_name, *(variant.name for variant in self.variants))

    def changes(self, name: str) -> Changes:
        """What a side changes: the base of the defaults, a variant of the base."""
        if name == self.base_name:
            return self.base
        return next(variant.changes for variant in self.variants if variant.name == name)

    def config(self, name: str) -> EngineConfig:
        """A side's configuration. Raises ConfigError."""
        base = EngineConfig().with_values(_allowed(self.base))
        return base if name == self.base_name else base.with_values(_allowed(self.changes(name)))

    def configs(self) -> dict[str, EngineConfig]:
        """All sides' configurations, the base first."""
        return {name: self.config(name) for name in self.names}

    @property
    def shape(self) -> Shape | None:
        """The shape that is modelled, where the model is one."""
        return SHAPES.get(self.model)

    def spec(self) -> ModelSpec:
        """The model as data. Raises SetupError where there is no such model here."""
        return _spec(self.model)

    def resolved(self, name: str) -> ResolvedConfig:
        """A side as it will run, with notes on what was settled. Raises ConfigError with the
        sentence of the rule that refuses it."""
        config, spec = self.config(name), self.spec()
        if self.clock == "virtual":
            resolved = resolve_virtual(spec, config, self.gpu.cost())
        elif self.shape is None:
            resolved = resolve(config, spec, facts=Facts(storage=format_plan(config)))
        else:
            raise SetupError(
                f"{self.model} is a shape without weights: choose the virtual clock, or a model of "
                "the zoo"
            )
        _check_size(resolved)
        if self.clock == "wall" and resolved.device.type == "cpu":
            _check_memory(resolved)
        return resolved

    def check(self) -> None:
        """Raise SetupError or ConfigError where a side cannot run."""
        for name in self.names:
            self.resolved(name)

    def traffic(self) -> Traffic:
        """The requests, equal for all sides. Raises SetupError."""
        most = min(self.resolved(name).max_model_len for name in self.names)
        vocab = min(4000, self.spec().vocab_size)
        encode = None
        if self.workload.kind == "prompts":
            # A shape has no tokenizer: lengths are those that the lab's own model would see.
            encode = _encoder("zoo/base" if self.shape else self.model)
        return self.workload.traffic(Sources(vocab, encode, most))


def _check_size(resolved: ResolvedConfig) -> None:
    """Raise SetupError for more pages or longer block tables than this machine can list."""
    memory, seats = resolved.config.memory, resolved.config.scheduling.max_num_seqs
    sizes = {"host_bytes": memory.host_bytes}
    if memory.prefix_cache != "off":
        # Without one there are no more pages than all requests together can use.
        sizes["kv_bytes"] = memory.kv_bytes or 0
    for name, size in sizes.items():
        pages = size // resolved.block_bytes
        if pages > MOST_PAGES:
            raise SetupError(
                f"memory.{name}={size} is {pages:,} pages, and {MOST_PAGES:,} are allowed here: "
                "choose less, or a larger memory.block_size"
            )
    if seats * resolved.blocks_per_request > MOST_TABLES:
        raise SetupError(
            f"scheduling.max_num_seqs={seats} requests of up to {resolved.blocks_per_request:,} "
            f"pages have block tables of {seats * resolved.blocks_per_request:,} entries, and "
            f"{MOST_TABLES:,} are allowed here: choose fewer, or a smaller "
            "scheduling.max_model_len"
        )


def _check_memory(resolved: ResolvedConfig) -> None:
    """Raise SetupError for pools that are larger than this machine's memory."""
    memory, most = resolved.config.memory, _machine_memory_bytes()
    pools = plan_groups(resolved, memory.kv_bytes or 0)
    size = sum(pool.num_blocks * pool.block_bytes for pool in pools) + memory.host_bytes
    if most is not None and size > most:
        raise SetupError(
            f"memory.kv_bytes={memory.kv_bytes} and memory.host_bytes={memory.host_bytes} make "
            f"pools of {size:,} bytes, and this machine has {most:,}: choose less, or the virtual "
            "clock"
        )


@cache
def _machine_memory_bytes() -> int | None:
    return describe_machine().memory_bytes


def _allowed(changes: Changes) -> Changes:
    for path, why in KEPT_OUT.items():
        if path in changes:
            raise ConfigError(f"{path} cannot be set in a comparison: {why}")
    return changes


def model_directory(model: str) -> Path:
    """Where a model lies. Raises SetupError for anything but the zoo's, directories and files: a
    setup from elsewhere must not start a download."""
    if not model.startswith("zoo/") and not Path(model).exists():
        known = ", ".join(SHAPES)
        raise SetupError(
            f"there is no model {model!r} here: choose one of the zoo, a shape ({known}), or a "
            "directory or GGUF file with a model"
        )
    try:
        return find_model(model)
    except (FileNotFoundError, ValueError) as error:
        raise SetupError(str(error)) from None


@cache
def _spec(model: str) -> ModelSpec:
    shape = SHAPES.get(model)
    return shape.spec() if shape is not None else load_spec(model_directory(model))


@cache
def _encoder(model: str) -> Any:
    tokenizer = Tokenizer.from_dir(model_directory(model))
    return None if tokenizer is None else tokenizer.encode
