"""Our engine in a race."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minserve.bench.metrics import Run
from minserve.bench.peers.sides import Stream
from minserve.bench.workloads.workload import WorkItem, Workload
from minserve.clock import WallClock
from minserve.config import EngineConfig
from minserve.llm import LLM
from minserve.request import Output, SamplingParams
from minserve.trace import RunTrace
from minserve.trace.summary import inter_token_latencies


class EngineSide:
    """An `LLM` over one model directory; the trace of the last run is in `trace`."""

    name = "minserve"

    def __init__(self, model: str | Path, config: EngineConfig) -> None:
        self.llm = LLM(model, config, progress=False)
        self.trace: RunTrace = self.llm.trace
        self._clock = WallClock()

    @property
    def settings(self) -> Mapping[str, Any]:
        """The resolved configuration."""
        return self.llm.config.config.to_dict()

    def throughput(self, workload: Workload) -> Run:
        """Serve all requests, submitted at once."""
        prompts = [list(item.prompt_token_ids) for item in workload.items]
        params = [_fixed_length(item.max_tokens) for item in workload.items]
        start = self._clock.now()
        outputs = self.llm.generate(prompts, params, progress=False)
        seconds = self._clock.now() - start
        self.trace = self.llm.trace
        for item, output in zip(workload.items, outputs, strict=True):
            _check_length(item, output)
        return Run(
            duration_s=seconds,
            token_ids=tuple(output.token_ids for output in outputs),
            num_input_tokens=workload.num_input_tokens,
            metrics=tuple(output.metrics for output in outputs),
            itl_s=tuple(inter_token_latencies(self.trace.steps)),
        )

    def stream(self, item: WorkItem) -> Stream:
        """One request alone."""
        output = self.llm.generate(
            [list(item.prompt_token_ids)], _fixed_length(item.max_tokens), progress=False
        )[0]
        self.trace = self.llm.trace
        _check_length(item, output)
        ttft, tpot = output.metrics.ttft_s, output.metrics.tpot_s
        if ttft is None or tpot is None:
            raise RuntimeError("a single stream needs at least two tokens to have a TPOT")
        return Stream(ttft, tpot, output.token_ids)

    def close(self) -> None:
        """Free pages and weights."""
        self.llm.close()


def _check_length(item: WorkItem, output: Output) -> None:
    """Refuse a shorter answer, because it would make the engine look faster."""
    if len(output.token_ids) != item.max_tokens:
        raise RuntimeError(
            f"{output.request_id} ended with {output.finish_reason!r} after "
            f"{len(output.token_ids)} of {item.max_tokens} tokens, so its time says nothing"
        )


def _fixed_length(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, min_tokens=tokens, temperature=0.0, ignore_eos=True)
