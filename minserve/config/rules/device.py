"""Rules of the device: what "auto" means for device and number format, and which devices exist."""

from __future__ import annotations

import torch

from minserve.config.engine import DTYPES
from minserve.config.knobs import ConfigError
from minserve.config.question import Answer, Question, Rule
from minserve.inputs.checks import shorten


def device_is_there(question: Question) -> Answer:
    """Fill in the device; refuse one that torch does not find."""
    name = question.config.device
    if name == "auto":
        return Answer({"device": "cuda" if torch.cuda.is_available() else "cpu"})
    given = f"EngineConfig.device={shorten(name)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{given}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"{given}: torch {torch.__version__} sees no CUDA device; use "
            "device='cpu', or install a CUDA build of torch on a machine with an NVIDIA GPU"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{given}: this machine has {torch.cuda.device_count()} CUDA device(s), numbered from 0"
        )
    return Answer({"device": str(device)})


def dtype_suits_device(question: Question) -> Answer | None:
    """Fill in the number format: the checkpoint's own, or another if the device is slow with it or
    does not support it."""
    if question.config.dtype != "auto":
        return None
    device, own = question.device, question.model.dtype
    wanted = DTYPES.get(own, torch.float32)
    if device.type == "cuda":
        if wanted is torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
            return _dtype("float16", "because this GPU has no bfloat16 (the checkpoint's format)")
    elif wanted is torch.float16:
        return _dtype("float32", "because CPUs are slow in float16")
    elif wanted is torch.bfloat16 and not cpu_has_bfloat16():
        return _dtype(
            "float32",
            "because this CPU has no bfloat16 instructions; the checkpoint's bfloat16 values are "
            "represented exactly",
        )
    return _dtype(str(wanted).removeprefix("torch."), "the checkpoint's own")


def cpu_has_bfloat16() -> bool:
    """True when the processor multiplies bfloat16 in hardware (AMX or AVX-512 BF16)."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool((probe and probe()) or (amx and amx()))


def _dtype(name: str, why: str) -> Answer:
    return Answer({"dtype": name}, (f"dtype: {name}, {why}",))


RULES: tuple[Rule, ...] = (device_is_there, dtype_suits_device)
