"""Calibrates the virtual clock on this device, and compares it with runs that it was not fitted to.

For each shape the real engine serves traffic of every kind; the cost of a step is fitted and
written to a file that `build_virtual_engine` can use. Then the same scheduler and pages run on
modelled time: held-out traffic, the nano-vllm workload as recorded by the part `throughput`, and
one request alone as recorded by the part `stream`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from minserve.bench.gpu.engines import Bench, random_model, shape_of
from minserve.bench.gpu.record import load
from minserve.bench.gpu.recorded import cost_path
from minserve.bench.gpu.setting import FASTEST, Setting, fastest
from minserve.bench.gpu.suite import stream, throughput
from minserve.bench.metrics import serve_result
from minserve.bench.modelling.fitted_cost import FittedCost, Machine, fit
from minserve.bench.runs.serve import run_of
from minserve.bench.workloads import conversations, length_draws
from minserve.bench.workloads.arrivals import gamma_arrivals
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length, traffic
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.spec import ModelSpec
from minserve.trace import StepTrace

SHAPES = ("qwen3-0.6b", "llama-3.1-8b")
PROMISE = 0.15
"""Largest relative error that we promise for the virtual clock."""
QUANTITIES = ("median_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "output_throughput")


def run(setting: Setting) -> None:
    """A row per run and quantity, and a file per shape."""
    for number, name in enumerate(SHAPES):
        if number and not setting.time_for(f"the cost of {name}", 30.0):
            continue
        _teach(setting, name)


def _teach(setting: Setting, name: str) -> None:
    shape = shape_of(setting, name)
    vocab, spec = shape.vocab_size, shape.spec()
    loaded = random_model(setting, shape, _config(setting, spec))
    with Bench(setting, loaded) as bench:
        bench.play(at_once([[5] * 20] * 2, [fixed_length(4)] * 2))  # Compiles and captures.
        steps: list[StepTrace] = []
        for played in _lessons(setting, vocab):
            # Compiling and capturing happen once, and are not part of a step's cost.
            steps += [one for one in bench.play(played)[0].steps if not one.stages.compile_s]
        cost = fit(steps, _machine(setting, name), setting.dtype)
        cost.save(cost_path(setting.folder, name))
        unseen = _held_out(setting, vocab)
        bench.play(unseen)  # Compiles and captures what the fitted runs did not need.
        trace, result, _ = bench.play(unseen)
        here = serve_result(run_of(bench.engine, result))
    setting.record.note(
        f"{name}: {cost.num_steps} steps, fitted to {cost.median_error:.1%} (median of "
        f"|fitted - seen| over seen); {trace.totals.steps} steps of held-out traffic"
    )
    virtual = build_virtual_engine(spec, _on_cpu(_config(setting, spec)), cost)
    there = serve_result(run_of(virtual, drive(virtual, unseen, fast=True)))
    for quantity in QUANTITIES:
        _add(
            setting, Checked(f"{name}, held-out traffic", quantity, here[quantity], there[quantity])
        )
    for checked in _recorded_runs(setting, name, spec, cost):
        _add(setting, checked)


@dataclass(frozen=True)
class Checked:
    """One quantity of one run, on the device and on the virtual clock."""

    name: str
    quantity: str
    here: float
    virtual: float

    @property
    def error(self) -> float:
        """(virtual - here) / here."""
        return (self.virtual - self.here) / self.here


def _add(setting: Setting, checked: Checked) -> None:
    row = dict(vars(checked)) | {"error": checked.error, "error_of": "here"}
    setting.record.add(row | {"promise": PROMISE, "kept": abs(checked.error) <= PROMISE})


def _recorded_runs(
    setting: Setting, name: str, spec: ModelSpec, cost: FittedCost
) -> Iterator[Checked]:
    """Results of other parts in this run for this shape."""
    if name == throughput.SHAPE:
        for row in _rows(setting, "throughput"):
            if "budget" not in row:
                continue
            config = _on_cpu(throughput.config_of(setting, row["budget"]))
            virtual = build_virtual_engine(spec, config, cost)
            drive(virtual, throughput.traffic_of(throughput.workload_of(setting)), fast=True)
            totals = virtual.trace.totals
            rate = totals.sampled_tokens / totals.duration_s
            here = row["output_tokens_per_s"]["median"]
            yield Checked(f"nano-vllm, {row['budget']} KV", "output tokens/s", here, rate)
    for row in _rows(setting, "stream"):
        if row["name"] == name:
            prompt = [[2] * stream.PROMPT_TOKENS]
            virtual = build_virtual_engine(spec, _on_cpu(_config(setting, spec)), cost)
            found = drive(virtual, at_once(prompt, [fixed_length(row["output_tokens"])]))
            tpot = found.requests[0].metrics().tpot_s or 0.0
            yield Checked(f"{name}, one request", "tpot_s", row["tpot_s"]["median"], tpot)


def _rows(setting: Setting, part: str) -> list[Mapping[str, Any]]:
    """Another part's rows, if it ran on this device and software; otherwise empty, with a
    sentence in the record."""
    data, mine = load(setting.folder / f"{part}.json"), setting.record.data
    if data is None or any(data[k] != mine[k] for k in ("device", "versions", "dry_run")):
        setting.record.skip(f"check against the part `{part}`: it is not recorded on this device")
        return []
    rows: list[Mapping[str, Any]] = data["rows"]
    return rows


def _config(setting: Setting, spec: ModelSpec) -> EngineConfig:
    base = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": setting.pick(256, 8),
            "scheduling.max_num_batched_tokens": setting.pick(4096, 64),
            "scheduling.max_model_len": setting.pick(2048, 128),
            "memory.kv_bytes": setting.pick(32 * 10**9, 1 << 22),
        }
    )
    return fastest(setting, base, spec)


def _on_cpu(config: EngineConfig) -> EngineConfig:
    """The same scheduling and memory on modelled time; the cost contains how the
    device runs a step."""
    off = dict.fromkeys([*FASTEST, "kernels.autotune"], False)
    return config.with_values(off | {"device": "cpu"})


def _machine(setting: Setting, name: str) -> Machine:
    return Machine(
        name=setting.record.data["device"]["name"],
        model=name,
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        date=datetime.now(UTC).date().isoformat(),
    )


def _lessons(setting: Setting, vocab: int) -> Iterator[Traffic]:
    """Traffic from one request alone to a full batch, with short contexts and long ones."""
    if setting.dry_run:
        yield at_once([[5] * 30, [7] * 9] * 3, [fixed_length(40), fixed_length(60)] * 3)
        yield at_once([[5] * 12], [fixed_length(60)])
        return
    yield at_once([[5] * 1500, [7] * 30], [fixed_length(60), fixed_length(100)])
    long = conversations.independent(
        length_draws.uniform(16, 1000), length_draws.uniform(16, 150), vocab
    )
    short = conversations.independent(
        length_draws.uniform(2, 100), length_draws.uniform(8, 100), vocab
    )
    yield traffic(long, 256, 1e6, seed=1, name="all places")
    yield traffic(long, 24, 1e6, seed=2, name="some places")
    yield traffic(short, 100, 60.0, seed=3, name="a few at a time")


def _held_out(setting: Setting, vocab: int) -> Traffic:
    """Bursts of log-normal lengths: other arrivals and other lengths than in the fitted runs."""
    mean_in, mean_out = setting.pick((300, 80), (12, 6))
    jobs = conversations.independent(
        length_draws.lognormal(mean_in, 0.8, at_most=setting.pick(1500, 60)),
        length_draws.lognormal(mean_out, 0.7, at_most=setting.pick(400, 20)),
        vocab,
    )
    count, rate = setting.pick((100, 40.0), (12, 200.0))
    return traffic(jobs, count, rate, gamma_arrivals(0.5), seed=4, name="held out")
