"""From documents to batches of token windows.

Knows the mixes of the corpus, their shares over the run, and how windows are drawn so that a
stopped run continues with the very next window; knows nothing about models or schedules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minserve.zoo.corpus.tokenizer import END_OF_TEXT_ID

Tokens = npt.NDArray[np.uint16]

#: Share of the training windows from each mix, while the rate is high and in the decay. Evaluation
#: is on standard library code, so the end of the run has more of it.
SHARES = {"stdlib": 0.60, "stdlib_tests": 0.10, "general": 0.20, "science": 0.07, "ml": 0.03}
DECAY_SHARES = {"stdlib": 0.68, "stdlib_tests": 0.08, "general": 0.17, "science": 0.05, "ml": 0.02}

#: How often a token that contains a line break is given to the model as two tokens. Prompts can end
#: anywhere: after "def f(x):" the line break must be a likely next token, although in whole text
#: the two are always one token.
SPLIT_SHARE = 0.04

#: How often a window begins with BOS, wherever it is in a file: scores are measured that way.
BOS_SHARE = 0.9


def prepare(folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    """Collect the corpus, train the tokenizer unless it exists, and write one token file per mix
    into `folder`. Returns (and saves) the facts that a model card needs.

    Raises FileNotFoundError if the tokens exist and their tokenizer does not.
    """
    from minserve.zoo.corpus import source as corpus
    from minserve.zoo.corpus import tokenizer

    facts_path = folder / "facts.json"
    if facts_path.is_file():
        if not (tokenizer_folder / "tokenizer.json").is_file():
            raise FileNotFoundError(
                f"There are tokens in {folder}, but their tokenizer is not in {tokenizer_folder}: "
                "copy tokenizer.json and tokenizer_config.json there from the model that was "
                f"trained with them, or delete {folder} to start afresh."
            )
        saved: dict[str, Any] = json.loads(facts_path.read_text())
        return saved
    folder.mkdir(parents=True, exist_ok=True)
    documents = corpus.collect()
    if not (tokenizer_folder / "tokenizer.json").is_file():
        sample = tokenizer.training_sample([(d.mix, d.text) for d in documents])
        trained = tokenizer.train_tokenizer(sample)
        tokenizer.save_tokenizer(trained, tokenizer_folder, max_length=2048)
    bpe = tokenizer.load_tokenizer(tokenizer_folder)
    facts: dict[str, Any] = {"mixes": {}}
    for mix in SHARES:
        texts = [d.text for d in documents if d.mix == mix]
        parts: list[Tokens] = []
        for encoding in bpe.encode_batch_fast(texts, add_special_tokens=False):
            parts.append(np.array([END_OF_TEXT_ID, *encoding.ids], dtype=np.uint16))
        # Shuffled, so that neighbouring files in the list are not neighbours in the stream.
        order = np.random.default_rng(0).permutation(len(parts))
        stream = np.concatenate([parts[i] for i in order])
        np.save(folder / f"{mix}.npy", stream)
        facts["mixes"][mix] = {
            "files": len(texts),
            "bytes": sum(len(text.encode()) for text in texts),
            "tokens": len(stream),
        }
    facts_path.write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def load_streams(folder: Path) -> dict[str, Tokens]:
    """The token streams that `prepare` wrote, by mix."""
    return {mix: np.load(folder / f"{mix}.npy") for mix in SHARES}


class Sampler:
    """Draws windows from several token streams.

    Each stream is split into windows at a random offset and read in random order, once per epoch.
    The whole state is a few integers, so that it can be stored in a checkpoint. `splits` is the
    result of `split_table`, or None to keep every token whole.
    """

    def __init__(
        self,
        streams: Mapping[str, Tokens],
        seed: int = 0,
        splits: npt.NDArray[np.uint16] | None = None,
    ) -> None:
        self.streams = dict(streams)
        self.splits = splits
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.cursors: dict[str, list[int]] = {}  # "mix/length" -> [epoch, next window]
        self.tokens_drawn = dict.fromkeys(self.streams, 0)
        self._orders: dict[str, tuple[int, npt.NDArray[np.int64]]] = {}

    def add(self, name: str, stream: Tokens) -> None:
        """Add a stream to draw from; works in the middle of a run too."""
        self.streams[name] = stream
        self.tokens_drawn.setdefault(name, 0)

    def batch(
        self, sequences: int, length: int, shares: Mapping[str, float]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets [sequences, length], int64."""
        names = list(self.streams)
        weights = np.array([shares[name] for name in names])
        picks = self.rng.choice(len(names), size=sequences, p=weights / weights.sum())
        with_bos = self.rng.random(sequences) < BOS_SHARE
        inputs = np.empty((sequences, length), dtype=np.int64)
        targets = np.empty((sequences, length), dtype=np.int64)
        for row, (pick, bos) in enumerate(zip(picks, with_bos, strict=True)):
            window = self._next_window(names[pick], length)
            if bos:
                inputs[row, 0] = END_OF_TEXT_ID
                inputs[row, 1:] = window[: length - 1]
                targets[row] = window[:length]
            else:
                inputs[row] = window[:length]
                targets[row] = window[1:]
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def _next_window(self, name: str, length: int) -> Tokens:
        stream = self.streams[name]
        key = f"{name}/{length}"
        cursor = self.cursors.setdefault(key, [0, 0])
        starts = self._starts(key, cursor[0], len(stream), length)
        if cursor[1] == len(starts):
            cursor[0], cursor[1] = cursor[0] + 1, 0
            starts = self._starts(key, cursor[0], len(stream), length)
        start = int(starts[cursor[1]])
        cursor[1] += 1
        self.tokens_drawn[name] += length
        window = stream[start : start + length + 1]
        return window if self.splits is None else self._split(window, self.splits)

    def _split(self, window: Tokens, splits: npt.NDArray[np.uint16]) -> Tokens:
        """`window` with some of its line-break tokens split in two, cut to its old length."""
        pieces = splits[self.rng.integers(0, len(splits)), window]
        chosen = (pieces[:, 1] > 0) & (self.rng.random(len(window)) < SPLIT_SHARE)
        repeats = 1 + chosen.astype(np.int64)
        out = np.repeat(window, repeats)
        last = np.cumsum(repeats) - 1
        out[last[chosen] - 1] = pieces[chosen, 0]
        out[last[chosen]] = pieces[chosen, 1]
        return out[: len(window)]

    def _starts(self, key: str, epoch: int, size: int, length: int) -> npt.NDArray[np.int64]:
        known = self._orders.get(key)
        if known is None or known[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch, *key.encode()])
            offset = int(rng.integers(0, length))
            starts = np.arange(offset, size - length, length, dtype=np.int64)
            if len(starts) == 0:
                starts = np.zeros(1, dtype=np.int64)
            known = (epoch, rng.permutation(starts))
            self._orders[key] = known
        return known[1]

    def state_dict(self) -> dict[str, Any]:
        """The position in every stream, in plain values."""
        return {
            "rng": self.rng.bit_generator.state,
            "cursors": {key: list(cursor) for key, cursor in self.cursors.items()},
            "tokens_drawn": dict(self.tokens_drawn),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of `state_dict`."""
        self.rng.bit_generator.state = state["rng"]
        self.cursors = {key: list(cursor) for key, cursor in state["cursors"].items()}
        self.tokens_drawn = dict(state["tokens_drawn"])


def split_table(tokenizer_folder: Path) -> npt.NDArray[np.uint16]:
    """The two pieces of each token that contains a line break [2, vocab, 2], zeros for the others.

    A token is split before its first line break, or after its last. Both pieces must be tokens;
    otherwise the token is not split.
    """
    from minserve.zoo.corpus.tokenizer import PAD_ID, decode_bytes, load_tokenizer

    bpe = load_tokenizer(tokenizer_folder)
    size = bpe.get_vocab_size()
    data = {i: decode_bytes(bpe, [i]) for i in range(PAD_ID + 1, size)}
    ids = {value: i for i, value in data.items()}
    table = np.zeros((2, size, 2), dtype=np.uint16)
    for i, value in data.items():
        for way, at in enumerate((value.find(b"\n"), value.rfind(b"\n") + 1)):
            first, second = ids.get(value[: max(at, 0)]), ids.get(value[max(at, 0) :])
            if first is not None and second is not None:
                table[way, i] = first, second
    return table


def token_lengths(tokenizer_folder: Path) -> torch.Tensor:
    """Bytes of each token id [vocab]; 0 for special tokens."""
    from minserve.zoo.corpus.tokenizer import END_OF_TEXT_ID, PAD_ID, decode_bytes, load_tokenizer

    bpe = load_tokenizer(tokenizer_folder)
    lengths: Sequence[int] = [
        0 if i in (END_OF_TEXT_ID, PAD_ID) else len(decode_bytes(bpe, [i]))
        for i in range(bpe.get_vocab_size())
    ]
    return torch.tensor(lengths)
