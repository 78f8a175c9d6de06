"""From a model and a configuration to an engine that runs: the only file that knows all rooms.

Sizes the page pool, picks kernels, and puts runner, memory and scheduler together.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch

from minserve.attention import PagedAttention
from minserve.clock import Clock, VirtualClock, WallClock
from minserve.config import ConfigError, EngineConfig, ResolvedConfig, resolve
from minserve.config.rules.memory import pool_refused
from minserve.engine import Engine
from minserve.engine.parts import CONFIGURED, EngineParts
from minserve.engine.prepare import ShapeBuilder
from minserve.execution.graphs import GraphRunner
from minserve.execution.runner import EagerRunner, Runner
from minserve.hardware import describe_machine
from minserve.inputs.checks import shorten
from minserve.kernels import select_ops
from minserve.kernels.base import Ops
from minserve.kernels.cpu.build import NativeUnavailable, need_compiler
from minserve.loading import LoadedModel, format_plan
from minserve.memory import KVCache, build_manager, plan_groups
from minserve.models import (
    Decoder,
)
from minserve.process.openmp import release_team
from minserve.quantization.formats import FormatPlan
from minserve.scheduling import LengthPredictor
from minserve.spec import ModelSpec
from minserve.trace import RunTrace, TraceHeader
from minserve.virtual.costs import StepCost
from minserve.virtual.engine import VirtualEngine
from minserve.virtual.runner import VirtualRunner
from minserve.virtual.transfers import HostLink, VirtualStore


def check_engine_arguments(config: object, clock: object, predictor: object) -> EngineConfig:
    """Check the configuration, the clock and the predictor's maker before a model is loaded;
    returns the configuration. Raises ConfigError."""
    if config is not None and not isinstance(config, EngineConfig):
        raise ConfigError(f"config={shorten(config)}: expected EngineConfig(...), or None")
    if clock is not None and not all(
        callable(getattr(clock, name, None)) for name in ("now", "wait_until")
    ):
        raise ConfigError(f"clock={shorten(clock)}: expected a Clock, such as WallClock()")
    if predictor is not None and not callable(predictor):
        raise ConfigError(
            f"predictor={shorten(predictor)}: expected a function of the loaded model that makes a "
            "length predictor"
        )
    return config or EngineConfig()


def check_predictor(
    maker: Callable[[LoadedModel], LengthPredictor] | None, loaded: LoadedModel
) -> EngineParts:
    """The parts of an engine with what `maker` makes of the loaded model. Raises ConfigError."""
    if maker is None:
        return CONFIGURED
    predictor = maker(loaded)
    if predictor is None:
        raise ConfigError(
            f"predictor={shorten(maker)} made None: expected an object with a method "
            "predict(request)"
        )
    return EngineParts(predictor=predictor)


def check_parts(parts: object) -> None:
    """Raise ConfigError for anything but EngineParts."""
    if not isinstance(parts, EngineParts):
        raise ConfigError(
            f"parts={shorten(parts)}: expected EngineParts(...), with an object of your own for "
            "each part that is to be replaced"
        )


def build_engine(
    loaded: LoadedModel,
    clock: Clock | None = None,
    parts: EngineParts = CONFIGURED,
    ops: Ops | None = None,
    watch: Callable[[Runner], Runner] | None = None,
) -> Engine:
    """An engine with its own page pool over the loaded model.

    `parts` and `ops` replace what the configuration names. `watch` wraps the engine's runner in one
    of its own, which sees every pass. Raises ConfigError for combinations that can be refused only
    when the parts of the engine are known, such as a predictor that is never called.
    """
    check_parts(parts)
    config = loaded.config
    clock = WallClock() if clock is None else clock
    kernels = config.config.kernels
    own_ops = ops is not None
    if ops is None:
        ops = select_ops(kernels.backend, config.device, config.dtype)
    config = _resolved_again(config, parts, None if own_ops else ops.name)
    if kernels.autotune and not own_ops:
        ops = _tuned(config)
    decoder = Decoder(config.model, loaded.weights, ops, config.max_model_len)
    if config.config.kernels.compile:
        decoder = _compiled(decoder, clock)
    config = config.filled({"kernels.backend": ops.name})
    kv_bytes = config.config.memory.kv_bytes
    if kv_bytes is None:
        kv_bytes = _profile_gpu(config, decoder, ops, drafts=parts.proposer is not None)
    plans = plan_groups(config, kv_bytes)
    cache = KVCache(
        plans,
        config.config.memory.block_size,
        config.dtype,
        config.device,
        # One page more than the manager knows, for the keys and values of padding,
        # which are never read.
        spare_blocks=int(config.padding != "none"),
    )
    memory = build_manager(config, plans, clock, cache)
    attention = PagedAttention(config.model, cache.layers_of(config.model), ops)
    runner = _runner(config, decoder, attention, clock)
    if watch is not None:
        runner = watch(runner)
    trace = new_trace(loaded.name, config)
    release_team()  # another thread may run the steps
    return Engine(config, runner, memory, loaded.tokenizer, clock, trace, parts)


def build_virtual_engine(
    spec: ModelSpec,
    config: EngineConfig,
    cost: StepCost,
    name: str = "",
    parts: EngineParts = CONFIGURED,
    host_link: HostLink | None = None,
    formats: FormatPlan | None = None,
) -> VirtualEngine:
    """An engine that computes nothing: real scheduler and pages, modelled time, a virtual clock.

    The pool is `memory.kv_bytes`, or the part of the modelled GPU's memory that the weights leave
    free. Pages that are swapped or offloaded take the time of `host_link`. `formats` as in
    `load_model`.
    """
    check_parts(parts)
    resolved = resolve_virtual(spec, config, cost, parts, formats)
    clock = VirtualClock()
    plans = plan_groups(resolved, resolved.config.memory.kv_bytes or 0)
    bandwidth = getattr(cost.device, "memory_bytes_per_s", None)
    link = getattr(cost, "link", None) if host_link is None else host_link
    sizes = [plan.block_bytes for plan in plans]
    store = VirtualStore(sizes, clock, link or HostLink(), bandwidth)
    memory = build_manager(resolved, plans, clock, store)
    runner = VirtualRunner(spec, resolved.itemsize, cost, clock, storage=resolved.storage)
    trace = new_trace(name or spec.family, resolved)
    trace.header = dataclasses.replace(
        trace.header, provenance="modelled", device=getattr(cost.device, "name", "this machine")
    )
    builder = ShapeBuilder(resolved.max_num_batched_tokens)
    return VirtualEngine(resolved, runner, memory, clock, trace, builder, parts)


def resolve_virtual(
    spec: ModelSpec,
    config: EngineConfig,
    cost: StepCost,
    parts: EngineParts = CONFIGURED,
    formats: FormatPlan | None = None,
) -> ResolvedConfig:
    """What will run on modelled time. Raises ConfigError."""
    facts = dataclasses.replace(
        parts.facts,
        modelled=True,
        modelled_bytes=getattr(cost.device, "memory_bytes", None),
        storage=format_plan(config) if formats is None else formats,
    )
    return resolve(config.with_values({"device": "cpu", "dtype": cost.dtype}), spec, facts=facts)


def new_trace(model_name: str, config: ResolvedConfig) -> RunTrace:
    """An empty trace whose header says where it comes from."""
    packages = ("minserve", "torch", "transformers")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    header = TraceHeader(
        model=model_name,
        config=_without_paths(config.config.to_dict()),
        asked={path: value for path, value in config.asked.items() if path not in _PATHS},
        device=describe_machine().processor(config.device),
        versions=versions,
        date=datetime.date.today().isoformat(),
        notes=config.notes,
    )
    return RunTrace(config.config.trace.max_steps, header=header)


def _runner(
    config: ResolvedConfig, decoder: Decoder, attention: PagedAttention, clock: Clock
) -> Runner:
    kernels = config.config.kernels
    if not kernels.cuda_graphs:
        return EagerRunner(decoder, attention, config.device, clock, kernels.logits_chunk)
    return GraphRunner(
        decoder,
        attention,
        config.device,
        clock,
        kernels.logits_chunk,
        config.max_graph_rows,
        config.blocks_per_request,
        config.config.memory.block_size,
    )


def _resolved_again(
    config: ResolvedConfig, parts: EngineParts, operators: str | None
) -> ResolvedConfig:
    """The configuration for an engine of these parts, over operators of this name (None: the
    caller's own). Only here it is known what the engine is made of. Raises ConfigError."""
    facts = dataclasses.replace(
        parts.facts,
        operators=operators,
        storage=config.stored,
        why_no_compiler=_why_no_compiler,
    )
    again = resolve(config.config, config.model, facts=facts)
    notes = dict.fromkeys((*config.notes, *again.notes))
    return dataclasses.replace(again, notes=tuple(notes), asked={**again.asked, **config.asked})


def _tuned(config: ResolvedConfig) -> Ops:
    """Triton's operators with the fastest tiles on this GPU, for every shape of heads."""
    from minserve.kernels.triton import TritonOps
    from minserve.kernels.triton.analysis.autotune import tune_model

    return TritonOps(tuning=tune_model(config.model, config.dtype, config.device))


def _why_no_compiler() -> str | None:
    try:
        need_compiler()
    except NativeUnavailable as error:
        return str(error)
    return None


def _compiled(decoder: Decoder, clock: Clock) -> Decoder:
    # Imported here because torch's compiler takes seconds to import.
    from minserve.models.compiled import CompiledDecoder

    return CompiledDecoder(decoder.spec, decoder.weights, decoder.ops, decoder.max_position, clock)


_PATHS = ("memory.disk_path",)


def _without_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Remove paths: a trace is shared with others, who should not learn where a disk is mounted."""
    return values | dict.fromkeys(_PATHS)


def _profile_gpu(config: ResolvedConfig, decoder: Decoder, ops: Ops, drafts: bool) -> int:
    """Bytes left for pages on a GPU after a run of the largest batch that the
    scheduler may plan."""
    from minserve.execution.profiling import activation_peak_bytes

    peak = activation_peak_bytes(config, decoder, ops, drafts)
    if config.config.kernels.cuda_graphs:
        # Graphs keep memory of their own, for steps no larger than this one, and their logits.
        peak += peak + config.max_graph_rows * config.model.vocab_size * config.itemsize
    free, total = torch.cuda.mem_get_info(config.device)
    allowed = int(total * config.config.memory.gpu_memory_utilization)
    used = total - free
    kv_bytes = allowed - used - peak
    if kv_bytes < config.block_bytes:
        raise pool_refused(config, allowed, used, peak)
    return kv_bytes
