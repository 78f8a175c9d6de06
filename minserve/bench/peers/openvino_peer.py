"""OpenVINO GenAI as a peer, run by `child_peer.py`: continuous batching, and one request alone.

Needs `openvino_genai` and `numpy`, and nothing of minserve.
"""

from __future__ import annotations

import argparse
import time
from typing import Any


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", required=True, help="the model, as GGUF")
    parser.add_argument("--hints", choices=("f32", "default"), default="default")
    parser.add_argument("--threads", type=int, default=0, help="0: OpenVINO's own choice")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=512)
    parser.add_argument("--cache-gb", type=int, default=1)
    return parser.parse_args(arguments)


class Peer:
    """One model, served through two pipelines; each is made when it is first needed."""

    def __init__(self, args: argparse.Namespace) -> None:
        import numpy
        import openvino
        import openvino_genai

        self.args, self.np, self.ov, self.genai = args, numpy, openvino, openvino_genai
        self.properties: dict[str, Any] = {}
        if args.threads:
            self.properties["INFERENCE_NUM_THREADS"] = args.threads
        if args.hints == "f32":
            self.properties["INFERENCE_PRECISION_HINT"] = "f32"
            self.properties["KV_CACHE_PRECISION"] = "f32"
        self.single: Any = None
        self.batched: Any = None

    def tensor(self, ids: list[int]) -> Any:
        """Token ids `[1, n]`."""
        return self.ov.Tensor(self.np.array([ids], dtype=self.np.int64))

    def config(self, max_tokens: int) -> Any:
        """Greedy, and exactly this many tokens."""
        config = self.genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        return config

    def settings(self) -> dict[str, Any]:
        """Versions and everything that was set."""
        return {
            "openvino": self.ov.get_version(),
            "openvino_genai": getattr(self.genai, "__version__", "unknown"),
            "hints": self.args.hints,
            "properties": self.properties,
            "max_num_seqs": self.args.max_num_seqs,
            "max_num_batched_tokens": self.args.max_num_batched_tokens,
            "cache_size_gb": self.args.cache_gb,
            "prefix_caching": False,
        }

    def stream(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        """One request alone; times are between the streamer's calls, one per token."""
        if self.single is None:
            # By default this pipeline keeps the prompt's pages from the previous round: the first
            # token would then need no prefill.
            scheduler = self.genai.SchedulerConfig()
            scheduler.cache_size = self.args.cache_gb
            scheduler.enable_prefix_caching = False
            scheduler.max_num_batched_tokens = max(len(prompt), self.args.max_num_batched_tokens)
            self.single = self.genai.LLMPipeline(
                self.args.gguf, "CPU", scheduler_config=scheduler, **self.properties
            )
        ones = self.ov.Tensor(self.np.ones((1, len(prompt)), dtype=self.np.int64))
        inputs = self.genai.TokenizedInputs(self.tensor(prompt), ones)
        start = time.perf_counter()
        result = self.single.generate(inputs, self.config(max_tokens))
        seconds = time.perf_counter() - start
        measured = result.perf_metrics
        return {
            "ttft_s": measured.get_ttft().mean / 1e3,
            "tpot_s": measured.get_tpot().mean / 1e3,
            "e2e_s": seconds,
            "token_ids": list(result.tokens[0]),
        }

    def throughput(self, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
        """All requests at once through continuous batching."""
        if self.batched is None:
            scheduler = self.genai.SchedulerConfig()
            scheduler.cache_size = self.args.cache_gb
            scheduler.enable_prefix_caching = False
            scheduler.max_num_seqs = self.args.max_num_seqs
            scheduler.max_num_batched_tokens = self.args.max_num_batched_tokens
            self.batched = self.genai.ContinuousBatchingPipeline(
                self.args.gguf, scheduler, "CPU", self.properties
            )
        start = time.perf_counter()
        handles = [
            self.batched.add_request(index, self.tensor(ids), self.config(count))
            for index, (ids, count) in enumerate(requests)
        ]
        while self.batched.has_non_finished_requests():
            self.batched.step()
        tokens = [list(handle.read_all()[0].generated_ids) for handle in handles]
        return {"duration_s": time.perf_counter() - start, "token_ids": tokens}
