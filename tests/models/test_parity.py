"""Every family computes what transformers computes, however its sequences are cut into batches."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from models.oracle import logits, patch_to_true_float64, random_model, save
from models.ragged import PagedSequences, generate_greedily, run_pieces

from minserve.attention.paged import PagedAttention
from minserve.kernels.reference.ops import TorchOps
from minserve.layers import ForwardContext
from minserve.models import Decoder, load_spec, load_weights
from minserve.spec import ModelSpec

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite", "gemma", "gemma2", "smollm3")
VOCAB = 61
LONGEST = 48
"""Tokens no test sequence exceeds, its continuation included."""

ROPES = st.one_of(
    st.just({"rope_type": "default"}),
    st.just({"rope_type": "linear", "factor": 2.5}),
    st.just({"rope_type": "dynamic", "factor": 2.0}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": st.sampled_from([2.0, 8.0]),
            "low_freq_factor": st.just(1.0),
            "high_freq_factor": st.just(4.0),
            "original_max_position_embeddings": st.sampled_from([16, 32]),
        }
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("yarn"),
            "factor": st.just(4.0),
            "original_max_position_embeddings": st.sampled_from([16, 32]),
            "truncate": st.booleans(),
        },
        optional={
            "attention_factor": st.just(0.8),
            "beta_fast": st.just(16.0),
            "mscale": st.just(0.7),
            "mscale_all_dim": st.just(1.3),
        },
    ),
)

FACTORS = st.sampled_from([0.3, 1.0, 2.5])
EXTRAS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "granite": st.fixed_dictionaries(
        {
            "attention_multiplier": FACTORS,
            "embedding_multiplier": FACTORS,
            "residual_multiplier": FACTORS,
            "logits_scaling": FACTORS,
            "attention_bias": st.booleans(),
            "mlp_bias": st.booleans(),
        }
    ),
    "gemma2": st.fixed_dictionaries(
        {
            "query_pre_attn_scalar": st.sampled_from([8, 20]),
            # Small enough that scores and logits of random models reach them.
            "attn_logit_softcapping": st.none() | st.sampled_from([0.7, 5.0]),
            "final_logit_softcapping": st.none() | st.sampled_from([1.5, 10.0]),
        }
    ),
}
"""What only some families have."""


@st.composite
def configs(draw: st.DrawFn, family: str) -> Any:
    """A small transformers configuration of one family."""
    from transformers import CONFIG_MAPPING

    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([6, 8, 16, 20]))
    num_layers = draw(st.integers(1, 3))
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        # With an explicit head size the projections need not be square.
        "hidden_size": heads * draw(st.sampled_from([4, 8, 12])),
        "head_dim": head_dim,
        "intermediate_size": draw(st.sampled_from([17, 32])),
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    rope = dict(draw(ROPES), rope_theta=draw(st.sampled_from([10_000.0, 1e6])))
    values["rope_parameters"] = rope
    window = st.sampled_from([1, 3, 7, 16])
    if family == "llama":
        values |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
        if draw(st.booleans()):
            del values["head_dim"]
            values["hidden_size"] = heads * head_dim
    if family == "mistral":
        values["sliding_window"] = draw(st.none() | window)
    if family.startswith("qwen"):
        values |= {"use_sliding_window": draw(st.booleans()), "sliding_window": draw(window)}
        values["max_window_layers"] = draw(st.integers(1, num_layers))
    if family in ("qwen3", "gemma2"):
        values["attention_bias"] = draw(st.booleans())
    values |= draw(EXTRAS.get(family, st.just({})))
    if family == "gemma2":
        values["sliding_window"] = draw(window)
    if family == "smollm3":
        values |= {"use_sliding_window": draw(st.booleans()), "sliding_window": draw(window)}
        interval = draw(st.integers(1, 3))
        values["no_rope_layers"] = [int((i + 1) % interval != 0) for i in range(num_layers)]
    return CONFIG_MAPPING[family](**values)


SEQUENCES = st.lists(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40), min_size=1, max_size=4
)
SEEDS = st.integers(0, 2**31)

few = settings(
    deadline=None,
    derandomize=True,
    database=None,
    # The first failing example is small enough to read, and shrinking it takes a minute.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def saved_and_loaded(model: Any, dtype: torch.dtype) -> tuple[ModelSpec, Decoder]:
    """What this package makes of a transformers model that went through a directory."""
    with tempfile.TemporaryDirectory() as directory:
        save(model, Path(directory))
        spec = load_spec(directory)
        weights = load_weights(directory, spec, dtype, progress=False)
    # At most the original length: there dynamic scaling is transformers' own.
    return spec, Decoder(spec, weights, TorchOps(), max_position=64)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_match_transformers_through_pages_chunks_and_batches(family: str) -> None:
    @settings(few, max_examples=80)
    @given(configs(family), SEQUENCES, st.integers(1, 9), SEEDS)
    def check(config: Any, sequences: list[list[int]], block_size: int, seed: int) -> None:
        model = random_model(config, seed)
        spec, decoder = saved_and_loaded(model, torch.float32)
        paged = PagedSequences(spec, sequences, LONGEST, block_size, seed)
        backend = PagedAttention(spec, paged.caches(torch.float32), decoder.ops)
        found = run_pieces(decoder, backend, paged, paged.random_pieces(seed, largest=12))
        for tokens, ours in zip(sequences, found, strict=True):
            theirs = logits(model, tokens)
            limit = 1e-4 * theirs.abs().max().item()
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=limit)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers_in_true_float64(family: str) -> None:
    @settings(few, max_examples=50)
    @given(configs(family), SEQUENCES, st.integers(1, 9), SEEDS)
    def check(config: Any, sequences: list[list[int]], block_size: int, seed: int) -> None:
        model = patch_to_true_float64(random_model(config, seed, torch.float64))
        spec, decoder = saved_and_loaded(model, torch.float64)
        assert spec.dtype == "float64"
        paged = PagedSequences(spec, sequences, LONGEST, block_size, seed)
        backend = PagedAttention(spec, paged.caches(torch.float64), decoder.ops)
        continuations = generate_greedily(decoder, backend, paged, seed, largest=12, num_new=8)
        for prompt, ours in zip(sequences, continuations, strict=True):
            # One pass over prompt and continuation: each token must be the greedy choice after
            # those before it, which by induction is what a loop would have generated.
            choices = logits(model, prompt + ours).argmax(-1).tolist()
            assert ours == choices[len(prompt) - 1 : -1]
        # Equal tokens alone would not show a table or a norm left in float32.
        paged = PagedSequences(spec, sequences, LONGEST, block_size, seed)
        found = run_pieces(decoder, backend, paged, paged.random_pieces(seed, largest=12))
        for tokens, ours_exact in zip(sequences, found, strict=True):
            theirs = logits(model, tokens)
            limit = 1e-11 * theirs.abs().max().item()
            torch.testing.assert_close(ours_exact, theirs, rtol=0.0, atol=limit)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_bytes_are_those_of_the_stored_tensors(family: str) -> None:
    @settings(few, max_examples=10)
    @given(configs(family), SEEDS)
    def check(config: Any, seed: int) -> None:
        model = random_model(config, seed, torch.bfloat16)
        spec, decoder = saved_and_loaded(model, torch.bfloat16)
        count = sum(each.numel() for each in model.parameters())
        assert spec.num_parameters() == count
        assert decoder.weights.nbytes == 2 * count == sum(spec.weight_parts(2).values())

    check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_embedded_tokens_have_the_bits_of_transformers(family: str, dtype: torch.dtype) -> None:
    """Gemma rounds its factor to the model's number format, and Granite does not."""

    @settings(few, max_examples=8)
    @given(configs(family), SEEDS)
    def check(config: Any, seed: int) -> None:
        model = random_model(config, seed, dtype)
        _, decoder = saved_and_loaded(model, dtype)
        seen: list[torch.Tensor] = []
        first = model.model.layers[0]
        first.register_forward_pre_hook(
            lambda _, args, given: seen.append(args[0]), with_kwargs=True
        )
        tokens = list(range(VOCAB))
        logits(model, tokens)
        assert torch.equal(decoder.embed(torch.tensor(tokens)), seen[0][0])

    check()


def test_residual_stream_may_be_cut_between_any_two_layers() -> None:
    from transformers import Qwen3Config

    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=32, num_hidden_layers=3, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    spec, decoder = saved_and_loaded(random_model(config, 0, torch.float64), torch.float64)
    outcomes = []
    for cuts in ([0, 3], [0, 1, 3], [0, 0, 1, 2, 3]):
        paged = PagedSequences(spec, [[1, 2, 3, 4, 5], [6]], LONGEST)
        backend = PagedAttention(spec, paged.caches(torch.float64), decoder.ops)
        batch = paged.batch([5, 1])
        plan = backend.plan(batch)
        h = decoder.embed(batch.token_ids)
        for start, stop in pairwise(cuts):
            h = decoder.run_layers(h, ForwardContext(batch, plan), start, stop)
        outcomes.append(h)
    assert torch.equal(outcomes[0], outcomes[1])
    assert torch.equal(outcomes[0], outcomes[2])


def test_embedding_table_survives_a_forward_pass() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True, max_position_embeddings=64,
    )  # fmt: skip
    spec, decoder = saved_and_loaded(random_model(config, 0), torch.float32)
    before = decoder.weights.embedding.table.codes.clone()
    # All tokens in order: a table view would do for the embedding, and be updated in place.
    paged = PagedSequences(spec, [list(range(LONGEST))], LONGEST)
    backend = PagedAttention(spec, paged.caches(torch.float32), decoder.ops)
    batch = paged.batch([LONGEST])
    with torch.inference_mode():
        decoder.forward(batch, backend.plan(batch))
    assert torch.equal(decoder.weights.embedding.table.codes, before)
