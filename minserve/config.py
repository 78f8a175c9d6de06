"""`EngineConfig`: every switch of the engine, one field each, documented where it is declared.

Frozen nested dataclasses; sections carry the names of the rooms. `resolve()` turns what was asked
into what will run, or refuses it in a sentence. Command-line flags and the panels' controls are
made from the fields' metadata, never restated. Knows nothing about how a switch is implemented.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import torch

from minserve.spec import ModelSpec

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class ConfigError(ValueError):
    """A configuration that cannot work. The message names the fields and the way out."""


def knob(
    default: Any,
    doc: str,
    *,
    trade_off: str,
    unit: str = "",
    survey: str = "",
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A documented configuration field: `survey` is the section of Miao et al. (2312.15234)."""
    return field(
        default=default,
        metadata={
            "doc": doc,
            "trade_off": trade_off,
            "unit": unit,
            "survey": survey,
            "choices": choices,
            "at_least": at_least,
            "at_most": at_most,
        },
    )


class _Section:
    """Checks every knob of a section against its own metadata when it is made."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value, meta = getattr(self, item.name), item.metadata
            if not meta or value is None:
                continue
            name = f"{type(self).__name__}.{item.name}={value!r}"
            if meta["choices"] and value not in meta["choices"]:
                raise ConfigError(f"{name}: expected one of {', '.join(meta['choices'])}")
            low, high = meta["at_least"], meta["at_most"]
            if low is not None or high is not None:
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ConfigError(f"{name}: expected a number")
                if low is not None and value < low or high is not None and value > high:
                    bounds = [f"at least {low}"] * (low is not None)
                    bounds += [f"at most {high}"] * (high is not None)
                    raise ConfigError(f"{name}: expected {' and '.join(bounds)}")
            if isinstance(item.default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{name}: expected True or False")


@dataclass(frozen=True)
class MemoryConfig(_Section):
    """Where keys and values live between steps."""

    kv_cache: bool = knob(
        True,
        "Keep keys and values of computed tokens; off, every step computes all tokens again.",
        trade_off="memory that grows with every token, against arithmetic that grows with its "
        "square",
        survey="2.1",
    )
    block_size: int = knob(
        16,
        "Tokens per page of the KV cache.",
        unit="tokens",
        trade_off="small pages waste less at the end of a sequence, large ones need shorter "
        "block tables and longer contiguous reads",
        survey="4.2.3",
        at_least=1,
        at_most=1024,
    )
    kv_bytes: int | None = knob(
        None,
        "Size of the page pool. None: on a GPU what a profile run leaves free; on a CPU enough "
        "for max_num_seqs requests of max_model_len tokens, at most an eighth of the memory.",
        unit="bytes",
        trade_off="a small pool preempts, a large one takes memory from everything else",
        survey="4.2.3",
        at_least=1,
    )
    gpu_memory_utilization: float = knob(
        0.9,
        "Share of the GPU's memory the engine may use, weights and activations included; read "
        "only where kv_bytes is None.",
        unit="fraction",
        trade_off="room for longer batches against room for other programs",
        survey="4.2.3",
        at_least=0.05,
        at_most=0.99,
    )
    watermark: float = knob(
        0.01,
        "Share of the pages that must stay free when a waiting request is admitted.",
        unit="fraction",
        trade_off="fewer preemptions right after an admission against a few idle pages",
        survey="4.2.3",
        at_least=0.0,
        at_most=0.5,
    )
    check_integrity: bool = knob(
        False,
        "After every step, verify that free and owned pages add up and nothing is owned twice.",
        trade_off="certainty against a few microseconds per page and step",
    )


@dataclass(frozen=True)
class SchedulingConfig(_Section):
    """Who computes how many tokens in the next step."""

    max_num_seqs: int = knob(
        64,
        "Most requests that hold a place in the batch at once.",
        unit="requests",
        trade_off="throughput grows with the batch, so does everybody's time per token",
        survey="4.2.4",
        at_least=1,
    )
    max_num_batched_tokens: int | None = knob(
        None,
        "Token budget of one step, prefill and decode together. None: 512, or more where a "
        "request must fit in one step.",
        unit="tokens",
        trade_off="a large budget finishes prompts sooner and delays the tokens of running "
        "requests",
        survey="4.2.4",
        at_least=1,
    )
    max_model_len: int | None = knob(
        None,
        "Longest request, prompt and output together. None: what the model allows.",
        unit="tokens",
        trade_off="long requests hold pages for long",
        survey="4.2.3",
        at_least=2,
    )
    enable_chunked_prefill: bool = knob(
        True,
        "Split prompts that do not fit into what is left of the step's token budget.",
        trade_off="running requests keep their pace while a long prompt arrives, which then "
        "takes more steps",
        survey="4.2.4",
    )
    victim: str = knob(
        "last",
        "Who loses its pages when they run out: the request admitted last, or the one with the "
        "fewest computed tokens.",
        trade_off="fairness to the oldest against the least work done twice",
        survey="4.2.4",
        choices=("last", "least_computed"),
    )


@dataclass(frozen=True)
class KernelsConfig(_Section):
    """Which implementation of the operators runs."""

    backend: str = knob(
        "auto",
        "torch: plain torch operators, everywhere. native: a small C++ file, compiled on first "
        "use, CPU only. auto: native on a CPU where it compiles, torch elsewhere.",
        trade_off="the same results to rounding; fused operators move fewer bytes",
        survey="4.2.5",
        choices=("auto", "torch", "native"),
    )
    num_threads: int | None = knob(
        None,
        "Threads of the CPU operators, for the whole process. None: torch's current setting.",
        unit="threads",
        trade_off="more threads pay off only above a certain size of work",
        at_least=1,
    )
    logits_chunk: int = knob(
        256,
        "Rows of logits computed at once.",
        unit="rows",
        trade_off="bounds the memory of [rows, vocabulary] where prompt logprobs are asked for",
        at_least=1,
    )


@dataclass(frozen=True)
class TraceConfig(_Section):
    """What a run remembers of its steps."""

    max_steps: int = knob(
        100_000,
        "Newest steps kept in the trace.",
        unit="steps",
        trade_off="about a kilobyte per step without detail",
        at_least=1,
    )
    per_request: bool = knob(
        False,
        "Keep what each step did for each request.",
        trade_off="timelines and replay against memory and a few microseconds per request",
    )
    pages: bool = knob(
        False,
        "Keep which pages each request held; implies nothing unless per_request is on.",
        trade_off="the page map against memory",
    )


@dataclass(frozen=True)
class EngineConfig(_Section):
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
        trade_off="bandwidth",
    )
    seed: int = knob(
        0,
        "Seeds requests that bring no seed of their own.",
        trade_off="same seed, same requests in the same order: same tokens",
    )
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    scheduling: SchedulingConfig = field(default_factory=SchedulingConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in fields(self):
            expected = item.default_factory
            if isinstance(expected, type) and not isinstance(getattr(self, item.name), expected):
                raise ConfigError(
                    f"EngineConfig.{item.name}={getattr(self, item.name)!r}: expected a "
                    f"{expected.__name__}"
                )

    def get(self, path: str) -> Any:
        """The value at a dotted path such as "memory.block_size"."""
        section, name = _locate(self, path)
        return getattr(section, name)

    def with_values(self, values: Mapping[str, Any]) -> EngineConfig:
        """A copy with fields set by dotted path; an unknown path is a ConfigError."""
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

    def resolve(self, model: ModelSpec, device: str | torch.device | None = None) -> ResolvedConfig:
        """What will run for this model on this device, with nothing left to guess.

        Raises ConfigError for a combination that cannot work, naming both fields and a way out.
        """
        return _resolve(self, model, device)


@dataclass(frozen=True)
class ResolvedConfig:
    """The effective configuration. `notes` say which choices were made, in sentences."""

    config: EngineConfig
    model: ModelSpec
    device: torch.device
    dtype: torch.dtype
    max_model_len: int
    max_num_batched_tokens: int
    notes: tuple[str, ...]

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.config.memory.block_size * self.model.kv_bytes_per_token(self.itemsize)

    @property
    def blocks_per_request(self) -> int:
        """Pages of a request of `max_model_len` tokens."""
        return -(-self.max_model_len // self.config.memory.block_size)


@dataclass(frozen=True)
class Knob:
    """One field as the command line and the panels see it."""

    path: str
    type: type
    optional: bool
    default: Any
    doc: str
    trade_off: str
    unit: str
    survey: str
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The command-line option: "--block-size"."""
        return "--" + self.path.rsplit(".", 1)[-1].replace("_", "-")


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
        close = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        raise ConfigError(f"EngineConfig has no field {path!r}{hint}")
    section, _, name = path.rpartition(".")
    return (getattr(config, section) if section else config), name


def _pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"EngineConfig.device={name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"EngineConfig.device={name!r}: torch {torch.__version__} sees no CUDA device; use "
            "device='cpu', or install a CUDA build of torch on a machine with an NVIDIA GPU"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"EngineConfig.device={name!r}: this machine has {torch.cuda.device_count()} CUDA "
            "device(s), numbered from 0"
        )
    return device


def cpu_has_bfloat16() -> bool:
    """True when the processor multiplies bfloat16 in hardware (AMX or AVX-512 BF16)."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool((probe and probe()) or (amx and amx()))


def _pick_dtype(name: str, model: ModelSpec, device: torch.device) -> tuple[torch.dtype, list[str]]:
    if name != "auto":
        return DTYPES[name], []
    wanted = DTYPES.get(model.dtype, torch.float32)
    if device.type == "cuda":
        if wanted is torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
            return torch.float16, [
                "dtype: float16, because this GPU has no bfloat16 (the checkpoint's format)"
            ]
        return wanted, [f"dtype: {model.dtype}, the checkpoint's own"]
    if wanted is torch.float16:
        return torch.float32, ["dtype: float32, because CPUs are slow in float16"]
    if wanted is torch.bfloat16 and not cpu_has_bfloat16():
        return torch.float32, [
            "dtype: float32, because this CPU has no bfloat16 instructions; the checkpoint's "
            "bfloat16 values are represented exactly"
        ]
    return wanted, [f"dtype: {model.dtype}, the checkpoint's own"]


def _resolve(
    config: EngineConfig, model: ModelSpec, device: str | torch.device | None
) -> ResolvedConfig:
    target = _pick_device(config.device if device is None else str(device))
    dtype, notes = _pick_dtype(config.dtype, model, target)
    scheduling, memory = config.scheduling, config.memory
    max_model_len = scheduling.max_model_len or model.max_position
    if max_model_len > model.max_position:
        raise ConfigError(
            f"scheduling.max_model_len={max_model_len} is beyond the {model.max_position} "
            "positions the model was made for: lower it, or give the model a rope scaling in its "
            "config.json"
        )
    whole_prompts = not memory.kv_cache or not scheduling.enable_chunked_prefill
    budget = scheduling.max_num_batched_tokens
    if budget is None:
        budget = max(512, scheduling.max_num_seqs)
        if whole_prompts and budget < max_model_len:
            budget = max_model_len
            notes.append(
                f"scheduling.max_num_batched_tokens: {budget}, so that a request of max_model_len "
                "fits in one step"
            )
    if budget < scheduling.max_num_seqs:
        raise ConfigError(
            f"scheduling.max_num_batched_tokens={budget} is below scheduling.max_num_seqs="
            f"{scheduling.max_num_seqs}: each running request needs a token of the budget; raise "
            "the one or lower the other"
        )
    if whole_prompts and budget < max_model_len:
        switch = (
            "memory.kv_cache=False"
            if not memory.kv_cache
            else "scheduling.enable_chunked_prefill=False"
        )
        raise ConfigError(
            f"{switch} needs a request's tokens in one step, but scheduling."
            f"max_num_batched_tokens={budget} is below scheduling.max_model_len={max_model_len}: "
            "raise the budget or lower max_model_len"
        )
    if config.kernels.backend == "native" and target.type != "cpu":
        raise ConfigError(
            f"kernels.backend='native' runs on a CPU only, and device is {str(target)!r}: use "
            "kernels.backend='auto' or device='cpu'"
        )
    effective = config.with_values(
        {
            "device": str(target),
            "dtype": str(dtype).removeprefix("torch."),
            "scheduling.max_model_len": max_model_len,
            "scheduling.max_num_batched_tokens": budget,
        }
    )
    resolved = ResolvedConfig(
        config=effective,
        model=model,
        device=target,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_batched_tokens=budget,
        notes=tuple(notes),
    )
    kv_bytes = memory.kv_bytes
    if kv_bytes is None and target.type == "cpu":
        wanted = scheduling.max_num_seqs * resolved.blocks_per_request * resolved.block_bytes
        kv_bytes = max(resolved.block_bytes, min(wanted, _memory_bytes() // 8))
        effective = effective.with_values({"memory.kv_bytes": kv_bytes})
        resolved = replace(resolved, config=effective)
    if kv_bytes is not None and kv_bytes < resolved.block_bytes:
        raise ConfigError(
            f"memory.kv_bytes={kv_bytes} holds no page: one page of memory.block_size="
            f"{memory.block_size} tokens takes {resolved.block_bytes} bytes in this model; raise "
            "kv_bytes or lower block_size"
        )
    return resolved


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        # Windows has no sysconf; a modest pool is right for a laptop.
        return 8 << 30
