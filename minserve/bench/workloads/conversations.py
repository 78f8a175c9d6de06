"""The prefixes that prompts share: none, a system prompt, examples, earlier turns, a tree.

Prompts are lists of random token ids. Two prompts share a prefix exactly if the shape says so,
which is what a prefix cache can use; `traffic` adds the arrivals.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from minserve.bench.workloads.length_draws import Lengths

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """A prompt, and how much is generated for it."""

    prompt_token_ids: Tokens
    output_tokens: int


Jobs = Callable[[int, random.Random], list[Job]]
"""(number of requests, source of randomness) -> that many jobs, in order of arrival."""


class _Writer:
    """Random token ids of a vocabulary, without 0 and 1, which checkpoints use for special
    tokens."""

    def __init__(self, vocab_size: int) -> None:
        if vocab_size < 4:
            raise ValueError(f"a vocabulary of {vocab_size} tokens: expected at least 4")
        self._last = vocab_size - 1

    def write(self, tokens: int, draw: random.Random) -> Tokens:
        return tuple(draw.choices(range(2, self._last + 1), k=tokens))


def independent(prompts: Lengths, outputs: Lengths, vocab_size: int = 4000) -> Jobs:
    """No two prompts share a prefix."""
    writer = _Writer(vocab_size)

    def jobs(count: int, draw: random.Random) -> list[Job]:
        return [Job(writer.write(prompts(draw), draw), outputs(draw)) for _ in range(count)]

    return jobs


def shared_prefix(
    prefix_tokens: int, prompts: Lengths, outputs: Lengths, groups: int = 1, vocab_size: int = 4000
) -> Jobs:
    """Each prompt begins with one of `groups` system prompts of `prefix_tokens`."""
    writer = _Writer(vocab_size)

    def jobs(count: int, draw: random.Random) -> list[Job]:
        heads = [writer.write(prefix_tokens, draw) for _ in range(groups)]
        return [
            Job(draw.choice(heads) + writer.write(prompts(draw), draw), outputs(draw))
            for _ in range(count)
        ]

    return jobs


def few_shot(
    examples: int, example_tokens: Lengths, shown: int, question: Lengths, outputs: Lengths,
    vocab_size: int = 4000,
) -> Jobs:  # fmt: skip
    """The first `shown` to `examples` of a fixed list of examples, then a question: prefixes of
    different length of one list."""
    writer = _Writer(vocab_size)
    if not 0 <= shown <= examples:
        raise ValueError(f"few_shot(examples={examples}, shown={shown}): show 0 to {examples}")

    def jobs(count: int, draw: random.Random) -> list[Job]:
        pool = [writer.write(example_tokens(draw), draw) for _ in range(examples)]
        made = []
        for _ in range(count):
            used = pool[: draw.randint(shown, examples)]
            prompt = tuple(token for example in used for token in example)
            made.append(Job(prompt + writer.write(question(draw), draw), outputs(draw)))
        return made

    return jobs


def multi_turn(
    turns: int, question: Lengths, outputs: Lengths, at_once: int = 8, vocab_size: int = 4000
) -> Jobs:
    """Conversations of `turns` questions, `at_once` of them interleaved. A prompt is the whole
    conversation so far and a new question. The answers in it have the requested lengths; their
    tokens are drawn, because an open-loop client does not wait for the real ones."""
    writer = _Writer(vocab_size)

    def jobs(count: int, draw: random.Random) -> list[Job]:
        made: list[Job] = []
        talks: list[tuple[Tokens, int]] = [((), 0)] * at_once
        while len(made) < count:
            which = draw.randrange(at_once)
            said, turn = talks[which]
            prompt = said + writer.write(question(draw), draw)
            output = outputs(draw)
            made.append(Job(prompt, output))
            answered = (prompt + writer.write(output, draw), turn + 1)
            talks[which] = answered if answered[1] < turns else ((), 0)
        return made

    return jobs


def agent_tree(
    branches: int, depth: int, thought: Lengths, outputs: Lengths, vocab_size: int = 4000
) -> Jobs:
    """Trees of thought: a task has `branches` continuations, each of them again, for `depth`
    levels. Nodes arrive level by level; each prompt is the path from its root."""
    writer = _Writer(vocab_size)
    if branches < 1 or depth < 1:
        raise ValueError(f"agent_tree(branches={branches}, depth={depth}): expected at least 1")

    def jobs(count: int, draw: random.Random) -> list[Job]:
        made: list[Job] = []
        while len(made) < count:
            level = [writer.write(thought(draw), draw)]
            for _ in range(depth):
                made += [Job(path, outputs(draw)) for path in level]
                level = [
                    path + writer.write(thought(draw), draw)
                    for path in level
                    for _ in range(branches)
                ]
        return made[:count]

    return jobs
