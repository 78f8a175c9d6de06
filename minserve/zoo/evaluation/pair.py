"""Scores a draft against its base on held-out prompts.

Knows the prompts, the decoding settings and which continuations do not count; the counting is in
`agreement`. The engine generates, transformers scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minserve.zoo.evaluation.agreement import Agreement
    from minserve.zoo.evaluation.opened import OpenedModel

GAMMA = 3
TEMPERATURES = (0.0, 0.8)


@dataclass(frozen=True)
class PairSettings:
    """The settings for judging a pair."""

    prompts: int = 1000
    prompt_tokens: int = 128
    """Tokens of a prompt, including BOS."""
    new_tokens: int = 64
    gamma: int = GAMMA


def held_out_prompts(model: OpenedModel, settings: PairSettings) -> list[list[int]]:
    """Prompts with BOS in front, whose starts are evenly spread over all held-out
    modules, in order."""
    from minserve.zoo.corpus.source import HELD_OUT, held_out_path
    from minserve.zoo.corpus.tokenizer import END_OF_TEXT_ID

    length = settings.prompt_tokens - 1
    windows: list[list[int]] = []
    files = [
        model.tokenizer.encode(
            held_out_path(name).read_text(encoding="utf-8"), add_special_tokens=False
        ).ids
        for name in HELD_OUT
    ]
    stride = max(1, sum(max(0, len(ids) - length) for ids in files) // settings.prompts)
    for ids in files:
        windows += [ids[start : start + length] for start in range(0, len(ids) - length, stride)]
    return [[END_OF_TEXT_ID, *window] for window in windows]


def write_continuations(
    base: Path, prompts: Sequence[Sequence[int]], temperature: float, new_tokens: int
) -> list[list[int]]:
    """The base's continuation of each prompt, in float32; it ends at the end-of-text token."""
    from minserve import LLM, EngineConfig, SamplingParams

    params = [
        SamplingParams(max_tokens=new_tokens, temperature=temperature, seed=index)
        for index in range(len(prompts))
    ]
    config = EngineConfig(dtype="float32").with_values({"scheduling.max_num_seqs": 128})
    with LLM(base, config, progress=False) as llm:
        outputs = llm.generate([list(prompt) for prompt in prompts], params)
    return [list(output.token_ids) for output in outputs]


def agreement_along(
    base: OpenedModel,
    draft: OpenedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    temperature: float,
    gamma: int,
) -> Agreement:
    """Agreement over all continuations, each with its prompt before it."""
    import torch

    from minserve.zoo.evaluation.agreement import Agreement, compare

    generator = torch.Generator().manual_seed(0)
    result = Agreement()
    for start in range(0, len(prompts), 16):
        group = range(start, min(start + 16, len(prompts)))
        rows = [[*prompts[i], *continuations[i]] for i in group]
        longest = max(len(row) for row in rows)
        # Padding is on the right, so causal attention keeps it out of every counted position.
        inputs = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        with torch.inference_mode():
            theirs, ours = base.logits_of(inputs), draft.logits_of(inputs)
        for row, i in enumerate(group):
            # The logits at position j predict token j + 1.
            where = slice(len(prompts[i]) - 1, len(rows[row]) - 1)
            tokens = torch.tensor(list(continuations[i]))
            result += compare(
                theirs[row, where], ours[row, where], tokens, temperature, gamma, generator
            )
    return result


def text_agreement(base: OpenedModel, draft: OpenedModel, window: int = 256) -> dict[str, float]:
    """Agreement along the held-out modules themselves, by temperature, in windows with BOS."""
    import torch

    from minserve.zoo.corpus.source import HELD_OUT, held_out_path
    from minserve.zoo.corpus.tokenizer import END_OF_TEXT_ID
    from minserve.zoo.evaluation.score import cut

    same, shared, count = 0, 0.0, 0
    for name in HELD_OUT:
        text = held_out_path(name).read_text(encoding="utf-8")
        windows = cut(base.tokenizer.encode(text, add_special_tokens=False).ids, window)
        rows = [[END_OF_TEXT_ID, *row[:-1]] for row in windows]
        for group in (*_groups(rows[:-1]), rows[-1:]):  # the last is shorter
            with torch.inference_mode():
                theirs, ours = (model.logits_of(torch.tensor(group)) for model in (base, draft))
                agrees = theirs.argmax(-1) == ours.argmax(-1)
                p, q = (torch.softmax(logits / 0.8, dim=-1) for logits in (theirs, ours))
                shared += float(torch.minimum(p, q).sum())
            same += int(agrees.sum())
            count += agrees.numel()
    return {"0.0": same / count, "0.8": shared / count}


def _groups(rows: Sequence[list[int]], size: int = 16) -> list[list[list[int]]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def judge_pair(
    base_folder: Path, draft_folder: Path, settings: PairSettings | None = None
) -> dict[str, Any]:
    """Every figure of a pair, as a dict that can be written as JSON."""
    from dataclasses import asdict

    from minserve.zoo.evaluation.agreement import loops
    from minserve.zoo.evaluation.opened import open_model

    settings = settings or PairSettings()
    base, draft = open_model(base_folder), open_model(draft_folder)
    if base.tokenizer.to_str() != draft.tokenizer.to_str():
        raise ValueError(
            f"{draft_folder} has another tokenizer than {base_folder}: a draft must read and "
            "write the same tokens as its base."
        )
    prompts = held_out_prompts(base, settings)
    report: dict[str, Any] = {"base": base_folder.name, "settings": asdict(settings)}
    report["along_held_out_text"] = {
        temperature: round(value, 4) for temperature, value in text_agreement(base, draft).items()
    }
    report["along_own_text"] = {}
    for temperature in TEMPERATURES:
        written = write_continuations(base_folder, prompts, temperature, settings.new_tokens)
        kept = [i for i, tokens in enumerate(written) if not loops(tokens)]
        found = agreement_along(
            base,
            draft,
            [prompts[i] for i in kept],
            [written[i] for i in kept],
            temperature,
            settings.gamma,
        )
        report["along_own_text"][str(temperature)] = {
            "agreement": round(found.agreement, 4),
            "acceptance": round(found.acceptance, 4),
            "tokens": found.tokens,
            "continuations": len(kept),
            "loops_excluded": len(written) - len(kept),
        }
    return report
