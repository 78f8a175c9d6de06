"""transformers as a peer: `generate` over static batches, and its continuous batching.

The engine it is compared with is timed in the same way: from the call to the last token, with the
model loaded and warm. Static batches consist of requests of similar output length, with which
static batches are fastest. Knows nothing about our engine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minserve.bench.metrics import Run
from minserve.bench.peers.continuous import serve_continuously
from minserve.bench.peers.sides import PeerUnavailableError, Stream
from minserve.bench.workloads.workload import WorkItem, Workload
from minserve.clock import WallClock

CONTINUOUS = 0
"""The "batch size" that means transformers' own continuous batching."""


class TransformersSide:
    """One transformers model. `throughput` uses `batch_size`; `CONTINUOUS` means its
    continuous batching."""

    name = "transformers"

    def __init__(
        self, model: str | Path, dtype: str, device: str = "cpu", batch_size: int = 16
    ) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        # Its warnings about sampling defaults would hide the table.
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self._transformers = transformers
        self._device = torch.device(device)
        self._dtype = dtype
        self.batch_size = batch_size
        self._clock = WallClock()
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            trust_remote_code=False,
        )
        self.model.eval().to(self._device)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Version and everything that was chosen."""
        common = {
            "transformers": self._transformers.__version__,
            "dtype": self._dtype,
            "attn_implementation": "sdpa",
            "threads": torch.get_num_threads(),
        }
        if self.batch_size == CONTINUOUS:
            return common | {"mode": "continuous batching", "max_batch_tokens": 512}
        return common | {
            "mode": "generate, static batches sorted by output length, left padded",
            "batch_size": self.batch_size,
        }

    def throughput(self, workload: Workload) -> Run:
        """Serve all requests in the chosen mode."""
        if self.batch_size == CONTINUOUS:
            return self._continuous(workload)
        start = self._clock.now()
        tokens: dict[int, tuple[int, ...]] = {}
        order = sorted(range(len(workload.items)), key=lambda i: -workload.items[i].max_tokens)
        for begin in range(0, len(order), self.batch_size):
            part = order[begin : begin + self.batch_size]
            items = [workload.items[index] for index in part]
            for index, item, row in zip(part, items, self._generate(items), strict=True):
                # A static batch runs until its longest request is done; extra tokens are discarded.
                tokens[index] = tuple(row[: item.max_tokens])
        seconds = self._clock.now() - start
        ordered = tuple(tokens[index] for index in range(len(workload.items)))
        return Run(seconds, ordered, workload.num_input_tokens)

    def _generate(self, items: list[WorkItem], streamer: Any = None) -> list[list[int]]:
        longest = max(len(item.prompt_token_ids) for item in items)
        ids = torch.zeros(len(items), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(items):
            ids[row, longest - len(item.prompt_token_ids) :] = torch.tensor(item.prompt_token_ids)
            mask[row, longest - len(item.prompt_token_ids) :] = 1
        steps = max(item.max_tokens for item in items)
        with torch.inference_mode():
            out: Tensor = self.model.generate(
                ids.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=self._greedy(steps),
                streamer=streamer,
            )
        rows: list[list[int]] = out[:, longest:].tolist()
        return rows

    def _greedy(self, tokens: int) -> Any:
        return self._transformers.GenerationConfig(
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
        )

    def _continuous(self, workload: Workload) -> Run:
        return serve_continuously(self._transformers, self.model, workload, self._clock).run

    def stream(self, item: WorkItem) -> Stream:
        """One request alone, timed by a streamer."""
        watch = _StopWatch(self._clock)
        start = self._clock.now()
        row = self._generate([item], streamer=watch)[0]
        # The first item is the prompt.
        first, last = watch.times[1], watch.times[-1]
        return Stream(first - start, (last - first) / (len(row) - 1), tuple(row))

    def top_two_gap(self, token_ids: list[int]) -> float:
        """Difference of the two largest logits after `token_ids`: how close they are to a tie."""
        with torch.inference_mode():
            ids = torch.tensor([token_ids], device=self._device)
            logits: Tensor = self.model(ids).logits[0, -1].double()
        top = torch.topk(logits, 2).values
        return float(top[0] - top[1])

    def close(self) -> None:
        """Free the weights."""
        self.model = None


class _StopWatch:
    """A streamer that only records the time."""

    def __init__(self, clock: WallClock) -> None:
        self._clock = clock
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(self._clock.now())

    def end(self) -> None:
        pass


def best_batch_size(
    side: TransformersSide, workload: Workload, sizes: tuple[int, ...] = (8, 16, 32, 64, CONTINUOUS)
) -> list[dict[str, Any]]:
    """Try each mode once, set the side to the fastest, and report what was tried.

    A mode that fails is reported as failed; raises PeerUnavailableError if all fail.
    """
    tried: list[dict[str, Any]] = []
    for size in sizes:
        side.batch_size = size
        label = "continuous batching" if size == CONTINUOUS else f"static batches of {size}"
        try:
            run = side.throughput(workload)
        except Exception as error:
            tried.append({"mode": label, "error": f"{type(error).__name__}: {error}"[:300]})
            continue
        tried.append(
            {"mode": label, "batch_size": size, "output_throughput": run.output_throughput}
        )
    worked = [entry for entry in tried if "error" not in entry]
    if not worked:
        raise PeerUnavailableError(f"transformers could not serve the workload: {tried}")
    side.batch_size = max(worked, key=lambda entry: entry["output_throughput"])["batch_size"]
    return tried
