"""The share of a step spent outside operators: Python code, planning and bookkeeping.

Measured without a profiler, whose own cost per operator would be counted as operator time. The same
batch of decoding requests runs twice: plainly, which gives the times of the stages, and with every
call to the engine's `Ops` timed, which gives the time inside operators. Scheduling, preparing,
committing and every part of the forward pass that is not a call of `Ops` (gathering embeddings,
views, planning attention) count as outside. So the share is an upper bound. Drawing the tokens
counts as an operator in `share` (it is an argmax), and as outside in `share_with_sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from torch import Tensor

from minserve import build
from minserve.bench.peers.engine_side import EngineSide
from minserve.bench.workloads.workload import Workload, single_stream
from minserve.clock import WallClock
from minserve.config import EngineConfig
from minserve.kernels.base import LayerStack, LayerTensors, PlannedAttention
from minserve.kernels.matrix import Matrix, Product
from minserve.trace import StepTrace


@dataclass(frozen=True)
class OutsideOperators:
    """Median milliseconds of a decode step by part, and the shares outside operators."""

    batch: int
    steps: int
    step_ms: float
    schedule_ms: float
    prepare_ms: float
    forward_ms: float
    operators_ms: float
    """Inside calls of `Ops`, without the planning of attention."""
    sample_ms: float
    commit_ms: float
    share: float
    share_with_sampling: float

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"outside operators {self.share:.1%} of a step at batch {self.batch} "
            f"({self.step_ms:.2f} ms: schedule {self.schedule_ms:.2f}, prepare "
            f"{self.prepare_ms:.2f}, forward {self.forward_ms:.2f} of which operators "
            f"{self.operators_ms:.2f}, sample {self.sample_ms:.2f}, commit {self.commit_ms:.2f})"
        )


class TimedOps:
    """Wraps any `Ops`, and adds up the time inside its calls in `elapsed_s`.

    Methods are looked up once and timed from outside, so calls that an operator makes to other
    operators are not counted twice. Products, plans and stacks of layers are made of the plain
    operators' own, and their calls are timed: what runs is what would run without the clock.
    """

    def __init__(self, ops: Any, clock: WallClock) -> None:
        self._ops, self._clock = ops, clock
        self.elapsed_s = 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ops, name)
        if not callable(value):
            return value
        # Planning is bookkeeping; the attention that it returns is an operator.
        made = partial(self._plan, value) if name.startswith("plan") else partial(self.time, value)
        self.__dict__[name] = made
        return made

    def product(self, matrix: Matrix) -> Product | None:
        """See `Ops.product`."""
        product: Product | None = self._ops.product(matrix)
        return None if product is None else _TimedProduct(product, self)

    def layer_stack(self, layers: Sequence[LayerTensors | None]) -> LayerStack | None:
        """See `Ops.layer_stack`."""
        stack: LayerStack | None = self._ops.layer_stack([*map(_plain_layer, layers)])
        return None if stack is None else _TimedStack(stack, self)

    def time(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Call, and add the seconds to `elapsed_s`."""
        start = self._clock.now()
        result = call(*args, **named)
        self.elapsed_s += self._clock.now() - start
        return result

    def _plan(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        planned = call(*args, **named)
        return None if planned is None else _TimedPlan(planned, self)


class _TimedProduct:
    """A `Product` whose calls are timed."""

    def __init__(self, product: Product, ops: TimedOps) -> None:
        self.plain, self.matrix = product, product.matrix
        self.apply = partial(ops.time, product.apply)
        self.apply_gated = partial(ops.time, product.apply_gated)


class _TimedPlan:
    """A `PlannedAttention` whose calls are timed."""

    def __init__(self, planned: PlannedAttention, ops: TimedOps) -> None:
        self.plain = planned
        self._ops = ops

    def __call__(self, *args: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        """See `PlannedAttention`."""
        found: tuple[Tensor, Tensor | None] = self._ops.time(self.plain, *args, **named)
        return found


class _TimedStack:
    """A `LayerStack` whose calls are timed."""

    def __init__(self, stack: LayerStack, ops: TimedOps) -> None:
        self.takes = stack.takes
        self._stack, self._ops = stack, ops

    def run(
        self,
        h: Tensor,
        positions: Tensor,
        caches: Sequence[tuple[Tensor, Tensor]],
        groups: Sequence[int],
        slots: Sequence[Tensor],
        planned: Sequence[PlannedAttention],
        start: int,
        stop: int,
    ) -> float | None:
        """See `LayerStack.run`."""
        plans = [plan.plain if isinstance(plan, _TimedPlan) else plan for plan in planned]
        found: float | None = self._ops.time(
            self._stack.run, h, positions, caches, groups, slots, plans, start, stop
        )
        return found


def _plain_layer(layer: LayerTensors | None) -> LayerTensors | None:
    """The same layer with products that are not timed, which operators know by their class."""
    if layer is None:
        return None
    mixer, gated = layer.mixer, layer.feed_forward
    return replace(
        layer,
        mixer=replace(mixer, qkv=_plain(mixer.qkv), output=_plain(mixer.output)),
        feed_forward=replace(gated, gate_up=_plain(gated.gate_up), down=_plain(gated.down)),
    )


def _plain(product: Product) -> Product:
    return product.plain if isinstance(product, _TimedProduct) else product


@contextmanager
def timed_operators() -> Iterator[list[TimedOps]]:
    """Engines built inside this context use timed operators; it yields the list of them."""
    made: list[TimedOps] = []
    plain: Callable[..., Any] = vars(build)["select_ops"]

    def select(*args: Any, **named: Any) -> Any:
        made.append(TimedOps(plain(*args, **named), WallClock()))
        return made[-1]

    with mock.patch.object(build, "select_ops", select):
        yield made


def decode_workload(vocab_size: int, batch: int, steps: int, longest: int) -> Workload:
    """`batch` requests of at most `longest` tokens that decode together for `steps` steps."""
    prompt = max(1, min(128, longest - steps))
    items = tuple(single_stream(vocab_size, prompt, steps, seed) for seed in range(batch))
    return Workload(f"decode, batch {batch}", items, seed=0)


def measure_outside(
    model: str | Path, config: EngineConfig, *, batch: int = 32, steps: int = 64, repeats: int = 3
) -> OutsideOperators:
    """Time plain and timed engines in turns over the same decoding batch."""
    plain = EngineSide(model, config)
    with timed_operators() as made:
        timed = EngineSide(model, config)
    try:
        resolved = plain.llm.config
        workload = decode_workload(resolved.model.vocab_size, batch, steps, resolved.max_model_len)
        plain.throughput(workload), timed.throughput(workload)
        found: list[StepTrace] = []
        operators: list[float] = []
        for _ in range(repeats):
            plain.throughput(workload)
            found += _full_decode_steps(plain, batch)
            operators += _operator_seconds(timed, made[-1], workload, batch)
    finally:
        plain.close()
        timed.close()
    if not found or not operators:
        raise RuntimeError(
            f"no step decoded {batch} requests at once: scheduling.max_num_seqs is "
            f"{config.scheduling.max_num_seqs}"
        )
    return _summarize(batch, found, median(operators))


def _full_decode_steps(side: EngineSide, batch: int) -> list[StepTrace]:
    return [
        step
        for step in side.trace.steps
        if step.num_decode_tokens == batch and not step.num_prefill_tokens
    ]


def _operator_seconds(
    side: EngineSide, ops: TimedOps, workload: Workload, batch: int
) -> list[float]:
    """Seconds inside operators, by full decode step of one run."""
    engine = side.llm.engine
    step, seconds = engine.step, []

    def counted() -> StepTrace:
        before = ops.elapsed_s
        trace = step()
        if trace.num_decode_tokens == batch and not trace.num_prefill_tokens:
            seconds.append(ops.elapsed_s - before)
        return trace

    with mock.patch.object(engine, "step", counted):
        side.throughput(workload)
    return seconds


def _summarize(batch: int, steps: list[StepTrace], operators_s: float) -> OutsideOperators:
    def middle(value: Callable[[StepTrace], float]) -> float:
        return median(value(step) for step in steps)

    whole = middle(lambda step: step.duration_s)
    forward = middle(lambda step: step.stages.forward_s)
    sample = middle(lambda step: step.stages.sample_s)
    return OutsideOperators(
        batch=batch,
        steps=len(steps),
        step_ms=whole * 1e3,
        schedule_ms=middle(lambda step: step.stages.schedule_s) * 1e3,
        prepare_ms=middle(lambda step: step.stages.prepare_s) * 1e3,
        forward_ms=forward * 1e3,
        operators_ms=operators_s * 1e3,
        sample_ms=sample * 1e3,
        commit_ms=middle(lambda step: step.stages.commit_s) * 1e3,
        share=max(0.0, 1 - (operators_s + sample) / whole),
        share_with_sampling=max(0.0, 1 - operators_s / whole),
    )
