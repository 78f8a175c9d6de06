"""Scores are what their definition says, and continuations are judged as promised."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minserve.zoo import zoo_path
from minserve.zoo.evaluation.continuations import parses, signatures, whole_statements
from minserve.zoo.evaluation.score import Score, cut, score_ids


def uniform(vocab: int) -> object:
    return lambda tokens: torch.zeros(*tokens.shape, vocab)


def test_a_uniform_model_spends_the_same_bits_on_every_token() -> None:
    score = score_ids(uniform(16), list(range(10)), num_bytes=20, window=4)
    assert score.bits == pytest.approx(10 * 4)
    assert score.bits_per_byte == pytest.approx(2.0)
    assert score.num_tokens == 10


def test_each_window_starts_from_bos_alone_and_counts_every_token_once() -> None:
    asked: list[list[int]] = []

    def knows_successor(tokens: torch.Tensor) -> torch.Tensor:
        asked.extend(tokens.tolist())
        logits = torch.zeros(*tokens.shape, 32)
        return logits.scatter(-1, (tokens + 1)[..., None].clamp(max=31), 100.0)

    score = score_ids(knows_successor, [1, 2, 3, 11, 12, 13, 14], 7, window=3, bos=0)
    assert [row[0] for row in asked] == [0, 0, 0]
    assert [row[1:] for row in asked[:2]] == [[1, 2], [11, 12]]
    # 1 after BOS is foreseen, and every successor; 11 and 14 after BOS are not.
    surprise = 100.0 / math.log(2.0)
    assert score.bits == pytest.approx(2 * surprise, rel=1e-4)


def test_windows_do_not_overlap_and_lose_nothing() -> None:
    assert cut([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_scores_add_bits_over_bytes() -> None:
    both = Score(8.0, 4, 3) + Score(2.0, 6, 1)
    assert (both.bits_per_byte, both.num_tokens) == (1.0, 4)


def test_an_empty_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        score_ids(uniform(4), [1], num_bytes=1, window=0)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("\n    return x\n    y = (1,", True),
        ("\n    return x\n    if y:\n        retu", True),
        ('\n    """Half a docstring', False),
        ('\n    """A docstring."""\n    return x +', True),
        ("\n    return ) x\n    y = 1\n", False),
        ("\n        a = 1\n    b = 2\n", False),
        ("\n    if x:\n", False),
        ("", False),
    ],
)
def test_a_continuation_parses_up_to_its_last_whole_statement(text: str, good: bool) -> None:
    assert parses("def f(x):", text) is good


def test_trimming_drops_the_unfinished_statement_only() -> None:
    source = "def f(x):\n    a = 1\n    for i in x:\n        pri"
    assert whole_statements(source) == "def f(x):\n    a = 1\n"


def test_signatures_stand_at_the_margin_and_end_with_their_colon() -> None:
    found = signatures(["textwrap", "shutil"])
    assert len(found) > 40
    assert all(text.startswith("def ") and text.endswith(":") for text in found)


def test_an_unknown_model_is_answered_with_those_there_are() -> None:
    assert zoo_path("zoo/base") == zoo_path("base")
    with pytest.raises(FileNotFoundError, match="zoo/base"):
        zoo_path("zoo/enormous")


def test_naming_a_model_imports_nothing_heavy() -> None:
    code = "import sys, minserve.zoo, minserve.zoo.evaluation.evaluate; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "tokenizers"} & set(loaded)


@pytest.mark.skipif(
    not (Path(zoo_path("base")) / "model.safetensors").is_file(), reason="no weights here yet"
)
def test_the_shipped_model_has_learnt_python() -> None:
    from minserve.zoo.evaluation.evaluate import score_text
    from minserve.zoo.evaluation.opened import open_model

    model = open_model(zoo_path("zoo/base"))
    code = (
        "import os\n\n\ndef read(path):\n    with open(path) as file:\n        return file.read()\n"
    )
    assert score_text(model, code, 256).bits_per_byte < 1.6
    assert sum(p.numel() for p in model.hf_model.parameters()) < 8_500_000
