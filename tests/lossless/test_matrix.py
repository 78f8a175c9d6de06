"""Every switch that claims to be lossless, alone and in pairs, against a plain transformers loop.

float64 without exception: token ids are compared one by one, over a ragged workload, with a page
pool so small that requests are preempted, and with aborts in the middle.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models.oracle import patch_to_true_float64, random_model, save

from minserve.build import build_engine, load_model
from minserve.config import EngineConfig
from minserve.request import Request, SamplingParams

BASE: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float64",
    "memory.check_integrity": True,
    "scheduling.max_num_seqs": 8,
    "scheduling.max_model_len": 96,
}
SWITCHES: list[tuple[str, Any]] = [
    ("memory.kv_cache", False),
    ("memory.block_size", 1),
    ("memory.block_size", 7),
    ("memory.block_size", 64),
    ("memory.kv_bytes", "tiny"),
    ("memory.watermark", 0.3),
    ("scheduling.max_num_seqs", 2),
    ("scheduling.max_num_batched_tokens", 8),
    ("scheduling.max_num_batched_tokens", 33),
    ("scheduling.enable_chunked_prefill", False),
    ("scheduling.policy", "static"),
    ("scheduling.order", "sjf"),
    ("scheduling.order", "priority"),
    ("scheduling.order", "mlfq"),
    ("scheduling.length_error", 1.0),
    ("scheduling.length_bucket", 8),
    ("scheduling.starvation_limit_s", 0.0),
    ("scheduling.mlfq_quantum", 2),
    ("scheduling.prefill", "decode_first"),
    ("scheduling.prefill", "prefill_first"),
    ("scheduling.max_num_prefill_tokens", 5),
    ("scheduling.victim", "least_computed"),
    ("kernels.backend", "torch"),
    ("kernels.logits_chunk", 1),
]
"""A new switch joins here in the commit that brings it. Values are those that differ from BASE."""
COMPANY: dict[str, tuple[str, Any]] = {
    "scheduling.length_error": ("scheduling.order", "sjf"),
    "scheduling.length_bucket": ("scheduling.order", "sjf"),
    "scheduling.starvation_limit_s": ("scheduling.order", "mlfq"),
    "scheduling.mlfq_quantum": ("scheduling.order", "mlfq"),
}
"""A switch that does something only beside another one brings it along."""

LENGTHS = (3, 40, 1, 17, 64, 9, 30, 5, 22, 12, 51, 2)
NEW_TOKENS = (20, 8, 31, 15, 30, 25, 3, 28, 12, 33, 20, 40)
POOL_TOKENS = 130


def pairs() -> list[tuple[tuple[str, Any], ...]]:
    """Each switch alone, and every pair of switches of different fields that can go together."""
    found = [with_company(switch) for switch in SWITCHES]
    for a, b in itertools.combinations(SWITCHES, 2):
        together = with_company(a, b)
        names = dict(together)
        if a[0] == b[0] or len(names) < len(together):
            continue
        # Refused by resolve(): a request must fit in one step there.
        if names.keys() & {
            "scheduling.max_num_batched_tokens",
            "scheduling.max_num_prefill_tokens",
        } and names.keys() & {"memory.kv_cache", "scheduling.enable_chunked_prefill"}:
            continue
        # Refused by resolve(): a static batch runs to its end.
        if names.get("scheduling.policy") == "static" and names.get("scheduling.order") in (
            "priority",
            "mlfq",
        ):
            continue
        found.append(together)
    return found


def with_company(*switches: tuple[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The switches and those they need, each once; two values of one field stay two."""
    company = [COMPANY[path] for path, _ in switches if path in COMPANY]
    return tuple(dict.fromkeys((*switches, *company)))


def label(switches: tuple[tuple[str, Any], ...]) -> str:
    return " ".join(f"{path.split('.')[-1]}={value}" for path, value in switches)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=101,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )
    return save(random_model(config, seed=5), tmp_path_factory.mktemp("matrix"))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 101, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> list[list[int]]:
    """A loop over transformers, one request at a time, everything computed again at each token."""
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    oracle = patch_to_true_float64(oracle.eval())
    outputs = []
    with torch.inference_mode():
        for prompt, count in zip(prompts(), NEW_TOKENS, strict=True):
            sequence = list(prompt)
            for _ in range(count):
                logits = oracle(torch.tensor([sequence]), use_cache=False).logits
                sequence.append(int(logits[0, -1].argmax()))
            outputs.append(sequence[len(prompt) :])
    return outputs


def run(
    model_dir: Path, values: Mapping[str, Any], temperature: float = 0.0, aborts: bool = False
) -> tuple[list[Request], int]:
    """All requests through one engine; every third is aborted half way where `aborts`. Returns
    the requests and the number of preemptions."""
    settings = {**BASE, **values}
    if settings.get("memory.kv_bytes") == "tiny":
        token_bytes = 3 * 2 * 2 * 16 * 8
        settings["memory.kv_bytes"] = POOL_TOKENS * token_bytes
    engine = build_engine(load_model(model_dir, EngineConfig().with_values(settings)))
    requests = []
    for index, (prompt, count) in enumerate(zip(prompts(), NEW_TOKENS, strict=True)):
        params = SamplingParams(
            max_tokens=count, temperature=temperature, seed=100 + index, ignore_eos=True
        )
        requests += engine.add(str(index), prompt, params, priority=-index % 3)
    while engine.has_work:
        engine.step()
        for request in requests[::3] if aborts else ():
            if not request.finished and request.num_output_tokens >= 7:
                engine.abort(request.request_id)
    assert engine.memory.pool.num_owned == 0
    return requests, engine.trace.totals.preemptions


@pytest.mark.parametrize("switches", pairs(), ids=label)
def test_switches_change_no_token(switches, model_dir, expected):
    requests, preemptions = run(model_dir, dict(switches))
    assert [request.output_token_ids for request in requests] == expected
    names = {path for path, _ in switches}
    if "memory.kv_bytes" in names and "memory.watermark" not in names:
        few = dict(switches).get("scheduling.max_num_seqs") == 2
        cached = dict(switches).get("memory.kv_cache", True)
        assert preemptions > 0 or few or not cached, "the pool was not small enough to show it"


@pytest.mark.parametrize("switches", [with_company(s) for s in SWITCHES], ids=label)
def test_aborts_change_no_token_of_anyone_else(switches, model_dir, expected):
    requests, _ = run(model_dir, dict(switches), aborts=True)
    aborted = [request for request in requests if request.finish_reason == "abort"]
    assert len(aborted) == 3
    for request, tokens in zip(requests, expected, strict=True):
        if request.finish_reason == "abort":
            assert request.output_token_ids == tokens[: request.num_output_tokens]
        else:
            assert request.output_token_ids == tokens


@pytest.fixture(scope="module")
def sampled(model_dir: Path) -> list[list[int]]:
    requests, _ = run(model_dir, {}, temperature=1.0)
    return [request.output_token_ids for request in requests]


@pytest.mark.parametrize("switches", [with_company(s) for s in SWITCHES], ids=label)
def test_switches_change_no_sampled_token(switches, model_dir, sampled, expected):
    requests, _ = run(model_dir, dict(switches), temperature=1.0)
    assert [request.output_token_ids for request in requests] == sampled
    assert sampled != expected
