"""One side of `minserve bench busy`: a process that generates on command, and sleeps otherwise.

    python -m minserve.bench.runs.busy_side MODEL THREADS

The environment sets how its threads wait, and OpenMP reads it only once: hence a process per side.
Commands are JSON lines on stdin, answers JSON lines on stdout; the first says it is ready.
"""

from __future__ import annotations

import json
import sys

from minserve.clock import WallClock, process_cpu_s
from minserve.config import EngineConfig
from minserve.llm import LLM
from minserve.request import SamplingParams

PROMPT_TOKENS = 4


def measure(llm: LLM, rows: int, tokens: int, seconds: float) -> dict[str, float]:
    """Generate `tokens` for `rows` prompts, repeatedly until `seconds` are over."""
    prompts = [[(7 * row + 3 * at) % 500 for at in range(PROMPT_TOKENS)] for row in range(rows)]
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    clock = WallClock()
    start, cpu_start, generated = clock.now(), process_cpu_s(), 0
    elapsed = 0.0
    while not generated or elapsed < seconds:
        outputs = llm.generate(prompts, params, progress=False)
        generated += sum(len(output.token_ids) for output in outputs)
        elapsed = clock.now() - start
    cpu_s = process_cpu_s() - cpu_start
    return {"tokens_per_s": generated / elapsed, "cpu_ms_per_token": 1e3 * cpu_s / generated}


def main(model: str, threads: str) -> int:
    """Answer commands until stdin ends."""
    config = EngineConfig().with_values({"kernels.num_threads": int(threads)})
    with LLM(model, config, progress=False) as llm:
        measure(llm, 2, 4, 0.0)
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            print(json.dumps(measure(llm, **json.loads(line))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
