"""Draw the map of the course: the surveys' taxonomy, and which chapters are there.

    python labs/tools/taxonomy.py       # writes labs/figures/taxonomy.svg

A chapter is there when its notebook is in `labs/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path

LABS = Path(__file__).resolve().parent.parent

Leaf = tuple[str, str]
"""Number and name of a chapter."""

COLUMNS: Sequence[Mapping[str, Sequence[Leaf]]] = (
    {
        "Start": (("00", "Start here"), ("01", "Serve it"), ("02", "Playground")),
        "Decoding algorithms": (
            ("10", "Non-autoregressive"),
            ("11a", "Speculation: chains"),
            ("11b", "Speculation: trees"),
            ("12", "Early exiting"),
            ("13", "Cascade inference"),
        ),
    },
    {
        "Architecture design": (
            ("20", "Downsizing"),
            ("21a", "Attention, less kept"),
            ("21b", "Attention, less read"),
            ("22", "Activation sharing"),
            ("23", "Conditional computing"),
            ("24", "Recurrent units"),
        ),
        "Model compression": (("30", "Knowledge distillation"), ("31", "Network pruning")),
    },
    {
        "System optimization": (
            ("40a", "Fewer bits"),
            ("40b", "Methods for few bits"),
            ("40c", "Training for few bits"),
            ("41", "Model parallelism"),
            ("42", "Sequence parallelism"),
            ("43a", "Paging and sharing"),
            ("43b", "Memory tiers"),
            ("44", "Prefix reuse"),
            ("45a", "Continuous batching"),
            ("45b", "Chunked prefill"),
            ("45c", "Preemption"),
            ("46", "Fused kernels"),
            ("47", "Variable lengths"),
        ),
    },
    {
        "KV and placement": (
            ("50", "KV compression"),
            ("51", "Long context"),
            ("52", "Prefill apart"),
        ),
        "Cloud": (
            ("53", "Spot and migration"),
            ("54", "Serverless cold start"),
            ("55", "Mixed GPUs and cost"),
            ("56", "Quality of experience"),
            ("57", "Decentralized, edge"),
            ("58", "Fine-tuning beside it"),
        ),
    },
    {
        "Emerging": (
            ("60", "Retrieval-augmented"),
            ("61", "Serving experts"),
            ("62", "Many LoRA adapters"),
            ("63", "Fairness"),
            ("64", "Energy and carbon"),
            ("65", "Request graphs"),
        ),
        "Capstone": (("90", "The case study"), ("91", "The frameworks")),
    },
)

COLUMN, ROW, GAP, TOP = 184, 25, 10, 58
WIDTH = 12 + len(COLUMNS) * (COLUMN + GAP)

STYLE = """
svg { --ink: #24292f; --soft: #6e7781; --page: #ffffff; --there: #0072B2; --on: #ffffff }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --soft: #9aa4af; --page: #0d1117; --there: #56B4E9; --on: #0d1117 }
}
text { font: 12px system-ui, -apple-system, 'Segoe UI', Arial, sans-serif; fill: var(--ink) }
.page { fill: var(--page) }
.head { font-weight: 600; font-size: 13px }
.there rect { fill: var(--there) }
.there text { fill: var(--on) }
.coming rect { fill: none; stroke: var(--soft); stroke-opacity: .6; stroke-dasharray: 3 3 }
.coming text { fill: var(--soft) }
"""


def leaves() -> list[Leaf]:
    """All chapters of the course, in order of the columns."""
    return [leaf for column in COLUMNS for group in column.values() for leaf in group]


def written(labs: Path = LABS) -> set[str]:
    """Numbers of the chapters that are there."""
    return {path.name.partition("_")[0] for path in labs.glob("[0-9][0-9]*_*.ipynb")}


def draw(there: Collection[str]) -> str:
    """The map as one SVG file."""
    known = {number for number, _ in leaves()}
    if strange := set(there) - known:
        raise ValueError(f"not on the map: chapters {sorted(strange)}; add them to COLUMNS")
    parts, lowest = [], 0
    for place, column in enumerate(COLUMNS):
        x, y = 12 + place * (COLUMN + GAP), TOP
        for head, group in column.items():
            parts.append(f'<text class="head" x="{x}" y="{y}">{escape(head)}</text>')
            y += 10
            for number, name in group:
                parts.append(_leaf(x, y, number, name, number in there))
                y += ROW
            y += 28
        lowest = max(lowest, y - 28)
    count = f"{len(set(there))} of {len(known)}"
    told = f"The course follows the surveys’ taxonomy; {count} chapters are there: "
    told += ", ".join(f"{number} {name}" for number, name in leaves() if number in there) + "."
    words = f"Filled: there, {count}. Dashed: still to come."
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {lowest + 12}" '
        f'width="{WIDTH}" height="{lowest + 12}" role="img" aria-labelledby="said">',
        f'<title id="said">{escape(told)}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{lowest + 12}" rx="6"/>',
        f'<text x="12" y="26">{words}</text>',
    ]
    return "\n".join([*head, *parts, "</svg>", ""])


def _leaf(x: int, y: int, number: str, name: str, there: bool) -> str:
    kind = "there" if there else "coming"
    return (
        f'<g class="{kind}"><rect x="{x}" y="{y}" width="{COLUMN}" height="{ROW - 4}" rx="4"/>'
        f'<text x="{x + 8}" y="{y + 15}">{number} · {escape(name)}</text></g>'
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="taxonomy.py", description="Draw the course's map.")
    parser.add_argument("--out", type=Path, default=LABS / "figures" / "taxonomy.svg")
    options = parser.parse_args(argv)
    options.out.write_text(draw(written()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
