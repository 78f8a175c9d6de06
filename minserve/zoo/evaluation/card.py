"""The numbers of a model card, written from the model's `evaluation.json`.

Knows the tables and the markers around them in a card; the text outside the markers is written by
hand and not changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = dict[str, Any]


def scores_table(report: Report) -> str:
    """Bits per byte of every text, with the 13-gram overlap if it was measured."""
    overlap = report.get("overlap", {})
    columns = "| held out | window 256 | window 1,000 |" + (" 13-gram overlap |" if overlap else "")
    rows = [columns, "|---" * (columns.count("|") - 1) + "|"]

    def row(name: str, scores: Report, module: str = "") -> None:
        cells = [name, f"{scores['256']:.3f}", f"{scores['1000']:.3f}"]
        if overlap:
            cells.append(f"{100 * overlap[module]:.2f} %" if module in overlap else "")
        rows.append("| " + " | ".join(cells) + " |")

    row("**heapq, textwrap, statistics, shutil together**", report["headline"])
    row(f"the {len(report['modules']) - 4} other modules together", report["held_out"])
    for module, scores in report["modules"].items():
        row(module, scores, module)
    for name, scores in report["extra"].items():
        row(f"{name}, {scores['files']} files (not installed by the lab)", scores)
    return f"Python {report['python']}, bf16 weights, float32 arithmetic.\n\n" + "\n".join(rows)


def signatures_line(report: Report) -> str:
    """How many continued signatures parse."""
    return (
        f"Of {report['signatures']} held-out function signatures continued to 64 tokens at "
        f"temperature 0.7, **{report['signatures_that_parse']}** parse with `ast` after trimming "
        "to the last whole statement."
    )


def examples(report: Report) -> str:
    """The continuations as text; ‖ marks where the model begins."""
    shown = [
        f"Parses: {'yes' if each['parses'] else 'no'}\n"
        f"````python\n{each['signature']}‖{each['text']}\n````"
        for each in report["examples"]
    ]
    return "\n\n".join(shown)


def pair_table(report: Report) -> str:
    """Agreement and acceptance of a draft with its base."""
    pair = report["pair"]
    settings, along = pair["settings"], pair["along_held_out_text"]
    rows = [
        f"| with zoo/{pair['base']} | greedy | temperature 0.8 |",
        "|---|---|---|",
    ]
    greedy, sampled = (pair["along_own_text"][t] for t in ("0.0", "0.8"))

    def row(name: str, key: str, form: str) -> None:
        rows.append(f"| {name} | {format(greedy[key], form)} | {format(sampled[key], form)} |")

    row("**agreement** along the base's continuations", "agreement", ".3f")
    row(f"**accepted/proposed**, rounds of {settings['gamma']}", "acceptance", ".3f")
    row("tokens judged", "tokens", ",")
    row("continuations judged", "continuations", ",")
    row("continuations that loop, excluded", "loops_excluded", ",")
    rows.append(f"| agreement along the held-out text | {along['0.0']:.3f} | {along['0.8']:.3f} |")
    return "\n".join(rows)


def cost_table(report: Report) -> str:
    """The cost of one token beside the base's, by threads."""
    first = report["cost"][0]
    rows = ["| threads | draft, µs | base, µs | the base's is |", "|---|---|---|---|"]
    for cost in report["cost"]:
        cells = [
            "{median:.0f} ({min:.0f} to {max:.0f})".format(**cost[side])
            for side in ("model_us", "against_us")
        ]
        times = "{median:.1f} times as much ({min:.1f} to {max:.1f})".format(
            **cost["times_cheaper"]
        )
        rows.append(f"| {cost['threads']} | {cells[0]} | {cells[1]} | {times} |")
    return (
        f"{first['device']}, {first['dtype']}, after {first['context']} tokens; medians of "
        f"{first['rounds']} interleaved rounds, lowest to highest in brackets.\n\n"
        + "\n".join(rows)
    )


SECTIONS: dict[str, Callable[[Report], str]] = {
    "scores": scores_table,
    "signatures": signatures_line,
    "examples": examples,
    "pair": pair_table,
    "cost": cost_table,
}


def filled(card: str, report: Report) -> str:
    """`card` with the text between its markers replaced by the sections for `report`."""
    for name, section in SECTIONS.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin in card:
            pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
            text = f"{begin}\n{section(report)}\n{end}"
            card = pattern.sub(lambda _, text=text: text, card)  # type: ignore[misc]
    return card


def renew(folder: Path) -> None:
    """Update the numbers of the card in `folder` from its evaluation.json."""
    report = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    card = folder / "README.md"
    card.write_text(filled(card.read_text(encoding="utf-8"), report), encoding="utf-8")
