"""Random numbers that depend on where they are used, not on when.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): ten rounds of
multiply and exclusive-or turn a 128-bit counter and a 64-bit key into 128 random bits. The counter
names the draw and the key is the seed, so there is no state to keep, save or share: the same token
of the same sample gets the same number whatever else is in the batch, in any order, after a
preemption, on any device. Computed on the host, in numpy: a few rows per step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF

# The same for numpy; the key of round r is key + r * weyl, modulo 2**32: `[rounds, 2, 1]`.
_MULTIPLIER_COLUMN = np.array(_MULTIPLIERS, dtype=np.uint64)[:, None]
_KEY_STEPS = np.arange(_ROUNDS, dtype=np.uint32)[:, None, None] * np.array(
    _WEYL, dtype=np.uint32
).reshape(1, 2, 1)
_FEW = 10  # for fewer than this, plain integers are faster than numpy

DRAW_STREAM = 0
"""The stream of the ordinary draw; speculative verification uses other streams."""


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox on 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & _WORD,
            (first >> 32) ^ c3 ^ k1,
            first & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def philox_many(
    counter: npt.NDArray[np.uint32], key: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint32]:
    """The same for many: uint32 counters `[4, n]` and keys `[2, n]` -> random words `[4, n]`."""
    keys = key + _KEY_STEPS
    multiplied, mixed = counter[0::2], counter[1::2]
    for round_key in keys:
        # A 32 x 32 bit product, then its two halves without shifting or masking.
        product = np.multiply(multiplied, _MULTIPLIER_COLUMN, dtype=np.uint64, order="C")
        words = product.astype("<u8", copy=False).view("<u4").reshape(2, -1, 2)[::-1]
        multiplied = words[:, :, 1] ^ mixed ^ round_key
        mixed = words[:, :, 0]
    result = np.empty(counter.shape, dtype=np.uint32)
    result[0::2], result[1::2] = multiplied, mixed
    return result


def uniforms(
    seeds: Sequence[int],
    sample_indices: Sequence[int],
    positions: Sequence[int],
    stream: int = DRAW_STREAM,
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each (seed, sample index, position, stream).

    `seeds` are 64-bit integers, the others whole numbers below 2**32; all of length `[n]`.
    Different streams are independent: code that needs several numbers at a position (a verifier:
    one to accept, one to redraw) uses a stream for each.
    """
    if len(positions) < _FEW:
        named = zip(seeds, sample_indices, positions, strict=True)
        return np.array([_uniform(*each, stream) for each in named], dtype=np.float64)
    seed_words = np.array(seeds, dtype=np.int64).astype("<i8", copy=False).view("<u4")
    counter = np.zeros((4, len(positions)), dtype=np.uint32)
    counter[0] = positions
    counter[1] = sample_indices
    counter[2] = stream
    words = philox_many(counter, seed_words.reshape(-1, 2).T)
    # The top 53 of 64 bits, which a double holds exactly.
    high = (words[0] >> np.uint32(5)).astype(np.float64)
    low = (words[1] >> np.uint32(6)).astype(np.float64)
    result: npt.NDArray[np.float64] = (high * 67108864.0 + low) / 9007199254740992.0
    return result


def _uniform(seed: int, sample_index: int, position: int, stream: int) -> float:
    key = (seed & _WORD, (seed >> 32) & _WORD)
    high, low, _, _ = philox((position, sample_index, stream, 0), key)
    return ((high >> 5) * 67108864 + (low >> 6)) / 9007199254740992
