"""`EngineConfig`: every switch of the engine, one field each, documented where it is declared.

Frozen nested dataclasses; sections carry the names of the rooms. Command-line flags and the panels'
controls are made from the fields' metadata, never restated. Knows nothing about how a switch is
implemented.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch

from minserve.config.admission import AdmissionConfig
from minserve.config.knobs import ConfigError, Knob, Section, knob
from minserve.inputs.checks import shorten
from minserve.spec import ModelSpec

if TYPE_CHECKING:
    from minserve.config.resolve import ResolvedConfig

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class MemoryConfig(Section):
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
    layout: str = knob(
        "paged",
        "paged: a request gets pages as its tokens come (PagedAttention). contiguous: at admission "
        "it gets neighbouring pages for all it may need, as memory.reservation says.",
        trade_off="paging wastes at most a page per request and needs a block table; reserving "
        "keeps memory for tokens that may never come",
        survey="4.2.3",
        choices=("paged", "contiguous"),
    )
    reservation: str = knob(
        "max_model_len",
        "What a contiguous request reserves: max_model_len; its prompt and its output rounded up "
        "to a power of two; or, as an oracle, exactly the tokens it may reach.",
        trade_off="a safe guess of the length against memory held for nothing",
        survey="4.2.3",
        choices=("max_model_len", "power_of_two", "oracle"),
    )
    copy_on_write: bool = knob(
        True,
        "Samples of one prompt share the pages of the prompt; a page that two would write to is "
        "copied first.",
        trade_off="the prompt is computed and stored once; other samples start when the first has "
        "computed it",
        survey="4.2.3",
    )
    prefix_cache: str = knob(
        "off",
        "Keep pages of finished requests for others that begin the same way. hash: whole pages, "
        "by chain hash (vLLM). radix: a tree over tokens, which also serves a part of a page "
        "(RadixAttention).",
        trade_off="prompts that share a prefix start at once; looking it up costs time, and "
        "nothing is gained where no two prompts agree",
        survey="4.2.3",
        choices=("off", "hash", "radix"),
    )
    host_bytes: int = knob(
        0,
        "Host memory for pages of swapped-out requests and for cached pages that the device had "
        "to evict. 0: none.",
        unit="bytes",
        trade_off="a load over the bus instead of computing again, against memory",
        survey="4.2.3",
        at_least=0,
    )
    disk_bytes: int = knob(
        0,
        "Files for cached pages that the host had to evict, under memory.disk_path. 0: none.",
        unit="bytes",
        trade_off="idle conversations for days, read back at the speed of a disk",
        survey="4.2.3",
        at_least=0,
    )
    disk_path: str | None = knob(
        None,
        "Directory for memory.disk_bytes. None: the system's directory for temporary files.",
        trade_off="a fast disk makes loading pay off for shorter prefixes",
    )
    resume: str = knob(
        "auto",
        "How a prefix that only the host or the disk has is brought back: load its pages, "
        "recompute its tokens, or auto: whichever this run measured to be faster.",
        trade_off="bytes over a bus against arithmetic: which is shorter depends on the machine "
        "and on the length",
        survey="4.2.3",
        choices=("auto", "load", "recompute"),
    )
    check_integrity: bool = knob(
        False,
        "After every step, verify that free and owned pages add up and nothing is owned twice.",
        trade_off="certainty against a few microseconds per page and step",
    )


@dataclass(frozen=True)
class SchedulingConfig(Section):
    """Who computes how many tokens in the next step."""

    max_num_seqs: int = knob(
        64,
        "Most requests that hold a place in the batch at once.",
        unit="requests",
        trade_off="throughput grows with the batch, so does everybody's time per token",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 20,
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
        at_most=1 << 26,
    )
    max_model_len: int | None = knob(
        None,
        "Longest request, prompt and output together. None: what the model allows.",
        unit="tokens",
        trade_off="long requests hold pages for long",
        survey="4.2.3",
        at_least=2,
        at_most=1 << 30,
    )
    enable_chunked_prefill: bool = knob(
        True,
        "Split prompts that do not fit into what is left of the step's token budget.",
        trade_off="running requests keep their pace while a long prompt arrives, which then "
        "takes more steps",
        survey="4.2.4",
    )
    policy: str = knob(
        "continuous",
        "continuous: a waiting request joins the batch at any step (Orca). static: a batch is "
        "formed when the last one has ended, and nobody joins it.",
        trade_off="static batches are simple and leave the places of finished requests empty",
        survey="4.2.4",
        choices=("continuous", "static"),
    )
    order: str = knob(
        "fcfs",
        "Who goes first. fcfs: who came first. sjf: who is predicted to generate the fewest "
        "tokens. lpm: who finds the longest prefix of its tokens in the cache. priority: the "
        "smallest priority number, and running requests give way. mlfq: who has had the least "
        "service, in levels, and running requests give way (FastServe).",
        trade_off="short requests stop waiting for long ones, which wait longer and may be "
        "preempted",
        survey="4.2.4",
        choices=("fcfs", "sjf", "lpm", "priority", "mlfq"),
    )
    starvation_limit_s: float | None = knob(
        None,
        "After this long in the queue, all its waits together, a request is served before all "
        "others, first come first served. None: 30 seconds where the order lets others overtake.",
        unit="seconds",
        trade_off="a short limit bounds the worst wait and turns every order back into fcfs",
        survey="4.2.4",
        at_least=0.0,
    )
    length_error: float = knob(
        0.0,
        "Makes predicted lengths wrong: standard deviation of the logarithm of prediction over "
        "truth. 0 is an oracle, 0.7 is off by a factor of two one time in three. Read where order "
        "is sjf and no predictor is given.",
        trade_off="none: it shows what a better predictor would be worth",
        survey="4.2.4",
        at_least=0.0,
        at_most=20.0,
    )
    length_bucket: int | None = knob(
        None,
        "Predicted lengths in the same multiple of this count as equal, and a static batch holds "
        "only one such bucket. None: no buckets. Needs order sjf.",
        unit="tokens",
        trade_off="places of a static batch empty together, but a rare length waits for company "
        "or runs alone",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 30,
    )
    mlfq_quantum: int = knob(
        16,
        "Steps of service in the first level of mlfq; each level below has twice as many.",
        unit="steps",
        trade_off="a small quantum finds the short requests sooner and preempts the others more",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 30,
    )
    prefill: str = knob(
        "mixed",
        "What a step computes where prompts and new tokens compete. mixed: both, in order of the "
        "queue. decode_first: every running request's next token, then prompts with what is left "
        "of the budget. prefill_first: prompts alone while there are any to compute; where the "
        "order preempts, beside the rows that rank before them.",
        trade_off="prompts first shortens the time to the first token, decodes first the time "
        "between tokens",
        survey="4.2.4",
        choices=("mixed", "decode_first", "prefill_first"),
    )
    max_num_prefill_tokens: int | None = knob(
        None,
        "Most prompt tokens (recomputed ones included) in one step, all requests together. None: "
        "what the token budget leaves.",
        unit="tokens",
        trade_off="steps stay short while prompts arrive, which then take more of them",
        survey="4.2.4",
        at_least=1,
        at_most=1 << 26,
    )
    victim: str = knob(
        "last",
        "Who loses its pages when they run out: the last in order (with fcfs, the one admitted "
        "last), or the one with the fewest computed tokens.",
        trade_off="fairness to the oldest against the least work done twice",
        survey="4.2.4",
        choices=("last", "least_computed"),
    )
    async_scheduling: bool = knob(
        False,
        "Plan and submit the next step while the device works on this one (overlap of depth 1). A "
        "request that ends by a token of this step is computed once too often.",
        trade_off="the device does not wait for the host, against a row computed in vain per "
        "request; on a CPU, where a step is computed at once, nothing is gained",
        survey="4.2.4",
    )
    preemption: str = knob(
        "recompute",
        "What becomes of a victim's pages. recompute: they are dropped, and its tokens are "
        "computed again. swap: they are saved to the host (memory.host_bytes) and loaded back; "
        "where the host is full the victim is recomputed.",
        trade_off="arithmetic against traffic and host memory",
        survey="4.2.3",
        choices=("recompute", "swap"),
    )


@dataclass(frozen=True)
class KernelsConfig(Section):
    """Which implementation of the operators runs."""

    backend: str = knob(
        "auto",
        "torch: plain torch operators, everywhere. native: a small C++ file, compiled on first "
        "use, CPU only. triton: fused kernels for NVIDIA GPUs of compute capability 8.0 and up. "
        "auto: native on a CPU where it compiles, triton on such a GPU, torch elsewhere.",
        trade_off="the same results to rounding; fused operators move fewer bytes",
        survey="4.2.5",
        choices=("auto", "torch", "native", "triton"),
    )
    padding: str = knob(
        "none",
        "Rows added to a step, computed and dropped. none: only the tokens there are, packed. "
        "longest: as many rows for everybody as for the request with most, the rectangle of "
        "kernels that know no lengths. batch: that, and a row for every request that has left the "
        "static batch, until its last one ends; what is served where a batch is one call of such "
        "kernels, as before Orca (OSDI 2022). power_of_two: the step's rows rounded up, so that "
        "few shapes occur. Padding attends to itself alone: where those that have ended go on "
        "growing, as they do in such servers, still more is computed.",
        trade_off="padding is arithmetic for nothing; few shapes are what kernels compiled or "
        "captured per shape need",
        survey="4.2.5",
        choices=("none", "longest", "batch", "power_of_two"),
    )
    compile: bool = knob(
        False,
        "Compile what lies between attentions with torch.compile, at the first step of each kind. "
        "Needs the torch operators: backend auto then means torch.",
        trade_off="fused operators and fewer launches, against seconds of compilation that many "
        "tokens must earn back",
        survey="4.2.5",
    )
    cuda_graphs: bool = knob(
        False,
        "Capture decode steps (one row per request) as CUDA graphs, padded to a ladder of row "
        "counts, at the first step of each kind, and replay them. Other steps run as they are. On "
        "a CPU nothing is captured: the same steps run from the same static buffers.",
        trade_off="one launch instead of hundreds, against padded rows, memory of the graphs' own, "
        "and the first step of each kind",
        survey="4.2.5",
    )
    cuda_graph_max_rows: int = knob(
        256,
        "Rows of the largest decode step that is captured; max_num_seqs where that is less.",
        unit="rows",
        trade_off="in a large step the device is busy for longer than its launches take, and its "
        "logits need a buffer",
        survey="4.2.5",
        at_least=1,
        at_most=1 << 20,
    )
    autotune: bool = knob(
        False,
        "Time the ways to launch Triton's attention on this GPU, before the first request, and "
        "keep the fastest on disk for this device, Triton and kernels.",
        trade_off="faster attention, against minutes of compiling and timing the first time; equal "
        "results to rounding",
        survey="4.2.5",
    )
    num_threads: int | None = knob(
        None,
        "Threads of the CPU operators, for the whole process. None: torch's current setting.",
        unit="threads",
        trade_off="more threads pay off only above a certain size of work",
        at_least=1,
        at_most=1024,
    )
    logits_chunk: int = knob(
        256,
        "Rows of a prompt's logits computed at once where its logprobs are asked for. Rows whose "
        "next token is drawn are at most max_num_seqs and computed together.",
        unit="rows",
        trade_off="fewer calls against the memory of [rows, vocabulary]",
        at_least=1,
        at_most=1 << 20,
    )


@dataclass(frozen=True)
class TraceConfig(Section):
    """What a run remembers of its steps."""

    max_steps: int = knob(
        100_000,
        "Newest steps kept in the trace.",
        unit="steps",
        trade_off="about a kilobyte per step without detail",
        at_least=1,
        at_most=1 << 40,
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
        trade_off="bandwidth",
    )
    seed: int = knob(
        0,
        "Seeds requests that bring no seed of their own.",
        trade_off="same seed, same requests in the same order: same tokens",
        # The requests' numbers are added to it, and the sum is 64 bits wide.
        at_least=-(2**62),
        at_most=2**62,
    )
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    scheduling: SchedulingConfig = field(default_factory=SchedulingConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
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
        from minserve.config.resolve import resolve

        return resolve(self, model, device)


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
        close = difflib.get_close_matches(str(path)[:100], known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        raise ConfigError(f"EngineConfig has no field {shorten(path)}{hint}")
    section, _, name = path.rpartition(".")
    return (getattr(config, section) if section else config), name
