"""The zoo's tokenizer: byte-level BPE over Python source, 4,096 tokens.

Knows how source is split before merging and how any bytes are converted to ids and back; knows
nothing about the model. The saved form is Hugging Face's, so `AutoTokenizer` loads it too.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
END_OF_TEXT_ID = 0
PAD_ID = 1

# How source is split; merges never cross a split. In order: a word with the one sign or space
# before it; a digit; signs, with the line break and the indentation after them if they end a line,
# so that "):\n        " is one token; line breaks with the indentation after them; other spaces.
_CUTS = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+(?:[ \t]*[\r\n]+[ \t]*)*"
    r"|(?:[ \t]*[\r\n]+[ \t]*)+"
    r"|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A byte-level BPE tokenizer trained on `texts`. Ids 0 and 1 are the special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUTS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=48,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model directory, without transformers."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no tokenizer.json in {folder}; "
            "train one with python -m minserve.zoo.corpus.tokenizer."
        )
    return Tokenizer.from_file(str(path))


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, as defined by GPT-2."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    signs = {chr(byte): byte for byte in kept}
    moved = (byte for byte in range(256) if byte not in set(kept))
    signs.update({chr(256 + index): byte for index, byte in enumerate(moved)})
    return signs


def encode_bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Ids of any bytes: text is tokenized as text, bytes that are not UTF-8 one by one."""
    sign_of = {byte: sign for sign, byte in _byte_alphabet().items()}
    ids: list[int] = []
    text: list[str] = []
    for char in data.decode("utf-8", errors="surrogateescape"):
        if 0xDC80 <= ord(char) <= 0xDCFF:
            ids += tokenizer.encode("".join(text), add_special_tokens=False).ids
            text.clear()
            byte_id = tokenizer.token_to_id(sign_of[ord(char) - 0xDC00])
            if byte_id is None:
                raise ValueError("This tokenizer is not byte-level: a byte has no token.")
            ids.append(byte_id)
        else:
            text.append(char)
    return ids + list(tokenizer.encode("".join(text), add_special_tokens=False).ids)


def decode_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> bytes:
    """The bytes of `ids`; a special token gives its name."""
    byte_of = _byte_alphabet()
    special = {END_OF_TEXT_ID, PAD_ID}
    out = bytearray()
    for token_id in ids:
        token = tokenizer.id_to_token(token_id)
        if token is None:
            raise ValueError(f"{token_id} is no token of this vocabulary.")
        out += token.encode() if token_id in special else bytes(byte_of[sign] for sign in token)
    return bytes(out)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the tokenizer on this machine's corpus and save it."""
    from minserve.zoo.corpus.source import collect

    parser = argparse.ArgumentParser(prog="minserve.zoo.corpus.tokenizer", description=main.__doc__)
    parser.add_argument("output", type=Path, help="folder to write the tokenizer files to")
    args = parser.parse_args(argv)
    documents = collect()
    tokenizer = train_tokenizer(training_sample([(d.mix, d.text) for d in documents]))
    save_tokenizer(tokenizer, args.output, max_length=2048)
    print(f"{tokenizer.get_vocab_size()} tokens, written to {args.output}")
    return 0


def training_sample(texts: Sequence[tuple[str, str]]) -> list[str]:
    """The text that merges are learnt from: the whole standard library, and a share of the rest."""
    share = {"stdlib": 1, "stdlib_tests": 8, "general": 3, "science": 8, "ml": 16}
    seen = dict.fromkeys(share, 0)
    sample = []
    for mix, text in texts:
        if seen[mix] % share[mix] == 0:
            sample.append(text)
        seen[mix] += 1
    return sample


if __name__ == "__main__":
    raise SystemExit(main())
