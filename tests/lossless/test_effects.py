"""Every switch has an effect: for each, a counter that must differ when it is flipped.

The lossless matrix cannot tell a switch that works from one that is never read. Counts only, on
engines whose counters do not depend on the machine's speed. A new field of `EngineConfig` fails the
first test here until it has an entry.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lossless import effects
from lossless.effects import HOST, TIGHT, Load, Seen

from minserve.config import EngineConfig, describe
from minserve.engine import Engine
from minserve.kernels import why_not_native
from minserve.request import StructuredOutputs

ROOT = Path(__file__).resolve().parents[2]
ONCE, AGAIN, LOGPROBS = Load(), Load(waves=2), Load({"prompt_logprobs": 0})
UNSERVED = Load(waves=0)
MORE, LESS, OTHER = operator.lt, operator.gt, operator.ne
"""How the counter with the switch flipped is, beside the one without."""


@dataclass(frozen=True)
class Effect:
    """`value` instead of the default makes `counter` MORE, LESS or OTHER."""

    path: str
    value: Any
    counter: Callable[[Seen], Any]
    relation: Callable[[Any, Any], bool] = OTHER
    beside: Mapping[str, Any] = field(default_factory=dict)
    """On both sides; the switch itself, where it is flipped from something else."""
    load: Load = ONCE
    build: Callable[[EngineConfig], Engine] = effects.modelled

    def count(self, flipped: bool) -> Any:
        """The counter after a run without the switch, or with it."""
        values = {**self.beside, self.path: self.value} if flipped else self.beside
        return self.counter(effects.run(self.build, values, self.load))


def total(name: str) -> Callable[[Seen], Any]:
    return lambda seen: getattr(seen.totals, name)


def finished(seen: Seen) -> list[str]:
    return seen.finished


def parts(seen: Seen) -> list[tuple[int, int]]:
    return seen.parts


def operators(seen: Seen) -> Any:
    return seen.engine.trace.header.config["kernels.backend"]


def numbers(seen: Seen) -> tuple[str, int]:
    """The number format of the weights, and the bytes of the cache."""
    norm = seen.engine._runner._decoder.part.weights.final_norm
    return str(norm.weight.dtype), seen.totals.peak_kv_bytes_used


def refused(seen: Seen) -> int:
    return seen.refused


STOP = Load({"stop": "wxyz"})
TINY = {"memory.kv_bytes": TIGHT}
ONE, TWO = {"scheduling.max_num_seqs": 1}, {"scheduling.max_num_seqs": 2}
RADIX = {"memory.prefix_cache": "radix"}
TIERS = TINY | RADIX | {"memory.host_bytes": HOST, "memory.resume": "load"}
MLFQ = {"scheduling.order": "mlfq"} | TWO
SJF = {"scheduling.order": "sjf"} | TWO
BUDGET = {"scheduling.max_num_batched_tokens": 16, "scheduling.max_num_seqs": 16}
REAL = {"build": effects.real}
FLOAT64 = {"dtype": "float64"}
GRAPHS = {"kernels.cuda_graphs": True}

EFFECTS = [
    Effect("memory.kv_cache", False, total("recomputed_tokens"), MORE),
    Effect("memory.block_size", 64, lambda seen: seen.peak_blocks, LESS),
    Effect("memory.kv_bytes", TIGHT, total("preemptions"), MORE),
    Effect("memory.gpu_memory_utilization", 0.5, lambda seen: seen.steps[0].kv_bytes_reserved, LESS,
           RADIX, build=effects.modelled_whole_device),
    Effect("memory.watermark", 0.5, total("preemptions"), LESS, TINY),
    Effect("memory.layout", "contiguous", total("peak_kv_bytes_allocated"), MORE),
    *(Effect("memory.reservation", value, total("peak_kv_bytes_allocated"), LESS,
             {"memory.layout": "contiguous"}) for value in ("power_of_two", "oracle")),
    Effect("memory.copy_on_write", False, total("prefill_tokens"), MORE, load=Load({"n": 2})),
    *(Effect("memory.prefix_cache", value, total("hit_tokens"), MORE, load=AGAIN)
      for value in ("hash", "radix")),
    Effect("memory.prefix_cache", "radix", total("hit_tokens"), MORE,
           {"memory.prefix_cache": "hash"}, AGAIN),
    Effect("memory.host_bytes", HOST, total("loaded_tokens"), MORE,
           TINY | RADIX | {"memory.resume": "load"}, AGAIN),
    Effect("memory.disk_bytes", 1 << 20, total("loaded_tokens"), MORE, TIERS, AGAIN),
    Effect("memory.resume", "recompute", total("loaded_tokens"), LESS, TIERS, AGAIN),
    Effect("memory.resume", "load", total("loaded_tokens"), MORE,
           TIERS | {"memory.resume": "recompute"}, AGAIN),
    Effect("memory.resume", "auto", total("loaded_tokens"), LESS, TIERS, AGAIN),
    Effect("memory.check_integrity", True, lambda seen: seen.calls["check"], MORE),
    *(Effect("quantization.weight_format", "int8", total("weight_bytes"), LESS, build=build)
      for build in (effects.real, effects.modelled)),
    Effect("scheduling.max_num_seqs", 2, total("peak_running"), LESS),
    Effect("scheduling.max_num_batched_tokens", 64,
           lambda seen: max(map(sum, seen.parts)), LESS),
    Effect("scheduling.max_model_len", 60, total("sampled_tokens"), LESS,
           load=Load({"max_tokens": None})),
    Effect("scheduling.enable_chunked_prefill", False, parts, OTHER,
           {"scheduling.max_num_batched_tokens": 64, "scheduling.max_model_len": 64,
            "scheduling.max_num_seqs": 8}, Load({"max_tokens": 5})),
    Effect("scheduling.max_queued_requests", 1, total("refused"), MORE, TWO),
    Effect("scheduling.policy", "static", total("steps"), MORE, TWO),
    *(Effect("scheduling.order", value, finished, OTHER, TWO)
      for value in ("sjf", "priority", "mlfq")),
    Effect("scheduling.order", "lpm", finished, OTHER, ONE | RADIX),
    Effect("scheduling.starvation_limit_s", 0.0, finished, OTHER, SJF),
    Effect("scheduling.length_error", 1.0, finished, OTHER, SJF),
    Effect("scheduling.length_bucket", 8, total("steps"), OTHER,
           {"scheduling.order": "sjf", "scheduling.policy": "static"}),
    Effect("scheduling.mlfq_quantum", 2, total("preemptions"), MORE, MLFQ),
    *(Effect("scheduling.prefill", value, parts, OTHER,
             BUDGET | {"scheduling.order": "sjf"}, Load(waves=2, steps=8))
      for value in ("decode_first", "prefill_first")),
    Effect("scheduling.max_num_prefill_tokens", 5,
           lambda seen: max(prefill for prefill, _ in seen.parts), LESS),
    Effect("scheduling.victim", "least_computed", total("recomputed_tokens"), LESS, TINY),
    Effect("scheduling.async_scheduling", True, total("discarded_tokens"), MORE,
           load=Load({"ignore_eos": False, "max_tokens": 60}), build=effects.echo),
    Effect("scheduling.preemption", "swap", total("swapped_out_blocks"), MORE,
           TIERS),
    Effect("kernels.backend", "native", operators, OTHER, {"kernels.backend": "torch"}, **REAL),
    Effect("kernels.backend", "torch", operators, OTHER, {"kernels.backend": "native"}, **REAL),
    *(Effect("kernels.padding", value, total("padded_rows"), MORE, build=effects.real)
      for value in ("longest", "power_of_two", "ladder")),
    Effect("kernels.padding", "batch", total("padded_rows"), MORE,
           {"scheduling.policy": "static", "kernels.padding": "longest"}, **REAL),
    Effect("kernels.cuda_graphs", True, total("compiled_graphs"), MORE, **REAL),
    Effect("kernels.cuda_graph_max_rows", 2, total("compiled_graphs"), LESS, GRAPHS, **REAL),
    Effect("kernels.compile", True, lambda seen: type(seen.engine._runner._decoder.part).__name__,
           load=UNSERVED, **REAL),
    Effect("kernels.num_threads", 2, lambda seen: torch.get_num_threads(), MORE,
           {"kernels.num_threads": 1}, UNSERVED, **REAL),
    Effect("kernels.logits_chunk", 4, lambda seen: seen.calls["head"], MORE, load=LOGPROBS, **REAL),
    Effect("trace.max_steps", 3, lambda seen: len(seen.engine.trace.snapshot().steps), LESS),
    Effect("trace.per_request", True, lambda seen: sum(len(s.requests) for s in seen.steps), MORE),
    Effect("trace.pages", True,
           lambda seen: sum(len(part.blocks) for s in seen.steps for part in s.requests), MORE,
           {"trace.per_request": True}),
    Effect("trace.pages", True, lambda seen: sum(len(step.cached_block_ids) for step in seen.steps),
           MORE, RADIX | {"trace.per_request": True}),
    *(Effect("dtype", value, numbers, OTHER, {"dtype": "float32"}, **REAL)
      for value in ("float64", "bfloat16", "float16")),
    Effect("seed", 1, lambda seen: [r.output_token_ids for r in seen.requests], OTHER, FLOAT64,
           Load({"temperature": 1.0}), **REAL),
    Effect("admission.max_n", 1, refused, MORE, load=Load({"n": 2})),
    Effect("admission.max_stop_strings", 0, refused, MORE, build=effects.real, load=STOP),
    Effect("admission.max_stop_chars", 3, refused, MORE, build=effects.real, load=STOP),
    Effect("admission.max_bad_words", 0, refused, MORE, build=effects.real,
           load=Load({"bad_words": ["xyz"]})),
    Effect("admission.max_grammar_chars", 2, refused, MORE, build=effects.real,
           load=Load({"structured_outputs": StructuredOutputs(regex="abc"),
                      "ignore_eos": False})),
    Effect("admission.max_stop_token_ids", 1, refused, MORE, load=Load({"stop_token_ids": [1, 2]})),
    Effect("admission.max_logit_biases", 1, refused, MORE,
           load=Load({"logit_bias": {1: 1.0, 2: 1.0}})),
    Effect("admission.max_logprob_entries", 9, refused, MORE, load=Load({"logprobs": 1})),
]  # fmt: skip

SEEN_ELSEWHERE = {
    "admission.max_prompt_chars": "tests/faults/test_samples.py",
    "device": "tests/kernels/test_triton_gpu.py",
    "kernels.autotune": "tests/kernels/test_autotune.py",
    "memory.disk_path": "tests/lossless/test_effects.py",
}
"""Switches of hardware or of the disk, and the file whose tests see their effect."""
ELSEWHERE = {("kernels.backend", "triton"), ("kernels.backend", "auto"), ("dtype", "float32")}
"""Values that need a GPU, or that other entries are flipped from."""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def missing(known: set[str]) -> str:
    """A sentence for the author of a switch without an entry; "" where there is none."""
    fields = {knob.path for knob in describe()}
    new, gone = fields - known, known - fields
    said = [
        f"{path} has no entry in EFFECTS (tests/lossless/test_effects.py): add Effect({path!r}, a "
        "value that is not the default, a counter of `Seen` that must differ, MORE or LESS), or, "
        "where no count of a small run can show it, the test file that does in SEEN_ELSEWHERE"
        for path in sorted(new)
    ]
    said += [
        f"{path} is no field of EngineConfig any more: take its entry out" for path in sorted(gone)
    ]
    return "\n".join(said)


def test_every_switch_has_an_entry() -> None:
    known = {effect.path for effect in EFFECTS} | SEEN_ELSEWHERE.keys()
    assert not missing(known), missing(known)


def test_every_value_of_a_choice_is_flipped_to_once() -> None:
    tried = {(effect.path, effect.value) for effect in EFFECTS} | ELSEWHERE
    for knob in describe():
        if knob.path not in SEEN_ELSEWHERE:
            for value in set(knob.choices) - {knob.default}:
                assert (knob.path, value) in tried, f"no effect of {knob.path}={value!r} is seen"


def test_a_switch_without_an_entry_is_named_with_what_to_add() -> None:
    known = {knob.path for knob in describe()}
    assert not missing(known)
    said = missing(known - {"memory.watermark"} | {"memory.gone"})
    assert "memory.watermark has no entry" in said and "Effect('memory.watermark'" in said
    assert "memory.gone is no field" in said


def test_files_that_see_the_other_switches_name_them() -> None:
    for path, file in SEEN_ELSEWHERE.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert path.rsplit(".", 1)[-1] in text, f"{file} says nothing of {path}"


each_effect = pytest.mark.parametrize("effect", EFFECTS, ids=lambda e: f"{e.path}={e.value}")


@each_effect
def test_a_flipped_switch_is_seen(effect: Effect) -> None:
    if effect.path == "kernels.backend" and why_not_native() is not None:
        pytest.skip(str(why_not_native()))
    off, on = effect.count(flipped=False), effect.count(flipped=True)
    assert effect.relation(off, on), f"{effect.path}={effect.value!r} changes nothing: {off}, {on}"


@each_effect
def test_a_switch_that_nothing_reads_would_not_be_seen(effect: Effect) -> None:
    """The same settings give the same counter, so that a difference is the switch's."""
    if effect.path == "kernels.backend" and why_not_native() is not None:
        pytest.skip(str(why_not_native()))
    first, again = effect.count(flipped=False), effect.count(flipped=False)
    assert not effect.relation(first, again)


def test_pages_on_disk_lie_where_the_switch_says(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    values = TIERS | {"memory.disk_bytes": 1 << 20, "memory.disk_path": str(tmp_path / "two")}
    seen = effects.run(effects.modelled, values, AGAIN)
    assert not os.listdir(tmp_path / "one") and os.listdir(tmp_path / "two")
    seen.engine.close()
