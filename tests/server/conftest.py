"""A server over a small model, on a free port of this machine, for the tests of a module."""

from __future__ import annotations

import pytest

from minserve import LLM, EngineConfig
from minserve.server import Server, ServerOptions

CONFIG = EngineConfig(dtype="float32", device="cpu").with_values(
    {"scheduling.max_num_seqs": 16, "scheduling.max_model_len": 512}
)
MODEL = "zoo/draft"


@pytest.fixture(scope="module")
def server():
    options = ServerOptions(port=0, body_timeout_s=1.0, header_timeout_s=1.0)
    with Server(MODEL, CONFIG, options) as running:
        yield running


@pytest.fixture(scope="module")
def offline():
    with LLM(MODEL, CONFIG, progress=False) as llm:
        yield llm
