"""A runner without a model: it stores tokens in slots and reads them back through block tables;
the page store of its engine too, so that copied, swapped and loaded pages are really moved.

It is a device with a queue: passes and copies run in the order in which they were submitted, at
once or, if it is `lazy`, as late as possible, when a result is waited for.

The next token is a hash of the sequence it reads, so a wrong slot, a stale page or a shifted
position changes the output; `oracle` says what the output has to be.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch

from minserve.batch import ForwardBatch
from minserve.clock import VirtualClock
from minserve.config import EngineConfig, resolve
from minserve.decoding import Proposer
from minserve.draft import Draft
from minserve.engine import Engine
from minserve.engine.parts import EngineParts
from minserve.execution.runner import StepResult
from minserve.memory import GroupPlan, TransferOrder, build_manager, plan_blocks
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.request import Request, TokenLogprobs
from minserve.scheduling import QueuePolicy
from minserve.spec import LayerSpec, ModelSpec
from minserve.trace import RunTrace

VOCAB = 97
EOS = 0
TOKEN_BYTES = 2 * 8 * 4
"""Key and value of one token of `tiny_spec`, float32."""


def tiny_spec(max_position: int = 128, windows: Sequence[int | None] = (None,)) -> ModelSpec:
    """The smallest model the engine accepts, with a layer for each of these windows; the fake
    runner looks only at those."""
    return ModelSpec(
        family="llama",
        vocab_size=VOCAB,
        hidden_size=16,
        layers=tuple(
            LayerSpec(AttentionSpec(2, 1, 8, window=window), FeedForwardSpec(16))
            for window in windows
        ),
        norm_eps=1e-5,
        max_position=max_position,
        tie_embeddings=True,
        eos_token_ids=(EOS,),
    )


def full_group(num_blocks: int, num_host_slots: int = 0) -> list[GroupPlan]:
    """The one cache group of `tiny_spec`, with so many pages."""
    (group,) = tiny_spec().cache_groups()
    return [GroupPlan(group, num_blocks, num_host_slots)]


def next_token(sequence: Sequence[int]) -> int:
    """A fixed pseudo-random token for each sequence; end-of-sequence about once in 97."""
    digest = hashlib.blake2b(np.array(sequence, dtype=np.int64).tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB


def oracle(prompt: Sequence[int], max_tokens: int, ignore_eos: bool = False) -> list[int]:
    """The tokens a request must produce."""
    sequence = list(prompt)
    while len(sequence) < len(prompt) + max_tokens:
        sequence.append(next_token(sequence))
        if sequence[-1] == EOS and not ignore_eos:
            break
    return sequence[len(prompt) :]


class EchoProposer(Proposer):
    """Drafts random trees or chains over the echo's own tokens, each right with some probability;
    the same for the same tokens of a request."""

    def __init__(self, trees: bool, rightness: float, seed: int = 0) -> None:
        self.proposes_trees = trees
        self._rightness, self._seed = rightness, seed

    def propose(self, requests: Sequence[Request]) -> list[Draft | None]:
        return [self._draft(request.token_ids) for request in requests]

    def _draft(self, known: list[int]) -> Draft | None:
        random = Random(f"{self._seed} {known}")
        tokens: list[int] = []
        parents: list[int] = []
        branches: list[list[int]] = []
        for index in range(random.randrange(8)):
            parent = random.randrange(-1, index) if self.proposes_trees else index - 1
            before = branches[parent] if parent >= 0 else []
            token = next_token([*known, *before])
            if random.random() > self._rightness:
                token = (token + 1) % VOCAB
            tokens.append(token)
            parents.append(parent)
            branches.append([*before, token])
        return Draft(tuple(tokens), tuple(parents)) if tokens else None


@dataclass
class _Echo:
    targets: list[int]
    token_ids: list[int] | None = None
    """None until the pass has run."""
    hidden: torch.Tensor | None = None
    """How many tokens each sample row saw, for batches that ask for hidden states."""


class EchoPages:
    """The pages of one cache group, and its store: a slot holds the token written there."""

    def __init__(self, runner: EchoRunner, number: int, plan: GroupPlan, block_size: int) -> None:
        self._runner = runner
        self._number = number
        self._block_size = block_size
        self.window = plan.group.spec.window
        self.slots = np.full(plan.num_blocks * block_size, -1, dtype=np.int64)
        self.pages = self.slots.reshape(-1, block_size)
        self._host = np.full((plan.num_host_slots, block_size), -1, dtype=np.int64)

    def tokens(self, table: np.ndarray, where: np.ndarray) -> np.ndarray:
        """What lies at these positions of a request."""
        blocks = table[where // self._block_size]
        return self.slots[blocks * self._block_size + where % self._block_size]

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._runner.order.queued()
        where, there = list(sources), list(targets)

        def move() -> None:
            self.pages[there] = self.pages[where]

        self._runner._enqueue(move)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._runner.order.queued()
        where, there = list(sources), list(targets)

        def move() -> None:
            self.slots[there] = self.slots[where]

        self._runner._enqueue(move)

    def read(self, blocks: Sequence[int]) -> tuple[torch.Tensor, ...]:
        self._runner._run_all()
        return (_shaped(self.pages[list(blocks)]),)

    def read_host(self, slots: Sequence[int]) -> tuple[torch.Tensor, ...]:
        return (_shaped(self._host[list(slots)]),)

    def write(self, blocks: Sequence[int], pages: Sequence[torch.Tensor]) -> None:
        self._runner._begin_transfer(self._runner.order.load_waits(blocks, self._number))
        self.pages[list(blocks)] = pages[0][:, 0, 0, 0, :, 0].long().numpy()

    def token_shapes(self, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        return ((1, 1, 1, num_tokens, 1),)

    # Transfers pass the queue: they happen at once, or behind all of it where they have to wait.

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        self._runner._begin_transfer(self._runner.order.save_waits())
        self._host[list(slots)] = self.pages[list(blocks)]

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        self._runner._begin_transfer(self._runner.order.load_waits(blocks, self._number))
        self.pages[list(blocks)] = self._host[list(slots)]

    def read_slot(self, slot: int) -> memoryview:
        return memoryview(self._host[slot].tobytes())

    def write_slot(self, slot: int, data: bytes) -> None:
        self._host[slot] = np.frombuffer(data, dtype=np.int64)


def _shaped(pages: np.ndarray) -> torch.Tensor:
    """One number a token, in the shape of real pages."""
    return torch.from_numpy(pages)[:, None, None, None, :, None].float()


class EchoRunner:
    """See the module. `fail_next` makes the next submit raise, `fail_late` the next collect;
    `poison_token` makes rows invalid."""

    def __init__(
        self,
        clock: VirtualClock,
        plans: Sequence[GroupPlan],
        block_size: int,
        lazy: bool = False,
    ) -> None:
        self._queue: deque[Callable[[], None]] = deque()
        self._lazy = lazy
        self.order = TransferOrder()
        self._drawn: list[int] = []
        self._clock = clock
        self._groups = [
            EchoPages(self, number, plan, block_size) for number, plan in enumerate(plans)
        ]
        self.fail_next = self.fail_late = False
        self.poison_token: int | None = None
        self.batches: list[ForwardBatch] = []
        self.num_collected = 0
        self.num_beside = 0
        """Transfers that passed work in the queue."""

    def _enqueue(self, work: Callable[[], None]) -> None:
        self._queue.append(work)
        if not self._lazy:
            self._run_all()

    def _run_all(self) -> None:
        while self._queue:
            self._queue.popleft()()

    def group(self, number: int) -> EchoPages:
        return self._groups[number]

    def _begin_transfer(self, waits: bool) -> None:
        if waits:
            self._run_all()
        else:
            self.num_beside += bool(self._queue)

    def submitted(self, batch: ForwardBatch, model: str = "") -> None:
        self.order.submitted(batch, range(len(self._groups)))

    def failed(self) -> None:
        self.order.queued()

    def collected(self) -> None:
        self.order.collected()

    def submit(self, batch: ForwardBatch) -> _Echo:
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the device is gone")
        self.batches.append(batch)
        handle = _Echo(batch.prompt_targets.tolist())
        self._enqueue(lambda: self._pass(batch, handle))
        return handle

    def _pass(self, batch: ForwardBatch, handle: _Echo) -> None:
        self._clock.advance(0.001 * batch.num_tokens)
        token_ids = batch.token_ids.numpy().copy()
        if batch.pending is not None:
            rows, places = batch.pending.numpy()
            token_ids[rows] = np.array(self._drawn)[places]
        for pages, group in zip(self._groups, batch.groups, strict=True):
            slots = group.slots.numpy()
            assert len(set(slots.tolist())) == len(slots), "two rows write to one slot"
            pages.slots[slots] = token_ids
        seen = [each for index in range(batch.num_requests) for each in self._read(batch, index)]
        assert batch.positions.tolist() == [len(each) - 1 for each in seen]
        tokens = [next_token(seen[row]) for row in batch.sample_rows.tolist()]
        if batch.needs_hidden:
            lengths = [[float(len(seen[row]))] for row in batch.sample_rows.tolist()]
            handle.hidden = torch.tensor(lengths).reshape(-1, 1)
        if self.poison_token is not None:
            tokens = [-1 if token == self.poison_token else token for token in tokens]
        handle.token_ids = self._drawn = tokens

    def _read(self, batch: ForwardBatch, request: int) -> list[np.ndarray]:
        """For each row of a request: the tokens it sees."""
        length, count = batch.context_lens[request], batch.query_lens[request]
        kept = self._sequence(batch, request, length, count)
        masks = [-1] * count
        if batch.tree is not None:
            first = int(batch.query_starts[request])
            masks = batch.tree[first : first + count].tolist()
        context = length - count
        return [
            kept[[*range(context), *(context + j for j in range(row + 1) if mask >> j & 1)]]
            for row, mask in enumerate(masks)
        ]

    def _sequence(self, batch: ForwardBatch, index: int, length: int, count: int) -> np.ndarray:
        """The tokens that a request's rows attend to. A group with a window is read from the first
        token that the first row sees, and must have there what a group without one has."""
        where = np.arange(length)
        sequence: np.ndarray | None = None
        for pages, group in sorted(
            zip(self._groups, batch.groups, strict=True), key=lambda pair: pair[0].window or 0
        ):
            table = group.block_tables[index].numpy()
            if pages.window is None:
                sequence = pages.tokens(table, where)
            else:
                assert sequence is not None, "the fake needs a group that keeps everything"
                seen = where[max(0, length - count - pages.window + 1) :]
                assert (pages.tokens(table, seen) == sequence[seen]).all(), "a window was freed"
        assert sequence is not None
        return sequence

    def collect(self, handle: _Echo) -> StepResult:
        while handle.token_ids is None:
            self._queue.popleft()()
        self.num_collected += 1
        if self.fail_late:
            self.fail_late = False
            raise RuntimeError("the device is gone")
        entries = [TokenLogprobs(token, -1.0, 1, ((token, -1.0),)) for token in handle.token_ids]
        prompts = [TokenLogprobs(token, -1.0, 1, ((token, -1.0),)) for token in handle.targets]
        return StepResult(
            handle.token_ids, dict(enumerate(entries)), prompts, 0.0, 0.0, 0.0,
            hidden=handle.hidden,
        )  # fmt: skip


def make_engine(
    config: EngineConfig | None = None,
    num_blocks: int = 32,
    max_position: int = 128,
    order: QueuePolicy | None = None,
    lazy: bool = False,
    tokenizer: Any = None,
    proposer: Proposer | None = None,
    windows: Sequence[int | None] = (None,),
    scarce: bool = False,
) -> tuple[Engine, EchoRunner, VirtualClock]:
    """An engine over the fake runner and a virtual clock. `scarce`: windows have pages for a single
    request only, so that they run out before the primary group does."""
    spec = tiny_spec(max_position, windows)
    resolved = resolve((config or EngineConfig()).with_values({"device": "cpu"}), spec)
    block_size = resolved.config.memory.block_size
    clock = VirtualClock()
    plans = plan_blocks(resolved, num_blocks)
    if scarce:
        plans = tuple(
            replace(plan, num_blocks=min(plan.num_blocks, plan.most_blocks or plan.num_blocks))
            if plan.group.spec.window
            else plan
            for plan in plans
        )
    runner = EchoRunner(clock, plans, block_size, lazy)
    memory = build_manager(resolved, plans, clock, runner)
    parts = EngineParts(order=order, proposer=proposer)
    engine = Engine(resolved, runner, memory, tokenizer, clock, RunTrace(), parts)
    return engine, runner, clock


def run(engine: Engine) -> None:
    """Step until nothing is left, checking pages after every step."""
    for _ in range(100_000):
        if not engine.has_work:
            return
        engine.step()
        engine.memory.check()
    raise AssertionError("the engine does not come to an end")
