"""llama.cpp as a peer, through its Python binding: one request alone, run by `child_peer.py`.

Tokens are evaluated by the library's own calls and chosen by numpy's argmax: otherwise the time of
the binding's samplers, which copy and sort, would count against it. Needs `llama_cpp`, built from
source so that it uses this processor's instructions.
"""

from __future__ import annotations

import argparse
import time
from typing import Any


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", required=True, help="the model, as GGUF")
    parser.add_argument("--threads", type=int, default=0, help="0: llama.cpp's own choice")
    parser.add_argument("--context", type=int, default=1024)
    return parser.parse_args(arguments)


class Peer:
    """One model in one context."""

    def __init__(self, args: argparse.Namespace) -> None:
        import llama_cpp
        import numpy

        self.args, self.np, self.llama_cpp = args, numpy, llama_cpp
        threads = args.threads or None
        self.model = llama_cpp.Llama(
            args.gguf,
            n_ctx=args.context,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def settings(self) -> dict[str, Any]:
        """Versions and everything that was set."""
        return {
            "llama_cpp_python": self.llama_cpp.__version__,
            "built_for": self.llama_cpp.llama_print_system_info().decode(),
            "weights": "f16",
            "kv_cache": "f16",
            "threads": self.args.threads,
            "n_ctx": self.args.context,
        }

    def stream(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        """One request alone."""
        self.model.reset()
        start = time.perf_counter()
        times, tokens, fresh = [], [], prompt
        for _ in range(max_tokens):
            self.model.eval(fresh)
            fresh = [self._likeliest()]
            times.append(time.perf_counter())
            tokens += fresh
        return {
            "ttft_s": times[0] - start,
            "tpot_s": (times[-1] - times[0]) / max(1, len(times) - 1),
            "token_ids": tokens,
        }

    def throughput(self, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
        """Not raced: the binding serves one request at a time."""
        raise NotImplementedError("llama.cpp's binding serves one request at a time; race latency")

    def _likeliest(self) -> int:
        logits = self.llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
        row = self.np.ctypeslib.as_array(logits, shape=(self.model.n_vocab(),))
        return int(row.argmax())
