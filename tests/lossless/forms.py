"""The request of the matrix whose answer has a form: its vocabulary, and an oracle of choices."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from minserve.request import SamplingParams, StructuredOutputs

STOP = 100
PIECES = ["ab", "ba", "aab", "bb", "aa", "abab", *map(chr, range(33, 127))]
"""By token. The last token, `STOP`, is no text."""
PROMPT = [7, 30, 31, 32, 33, 99, 5]
LONGEST = 40


def choices() -> list[str]:
    """Texts of some 30 letters, many of which begin alike."""
    rng = random.Random(4)
    stems = ["".join(rng.choices("ab", k=12)) for _ in range(4)]
    return [stem + "".join(rng.choices("ab", k=20)) for stem in stems for _ in range(6)]


CHOICES = choices()


def params(temperature: float, samples: int = 1) -> SamplingParams:
    return SamplingParams(
        max_tokens=LONGEST,
        temperature=temperature,
        seed=99,
        n=samples,
        stop_token_ids=[STOP],
        structured_outputs=StructuredOutputs(choice=CHOICES),
    )


def allowed(output: list[int]) -> list[int]:
    """The tokens that may come next, found by looking at every choice."""
    text = "".join(PIECES[token] for token in output)
    found = [
        token
        for token, piece in enumerate(PIECES)
        if any(choice.startswith(text + piece) for choice in CHOICES)
    ]
    return found + [STOP] * (text in CHOICES)


def save_tokenizer(directory: Path) -> None:
    backend = Backend(BPE({piece: token for token, piece in enumerate(PIECES)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<stop>", special=True)])
    assert backend.token_to_id("<stop>") == STOP
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({}))
