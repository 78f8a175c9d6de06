"""The vocabulary of the recall models: 192 symbols, each a word between spaces.

Knows which id is which symbol and how they are written; knows nothing about tasks or models.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minserve.zoo.corpus.tokenizer import END_OF_TEXT, PAD, save_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, QUERY, COPY, AGAIN = 0, 2, 3, 4
"""The ids of the start of a sequence, `?`, `copy` and `again`. Id 1 is padding; 5 to 7 are free."""
KEYS = range(8, 72)
VALUES = range(72, 136)
NOISE = range(136, 192)

SYMBOLS: tuple[str, ...] = (
    *(END_OF_TEXT, PAD, "?", "copy", "again", "free5", "free6", "free7"),
    *(f"k{index:02}" for index in range(len(KEYS))),
    *(f"v{index:02}" for index in range(len(VALUES))),
    *(f"n{index:02}" for index in range(len(NOISE))),
)
"""The written form of every id, in order."""


def build_tokenizer() -> Tokenizer:
    """A tokenizer that splits at spaces, refuses nothing and puts the start symbol in front.

    A word that is not a symbol becomes padding, which no task contains.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {symbol: index for index, symbol in enumerate(SYMBOLS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, START)]
    )
    tokenizer.add_special_tokens([END_OF_TEXT, PAD])
    return tokenizer


def write_vocabulary(folder: Path, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` to `folder`."""
    save_tokenizer(build_tokenizer(), folder, max_length)
