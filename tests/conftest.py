"""What every test relies on: no network, one torch thread a process, GPU tests skipped, and a
sample in place of what takes long (`sampled.py`)."""

from __future__ import annotations

import os

# Before anything imports torch or transformers. Tests run side by side, one process a core; more
# threads than cores would only make them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

try:
    import hypothesis
except ImportError:  # `make gpu` asks for pytest alone.
    import without_hypothesis

    without_hypothesis.install()
    import hypothesis

pytest_plugins = ["sampled"]

# The first example pays for imports and warm-up, so a deadline would only measure the machine.
hypothesis.settings.register_profile("minserve", deadline=None)
hypothesis.settings.load_profile("minserve")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; torch is asked only if a test needs the answer."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
