"""The recall tasks are answered by their context alone, and the curriculum lengthens them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minserve import LLM, EngineConfig, SamplingParams
from minserve.zoo import zoo_path
from minserve.zoo.recall.evaluate import (
    HELD_OUT_SEED,
    draw,
    filled,
    interval,
    judge,
    summary,
)
from minserve.zoo.recall.tasks import NEEDLE_VALUES, Example, copy, mixed, needle, recall
from minserve.zoo.recall.train import LENGTHS, RecallConfig, RecallTrainer, main
from minserve.zoo.recall.vocabulary import (
    AGAIN,
    COPY,
    KEYS,
    NOISE,
    QUERY,
    START,
    SYMBOLS,
    VALUES,
    build_tokenizer,
)
from minserve.zoo.training.export import load_net
from minserve.zoo.training.net import NetConfig

TINY = NetConfig(
    vocab_size=len(SYMBOLS),
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=32,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_every_symbol_survives_writing_and_reading() -> None:
    tokenizer = build_tokenizer()
    ids = [START, *range(2, len(SYMBOLS))]
    text = tokenizer.decode(ids)
    assert text == " ".join(SYMBOLS[2:])
    assert tokenizer.encode(text).ids == ids
    assert len(set(SYMBOLS)) == len(SYMBOLS) == NOISE.stop


@pytest.mark.parametrize(("length", "pairs"), [(64, 8), (128, 32), (512, 8), (2048, 64)])
def test_a_recall_answer_is_the_value_that_follows_its_key(length: int, pairs: int) -> None:
    example = recall(rng(), length, pairs)
    tokens, asked = example.tokens, example.answers[0] - 2
    assert len(tokens) == length and tokens[0] == START
    body = tokens[:asked].tolist()
    keys = [token for token in body if token in KEYS]
    assert len(keys) == len(set(keys)) == pairs
    questions = [int(tokens[at - 1]) for at in example.answers]
    assert len(set(questions)) == len(questions)
    for at, distance, key in zip(example.answers, example.distances, questions, strict=True):
        source = body.index(key)
        assert tokens[at - 2] == QUERY
        assert at - 1 - source == distance
        assert tokens[at] == body[source + 1] and tokens[at] in VALUES


def test_a_copy_repeats_distinct_symbols_once() -> None:
    tokens = copy(rng(), 200, 32).tokens.tolist()
    start, again = tokens.index(COPY), tokens.index(AGAIN)
    text = tokens[start + 1 : start + 33]
    assert tokens[again + 1 :] == text
    assert len(set(text)) == 32 and not set(text) & set(NOISE)
    assert set(tokens[1:start] + tokens[start + 33 : again]) <= set(NOISE)


def test_a_needle_is_the_only_key_before_its_question() -> None:
    example = needle(rng(), 300)
    tokens = example.tokens.tolist()
    question = tokens.index(QUERY)
    (start,) = [at for at in range(question) if tokens[at] in KEYS]
    assert tokens[question + 1] == tokens[start]
    assert tokens[question + 2 :] == tokens[start + 1 : start + 1 + NEEDLE_VALUES]
    assert set(example.distances.tolist()) == {question + 1 - start}


def test_keys_tell_nothing_about_values() -> None:
    """The value of a key is another one in other sequences."""
    pairs: dict[int, set[int]] = {}
    for seed in range(200):
        example = recall(rng(seed), 64, 8)
        for at in example.answers:
            pairs.setdefault(int(example.tokens[at - 1]), set()).add(int(example.tokens[at]))
    assert min(len(values) for values in pairs.values()) > 5


def test_sources_stand_near_and_far() -> None:
    distances = np.concatenate([recall(rng(seed), 512, 8).distances for seed in range(200)])
    counts, _ = np.histogram(distances, bins=4, range=(0, 512))
    assert counts.min() > 0.15 * counts.sum()


def test_what_does_not_fit_is_refused_with_the_length() -> None:
    with pytest.raises(ValueError, match=r"need 41 tokens .* the length is 40"):
        recall(rng(), 40, 8)
    with pytest.raises(ValueError, match="the length is 50"):
        copy(rng(), 50, 32)
    with pytest.raises(ValueError, match="the length is 11"):
        needle(rng(), 11)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_mix_fits_every_length_of_the_curriculum(length: int) -> None:
    drawn = [mixed(rng(seed), length) for seed in range(60)]
    assert {task for task, _ in drawn} == {"recall", "copy", "needle"}
    assert {len(example.tokens) for _, example in drawn} == {length}


def test_a_step_depends_on_the_seed_alone() -> None:
    first, same = (RecallTrainer(RecallConfig(net=TINY)) for _ in range(2))
    other = RecallTrainer(RecallConfig(net=TINY, seed=1))
    for trainer in (first, same, other):
        trainer.step(0.0)
        trainer.step(0.1)
    assert first.curve == same.curve != other.curve
    assert torch.equal(first.net.embed, same.net.embed)


def test_the_mask_covers_the_answers_and_nothing_else() -> None:
    tokens, mask, _ = RecallTrainer(RecallConfig(net=TINY)).batch()
    assert tokens.shape == mask.shape == (64, LENGTHS[0])
    assert not set(tokens[mask].tolist()) & {START, QUERY, COPY, AGAIN, *NOISE}
    # Two pairs at least stand before the first question, and its answer is its third symbol.
    assert not mask[:, : 1 + 2 * 2 + 2].any()


def test_the_length_doubles_only_when_recall_is_good() -> None:
    trainer = RecallTrainer(RecallConfig(net=TINY, advance_steps=3))
    for accuracy in (0.9, 0.9, 0.97, 0.97):
        trainer._advance(accuracy)
    assert trainer.level == 0
    trainer._advance(0.97)
    assert trainer.level == 1 and not trainer.recent
    for _ in range(100):
        trainer._advance(1.0)
    assert trainer.level == len(LENGTHS) - 1


def test_shorter_sequences_stay_in_the_mix() -> None:
    trainer = RecallTrainer(RecallConfig(net=TINY))
    trainer.level = 2
    seen = []
    for trainer.step_count in range(60):
        seen.append(trainer.batch()[0].shape[1])
    assert set(seen) == set(LENGTHS[:3])
    assert seen.count(LENGTHS[2]) > len(seen) / 2 - 5


class Knowing:
    """Stands in for a network: finds the question's key and gives what follows it, or is wrong
    when the key stands more than `reach` before."""

    def __init__(self, reach: int) -> None:
        self.reach = reach

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        best = torch.zeros_like(tokens)
        for row, line in enumerate(tokens.tolist()):
            for at in range(2, len(line)):
                if line[at - 1] == QUERY and at - line.index(line[at]) <= self.reach:
                    best[row, at] = line[line.index(line[at]) + 1]
        return torch.nn.functional.one_hot(best, len(SYMBOLS)).float()


def test_the_judge_sees_how_far_a_model_reaches() -> None:
    examples: list[Example] = draw(0, 20, lambda each: recall(each, 256, 8, 8))
    judged = judge(Knowing(100), examples)  # type: ignore[arg-type]
    assert len(judged) == 160
    assert {right for distance, right in judged if distance <= 100} == {True}
    assert {right for distance, right in judged if distance > 100} == {False}


def test_held_out_examples_are_repeatable_and_differ_by_index() -> None:
    first, again = (draw(5, 3, lambda each: needle(each, 64)) for _ in range(2))
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))
    assert len({tuple(each.tokens.tolist()) for each in first}) == 3
    assert HELD_OUT_SEED > 100_000


def test_the_interval_is_wilsons() -> None:
    low, high = interval(95, 100)
    assert (low, high) == (pytest.approx(0.8882, abs=2e-4), pytest.approx(0.9785, abs=2e-4))
    assert interval(10, 10)[1] == 1.0 and interval(0, 10)[0] == 0.0
    assert summary([True, False])["accuracy"] == 0.5


def test_a_trained_shape_is_written_as_a_model_that_loads(tmp_path: Path) -> None:
    shape = ["--layers", "1", "--width", "32", "--heads", "2", "--kv-heads", "2"]
    assert main(["--steps", "2", "--feed-forward", "32", "--output", str(tmp_path), *shape]) == 0
    config = load_net(tmp_path).config
    assert (config.num_layers, config.hidden_size, config.num_kv_heads) == (1, 32, 2)
    assert {"tokenizer.json", "config.json", "training_curve.json"} <= {
        path.name for path in tmp_path.iterdir()
    }


SHIPPED = zoo_path("recall-gqa")


def test_the_shipped_card_says_what_the_evaluation_found() -> None:
    report = json.loads((SHIPPED / "evaluation.json").read_text(encoding="utf-8"))
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert filled(card, report) == card and "| 2,048 |" in card
    # What the model is for.
    assert report["recall"]["512"]["8"]["accuracy"] >= 0.95
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2_000_000


def test_the_shipped_model_finds_values_through_the_engine_and_as_transformers_does() -> None:
    examples = draw(7, 24, lambda each: recall(each, 512, 8, 4))
    prompts = [each.tokens[: each.answers[0]].tolist() for each in examples]
    right = [int(each.tokens[each.answers[0]]) for each in examples]
    with LLM("zoo/recall-gqa", EngineConfig(dtype="float32"), progress=False) as llm:
        greedy = SamplingParams(max_tokens=1, temperature=0.0)
        found = [out.token_ids[0] for out in llm.generate(prompts, greedy)]
        text = llm.generate("k03 v11 n02 n07 n05 k21 v40 n09 ? k21", greedy)[0].text
    assert sum(a == b for a, b in zip(found, right, strict=True)) >= 21
    assert text.strip() == "v40"
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    with torch.inference_mode():
        for prompt, ours in zip(prompts[:6], found, strict=False):
            assert int(theirs(torch.tensor([prompt])).logits[0, -1].argmax()) == ours
