"""The tasks of the recall models: sequences whose answers stand earlier in the same sequence.

Knows symbols and where answers are; knows nothing about networks. In every sequence the parts are
spread among noise symbols, and keys and values are drawn anew, so that nothing but the context
determines an answer.

- recall: pairs `k v` anywhere, then questions `? k v`, each key at most once
- copy: `copy` and distinct symbols, noise, then `again` and the same symbols
- needle: one key with four values anywhere, then `? k` and the same four values
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minserve.zoo.recall.vocabulary import AGAIN, COPY, KEYS, NOISE, QUERY, START, VALUES

Ids = npt.NDArray[np.int64]
TASKS = ("recall", "copy", "needle")
NEEDLE_VALUES = 4
MOST_QUESTIONS = 16
MOST_DENSE_LENGTH = 64
"""In training, sequences up to this length are full of questions that may repeat."""


@dataclass(frozen=True)
class Example:
    """One sequence. `answers`: positions in `tokens` whose symbol is to be predicted from the
    positions before; `distances`: for each, how many tokens before it its source stands."""

    tokens: Ids
    answers: Ids
    distances: Ids


def _noise(rng: np.random.Generator, count: int) -> Ids:
    return rng.integers(NOISE.start, NOISE.stop, count)


def _pick(rng: np.random.Generator, symbols: range, count: int) -> Ids:
    return rng.permutation(len(symbols))[:count] + symbols.start


def recall(
    rng: np.random.Generator,
    length: int,
    pairs: int,
    questions: int | None = None,
    repeats: bool = False,
) -> Example:
    """`pairs` pairs and then `questions` questions (default: one for each pair, at most 16) in
    `length` tokens. With `repeats`, as many questions as fit, each about any pair: many answers for
    few tokens, to begin training with. Raises ValueError if they do not fit."""
    asked = min(pairs, MOST_QUESTIONS if questions is None else questions)
    if repeats:
        asked = max(1, (length - 1 - 2 * pairs) // 3)
    body = length - 1 - 3 * asked
    if body < 2 * pairs or not 1 <= pairs <= len(KEYS):
        raise ValueError(
            f"{pairs} pairs and {asked} questions need {1 + 2 * pairs + 3 * asked} tokens and at "
            f"most {len(KEYS)} pairs; the length is {length}."
        )
    keys, values = _pick(rng, KEYS, pairs), rng.integers(VALUES.start, VALUES.stop, pairs)
    tokens = np.concatenate(([START], _noise(rng, body), np.zeros(3 * asked, dtype=np.int64)))
    slots = np.sort(rng.permutation(body - pairs)[:pairs])
    at = 1 + slots + np.arange(pairs)
    tokens[at], tokens[at + 1] = keys, values
    chosen = rng.integers(pairs, size=asked) if repeats else rng.permutation(pairs)[:asked]
    tail = 1 + body + 3 * np.arange(asked)
    tokens[tail], tokens[tail + 1], tokens[tail + 2] = QUERY, keys[chosen], values[chosen]
    return Example(tokens, tail + 2, tail + 1 - at[chosen])


def copy(rng: np.random.Generator, length: int, symbols: int) -> Example:
    """`symbols` distinct keys and values, somewhere, and again at the end of `length` tokens."""
    body = length - 2 - symbols
    if body < 1 + symbols:
        raise ValueError(
            f"Copying {symbols} symbols needs {3 + 2 * symbols} tokens; the length is {length}."
        )
    tokens = np.concatenate(([START], _noise(rng, body), [AGAIN], np.zeros(symbols, np.int64)))
    start = 1 + int(rng.integers(body - symbols))
    text = _pick(rng, range(KEYS.start, VALUES.stop), symbols)
    tokens[start] = COPY
    tokens[start + 1 : start + 1 + symbols] = text
    tokens[body + 2 :] = text
    answers = np.arange(body + 2, length)
    return Example(tokens, answers, np.full(symbols, body + 1 - start))


def needle(rng: np.random.Generator, length: int) -> Example:
    """One key and its four values in `length` tokens of noise, asked for at the end."""
    body = length - 3 - NEEDLE_VALUES
    if body < 1 + NEEDLE_VALUES:
        raise ValueError(f"A needle needs at least 12 tokens; the length is {length}.")
    key = int(rng.integers(KEYS.start, KEYS.stop))
    values = _pick(rng, VALUES, NEEDLE_VALUES)
    tokens = np.concatenate(([START], _noise(rng, body), [QUERY, key], values))
    start = 1 + int(rng.integers(body - NEEDLE_VALUES))
    tokens[start] = key
    tokens[start + 1 : start + 1 + NEEDLE_VALUES] = values
    answers = np.arange(body + 3, length)
    return Example(tokens, answers, np.full(NEEDLE_VALUES, body + 2 - start))


def mixed(rng: np.random.Generator, length: int) -> tuple[str, Example]:
    """A task's name and a training example of it: seven in ten recall, with 2 to 32 pairs."""
    draw = rng.random()
    if draw < 0.7:
        most = min(32, length // 8)
        pairs = int(rng.integers(2, most + 1))
        return "recall", recall(rng, length, pairs, repeats=length <= MOST_DENSE_LENGTH)
    if draw < 0.85:
        return "copy", copy(rng, length, int(rng.integers(4, min(64, length // 3) + 1)))
    return "needle", needle(rng, length)
