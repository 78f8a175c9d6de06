"""Whole config.json files, old and new keys at once: transformers' logits, or a sentence."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from models.oracle import logits, random_model
from models.ragged import PagedSequences, run_pieces
from safetensors.torch import save_file

from minserve.attention.paged import PagedAttention
from minserve.kernels.reference.ops import TorchOps
from minserve.models import Decoder, ModelError, load_spec, load_weights

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite", "gemma", "gemma2", "smollm3")
LAYERS, HEADS, VOCAB = 2, 4, 37
LONGEST = 40


def some(*values: Any, absent: int = 1) -> st.SearchStrategy[Any]:
    """One of the values; ... leaves the key out, `absent` times as often as any value is taken."""
    return st.sampled_from([*[...] * absent, *values])


def mapping(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A JSON object of drawn keys, without those that are left out."""
    return st.fixed_dictionaries(keys).map(
        lambda values: {key: value for key, value in values.items() if value is not ...}
    )


KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
ROPE = mapping(
    rope_type=some(*KINDS, *KINDS[1:], "longrope", absent=2),
    type=some(*KINDS[1:], absent=4),
    rope_theta=some(500.0, 10_000, 1e6, absent=3),
    factor=some(2.0, 4, 2.5, 0.5, 1.0, None, 3.0, 8.0, absent=1),
    original_max_position_embeddings=some(16, 32, None, absent=3),
    low_freq_factor=some(1.0, 2, 1, absent=1),
    high_freq_factor=some(4.0, 8, 4, 1.0, absent=1),
    attention_factor=some(0.8, 1, None, absent=6),
    beta_fast=some(16.0, 32, 0, absent=4),
    beta_slow=some(2.0, 1, None, absent=6),
    mscale=some(0.7, 0, absent=5),
    mscale_all_dim=some(1.0, 0.4, absent=5),
    truncate=some(True, False, absent=4),
    partial_rotary_factor=some(1.0, 0.5, absent=30),
)
LAYER_KINDS = st.sampled_from(["full_attention", "sliding_attention"])
FILES = mapping(
    hidden_size=st.sampled_from([16, 24, 32]),
    head_dim=some(4, 8, 6, None, absent=2),
    intermediate_size=st.sampled_from([17, 32]),
    num_key_value_heads=some(1, 2, 4, 1, 2, 4, None, 3, absent=1),
    hidden_act=some("silu", "swish", "gelu", absent=20),
    hidden_activation=some("silu", "gelu_pytorch_tanh", "relu", None, absent=20),
    max_position_embeddings=some(48, 64, 100, absent=1),
    rms_norm_eps=some(1e-6, 1e-5, 1, absent=2),
    tie_word_embeddings=some(True, False, absent=1),
    attention_bias=some(True, False, absent=1),
    mlp_bias=some(True, False, absent=2),
    use_sliding_window=some(True, False, absent=1),
    sliding_window=some(1, 7, 16, None, absent=1),
    max_window_layers=some(0, 1, 2, absent=1),
    layer_types=st.one_of(
        *[st.just(...)] * 4, st.lists(LAYER_KINDS, min_size=LAYERS, max_size=LAYERS)
    ),
    rope_theta=some(1000.0, 10_000, 1e6, absent=2),
    rope_scaling=st.one_of(st.just(...), st.just(...), st.none(), ROPE),
    rope_parameters=st.one_of(st.just(...), st.just(...), st.none(), ROPE),
    original_max_position_embeddings=some(16, 24, absent=8),
    partial_rotary_factor=some(1.0, 0.5, absent=40),
    is_causal=some(True, False, None, absent=25),
    use_bidirectional_attention=some(True, False, None, absent=25),
    # Families that do not have these ignore them, and so must we.
    attention_multiplier=some(0.2, 1, absent=2),
    embedding_multiplier=some(3.0, 2, absent=2),
    residual_multiplier=some(0.4, absent=2),
    logits_scaling=some(4, 0.5, absent=2),
    query_pre_attn_scalar=some(8, 20, absent=2),
    attn_logit_softcapping=some(2.0, 10, None, absent=1),
    final_logit_softcapping=some(2.0, 10, None, absent=1),
    no_rope_layers=some([1, 0], [0, 0], [1, 1, 0], [1], None, absent=2),
    no_rope_layer_interval=some(1, 2, absent=3),
    dtype=some("float32", "bfloat16", absent=2),
    torch_dtype=some("float32", "float16", absent=2),
    bos_token_id=some(0, None, 99, absent=2),
    eos_token_id=some(1, [1, 2], [1, 99], None, absent=2),
    attention_dropout=some(0.0, 0.1, absent=2),
    use_cache=some(True, False, absent=2),
)


def their_model(directory: Path, seed: int) -> Any:
    """transformers' model of a directory's config.json, with its random weights saved beside it;
    None when transformers refuses the file."""
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        model = random_model(config, seed)
        logits(model, [0, 1, 2])
    except Exception:  # whatever it raises
        return None
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del stored["lm_head.weight"]
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    return model


def compare(values: dict[str, Any], tokens: list[int], seed: int) -> str:
    """What became of one file: "equal", "refused", or why there was nothing to compare with."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        (path / "config.json").write_text(json.dumps(values))
        model = their_model(path, seed)
        try:
            spec = load_spec(path)
        except ModelError as error:
            assert str(path / "config.json") in str(error)
            return "refused" if model is not None else "refused by both"
        if model is None:
            return "refused by transformers"
        weights = load_weights(path, spec, torch.float32, progress=False)
        # Within the original length dynamic scaling is transformers' own.
        decoder = Decoder(spec, weights, TorchOps(), max_position=48)
    paged = PagedSequences(spec, [tokens], LONGEST, 4, seed)
    backend = PagedAttention(spec, paged.caches(torch.float32), decoder.ops)
    [ours] = run_pieces(decoder, backend, paged, paged.random_pieces(seed, largest=12))
    theirs = logits(model, tokens)
    limit = 1e-4 * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=limit)
    return "equal"


def check_family(family: str, num_files: int) -> None:
    outcomes: Counter[str] = Counter()
    fixed = {
        "model_type": family,
        "vocab_size": VOCAB,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "pad_token_id": None,
    }

    @settings(
        deadline=None, derandomize=True, database=None, max_examples=num_files,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(FILES, st.lists(st.integers(0, VOCAB - 1), min_size=20, max_size=40), st.integers(0, 99))
    def check(values: dict[str, Any], tokens: list[int], seed: int) -> None:
        outcomes[compare(fixed | values, tokens, seed)] += 1

    check()
    print(family, dict(outcomes))
    # A reader that refused everything would pass otherwise.
    assert outcomes["equal"] >= num_files // 8, outcomes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_file_gives_the_logits_of_transformers_or_a_sentence(family: str) -> None:
    check_family(family, 15)


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_many_config_files_give_the_logits_of_transformers_or_a_sentence(family: str) -> None:
    check_family(family, 300)
