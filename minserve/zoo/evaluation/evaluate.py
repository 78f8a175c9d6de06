"""Scores a model directory: bits per byte on unseen source, and whether its continuations parse.

Knows the held-out modules, the windows of our bits-per-byte measure and how continuations are
judged; transformers computes the scores, the engine generates. A draft is judged with its base
(`pair`). Knows nothing about training.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minserve.files.output_file import check_writable, write_text, writing
from minserve.zoo import ZOO, zoo_path
from minserve.zoo.evaluation.card import renew
from minserve.zoo.evaluation.continuations import Writer, continue_signatures
from minserve.zoo.evaluation.opened import OpenedModel, open_model

if TYPE_CHECKING:
    from minserve.zoo.evaluation.score import Score

WINDOWS = (256, 1000)
SHIPPED = ("zoo/base", "zoo/draft")


def score_text(model: OpenedModel, text: str, window: int) -> Score:
    """Score of one text, tokenized as a whole and then split into windows."""
    from minserve.zoo.evaluation.score import score_ids

    ids = model.tokenizer.encode(text, add_special_tokens=False).ids
    return score_ids(model.logits_of, ids, len(text.encode()), window)


def score_modules(
    model: OpenedModel, modules: Iterable[str], windows: Sequence[int] = WINDOWS
) -> dict[str, dict[int, Score]]:
    """Scores of standard library modules, whole files, by window."""
    from minserve.zoo.corpus.source import held_out_path

    scores = {}
    for module in modules:
        text = held_out_path(module).read_text(encoding="utf-8")
        scores[module] = {window: score_text(model, text, window) for window in windows}
    return scores


def total(scores: Iterable[Score]) -> Score:
    """The sum of all bits and all bytes."""
    from minserve.zoo.evaluation.score import Score

    result = Score(0.0, 0, 0)
    for score in scores:
        result += score
    return result


def extra_texts(folder: Path, limit: int = 24) -> list[str]:
    """Up to `limit` Python files under `folder`, chosen by a fixed seed, of ordinary size and not
    generated. The caller must make sure that this model was not trained on them."""
    from minserve.zoo.corpus.source import clean

    paths = sorted(p for p in folder.rglob("*.py") if 1000 < p.stat().st_size < 100_000)
    random.Random(0).shuffle(paths)
    texts = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if clean(text) is not None:
            texts.append(text)
        if len(texts) == limit:
            break
    if not texts:
        raise FileNotFoundError(f"There is no ordinary Python source under {folder}.")
    return texts


def sampled_writer(folder: Path, max_tokens: int = 64, temperature: float = 0.7) -> Writer:
    """Continues prompts in the engine by sampling from the whole distribution, with one
    seed per prompt."""

    def write(prompts: Sequence[str]) -> list[str]:
        from minserve import LLM, EngineConfig, SamplingParams

        params = [
            SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=index)
            for index in range(len(prompts))
        ]
        with LLM(folder, EngineConfig(dtype="float32"), progress=False) as llm:
            return [output.text for output in llm.generate(list(prompts), params)]

    return write


def evaluate(
    folder: Path, extra: Sequence[Path] = (), signatures_count: int = 200
) -> dict[str, Any]:
    """Every score of a model directory, as a dict that can be written as JSON."""
    from minserve.zoo.corpus.source import HEADLINE, HELD_OUT

    model = open_model(folder)
    by_module = score_modules(model, HELD_OUT)
    report: dict[str, Any] = {"python": platform.python_version(), "model": folder.name}
    for name, modules in (("headline", HEADLINE), ("held_out", HELD_OUT[len(HEADLINE) :])):
        report[name] = {
            str(w): round(total(by_module[m][w] for m in modules).bits_per_byte, 4) for w in WINDOWS
        }
    report["modules"] = {
        module: {str(w): round(score.bits_per_byte, 4) for w, score in scores.items()}
        for module, scores in by_module.items()
    }
    report["extra"] = {}
    for place in extra:
        texts = extra_texts(place)
        report["extra"][place.name] = {
            str(w): round(total(score_text(model, t, w) for t in texts).bits_per_byte, 4)
            for w in WINDOWS
        } | {"files": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
    if signatures_count:
        written = continue_signatures(sampled_writer(folder), HELD_OUT, signatures_count)
        report["signatures"] = len(written)
        report["signatures_that_parse"] = sum(c.parses for c in written)
        shown = random.Random(1).sample(written, min(10, len(written)))
        report["examples"] = [asdict(c) for c in shown]
    return report


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [
        f"{report['model']}: bits per byte, BOS in front of each window, Python {report['python']}",
        f"{'':34}{'256':>8}{'1,000':>8}",
    ]
    rows = [("headline (four modules)", report["headline"])]
    rows += [("other held-out modules", report["held_out"])]
    rows += [(f"  {name}", scores) for name, scores in report["modules"].items()]
    rows += [(f"not installed by the lab: {k}", v) for k, v in report["extra"].items()]
    lines += [f"{name:34}{scores['256']:8.3f}{scores['1000']:8.3f}" for name, scores in rows]
    if "signatures" in report:
        lines.append(
            f"{report['signatures_that_parse']} of {report['signatures']} held-out signatures, "
            "continued to 64 tokens at temperature 0.7, parse"
        )
    return "\n".join(lines)


def render_pair(pair: dict[str, Any]) -> str:
    """A draft's figures beside its base, as text."""
    settings = pair["settings"]
    lines = [
        f"with {pair['base']} as its base, on {settings['prompts']} held-out prompts of "
        f"{settings['prompt_tokens']} tokens, continued by the base to "
        f"{settings['new_tokens']} tokens; proposals in rounds of {settings['gamma']}"
    ]
    for temperature, found in pair["along_own_text"].items():
        lines.append(
            f"  temperature {temperature}: agreement {found['agreement']:.3f}, accepted/proposed "
            f"{found['acceptance']:.3f} on {found['tokens']} tokens of {found['continuations']} "
            f"continuations; {found['loops_excluded']} loop and are excluded"
        )
    along = pair["along_held_out_text"]
    lines.append(
        f"  along the held-out text itself: agreement {along['0.0']:.3f} greedy, "
        f"{along['0.8']:.3f} at temperature 0.8"
    )
    return "\n".join(lines)


def default_base(folder: Path) -> Path | None:
    """The default base that a model is judged with: `zoo/base` for `zoo/draft`."""
    return zoo_path("base") if folder == ZOO / "draft" else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve zoo evaluate`."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: zoo/base zoo/draft")
    parser.add_argument(
        "--extra", type=Path, action="append", default=[], metavar="DIRECTORY", help="more source"
    )
    parser.add_argument("--signatures", type=int, default=200, help="0 skips the generation")
    parser.add_argument("--base", metavar="MODEL", help="judge each model as a draft of this one")
    parser.add_argument(
        "--cost",
        type=int,
        action="append",
        metavar="THREADS",
        help="time one token of draft and base with so many threads; needs a quiet machine",
    )
    parser.add_argument("--tokens", type=Path, help="training tokens, for the 13-gram overlap")
    parser.add_argument(
        "--save", action="store_true", help="write evaluation.json and the card's numbers"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Score models of the zoo, or any Hugging Face directories with this tokenizer's files."""
    parser = argparse.ArgumentParser(prog="minserve zoo evaluate", description=main.__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Score the models and print the scores. Raises, before anything is scored, FileNotFoundError
    for tokens that do not exist and OutputError if `--save` cannot write."""
    if args.save:
        for name in args.models or SHIPPED:
            check_writable(_folder(name) / "evaluation.json", "--save")
    streams = {}
    if args.tokens is not None:
        from minserve.zoo.corpus.data import load_streams

        streams = load_streams(args.tokens)
    for name in args.models or SHIPPED:
        folder = _folder(name)
        base = _folder(args.base) if args.base else default_base(folder)
        report = evaluate(folder, args.extra, args.signatures)
        print(render(report))
        if base is not None:
            from minserve.zoo.evaluation.pair import judge_pair

            report["pair"] = judge_pair(base, folder)
            print(render_pair(report["pair"]))
            if args.cost:
                from minserve.bench.runs.forward import describe, forward_cost

                report["cost"] = [forward_cost(folder, base, threads=n) for n in args.cost]
                for cost in report["cost"]:
                    print(describe(folder.name, base.name, cost))
        if streams:
            from minserve.zoo.corpus.overlap import overlap

            shares = overlap(streams.values(), folder)
            report["overlap"] = {module: round(share, 6) for module, share in shares.items()}
        if args.save:
            text = json.dumps(report, indent=2) + "\n"
            write_text(folder / "evaluation.json", text, "--save")
            if (folder / "README.md").is_file():
                with writing(folder / "README.md", "--save"):
                    renew(folder)
    return 0


def _folder(name: str) -> Path:
    return Path(name) if Path(name).is_dir() else zoo_path(name)


if __name__ == "__main__":
    sys.exit(main())
