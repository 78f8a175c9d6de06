"""Directories from strangers: each runs, or is refused in a sentence, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from models.hostile import copy_of, mutate, write_model

from minserve import LLM, EngineConfig, SamplingParams
from minserve.config import ConfigError
from minserve.models import ModelError
from minserve.request import InvalidRequestError
from minserve.tokenizer import ChatTemplateError, TokenizerError

CONFIG = EngineConfig(device="cpu").with_values(
    {"memory.kv_bytes": 1 << 20, "scheduling.max_num_seqs": 2, "kernels.backend": "torch"}
)
ABOUT_FILES = (ModelError, TokenizerError)
SENTENCES = (*ABOUT_FILES, ConfigError, ChatTemplateError, InvalidRequestError)
SECONDS = 5.0
"""Of computing time. A wait takes none: the watchdog ends those, with a stack."""


def use(directory: Path) -> None:
    """What a reader does first: load it, continue tokens and text, chat."""
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    with LLM(directory, CONFIG, progress=False) as llm:
        [output] = llm.generate([[3, 4, 5]], params, progress=False)
        assert len(output.token_ids) == 2
        assert llm.default_sampling_params.n == 1
        if llm.tokenizer is not None:
            llm.generate(["hi a"], params, progress=False)
            llm.chat([{"role": "user", "content": "a"}], params)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Some cases recurse to the end of the stack. A finalizer of an earlier test that the garbage
    collector ran there would have no stack left, which pytest counts as this test's failure."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def watchdog() -> Iterator[None]:
    """Ends the process, with every thread's stack, when a case hangs."""
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def resident_bytes() -> int:
    gc.collect()
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> list[str]:
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


def check_directories(root: Path, seed: int, count: int) -> Counter[str]:
    """Damage and use `count` directories; counts what became of them."""
    bases = [
        write_model(root / "whole"),
        write_model(root / "sharded", shards=2),
        write_model(root / "legacy", legacy_tokenizer=True),
    ]
    for base in bases:
        use(base)
    before, files = resident_bytes(), open_files()
    outcomes: Counter[str] = Counter()
    for number in range(count):
        if number % 25 == 0:
            gc.collect()
        rng = random.Random(f"{seed}/{number}")
        # Converting an older tokenizer takes transformers a while.
        base = rng.choices(bases, [6, 3, 1])[0]
        directory = copy_of(base, root / "case")
        done = [mutate(directory, rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        what = f"seed {seed}, case {number} ({base.name}): {', '.join(done)}"
        start = time.thread_time()
        with watchdog(), uncollected():
            try:
                use(directory)
                outcomes["ran"] += 1
            except SENTENCES as error:
                outcomes[type(error).__name__] += 1
                message = str(error)
                assert message and len(message) < 3000, what
                if isinstance(error, ABOUT_FILES):
                    assert str(directory) in message or ".json" in message, f"{what}: {message}"
            except BaseException as error:
                raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        assert time.thread_time() - start < SECONDS, what
    assert open_files() == files
    grown = resident_bytes() - before
    assert grown < 64 << 20, f"{grown:,} bytes more resident after {count} directories"
    return outcomes


def test_random_hostile_directories(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    outcomes = check_directories(tmp_path, seed, 60)
    # Damage that nothing notices would test nothing, as would damage that nothing survives.
    assert outcomes["ran"] >= 3 and sum(outcomes.values()) - outcomes["ran"] >= 10, outcomes


@pytest.mark.full
def test_five_hundred_hostile_directories(tmp_path: Path) -> None:
    print(check_directories(tmp_path, 0, 500))
