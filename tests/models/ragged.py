"""Batches made by hand: several sequences over one shuffled pool of pages, in pieces of any size.

What the scheduler, the block pool and the batch builder do together, in eighty lines, so that
models and attention backends can be tested without them. The pool starts full of NaN: reading a
slot that nobody wrote shows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minserve.attention.base import AttentionBackend, LayerCache
from minserve.batch import ForwardBatch, GroupTables, to_device
from minserve.models import Decoder
from minserve.sampling import plan_sampling
from minserve.spec import ModelSpec


class PagedSequences:
    """Token sequences, how much of each is computed, and where their pages lie.

    `capacity`: most tokens one sequence may reach. Pages are dealt out in random order, so that
    neighbours in a sequence are strangers in the pool.
    """

    def __init__(
        self,
        spec: ModelSpec,
        sequences: Sequence[Sequence[int]],
        capacity: int,
        block_size: int = 4,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec = spec
        self.tokens = [list(sequence) for sequence in sequences]
        self.computed = [0] * len(self.tokens)
        self.block_size = block_size
        self.device = torch.device(device)
        per_sequence = -(-capacity // block_size)
        self.num_blocks = per_sequence * len(self.tokens) + 3
        chance = random.Random(seed)
        self.tables: list[Tensor] = []
        """One `[num_sequences, blocks]` per cache group."""
        for _ in spec.cache_groups():
            pages = list(range(self.num_blocks))
            chance.shuffle(pages)
            dealt = torch.tensor(pages[: per_sequence * len(self.tokens)], dtype=torch.int32)
            self.tables.append(dealt.view(len(self.tokens), per_sequence).to(self.device))

    def caches(self, dtype: torch.dtype) -> list[LayerCache]:
        """A pool for every layer, filled with NaN."""
        pools = []
        for layer in self.spec.layers:
            shape = (
                self.num_blocks,
                layer.mixer.num_kv_heads,
                self.block_size,
                layer.mixer.head_dim,
            )
            keys = torch.full(shape, torch.nan, dtype=dtype, device=self.device)
            pools.append((keys, keys.clone()))
        return pools

    def batch(self, counts: Sequence[int], order: Sequence[int] | None = None) -> ForwardBatch:
        """A batch of the next `counts[s]` tokens of each sequence s (0 leaves it out), requests in
        the given order. The tokens count as computed from here on."""
        order = range(len(self.tokens)) if order is None else order
        chosen = [index for index in order if counts[index]]
        starts = [self.computed[index] for index in chosen]
        query_lens = tuple(counts[index] for index in chosen)
        spans = list(zip(chosen, starts, query_lens, strict=True))
        tokens = [t for s, first, n in spans for t in self.tokens[s][first : first + n]]
        positions = [p for _, first, n in spans for p in range(first, first + n)]
        assert len(tokens) == len(positions), "a sequence was asked for tokens it does not have"
        owners = torch.tensor([s for s, _, n in spans for _ in range(n)], device=self.device)
        where = torch.tensor(positions, device=self.device)
        groups = []
        for table in self.tables:
            pages = table[owners, where // self.block_size].long()
            slots = pages * self.block_size + where % self.block_size
            groups.append(GroupTables(slots, table[chosen]))
        for s, _, n in spans:
            self.computed[s] += n
        context_lens = tuple(self.computed[s] for s in chosen)
        cumulative = [0, *torch.tensor(query_lens).cumsum(0).tolist()]
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)
        return ForwardBatch(
            token_ids=torch.tensor(tokens, device=self.device),
            positions=where,
            query_starts=torch.tensor(cumulative, dtype=torch.int32, device=self.device),
            kv_lens=torch.tensor(context_lens, dtype=torch.int32, device=self.device),
            groups=tuple(groups),
            sample_rows=nothing,
            sampling=to_device(plan_sampling([]), self.device),
            prompt_rows=nothing,
            prompt_targets=nothing,
            num_prompt_logprobs=-1,
            query_lens=query_lens,
            context_lens=context_lens,
        )

    def random_pieces(self, seed: int, largest: int) -> Iterator[tuple[list[int], list[int]]]:
        """Counts and orders of batches that compute every sequence to its end: each sequence gets
        a chunk of up to `largest` tokens, a single token or nothing, at random."""
        chance = random.Random(seed)
        while True:
            left = [len(t) - c for t, c in zip(self.tokens, self.computed, strict=True)]
            if not any(left):
                return
            counts = [min(n, chance.choice((0, 1, chance.randint(1, largest)))) for n in left]
            if any(counts):
                yield counts, chance.sample(range(len(left)), len(left))


def run_pieces(
    decoder: Decoder,
    backend: AttentionBackend,
    sequences: PagedSequences,
    pieces: Iterator[tuple[list[int], list[int]]],
) -> list[Tensor]:
    """Logits `[length, vocab_size]` of every token of every sequence, computed piece by piece."""
    found: list[list[Tensor]] = [[] for _ in sequences.tokens]
    with torch.inference_mode():
        for counts, order in pieces:
            batch = sequences.batch(counts, order)
            logits = decoder.head(decoder.forward(batch, backend.plan(batch)))
            parts = logits.split(batch.query_lens)
            for index, part in zip([s for s in order if counts[s]], parts, strict=True):
                found[index].append(part)
    return [torch.cat(parts) for parts in found]


def generate_greedily(
    decoder: Decoder,
    backend: AttentionBackend,
    sequences: PagedSequences,
    seed: int,
    largest: int,
    num_new: int,
) -> list[list[int]]:
    """Continue every sequence by `num_new` tokens, prompts in random chunks while others decode.

    Returns the new tokens of each; `sequences.tokens` grows by them.
    """
    chance = random.Random(seed)
    prompts = [len(tokens) for tokens in sequences.tokens]
    with torch.inference_mode():
        while True:
            counts = []
            for tokens, computed, prompt in zip(
                sequences.tokens, sequences.computed, prompts, strict=True
            ):
                left = len(tokens) - computed
                done = len(tokens) == prompt + num_new
                counts.append(0 if done else min(left, chance.randint(0, largest)))
            if all(len(t) == p + num_new for t, p in zip(sequences.tokens, prompts, strict=True)):
                return [t[p:] for t, p in zip(sequences.tokens, prompts, strict=True)]
            if not any(counts):
                continue
            order = chance.sample(range(len(counts)), len(counts))
            batch = sequences.batch(counts, order)
            h = decoder.forward(batch, backend.plan(batch))
            last = batch.query_starts[1:].long() - 1
            drawn = decoder.head(h, last).argmax(-1).tolist()
            for index, token in zip([s for s in order if counts[s]], drawn, strict=True):
                if sequences.computed[index] == len(sequences.tokens[index]):
                    sequences.tokens[index].append(token)
