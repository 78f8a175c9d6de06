"""What was asked -> what will run: `resolve()` fills in every "auto" and refuses the impossible.

The whole compatibility table between fields is here; a combination that cannot work is refused in a
sentence that names both fields and the way out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from minserve.config.knobs import ConfigError
from minserve.config.sections import DTYPES, EngineConfig
from minserve.spec import ModelSpec

CHARS_PER_TOKEN = 32
"""No text has more over its whole length: single tokens (blanks, dashes) do, and English has 4."""


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
    def num_host_slots(self) -> int:
        """Pages that fit into `memory.host_bytes`."""
        return self.config.memory.host_bytes // self.block_bytes

    @property
    def padding(self) -> str:
        """What steps are padded to: `kernels.padding`, or the row counts of `kernels.cuda_graphs`
        ("ladder")."""
        kernels = self.config.kernels
        return "ladder" if kernels.cuda_graphs else kernels.padding

    @property
    def max_graph_rows(self) -> int:
        """Rows of the largest step that is replayed from a graph."""
        return min(self.config.kernels.cuda_graph_max_rows, self.config.scheduling.max_num_seqs)

    @property
    def max_prompt_chars(self) -> int:
        """`admission.max_prompt_chars`, or what the longest prompt can have at most."""
        most = self.config.admission.max_prompt_chars
        return CHARS_PER_TOKEN * self.max_model_len if most is None else most

    @property
    def blocks_per_request(self) -> int:
        """Pages of a request of `max_model_len` tokens."""
        return -(-self.max_model_len // self.config.memory.block_size)


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


def resolve(
    config: EngineConfig, model: ModelSpec, device: str | torch.device | None = None
) -> ResolvedConfig:
    """What will run for this model on this device; see `EngineConfig.resolve`."""
    target = _pick_device(config.device if device is None else str(device))
    dtype, notes = _pick_dtype(config.dtype, model, target)
    notes = [*model.notes, *notes]
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
    limit_s = _check_scheduling(config, budget, whole_prompts, notes)
    _check_kernels(config, target, notes)
    _check_capability(config, target, notes)
    backend = _check_graphs(config, target, notes)
    _check_autotune(config, target)
    _check_memory(config)
    copy_on_write = _copy_on_write(config, notes)
    effective = config.with_values(
        {
            "device": str(target),
            "memory.copy_on_write": copy_on_write,
            "kernels.backend": "torch" if config.kernels.compile else backend,
            "dtype": str(dtype).removeprefix("torch."),
            "scheduling.max_model_len": max_model_len,
            "scheduling.max_num_batched_tokens": budget,
            "scheduling.starvation_limit_s": limit_s,
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
    if 0 < memory.host_bytes < resolved.block_bytes:
        raise ConfigError(
            f"memory.host_bytes={memory.host_bytes} holds no page, which takes "
            f"{resolved.block_bytes} bytes in this model: raise it, or say 0 for no host tier"
        )
    if kv_bytes is not None and kv_bytes < resolved.block_bytes:
        raise ConfigError(
            f"memory.kv_bytes={kv_bytes} holds no page: one page of memory.block_size="
            f"{memory.block_size} tokens takes {resolved.block_bytes} bytes in this model; raise "
            "kv_bytes or lower block_size"
        )
    return resolved


def _check_kernels(config: EngineConfig, device: torch.device, notes: list[str]) -> None:
    """Refuse operators that cannot run here, or not together with compilation."""
    kernels = config.kernels
    if kernels.backend == "native" and device.type != "cpu":
        raise ConfigError(
            f"kernels.backend='native' runs on a CPU only, and device is {str(device)!r}: use "
            "kernels.backend='auto' or device='cpu'"
        )
    if kernels.compile and kernels.backend in ("native", "triton"):
        raise ConfigError(
            f"kernels.compile=True compiles torch operators, and kernels.backend="
            f"{kernels.backend!r} has compiled ones of its own: use kernels.backend='auto' or "
            "'torch', or compile=False"
        )
    if kernels.compile and kernels.backend == "auto":
        notes.append("kernels.backend: torch, because kernels.compile=True compiles its operators")
    if kernels.padding == "batch" and config.scheduling.policy != "static":
        raise ConfigError(
            "kernels.padding='batch' computes a row for whoever has left a static batch, and "
            f"scheduling.policy={config.scheduling.policy!r} gives the place to somebody else: use "
            "scheduling.policy='static', or kernels.padding='longest'"
        )
    if kernels.padding != "none":
        notes.append(
            f"kernels.padding={kernels.padding!r}: a page beside memory.kv_bytes takes the padding"
        )


def _check_capability(config: EngineConfig, device: torch.device, notes: list[str]) -> None:
    """Say what an older GPU runs: the Triton kernels' products need matrix units of their own."""
    if device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= (8, 0):
        return
    reason = (
        f"this GPU has compute capability {major}.{minor}, and below 8.0 the Triton kernels would "
        "run without matrix units"
    )
    if config.kernels.backend == "triton":
        raise ConfigError(
            f"kernels.backend='triton' and device={str(device)!r}: {reason}; use "
            "kernels.backend='auto' or 'torch'"
        )
    if config.kernels.backend == "auto":
        notes.append(f"kernels.backend: torch, because {reason}")


def _check_graphs(config: EngineConfig, device: torch.device, notes: list[str]) -> str:
    """Refuse what captured graphs cannot go with; returns the backend that they leave."""
    kernels, backend = config.kernels, config.kernels.backend
    if not kernels.cuda_graphs:
        return backend
    table = [
        (
            kernels.compile,
            "kernels.cuda_graphs=True replays the Triton kernels of a step, and kernels.compile="
            "True runs torch's: use one of the two",
        ),
        (
            kernels.padding != "none",
            "kernels.cuda_graphs=True pads decode steps to the row counts it has graphs of, and "
            f"kernels.padding={kernels.padding!r} pads them otherwise: use padding='none'",
        ),
        (
            not config.memory.kv_cache,
            "kernels.cuda_graphs=True replays steps of one row per request, and with memory."
            "kv_cache=False every step computes whole sequences: turn the cache on, or use "
            "cuda_graphs=False",
        ),
        (
            backend == "native",
            "kernels.cuda_graphs=True needs attention that reads lengths on the device, and "
            "kernels.backend='native' reads them on the host: use kernels.backend='auto', or "
            "cuda_graphs=False",
        ),
        (
            device.type == "cuda" and backend == "torch",
            f"kernels.cuda_graphs=True on device={str(device)!r} captures the Triton kernels, and "
            "kernels.backend='torch' has none: use kernels.backend='auto' or 'triton', or "
            "cuda_graphs=False",
        ),
        (
            device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0),
            f"kernels.cuda_graphs=True captures the Triton kernels, and device={str(device)!r} is "
            "below compute capability 8.0, where they do not run: use cuda_graphs=False",
        ),
    ]
    for refused, sentence in table:
        if refused:
            raise ConfigError(sentence)
    notes.append("kernels.cuda_graphs: a page beside memory.kv_bytes takes the padding")
    if device.type == "cuda":
        return backend
    notes.append(
        "kernels.cuda_graphs: a CPU captures nothing; decode steps are padded and run from static "
        "buffers as on a GPU, which shows what a graph holds and saves no time"
    )
    if backend == "auto":
        notes.append("kernels.backend: torch, because kernels.cuda_graphs=True needs its attention")
        return "torch"
    return backend


def _check_autotune(config: EngineConfig, device: torch.device) -> None:
    """Refuse to time kernels that do not run."""
    kernels = config.kernels
    if not kernels.autotune:
        return
    if device.type != "cuda":
        raise ConfigError(
            f"kernels.autotune=True times Triton's kernels on a GPU, and device={str(device)!r} "
            "has none to time: use autotune=False, which takes tiles chosen by counting"
        )
    reason = None
    if kernels.backend == "torch" or kernels.compile:
        reason = f"kernels.backend={kernels.backend!r} with compile={kernels.compile} runs torch's"
    elif torch.cuda.get_device_capability(device) < (8, 0):
        reason = f"device={str(device)!r} is below compute capability 8.0, where they do not run"
    if reason is not None:
        raise ConfigError(
            f"kernels.autotune=True times Triton's kernels, and {reason}: use autotune=False"
        )


def _check_memory(config: EngineConfig) -> None:
    """Refuse what memory and scheduling switches cannot do together."""
    memory, scheduling = config.memory, config.scheduling
    cached = memory.prefix_cache != "off"
    contiguous = memory.layout == "contiguous"
    table = [
        (
            cached and contiguous,
            f"memory.prefix_cache={memory.prefix_cache!r} shares pages, and "
            "memory.layout='contiguous' gives each request neighbouring pages of its own: use "
            "memory.layout='paged' or memory.prefix_cache='off'",
        ),
        (
            not memory.kv_cache and (cached or contiguous),
            f"memory.kv_cache=False keeps nothing that memory.prefix_cache={memory.prefix_cache!r} "
            f"or memory.layout={memory.layout!r} could manage: turn the cache on, or use "
            "prefix_cache='off' and layout='paged'",
        ),
        (
            scheduling.async_scheduling and not memory.kv_cache,
            "scheduling.async_scheduling=True plans a step on what the last one leaves in the "
            "cache, and memory.kv_cache=False keeps nothing there: turn the cache on, or use "
            "async_scheduling=False",
        ),
        (
            scheduling.preemption == "swap" and not memory.host_bytes,
            "scheduling.preemption='swap' saves pages to the host, and memory.host_bytes=0 gives "
            "them no room: set memory.host_bytes, or use preemption='recompute'",
        ),
        (
            scheduling.preemption == "swap" and (contiguous or not memory.kv_cache),
            "scheduling.preemption='swap' moves pages of the paged KV cache, and here memory."
            f"layout={memory.layout!r}, memory.kv_cache={memory.kv_cache}: use "
            "preemption='recompute'",
        ),
        (
            memory.host_bytes > 0 and not cached and scheduling.preemption != "swap",
            f"memory.host_bytes={memory.host_bytes} would stay empty: it takes pages of "
            "memory.prefix_cache='hash' or 'radix', or of scheduling.preemption='swap'",
        ),
        (
            memory.disk_bytes > 0 and not (memory.host_bytes and cached),
            f"memory.disk_bytes={memory.disk_bytes} lies below the host tier of the prefix cache: "
            "set memory.host_bytes and memory.prefix_cache too",
        ),
    ]
    for refused, sentence in table:
        if refused:
            raise ConfigError(sentence)


def _copy_on_write(config: EngineConfig, notes: list[str]) -> bool:
    """Is there anything to share between samples of a prompt?"""
    memory = config.memory
    if not memory.copy_on_write:
        return False
    reasons = [
        (not memory.kv_cache, "memory.kv_cache=False"),
        (memory.layout == "contiguous", "memory.layout='contiguous'"),
        (config.scheduling.policy == "static", "scheduling.policy='static'"),
    ]
    for applies, field in reasons:
        if applies:
            notes.append(f"memory.copy_on_write: off, because {field} starts samples on their own")
            return False
    return True


def _check_scheduling(
    config: EngineConfig, budget: int, whole_prompts: bool, notes: list[str]
) -> float | None:
    """Refuse orders and limits that do not go together; returns the starvation limit."""
    scheduling = config.scheduling
    order, prefill_cap = scheduling.order, scheduling.max_num_prefill_tokens
    if scheduling.policy == "static" and order in ("priority", "mlfq"):
        raise ConfigError(
            f"scheduling.order={order!r} takes places from running requests, and with "
            "scheduling.policy='static' a batch runs to its end: use order='sjf', 'lpm' or "
            "'fcfs', or policy='continuous'"
        )
    if order == "lpm" and config.memory.prefix_cache == "off":
        raise ConfigError(
            "scheduling.order='lpm' puts the longest cached prefix first, and with "
            "memory.prefix_cache='off' nobody has one: use prefix_cache='hash' or 'radix', or "
            "order='fcfs'"
        )
    if order != "sjf":
        for name in ("length_error", "length_bucket"):
            if getattr(scheduling, name):
                raise ConfigError(
                    f"scheduling.{name}={getattr(scheduling, name)} is about predicted lengths, "
                    f"and scheduling.order={order!r} asks for none: use order='sjf', or leave "
                    f"{name} at its default"
                )
    if prefill_cap is not None and whole_prompts:
        raise ConfigError(
            f"scheduling.max_num_prefill_tokens={prefill_cap} splits prompts, which memory."
            "kv_cache=False and scheduling.enable_chunked_prefill=False do not allow: leave it at "
            "None, or switch both on"
        )
    if prefill_cap is not None and prefill_cap > budget:
        raise ConfigError(
            f"scheduling.max_num_prefill_tokens={prefill_cap} is above scheduling."
            f"max_num_batched_tokens={budget}, the budget of a whole step: lower the one or raise "
            "the other"
        )
    if scheduling.starvation_limit_s is None and order != "fcfs":
        notes.append(
            f"scheduling.starvation_limit_s: 30, because order {order!r} lets others overtake"
        )
        return 30.0
    return scheduling.starvation_limit_s


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        # Windows has no sysconf; a modest pool is right for a laptop.
        return 8 << 30
