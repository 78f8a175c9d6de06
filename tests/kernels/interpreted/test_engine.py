"""An engine on the Triton kernels, interpreted, writes the tokens of one on torch operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models.oracle import random_model, save

from minserve.build import build_engine
from minserve.config import EngineConfig
from minserve.loading import load_model
from minserve.request import SamplingParams

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
SAMPLED = [
    SamplingParams(max_tokens=4, temperature=0.9, top_p=0.8, seed=3, ignore_eos=True),
    SamplingParams(max_tokens=4, temperature=1.4, top_k=9, min_p=0.02, seed=4, ignore_eos=True),
    SamplingParams(max_tokens=4, temperature=0.0, repetition_penalty=1.4, ignore_eos=True),
]


SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
GEMMA2 = {"sliding_window": 8, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}
"""A window in every second layer, GELU, and scores that the cap bends."""


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize(
    ("family", "extra", "params"),
    [
        ("llama", {}, [GREEDY] * 3),
        ("llama", {}, SAMPLED),
        ("gemma2", GEMMA2, [GREEDY] * 3),
    ],
    ids=["greedy", "sampled", "gemma2"],
)
def test_an_engine_on_triton_writes_the_tokens_of_one_on_torch(
    family: str, extra: dict[str, Any], params: list[SamplingParams], tmp_path: Path
) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, **SIZES, **extra)
    folder = save(random_model(config, seed=5), tmp_path)
    outputs = {}
    for backend in ("torch", "triton"):
        engine = build_engine(
            load_model(
                folder,
                EngineConfig().with_values(
                    {
                        "device": "cpu",
                        "dtype": "float32",
                        "kernels.backend": backend,
                        "memory.kv_bytes": 40 * 2 * 2 * 2 * 16 * 4,
                        "memory.block_size": 4,
                        "scheduling.max_num_seqs": 3,
                        "scheduling.max_num_batched_tokens": 16,
                        "scheduling.max_model_len": 40,
                    }
                ),
            )
        )
        assert engine.config.config.kernels.backend == backend
        caps = {layer.mixer.softcap for layer in engine.config.model.layers}
        assert caps == {extra.get("attn_logit_softcapping")}
        requests = [
            engine.add(str(n), list(range(1, n)), each)[0]
            for n, each in zip((4, 18, 11), params, strict=True)
        ]
        while engine.has_work:
            engine.step()
        outputs[backend] = [request.output_token_ids for request in requests]
    assert outputs["triton"] == outputs["torch"]
