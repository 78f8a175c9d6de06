"""A forked process has no engine thread, and may have copied locks that are never released."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest

from minserve import LLM, AsyncLLM, EngineConfig, SamplingParams

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CONFIG = EngineConfig(dtype="float32", device="cpu").with_values(
    {"memory.kv_bytes": 4 << 20, "memory.prefix_cache": "hash"}
)
SHORT = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=900, temperature=0, ignore_eos=True)
DONE, SAID, RAISED = 0, 42, 3
"""Exit codes of the child: returned, raised the sentence about forks, raised anything else."""


def in_child(call) -> int:
    """Exit code of a forked process that makes the call; -9 if it hangs."""
    child = os.fork()
    if not child:
        code = RAISED
        try:
            call()
            code = DONE
        except RuntimeError as error:
            code = SAID if "forked" in str(error) else RAISED
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def held(lock):
    """Another thread holds the lock."""
    holding, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            holding.set()
            let_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(30)
    try:
        yield
    finally:
        let_go.set()
        thread.join(30)


def test_calls_of_an_llm_whose_locks_were_held_end_in_the_child():
    with LLM("zoo/draft", CONFIG) as llm:
        expected = llm.generate("def f():", SHORT)[0].token_ids
        with held(llm._turn):
            assert in_child(lambda: llm.pin([1] * 64)) == SAID
            assert in_child(lambda: llm.generate("def f():", SHORT)) == SAID
        stream = llm.stream("def f():", LONG)
        next(stream)
        with held(stream._turn), held(llm._share._lock):
            assert in_child(lambda: next(stream)) == SAID
            assert in_child(stream.close) == DONE
            assert in_child(llm.close) == DONE
        stream.close()
        assert llm.generate("def f():", SHORT)[0].token_ids == expected
        llm.engine.audit()


def test_calls_of_an_async_llm_whose_locks_were_held_end_in_the_child():
    with AsyncLLM("zoo/draft", CONFIG) as llm:
        chunks = iter(llm.add("def f():", LONG))
        next(chunks)
        stream, pinned = llm.add("def f():", LONG), llm.pin([1] * 64)
        with held(llm._thread._inbox._lock):
            assert in_child(chunks.close) == DONE
            assert in_child(lambda: next(chunks)) == SAID
            assert in_child(stream.abort) == DONE
            assert in_child(lambda: llm.abort(stream.request_id)) == DONE
            assert in_child(pinned.unpin) == DONE
            assert in_child(llm.close) == DONE
        assert in_child(lambda: os._exit(llm.health().state == "closed")) == 1
        chunks.close()
        stream.abort()
        pinned.unpin()
        tokens = [chunk.token_ids for chunk in llm.add("def f():", SHORT)]
        assert sum(len(part) for part in tokens) == 6
        llm._thread.ask(llm._engine.audit, 30)
