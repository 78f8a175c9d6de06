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
from lossless import forms
from models.oracle import patch_to_true_float64, random_model, save

from minserve.build import build_engine
from minserve.config import ConfigError, EngineConfig
from minserve.engine.parts import CONFIGURED, EngineParts
from minserve.loading import load_model
from minserve.quantization.formats.int8 import round_to_nearest
from minserve.request import Request, SamplingParams
from minserve.trace import RunTotals

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
    ("memory.layout", "contiguous"),
    ("memory.prefix_cache", "hash"),
    ("memory.prefix_cache", "radix"),
    ("memory.copy_on_write", False),
    ("memory.host_bytes", "some"),
    ("memory.disk_bytes", 1 << 20),
    ("scheduling.max_num_seqs", 2),
    ("scheduling.max_num_batched_tokens", 8),
    ("scheduling.max_num_batched_tokens", 33),
    ("scheduling.enable_chunked_prefill", False),
    ("scheduling.policy", "static"),
    ("scheduling.order", "sjf"),
    ("scheduling.order", "lpm"),
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
    ("scheduling.preemption", "swap"),
    ("scheduling.async_scheduling", True),
    ("kernels.backend", "torch"),
    ("kernels.logits_chunk", 1),
    ("kernels.padding", "longest"),
    ("kernels.padding", "power_of_two"),
    ("kernels.padding", "batch"),
    ("kernels.padding", "ladder"),
    ("kernels.cuda_graphs", True),
    ("kernels.cuda_graph_max_rows", 3),
]
"""A new switch joins here in the commit that brings it. Values are those that differ from BASE."""
COMPANY: dict[Any, tuple[str, Any]] = {
    "scheduling.length_error": ("scheduling.order", "sjf"),
    "scheduling.length_bucket": ("scheduling.order", "sjf"),
    "scheduling.starvation_limit_s": ("scheduling.order", "mlfq"),
    "scheduling.mlfq_quantum": ("scheduling.order", "mlfq"),
    "kernels.cuda_graph_max_rows": ("kernels.cuda_graphs", True),
    ("kernels.padding", "batch"): ("scheduling.policy", "static"),
}
"""A switch that does something only beside another one brings it along: a field, or one value."""

LENGTHS = (3, 40, 1, 17, 64, 9, 30, 5, 22, 12, 51, 2)
NEW_TOKENS = (20, 8, 31, 15, 30, 25, 3, 28, 12, 33, 20, 40)
POOL_TOKENS = 130
HOST_TOKENS = 192
TOKEN_BYTES = 3 * 2 * 2 * 16 * 8
"""Keys and values of one token: 3 layers, 2 KV heads of size 16, float64."""


NEEDS: dict[str, dict[str, Any]] = {
    "scheduling.preemption": {"memory.host_bytes": "some"},
    "memory.host_bytes": {"memory.prefix_cache": "radix", "memory.resume": "load"},
    "memory.disk_bytes": {
        "memory.host_bytes": "some",
        "memory.prefix_cache": "hash",
        "memory.resume": "load",
    },
}
"""What a switch cannot do without."""
CACHES = {"memory.prefix_cache", "memory.host_bytes", "memory.disk_bytes"}
REFUSED: list[tuple[set[str], set[str]]] = [
    # A request must fit in one step there.
    (
        {"scheduling.max_num_batched_tokens", "scheduling.max_num_prefill_tokens"},
        {"memory.kv_cache", "scheduling.enable_chunked_prefill"},
    ),
    # Nothing is kept that could be shared, moved or laid out.
    (
        {"memory.kv_cache"},
        CACHES | {"memory.layout", "scheduling.preemption", "scheduling.async_scheduling"},
    ),
    ({"memory.layout"}, CACHES | {"scheduling.preemption"}),
    # Steps of one row per request, padded to the captured counts.
    ({"kernels.cuda_graphs"}, {"memory.kv_cache", "kernels.padding"}),
]
"""Pairs that resolve() refuses: one field of the first set with one of the second."""


def is_refused(values: Mapping[str, Any]) -> bool:
    # A static batch runs to its end.
    if values.get("scheduling.policy") == "static" and values.get("scheduling.order") in (
        "priority",
        "mlfq",
    ):
        return True
    names = set(values)
    if values.get("scheduling.order") == "lpm":
        names.add("memory.prefix_cache")  # It needs one.
    return any(names & left and names & right for left, right in REFUSED)


Switches = tuple[tuple[str, Any], ...]
DRAWN_PAIRS = 300
"""How many of the pairs `make test` draws; `make test-full` runs them all."""
DRAWN_INT8 = 60
"""The same over quantized weights."""


def singles() -> list[Switches]:
    """Each switch alone, or with those it needs."""
    return [with_company(switch) for switch in SWITCHES]


def pairs(refused: bool = False) -> list[Switches]:
    """Every pair of switches of different fields that can go together; or those that cannot."""
    found = []
    for a, b in itertools.combinations(SWITCHES, 2):
        together = with_company(a, b)
        contradict = len(dict(together)) < len(together)
        if a[0] != b[0] and not contradict and is_refused(dict(together)) == refused:
            found.append(together)
    return found


def with_company(*switches: tuple[str, Any]) -> Switches:
    """The switches and those they need, each once; two values of one field stay two."""
    company = [COMPANY[key] for each in switches for key in (each[0], each) if key in COMPANY]
    return tuple(dict.fromkeys((*switches, *company)))


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run: switches, what they need, and the sizes that depend on the model."""
    settings = {**BASE, **values}
    for name in values:
        for need, value in NEEDS.get(name, {}).items():
            settings.setdefault(need, value)
    if values.get("scheduling.order") == "lpm":
        settings.setdefault("memory.prefix_cache", "radix")
    if settings.get("memory.kv_bytes") == "tiny":
        settings["memory.kv_bytes"] = POOL_TOKENS * TOKEN_BYTES
    if settings.get("memory.host_bytes") == "some":
        settings["memory.host_bytes"] = HOST_TOKENS * TOKEN_BYTES
    return settings


def label(switches: Switches) -> str:
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
    path = save(random_model(config, seed=5), tmp_path_factory.mktemp("matrix"))
    forms.save_tokenizer(path)
    return path


def prompts() -> list[list[int]]:
    """Random, but two begin like an earlier one, so that a prefix cache finds something."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.randint(0, 101, (n,), generator=generator).tolist() for n in LENGTHS]
    found[10][:45] = found[4][:45]
    found[6][:20] = found[1][:20]
    return found


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> list[list[int]]:
    """A loop over transformers, one request at a time, everything computed again at each token."""
    return generated(model_dir)


def generated(model_dir: Path, rounded: bool = False) -> list[list[int]]:
    """The tokens of such a loop; `rounded`: by weights that int8 would stand for."""
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    oracle = patch_to_true_float64(oracle.eval())
    if rounded:
        for module in oracle.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                codes, scales = round_to_nearest(module.weight.data.float())
                module.weight.data = codes.double() * scales.double()[:, None]
    outputs = []
    with torch.inference_mode():
        for prompt, count in zip(prompts(), NEW_TOKENS, strict=True):
            sequence = list(prompt)
            for _ in range(count):
                logits = oracle(torch.tensor([sequence]), use_cache=False).logits
                sequence.append(int(logits[0, -1].argmax()))
            outputs.append(sequence[len(prompt) :])
        formed: list[int] = []
        while forms.STOP not in formed:
            sequence = forms.PROMPT + formed
            logits = oracle(torch.tensor([sequence]), use_cache=False).logits[0, -1]
            may_come = forms.allowed(formed)
            formed.append(may_come[int(logits[may_come].argmax())])
    assert 10 < len(formed) < forms.LONGEST
    return [*outputs, formed]


def run(
    model_dir: Path,
    values: Mapping[str, Any],
    temperature: float = 0.0,
    aborts: bool = False,
    samples: int = 1,
    parts: EngineParts = CONFIGURED,
    params: Mapping[str, Any] = {},
    formed: bool = True,
) -> tuple[list[Request], RunTotals]:
    """All requests through one engine; every third is aborted half way where `aborts`. Where
    `formed`, and without `params`, there is one more, whose answer has a form."""
    settings = complete(values)
    loaded = load_model(model_dir, EngineConfig().with_values(settings))
    engine = build_engine(loaded, parts=parts)
    requests = []
    for index, (prompt, count) in enumerate(zip(prompts(), NEW_TOKENS, strict=True)):
        how = SamplingParams(
            max_tokens=count,
            temperature=temperature,
            seed=100 + index,
            ignore_eos=True,
            n=samples,
            **params,
        )
        requests += engine.add(str(index), prompt, how, priority=-index % 3)
    if formed and not params:
        requests += engine.add("form", forms.PROMPT, forms.params(temperature, samples))
    while engine.has_work:
        engine.step()
        for request in requests[::3] if aborts else ():
            if not request.finished and request.num_output_tokens >= 7:
                engine.abort(request.request_id)
    assert engine.memory.pool.num_owned == 0
    engine.close()
    return requests, engine.trace.totals


@pytest.mark.parametrize(
    "switches",
    [*singles(), *(pytest.param(p, marks=pytest.mark.sampled(DRAWN_PAIRS)) for p in pairs())],
    ids=label,
)
def test_switches_change_no_token(switches, model_dir, expected):
    requests, totals = run(model_dir, dict(switches))
    assert [request.output_token_ids for request in requests] == expected
    names = {path for path, _ in switches}
    if "memory.kv_bytes" in names and "memory.watermark" not in names:
        few = dict(switches).get("scheduling.max_num_seqs") == 2
        cached = dict(switches).get("memory.kv_cache", True)
        reserved = "memory.layout" in names
        assert totals.preemptions > 0 or few or not cached or reserved, "the pool was too large"
        if "scheduling.preemption" in names and not few:
            assert totals.swapped_in_blocks > 0
    if ("kernels.padding", "batch") in switches:
        assert totals.padded_rows > 0
    if "kernels.cuda_graphs" in names:
        assert totals.compiled_graphs > 0, "no step was replayed"
    if names == {"memory.prefix_cache"}:
        assert totals.hit_tokens > 0


@pytest.fixture(scope="module")
def expected_int8(model_dir: Path) -> list[list[int]]:
    """As `expected`, with the matrices of all layers rounded to int8 and back."""
    return generated(model_dir, rounded=True)


@pytest.mark.parametrize(
    "switches",
    [*singles(), *(pytest.param(p, marks=pytest.mark.sampled(DRAWN_INT8)) for p in pairs())],
    ids=label,
)
def test_switches_change_no_token_of_int8_weights(switches, model_dir, expected, expected_int8):
    assert expected_int8 != expected, "rounding changes nothing: is the format used?"
    requests, _ = run(model_dir, {**dict(switches), "quantization.weight_format": "int8"})
    assert [request.output_token_ids for request in requests] == expected_int8


@pytest.mark.parametrize("switches", pairs(refused=True), ids=label)
def test_pairs_left_out_are_refused_in_a_sentence(switches, model_dir):
    with pytest.raises(ConfigError, match=r"memory\.|scheduling\.|kernels\."):
        load_model(model_dir, EngineConfig().with_values(complete(dict(switches))))


@pytest.mark.parametrize("prefix_cache", ["off", "radix"])
@pytest.mark.parametrize("switches", singles(), ids=label)
def test_samples_that_share_a_prompt_are_those_that_compute_it_each(
    switches, prefix_cache, model_dir
):
    values = dict(switches)
    both = values | {"memory.prefix_cache": prefix_cache}
    if CACHES & values.keys() or (prefix_cache != "off" and is_refused(both)):
        pytest.skip("refused, or a switch that brings its own prefix cache")
    if values.get("scheduling.order") == "lpm" and prefix_cache == "off":
        pytest.skip("refused: it orders by cached prefixes")
    alone, _ = run(model_dir, {"memory.copy_on_write": False}, 1.0, samples=3)
    shared, totals = run(model_dir, both, 1.0, samples=3)
    assert [r.output_token_ids for r in shared] == [r.output_token_ids for r in alone]
    alone_by_intent = {"memory.copy_on_write", "memory.kv_cache", "memory.layout"}
    if not (alone_by_intent | {"scheduling.policy"}) & values.keys():
        assert totals.copied_blocks > 0 or values.get("memory.block_size") == 1


@pytest.mark.parametrize("switches", singles(), ids=label)
def test_aborts_change_no_token_of_anyone_else(switches, model_dir, expected):
    requests, _ = run(model_dir, dict(switches), aborts=True)
    aborted = [request for request in requests if request.finish_reason == "abort"]
    assert len(aborted) == 4
    for request, tokens in zip(requests, expected, strict=True):
        if request.finish_reason == "abort":
            assert request.output_token_ids == tokens[: request.num_output_tokens]
        else:
            assert request.output_token_ids == tokens


@pytest.fixture(scope="module")
def sampled(model_dir: Path) -> list[list[int]]:
    requests, _ = run(model_dir, {}, temperature=1.0)
    return [request.output_token_ids for request in requests]


@pytest.mark.parametrize("switches", singles(), ids=label)
def test_switches_change_no_sampled_token(switches, model_dir, sampled, expected):
    requests, _ = run(model_dir, dict(switches), temperature=1.0)
    assert [request.output_token_ids for request in requests] == sampled
    assert sampled != expected


@pytest.mark.slow
def test_compiled_layers_change_no_token_and_new_batch_sizes_compile_nothing(model_dir, expected):
    """Not among the pairs: compiling takes longer than all of them. The engines here share what
    the first one compiled."""
    requests, totals = run(model_dir, {"kernels.compile": True})
    assert [request.output_token_ids for request in requests] == expected
    # Two halves of a layer, the first of them also without a predecessor, and steps of one row.
    assert 3 <= totals.compiled_graphs <= 6 and totals.compile_s > 0
    assert totals.compile_s < totals.forward_s
    for values in ({"memory.kv_bytes": "tiny"}, {"scheduling.max_num_batched_tokens": 33},
                   {"kernels.padding": "longest"}, {"scheduling.policy": "static"},
                   {"kernels.padding": "batch", "scheduling.policy": "static"}):  # fmt: skip
        requests, totals = run(model_dir, {"kernels.compile": True, **values}, aborts=True)
        for request, tokens in zip(requests, expected, strict=True):
            assert request.output_token_ids == tokens[: request.num_output_tokens]
            assert request.finish_reason == "abort" or request.output_token_ids == tokens
        # Steps of a single row may first come here; other numbers of rows are known.
        assert totals.compiled_graphs in (0, 3)
