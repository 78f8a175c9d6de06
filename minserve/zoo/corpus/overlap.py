"""How much of the held-out source occurs, word for word, in the training source.

Knows runs of 13 tokens and how to find them among tens of millions. Does not know why they occur in
unrelated files: licence headers, idioms and doctest output do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minserve.zoo import zoo_path
from minserve.zoo.corpus.data import Tokens, load_streams

GRAM = 13
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def gram_hashes(tokens: Tokens, n: int = GRAM) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each run of `n` tokens, in order."""
    count = max(0, len(tokens) - n + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        hashes *= _PRIME
        hashes += tokens[offset : offset + count].astype(np.uint64) + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def seen_grams(grams: npt.NDArray[np.uint64], streams: Iterable[Tokens]) -> npt.NDArray[np.bool_]:
    """Which of `grams` occur in any of `streams`."""
    seen = np.zeros(len(grams), dtype=np.bool_)
    for stream in streams:
        for start in range(0, len(stream), 4_000_000):
            piece = stream[start : start + 4_000_000 + GRAM - 1]
            seen |= np.isin(grams, gram_hashes(piece))
    return seen


def overlap(streams: Iterable[Tokens], tokenizer_folder: Path) -> dict[str, float]:
    """Share of each held-out module's 13-token runs that occur in `streams`."""
    from minserve.zoo.corpus.source import HELD_OUT, held_out_path
    from minserve.zoo.corpus.tokenizer import load_tokenizer

    bpe = load_tokenizer(tokenizer_folder)
    grams = {}
    for module in HELD_OUT:
        text = held_out_path(module).read_text(encoding="utf-8")
        ids = bpe.encode(text, add_special_tokens=False).ids
        grams[module] = gram_hashes(np.array(ids, dtype=np.uint16))
    seen = seen_grams(np.concatenate(list(grams.values())), streams)
    shares = {}
    start = 0
    for module, own in grams.items():
        shares[module] = float(seen[start : start + len(own)].mean())
        start += len(own)
    return shares


def main(argv: Sequence[str] | None = None) -> int:
    """Print the share of each held-out module's 13-token runs found in the training tokens."""
    parser = argparse.ArgumentParser(prog="minserve.zoo.corpus.overlap", description=main.__doc__)
    parser.add_argument("--run", type=Path, default=Path("work/zoo"), help="working folder")
    parser.add_argument("--model", type=Path, default=zoo_path("base"))
    args = parser.parse_args(argv)
    for module, share in overlap(load_streams(args.run / "tokens").values(), args.model).items():
        print(f"{module:14} {100 * share:6.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
