"""Text written by a trained model, as one more stream to train a draft on.

A draft predicts the text that its base writes, not the text that people wrote, so it is best
trained on the former. Knows prompts, temperatures and loops; the engine generates.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from minserve.zoo import zoo_path
from minserve.zoo.corpus.data import SHARES, Tokens, load_streams
from minserve.zoo.corpus.tokenizer import END_OF_TEXT_ID

#: Greedy, nearly greedy (which loops less), and two usual sampling temperatures.
TEMPERATURES = (0.0, 0.5, 0.8, 1.0)
#: A continuation loops if more than this share of its runs of four tokens occurred before.
LOOP_SHARE = 0.30
PROMPT_TOKENS = (24, 128)
NEW_TOKENS = 64
#: Prompts of one part file; also the largest batch.
PART = 256


def digest(model: Path) -> str:
    """A name for the weights in a model directory."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:12]


def repeated_share(tokens: Sequence[int], n: int = 4) -> float:
    """The share of the runs of `n` tokens that are equal to an earlier one; 0 without runs."""
    runs = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def before_the_loop(tokens: Sequence[int], n: int = 4) -> list[int]:
    """`tokens` up to the last place at which no more than `LOOP_SHARE` of them is repetition."""
    seen: set[tuple[int, ...]] = set()
    keep = min(len(tokens), n)
    for end in range(n, len(tokens) + 1):
        seen.add(tuple(tokens[end - n : end]))
        runs = end - n + 1
        if runs - len(seen) <= LOOP_SHARE * runs:
            keep = end
    return list(tokens[:keep])


def draw_prompts(
    streams: Mapping[str, Tokens], count: int, rng: np.random.Generator
) -> list[list[int]]:
    """`count` prompts with BOS in front, from the training text, in the shares used in training."""
    names = list(SHARES)
    weights = np.array([SHARES[name] for name in names])
    prompts = []
    for pick in rng.choice(len(names), size=count, p=weights / weights.sum()):
        stream = streams[names[pick]]
        length = int(rng.integers(*PROMPT_TOKENS, endpoint=True))
        start = int(rng.integers(0, max(1, len(stream) - length)))
        prompts.append([END_OF_TEXT_ID, *stream[start : start + length].tolist()])
    return prompts


def write_part(model: Path, streams: Mapping[str, Tokens], number: int) -> Tokens:
    """Part `number`: documents of a prompt and the continuation that `model` wrote,
    cut where it loops."""
    from minserve import LLM, EngineConfig, SamplingParams

    prompts = draw_prompts(streams, PART, np.random.default_rng([11, number]))
    params = [
        SamplingParams(
            max_tokens=NEW_TOKENS,
            temperature=TEMPERATURES[index % len(TEMPERATURES)],
            ignore_eos=True,
            seed=number * PART + index,
        )
        for index in range(PART)
    ]
    config = EngineConfig(dtype="float32").with_values({"scheduling.max_num_seqs": PART})
    with LLM(model, config, progress=False) as llm:
        outputs = llm.generate(prompts, params, progress=False)
    tokens: list[int] = []
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens += prompt + before_the_loop(output.token_ids)
    return np.array(tokens, dtype=np.uint16)


def prepare_own_text(
    model: Path, streams: Mapping[str, Tokens], run_folder: Path, parts: int
) -> Tokens:
    """The stream of `parts` part files; missing ones are written first.

    They are in `run_folder` under the weights' digest, because another model writes other text.
    """
    folder = run_folder / "own" / digest(model)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for number in range(parts):
        path = folder / f"part-{number:04}.npy"
        if not path.is_file():
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, write_part(model, streams, number))
            temporary.replace(path)
            print(f"own text: part {number + 1} of {parts}", flush=True)
        pieces.append(np.load(path))
    return np.concatenate(pieces)


def main(argv: Sequence[str] | None = None) -> int:
    """Let a model write the text for training a draft. Run it again to continue a stopped run."""
    parser = argparse.ArgumentParser(prog="minserve.zoo.corpus.own_text", description=main.__doc__)
    parser.add_argument("--model", type=Path, default=zoo_path("base"))
    parser.add_argument("--run", type=Path, default=Path("work/zoo"), help="working folder")
    parser.add_argument("--parts", type=int, default=35, help=f"files of {PART} prompts each")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    streams = load_streams(args.run / "tokens")
    tokens = prepare_own_text(args.model, streams, args.run, args.parts)
    print(f"{len(tokens) / 1e6:.2f} M tokens of own text")
    return 0


if __name__ == "__main__":
    sys.exit(main())
