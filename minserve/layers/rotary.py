"""Tables of cosines and sines for rotary position embedding, with Hugging Face's scalings.

The formulas are those of transformers' `modeling_rope_utils`, in the same order of operations and
the same precision: a checkpoint was trained with float32 tables, and at position 100,000 a table
computed more exactly differs from it by 1e-2. Only a float64 model uses float64 throughout. Knows
nothing about batches: a row of the table depends only on its position, so cached keys stay valid
however a prompt was split into chunks.

Scalings: "linear" (position interpolation, arXiv 2306.15595), "dynamic" (NTK-aware), "yarn" (arXiv
2309.00071), "llama3".

**Dynamic NTK.** transformers derives the base from the length of the sequence at each step, and
keeps keys rotated with older bases in its cache: its result depends on how a text was split into
steps. A paged engine that shares, chunks and recomputes pages cannot depend on that. Here a table
for at most the original length is unscaled, as in transformers; a longer table uses one base, that
of `factor` times the original length, for every position, as in vLLM. Such an engine differs from
transformers on short texts, and no engine reproduces transformers' stepwise bases on long ones:
limit `max_model_len` to the original length if exact agreement matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minserve.spec import RopeSpec


def rotary_table(
    rope: RopeSpec | None,
    head_dim: int,
    max_position: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """`[max_position, head_dim]`: cosines of the `head_dim / 2` angles of a position, then sines.

    Without a `rope` every angle is zero, and rotation changes nothing: heads without positions
    (NoPE, Kazemnejad et al., arXiv 2305.19466) pass through the same fused operators as all others.

    `dtype` is the model's: the table is float64 for float64 and float32 for everything else.
    `max_position` is the longest sequence, in tokens, that will be run. Raises ValueError if
    `head_dim` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rotary embedding needs an even head_dim, got {head_dim}")
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    if rope is None:
        table = torch.zeros(max_position, head_dim, dtype=exact)
        table[:, : head_dim // 2] = 1.0
        return table.to(device) if device is not None else table
    frequencies, attention_factor = _FREQUENCIES[rope.kind](rope, head_dim, max_position, exact)
    angles = torch.arange(max_position, dtype=exact)[:, None] * frequencies
    table = torch.cat((angles.cos(), angles.sin()), dim=1).mul_(attention_factor)
    return table.to(device) if device is not None else table


def inverse_frequencies(rope: RopeSpec, head_dim: int, max_position: int = 1) -> Tensor:
    """`[head_dim / 2]`: radians per token, in float32, of each pair of a head's numbers."""
    return _FREQUENCIES[rope.kind](rope, head_dim, max_position, torch.float32)[0]


Frequencies = tuple[Tensor, float]
"""Inverse frequencies `[head_dim / 2]` in radians per token, and the factor on cosine and sine."""


def _inverse(theta: float, head_dim: int, dtype: torch.dtype) -> Tensor:
    return 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=dtype) / head_dim))


def _default(rope: RopeSpec, head_dim: int, max_position: int, dtype: torch.dtype) -> Frequencies:
    return _inverse(rope.theta, head_dim, dtype), 1.0


def _linear(rope: RopeSpec, head_dim: int, max_position: int, dtype: torch.dtype) -> Frequencies:
    return _inverse(rope.theta, head_dim, dtype) / rope.factor, 1.0


def _dynamic(rope: RopeSpec, head_dim: int, max_position: int, dtype: torch.dtype) -> Frequencies:
    original = _original(rope)
    theta = rope.theta
    if max_position > original:
        # transformers' base for a sequence of `factor * original` tokens.
        stretch = rope.factor * rope.factor - (rope.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    return _inverse(theta, head_dim, dtype), 1.0


def _llama3(rope: RopeSpec, head_dim: int, max_position: int, dtype: torch.dtype) -> Frequencies:
    original = _original(rope)
    frequencies = _inverse(rope.theta, head_dim, dtype)
    wavelengths = 2 * math.pi / frequencies
    longest_kept = original / rope.high_freq_factor
    shortest_scaled = original / rope.low_freq_factor
    scaled = torch.where(wavelengths > shortest_scaled, frequencies / rope.factor, frequencies)
    smooth = (original / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * scaled / rope.factor + smooth * scaled
    is_between = ~(wavelengths < longest_kept) & ~(wavelengths > shortest_scaled)
    return torch.where(is_between, between, scaled), 1.0


def _yarn(rope: RopeSpec, head_dim: int, max_position: int, dtype: torch.dtype) -> Frequencies:
    original = _original(rope)

    def dimension(rotations: float) -> float:
        """The (fractional) dimension that makes this many rotations within the original length."""
        turns = math.log(original / (rotations * 2 * math.pi))
        return head_dim * turns / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    steps = torch.arange(head_dim // 2, dtype=dtype)
    extrapolated = 1 - ((steps - low) / (high - low)).clamp(0, 1)
    powers = rope.theta ** (torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    frequencies = 1.0 / (rope.factor * powers) * (1 - extrapolated) + 1.0 / powers * extrapolated
    return frequencies, _yarn_attention_factor(rope)


def _yarn_attention_factor(rope: RopeSpec) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def temperature(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return temperature(rope.mscale) / temperature(rope.mscale_all_dim)
    return temperature(1.0)


def _original(rope: RopeSpec) -> int:
    if rope.original_max_position is None:
        raise ValueError(f"RopeSpec(kind={rope.kind!r}) needs original_max_position")
    return rope.original_max_position


_FREQUENCIES: dict[str, Callable[[RopeSpec, int, int, torch.dtype], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
