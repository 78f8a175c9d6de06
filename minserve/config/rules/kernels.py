"""The rules of kernels: which operators run on which device, and what can be padded,
captured or compiled."""

from __future__ import annotations

import torch

from minserve.config.knobs import ConfigError
from minserve.config.question import Answer, Question, Rule

MATRIX_UNITS = (8, 0)
"""First compute capability at which the Triton kernels can use matrix units."""


def native_runs_on_cpu(question: Question) -> None:
    """Refuse the native operators on a GPU."""
    if question.config.kernels.backend == "native" and question.device.type != "cpu":
        raise ConfigError(
            f"kernels.backend='native' runs on a CPU only, and device is {str(question.device)!r}: "
            "use kernels.backend='auto' or device='cpu'"
        )


def compile_takes_torch(question: Question) -> Answer | None:
    """Choose torch's operators if they are compiled; refuse the others."""
    kernels = question.config.kernels
    if not kernels.compile or kernels.backend == "torch":
        return None
    if kernels.backend != "auto":
        raise ConfigError(
            f"kernels.compile=True compiles torch operators, and kernels.backend="
            f"{kernels.backend!r} has compiled ones of its own: use kernels.backend='auto' or "
            "'torch', or compile=False"
        )
    note = "kernels.backend: torch, because kernels.compile=True compiles its operators"
    return Answer({"kernels.backend": "torch"}, (note,))


def batch_padding_needs_static(question: Question) -> None:
    """Refuse to keep the rows of ended requests if another request gets their place."""
    policy = question.config.scheduling.policy
    if question.config.kernels.padding == "batch" and policy != "static":
        raise ConfigError(
            "kernels.padding='batch' computes a row for every request that has left a static "
            f"batch, and scheduling.policy={policy!r} gives its place to another request: use "
            "scheduling.policy='static', or kernels.padding='longest'"
        )


def padding_takes_a_block(question: Question) -> Answer | None:
    """Note where the keys and values of padding are stored."""
    padding = question.config.kernels.padding
    if padding == "none":
        return None
    return Answer(
        notes=(f"kernels.padding={padding!r}: a page beside memory.kv_bytes takes the padding",)
    )


def triton_needs_matrix_units(question: Question) -> Answer | None:
    """Note which operators run on an older GPU; refuse Triton's kernels on it."""
    if not _lacks_matrix_units(question.device):
        return None
    major, minor = torch.cuda.get_device_capability(question.device)
    reason = (
        f"this GPU has compute capability {major}.{minor}, and below 8.0 the Triton kernels would "
        "run without matrix units"
    )
    backend = question.config.kernels.backend
    if backend == "triton":
        raise ConfigError(
            f"kernels.backend='triton' and device={str(question.device)!r}: {reason}; use "
            "kernels.backend='auto' or 'torch'"
        )
    return Answer(notes=(f"kernels.backend: torch, because {reason}",) * (backend == "auto"))


def graphs_or_compile(question: Question) -> None:
    """Refuse to use both ways of saving launches."""
    kernels = question.config.kernels
    if kernels.cuda_graphs and kernels.compile:
        raise ConfigError(
            "kernels.cuda_graphs=True replays the Triton kernels of a step, and kernels.compile="
            "True runs torch's: use one of the two"
        )


def graphs_have_their_padding(question: Question) -> None:
    """Refuse to ask for padding beside that to the captured row counts."""
    kernels = question.config.kernels
    if kernels.cuda_graphs and kernels.padding != "none":
        raise ConfigError(
            "kernels.cuda_graphs=True pads decode steps by itself, to the row counts it has graphs "
            f"of, and kernels.padding={kernels.padding!r} asks for padding too: use padding='none'"
        )


def graphs_need_cache(question: Question) -> None:
    """Refuse graphs if no step has one row per request."""
    if question.config.kernels.cuda_graphs and not question.config.memory.kv_cache:
        raise ConfigError(
            "kernels.cuda_graphs=True replays steps of one row per request, and with memory."
            "kv_cache=False every step computes whole sequences: turn the cache on, or use "
            "cuda_graphs=False"
        )


def graphs_need_lengths_on_device(question: Question) -> None:
    """Refuse operators that need the lengths on the host at launch."""
    kernels = question.config.kernels
    if kernels.cuda_graphs and kernels.backend == "native":
        raise ConfigError(
            "kernels.cuda_graphs=True needs attention that reads lengths on the device, and "
            "kernels.backend='native' reads them on the host: use kernels.backend='auto', or "
            "cuda_graphs=False"
        )


def graphs_capture_triton(question: Question) -> None:
    """Refuse graphs on a GPU if the Triton kernels do not run."""
    kernels, device = question.config.kernels, question.device
    if not kernels.cuda_graphs or device.type != "cuda":
        return
    if kernels.backend == "torch":
        raise ConfigError(
            f"kernels.cuda_graphs=True on device={str(device)!r} captures the Triton kernels, and "
            "kernels.backend='torch' has none: use kernels.backend='auto' or 'triton', or "
            "cuda_graphs=False"
        )
    if _lacks_matrix_units(device):
        raise ConfigError(
            f"kernels.cuda_graphs=True captures the Triton kernels, and device={str(device)!r} is "
            "below compute capability 8.0, where they do not run: use cuda_graphs=False"
        )


def graphs_on_a_cpu(question: Question) -> Answer | None:
    """Note what graphs need, and what they do on a CPU."""
    kernels = question.config.kernels
    if not kernels.cuda_graphs:
        return None
    block = "kernels.cuda_graphs: a page beside memory.kv_bytes takes the padding"
    if question.device.type == "cuda":
        return Answer(notes=(block,))
    cpu = (
        "kernels.cuda_graphs: a CPU captures nothing; decode steps are padded and run from static "
        "buffers as on a GPU, which shows what a graph holds and saves no time"
    )
    if kernels.backend != "auto":
        return Answer(notes=(block, cpu))
    torch_ = "kernels.backend: torch, because kernels.cuda_graphs=True needs its attention"
    return Answer({"kernels.backend": "torch"}, (block, cpu, torch_))


def tuning_times_a_gpu(question: Question) -> None:
    """Refuse to time kernels if there is no GPU."""
    if question.config.kernels.autotune and question.device.type != "cuda":
        raise ConfigError(
            "kernels.autotune=True times Triton's kernels on a GPU, and device="
            f"{str(question.device)!r} has none to time: use autotune=False, which takes tiles "
            "chosen by counting"
        )


def tuning_times_triton(question: Question) -> None:
    """Refuse to time kernels that do not run."""
    kernels, operators = question.config.kernels, question.facts.operators
    if not kernels.autotune:
        return
    reason = None
    if kernels.backend == "torch" or kernels.compile:
        reason = f"kernels.backend={kernels.backend!r} with compile={kernels.compile} runs torch's"
    elif _lacks_matrix_units(question.device):
        reason = (
            f"device={str(question.device)!r} is below compute capability 8.0, where they do not "
            "run"
        )
    if reason is not None:
        raise ConfigError(
            f"kernels.autotune=True times Triton's kernels, and {reason}: use autotune=False"
        )
    if operators not in (None, "triton"):
        raise ConfigError(
            f"kernels.autotune=True times Triton's kernels, and {operators} operators run here, in "
            f"{question.dtype}: use autotune=False, or a dtype of up to 32 bits"
        )


def compile_needs_compiler(question: Question) -> None:
    """Refuse compilation for a CPU if no compiler is installed."""
    look = question.facts.why_no_compiler
    if look is None or not question.config.kernels.compile or question.device.type != "cpu":
        return
    reason = look()
    if reason is not None:
        raise ConfigError(
            f"kernels.compile=True cannot compile for this CPU: {reason}; or use compile=False"
        )


def _lacks_matrix_units(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < MATRIX_UNITS


RULES: tuple[Rule, ...] = (
    native_runs_on_cpu,
    compile_takes_torch,
    batch_padding_needs_static,
    padding_takes_a_block,
    triton_needs_matrix_units,
    graphs_or_compile,
    graphs_have_their_padding,
    graphs_need_cache,
    graphs_need_lengths_on_device,
    graphs_capture_triton,
    graphs_on_a_cpu,
    tuning_times_a_gpu,
    tuning_times_triton,
    compile_needs_compiler,
)
