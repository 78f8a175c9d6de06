"""transformers on the suite's workload: cut off by its time, counted, and really stopped."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from minserve.bench.gpu.cases.nano_vllm import nano_vllm
from minserve.bench.gpu.cases.transformers_peer import TransformersPeer
from minserve.bench.workloads.shapes import SHAPES
from minserve.clock import WallClock

pytest.importorskip("psutil", reason="transformers counts a CPU's memory by it")

TINY = dataclasses.replace(
    SHAPES["qwen3-0.6b"], vocab_size=512, hidden_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=16, intermediate_size=96,
)  # fmt: skip


@pytest.fixture(scope="module")
def peer() -> TransformersPeer:
    return TransformersPeer(TINY, "float32", torch.device("cpu"), WallClock())


def test_a_run_that_is_cut_off_counts_what_it_had_and_leaves_nothing_running(
    peer: TransformersPeer,
) -> None:
    before = threading.active_count()
    workload = nano_vllm(6, 900, 800, vocab_size=512)
    for run in (peer.continuous(workload, 1.2, 6), peer.static(workload, 1.2, 3)):
        assert not run.finished
        assert 0 < run.output_tokens < workload.num_output_tokens
        times, tokens = zip(*run.progress, strict=True)
        assert list(times) == sorted(times) and list(tokens) == sorted(tokens)
        assert tokens[-1] == run.output_tokens and run.seconds < 30
        # The prompts come first: the fastest stretch is faster than the whole.
        assert run.tokens_per_s >= run.output_tokens / run.seconds
        assert run.settings["attention"]
    assert threading.active_count() == before


def test_without_a_network_flash_attention_is_done_without(
    peer: TransformersPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = peer._serve

    def offline(*args: object, flash: bool) -> object:
        if flash:
            raise OSError("cannot reach the hub")
        return serve(*args, flash=False)

    monkeypatch.setattr(peer, "_serve", offline)
    run = peer.continuous(nano_vllm(2, 8, 4, vocab_size=512), 30.0, 2)
    assert run.finished
    assert "sdpa" in run.settings["attention"]
    assert run.settings["without_flash"] == "after OSError: cannot reach the hub"
    assert peer.model.config._attn_implementation == "sdpa"
