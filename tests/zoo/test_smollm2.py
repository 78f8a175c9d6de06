"""The fetched model, against transformers and against itself: runs where it was fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sampled import examples

from minserve import LLM, EngineConfig, SamplingParams
from minserve.loading import fetched_models
from minserve.models import load_spec
from minserve.request import InvalidRequestError
from minserve.zoo.fetching.check import check
from minserve.zoo.fetching.known import KNOWN

pytestmark = [pytest.mark.real, pytest.mark.slow]

MODEL = "zoo/smollm2"
TIE = 1e-4
"""Gap of the two best logits below which float32 may choose either: see the lossless tests."""
QUESTIONS = [
    "What is the capital of Italy?", "Name three colours.", "Why is the sky blue?",
    "Write a haiku about rain.", "What is 7 plus 5?", "Who wrote Hamlet?",
    "Explain what a prime number is.", "Translate 'good morning' to French.",
    "List the planets.", "What do bees make?", "How do I boil an egg?",
    "What is photosynthesis?", "Give me a synonym of 'happy'.", "Tell me a short story.",
    "What is the opposite of hot?", "Describe a cat in one sentence.",
]  # fmt: skip
TEXTS = [
    "The quick brown fox", "def fibonacci(n):\n    ", "Once upon a time, in 1823,",
    "Dear Sir or Madam,\n\n",
]  # fmt: skip
GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)


def config(**values: Any) -> EngineConfig:
    given = {"memory.kv_bytes": 256 << 20, "scheduling.max_num_seqs": 32}
    named = {key.replace("__", "."): value for key, value in values.items()}
    return EngineConfig(device="cpu", dtype="float32").with_values(given | named)


@pytest.fixture(scope="module")
def directory() -> Path:
    return fetched_models() / "smollm2"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, config(), progress=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def hf(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def hf_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def prompts(llm: LLM) -> list[list[int]]:
    """Twenty: sixteen questions as chats, and four texts."""
    chats = [llm.chat_prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [*chats, *(llm.encode(text) for text in TEXTS)]


def tokens_of(llm: LLM, given: list[list[int]], params: SamplingParams) -> list[tuple[int, ...]]:
    return [tuple(out.token_ids) for out in llm.generate(given, params, progress=False)]


@torch.inference_mode()
def assert_greedy(hf: Any, prompt: list[int], answer: tuple[int, ...]) -> int:
    """Each token is transformers' first choice after all before it, so that its own greedy run
    gives the same; where its two best are closer than `TIE`, the second will do. Returns how often
    it did."""
    logits = hf(torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return ties(logits, answer)


def ties(logits: torch.Tensor, answer: Sequence[int]) -> int:
    """See `assert_greedy`; a row of logits for each token of the answer."""
    found = 0
    for row, token in zip(logits, answer, strict=True):
        best = row.topk(2)
        first, second = best.indices.tolist()
        gap = float(best.values[0] - best.values[1])
        assert token == first or (token == second and gap < TIE), (token, first, gap)
        found += token != first
    return found


def test_twenty_prompts_continue_as_in_transformers(llm: LLM, hf: Any) -> None:
    given = prompts(llm)
    assert len(given) == 20
    answers = tokens_of(llm, given, GREEDY)
    assert [len(answer) for answer in answers] == [64] * 20
    pairs = list(zip(given, answers, strict=True))
    second = sum(assert_greedy(hf, *pair) for pair in pairs[:: examples(1, 5)])
    print(f"{second} tokens are transformers' second choice, closer than {TIE} to its first")


def test_ids_and_chats_are_those_of_transformers(llm: LLM, hf_tokenizer: Any) -> None:
    for text in (*QUESTIONS, *TEXTS, "2024-12-31: 1,234.5\n\n\tx", "naïve 你好 😀", "<|im_end|> "):
        assert llm.encode(text) == hf_tokenizer(text)["input_ids"]
    turns = [
        {"role": "user", "content": "What is 12 times 34?"},
        {"role": "assistant", "content": "408."},
        {"role": "user", "content": "And 1?"},
    ]
    system = {"role": "system", "content": "Answer briefly."}
    for messages in (turns[:1], turns, [system, *turns]):
        ids = hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        theirs = ids if isinstance(ids, list) else ids["input_ids"]
        assert llm.chat_prompt(messages) == theirs


def test_defaults_and_end_tokens_are_its_own(llm: LLM) -> None:
    params = llm.default_sampling_params
    assert (params.temperature, params.top_p) == (0.2, 0.9)
    assert llm.config.model.eos_token_ids == (2,)
    greedy = SamplingParams(temperature=0.0, max_tokens=32)
    answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], greedy)
    assert answer.text == "The capital of France is Paris."
    assert answer.samples[0].finish_reason == "stop" and answer.token_ids[-1] == 2


def test_it_gives_what_was_recorded(directory: Path) -> None:
    check(directory, KNOWN["smollm2"].expected)


@pytest.mark.parametrize("kind", ["hash", "radix"])
def test_a_prefix_hit_changes_no_token(llm: LLM, hf: Any, kind: str) -> None:
    shared = llm.encode(KNOWN["smollm2"].expected.text)
    given = [shared + llm.encode(f" {question}") for question in QUESTIONS[:4]]
    short = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    with LLM(MODEL, config(memory__prefix_cache=kind), progress=False) as cached:
        tokens_of(cached, [given[0]], short)
        outputs = cached.generate(given[1:], short, progress=False)
        block = cached.config.config.memory.block_size
        for prompt, output in zip(given[1:], outputs, strict=True):
            assert output.metrics.num_cached_tokens >= len(shared) // block * block
            assert_greedy(hf, prompt, tuple(output.token_ids))
    with LLM(MODEL, config(memory__prefix_cache="off"), progress=False) as plain:
        expected = plain.generate(given[1:], short, progress=False)
        assert [out.metrics.num_cached_tokens for out in expected] == [0] * 3
    assert [out.token_ids for out in outputs] == [out.token_ids for out in expected]


def test_a_chat_keeps_its_prefix_between_turns() -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=24)
    with LLM(MODEL, config(memory__prefix_cache="radix"), progress=False) as chatting:
        block = chatting.config.config.memory.block_size
        messages: list[Any] = []
        seen = 0
        for question in QUESTIONS[:3]:
            messages.append({"role": "user", "content": question})
            output = chatting.chat(messages, greedy, progress=False)
            # All but the page in which the last turn ended was kept.
            assert output.metrics.num_cached_tokens >= seen // block * block
            assert seen == 0 or output.metrics.num_cached_tokens > 0
            messages.append({"role": "assistant", "content": output.text})
            seen = len(output.prompt_token_ids) + len(output.token_ids) - 1


def test_thirty_two_at_once_are_the_same_as_alone(llm: LLM, hf: Any) -> None:
    texts = [f"{text}" for text in (*QUESTIONS, *TEXTS, *(f"Item {n}:" for n in range(12)))]
    given = [llm.encode(text) for text in texts]
    assert len(given) == 32
    short = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    together = tokens_of(llm, given, short)
    for prompt, answer in list(zip(given, together, strict=True))[: examples(32, 6)]:
        [alone] = tokens_of(llm, [prompt], short)
        if alone != answer:
            # Float32 may differ in the last bit between shapes; then both must be first choices.
            assert_greedy(hf, prompt, alone)
            assert_greedy(hf, prompt, answer)


def test_one_token_beyond_its_context_is_refused(llm: LLM) -> None:
    assert llm.config.max_model_len == load_spec(fetched_models() / "smollm2").max_position == 8192
    with pytest.raises(InvalidRequestError, match=r"8,?192"):
        llm.generate([[5] * 8192], SamplingParams(max_tokens=1), progress=False)


@pytest.mark.full
def test_its_whole_context_can_be_used(hf: Any) -> None:
    """A prompt of 8,168 tokens and 24 more fill its 8,192 positions."""
    with LLM(MODEL, config(memory__kv_bytes=420 << 20), progress=False) as long:
        text = help_text(long, 8168)
        asked = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
        [output] = long.generate([text], asked, progress=False)
    assert len(output.token_ids) == 24
    assert output.samples[0].finish_reason == "length"
    with torch.inference_mode():
        last = hf(torch.tensor([[*text, *output.token_ids]]), use_cache=False, logits_to_keep=25)
    print(f"{ties(last.logits[0, :-1], output.token_ids)} ties")


def help_text(llm: LLM, count: int) -> list[int]:
    """This many tokens of Python's own help texts, which every machine has."""
    from pydoc_data.topics import topics

    ids: list[int] = []
    for name in sorted(topics):
        ids += llm.encode(topics[name])
        if len(ids) >= count:
            break
    return ids[:count]
