"""What every test relies on: no network, one torch thread a process, GPU tests skipped, and a
sample in place of what takes long (`sampled.py`)."""

from __future__ import annotations

import os
import signal

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

# A command in the background of a script ignores Ctrl-C, and so would its children. The tests press
# it: without this some would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The first example pays for imports and warm-up, so a deadline would only measure the machine.
hypothesis.settings.register_profile("minserve", deadline=None)
hypothesis.settings.load_profile("minserve")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU, or a fetched model, where there is none; torch is asked only if a test
    needs the answer."""
    if real := [item for item in items if item.get_closest_marker("real")]:
        from minserve.loading import fetched_models, is_fetched

        if not is_fetched(fetched_models() / "smollm2"):
            for item in real:
                item.add_marker(pytest.mark.skip(reason="needs: minserve zoo fetch smollm2"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
