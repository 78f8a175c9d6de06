"""The section of `EngineConfig` about the operators: backend, padding, compilation, graphs."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config.knobs import Section, knob


@dataclass(frozen=True)
class KernelsConfig(Section):
    """Which implementation of the operators runs."""

    backend: str = knob(
        "auto",
        "torch: plain torch operators, everywhere. native: small C++ files, compiled together "
        "on first use, CPU only. triton: fused kernels for NVIDIA GPUs of compute capability 8.0 "
        "and up. auto: native on a CPU where it compiles, triton on such a GPU, torch elsewhere.",
        trade_off="the same results to rounding, which in bfloat16 can change the text; fused "
        "operators move fewer bytes",
        survey="4.2.5",
        choices=("auto", "torch", "native", "triton"),
    )
    padding: str = knob(
        "none",
        "Rows added to a step, computed and dropped. none: only the tokens there are, packed. "
        "longest: every request gets as many rows as the one with the most, a rectangle for "
        "kernels that know no lengths. batch: that rectangle, and a row for every request that "
        "has left the static batch, until the batch ends; a server whose batch is one call of "
        "such kernels computes this, as before Orca (OSDI 2022). power_of_two: the step's rows "
        "rounded up, so that few shapes occur. ladder: decode steps rounded up to the row counts "
        "that cuda_graphs captures, other steps left as they are. Padding attends to itself alone; "
        "in a server of static batches ended requests go on growing, which computes still more.",
        trade_off="padding is arithmetic for nothing; kernels that are compiled or captured per "
        "shape need few shapes",
        survey="4.2.5",
        choices=("none", "longest", "batch", "power_of_two", "ladder"),
    )
    compile: bool = knob(
        False,
        "Compile what lies between attention calls with torch.compile, at the first step of each "
        "kind. Needs the torch operators: backend auto then means torch.",
        trade_off="fused operators and fewer launches, against seconds of compilation that many "
        "tokens must earn back",
        survey="4.2.5",
    )
    cuda_graphs: bool = knob(
        False,
        "Capture decode steps (one row per request) as CUDA graphs, padded to a ladder of row "
        "counts, at the first step of each kind, and replay them. Other steps run as they are. On "
        "a CPU nothing is captured: the same steps run from the same static buffers.",
        trade_off="one launch instead of hundreds, against padded rows, memory for the graphs, and "
        "a slow first step of each kind",
        survey="4.2.5",
    )
    cuda_graph_max_rows: int = knob(
        256,
        "Rows of the largest decode step that is captured, and the top of the ladder; max_num_seqs "
        "where that is less.",
        unit="rows",
        trade_off="a large step keeps the device busy for longer than its launches take, and its "
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
        "next token is drawn are computed together; there are at most max_num_seqs.",
        unit="rows",
        trade_off="fewer calls against the memory of [rows, vocabulary]",
        at_least=1,
        at_most=1 << 20,
    )
