"""Draw the moving figure of the front page: eight lanes, one long prompt, whole and in chunks.

    python labs/tools/front.py          # writes labs/figures/front.svg

Both runs are the engine's own scheduler on modelled time, so that the file is the same on every
machine. A curtain of the page's colour moves aside at a quarter of the speed; where the reader's
system asks for reduced motion, there is none.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.hardware import DEVICES
from minserve.virtual import CostModel
from widgets.figures.time.lanes import lanes
from widgets.figures.time.token_gaps import token_times

TARGET = Path(__file__).resolve().parent.parent / "figures" / "front.svg"
SHAPE, DEVICE = "llama-3.1-8b", "H100 SXM"
LONG_TOKENS, CHATS = 32_000, 8
SLOWER = 4.0
"""Seconds of the figure for a second of the run."""
HOLD_S = 3.0
"""The finished figure stands still for so long before it begins again."""

WIDTH, LEFT, RIGHT = 860, 96, 16
LANE, TICK = 15, 9
PANEL = 34 + LANE * (CHATS + 1)
HEIGHT = 2 * PANEL + 62


@dataclass(frozen=True)
class Side:
    """What is drawn of one run, in seconds."""

    name: str
    tokens: Sequence[Sequence[float]]
    """Request -> when each of its tokens came."""
    freeze: tuple[float, float]
    """The longest time without a token for a request that had begun."""


def run(name: str, chunked: bool) -> Side:
    """Chats write; one ends early, and a long prompt takes its slot."""
    draw = random.Random(45)
    sizes = [1000] * CHATS + [LONG_TOKENS]
    prompts = [[draw.randrange(2, 4000) for _ in range(size)] for size in sizes]
    lengths = [4] + [66] * (CHATS - 1) + [8]
    config = EngineConfig().with_values(
        {
            "scheduling.enable_chunked_prefill": chunked,
            "scheduling.max_num_seqs": CHATS,
            "scheduling.max_model_len": LONG_TOKENS + 1000,
            "trace.per_request": True,
        }
    )
    cost = CostModel(DEVICES[DEVICE], "bfloat16", efficiency=0.5, overhead_s=2e-4)
    engine = build_virtual_engine(SHAPES[SHAPE].spec(), config, cost)
    drive(engine, at_once(prompts, [fixed_length(n) for n in lengths]))
    found = [token_times(lane, engine.trace) for lane in lanes(engine.trace)]
    gaps = [pair for times in found for pair in itertools.pairwise(times)]
    return Side(name, found, max(gaps, key=lambda pair: pair[1] - pair[0]))


STYLE = """
svg { --ink: #24292f; --soft: #6e7781; --page: #ffffff; --one: #0072B2; --two: #D55E00 }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --soft: #9aa4af; --page: #0d1117; --one: #56B4E9; --two: #F0883E }
}
text { font: 13px system-ui, -apple-system, 'Segoe UI', Arial, sans-serif; fill: var(--ink) }
.soft { fill: var(--soft); font-size: 11.5px }
.strong { font-weight: 600 }
.page { fill: var(--page) }
.lane { stroke: var(--soft); stroke-opacity: .25 }
.axis { stroke: var(--soft) }
.one { stroke: var(--one); stroke-width: 1.6 }
.two { stroke: var(--two); stroke-width: 1.6 }
.frozen { fill: url(#hatch) }
.curtain { animation: aside %(whole)ss linear infinite }
@keyframes aside {
  from { transform: translateX(0) }
  %(moved).2f%% { transform: translateX(%(width)spx); opacity: 1 }
  %(gone).2f%% { opacity: 0 }
  to { transform: translateX(%(width)spx); opacity: 0 }
}
@media (prefers-reduced-motion: reduce) { .curtain { display: none } }
"""


def draw(sides: Sequence[Side]) -> str:
    """The figure as one SVG file."""
    end = max(times[-1] for side in sides for times in side.tokens)
    width = WIDTH - LEFT - RIGHT
    moving = end * SLOWER
    numbers = {
        "whole": f"{moving + HOLD_S:.2f}",
        "moved": 100 * moving / (moving + HOLD_S),
        "gone": 100 * moving / (moving + HOLD_S) + 0.01,
        "width": width + 3,
    }
    frozen = [later - earlier for earlier, later in (side.freeze for side in sides)]
    told = (
        f"Eight lanes of one batch; a prompt of {LONG_TOKENS:,} tokens takes a free slot. Computed "
        f"in one step, it keeps seven chats {frozen[0]:.2f} seconds without a token; in chunks, "
        f"they wait {frozen[1]:.2f} seconds at most."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-labelledby="said">',
        f'<title id="said">{told}</title>',
        f"<style>{STYLE % numbers}</style>",
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="1.4" height="6" fill="#888a"/>'
        "</pattern></defs>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
    ]
    for number, side in enumerate(sides):
        parts += _panel(side, number, 12 + number * PANEL, width / end)
    bottom = 12 + 2 * PANEL
    # The curtain covers the lanes and goes aside; what is said of the lanes stays.
    parts.append(
        f'<clipPath id="plot"><rect x="{LEFT}" width="{width + 3}" height="{bottom}"/></clipPath>'
        f'<g clip-path="url(#plot)"><g class="curtain"><rect class="page" x="{LEFT}" y="0" '
        f'width="{width + 3}" height="{bottom}"/><path class="axis" d="M{LEFT} 34V{bottom - 8}"/>'
        "</g></g>"
    )
    for number, side in enumerate(sides):
        y = 26 + number * PANEL
        parts.append(f'<text class="strong" x="{LEFT}" y="{y}">{side.name}</text>')
    parts += _axis(end, bottom, width)
    return "\n".join([*parts, "</svg>", ""])


def _panel(side: Side, number: int, top: int, scale: float) -> list[str]:
    """One run: a tick for each token, and the longest wait hatched."""

    def x(seconds: float) -> str:
        return f"{LEFT + seconds * scale:.1f}"

    first, last = side.freeze
    seconds = last - first
    parts = []
    for place, times in enumerate(side.tokens):
        y = top + 26 + place * LANE
        middle = y + TICK / 2
        name = "long prompt" if place == CHATS else f"chat {place + 1}"
        parts.append(
            f'<text class="soft" x="{LEFT - 8}" y="{y + TICK}" text-anchor="end">{name}</text>'
        )
        parts.append(f'<path class="lane" d="M{LEFT} {middle}H{WIDTH - RIGHT}"/>')
        if seconds > 0.5 and first in times and last in times:
            width = seconds * scale
            parts.append(
                f'<rect class="frozen" x="{x(first)}" y="{y}" width="{width:.1f}" height="{TICK}"/>'
            )
        ticks = "".join(f"M{x(time)} {y}v{TICK}" for time in times)
        parts.append(f'<path class="{("one", "two")[number]}" d="{ticks}"/>')
    if seconds > 0.5:
        text = f"{seconds:.2f} s without a token"
        middle = (first + last) / 2
        y = top + 26 + LANE * (CHATS // 2) + TICK
        parts.append(
            f'<rect class="page" x="{float(x(middle)) - 84:.1f}" y="{y - 16}" width="168" '
            f'height="22" rx="4"/><text class="strong" x="{x(middle)}" y="{y}" '
            f'text-anchor="middle">{text}</text>'
        )
    else:
        parts.append(
            f'<text class="soft" x="{WIDTH - RIGHT}" y="{top + 14}" text-anchor="end">longest wait '
            f"for a token: {seconds:.2f} s</text>"
        )
    return parts


def _axis(end: float, top: int, width: float) -> list[str]:
    """Seconds of the run, and where they come from."""
    parts = [f'<path class="axis" d="M{LEFT} {top}H{WIDTH - RIGHT}"/>']
    for half in range(int(2 * end) + 1):
        x = LEFT + half / 2 / end * width
        parts.append(
            f'<path class="axis" d="M{x:.1f} {top}v4"/><text class="soft" x="{x:.1f}" '
            f'y="{top + 17}" text-anchor="middle">{half / 2:g} s</text>'
        )
    model = SHAPE.replace("llama", "Llama").replace("-8b", " 8B").replace("-", " ")
    said = (
        f"A tick is a token. {model} on an {DEVICE}, modelled; shown at 1/{SLOWER:g} of its speed. "
        "The scheduler is the engine’s own."
    )
    parts.append(f'<text class="soft" x="{LEFT}" y="{top + 38}">{said}</text>')
    return parts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="front.py", description="Draw the front page's figure.")
    parser.add_argument("--out", type=Path, default=TARGET, metavar="FILE")
    options = parser.parse_args(argv)
    sides = [
        run("The long prompt in one step", chunked=False),
        run("Chunked prefill: the same work, 512 tokens a step", chunked=True),
    ]
    options.out.write_text(draw(sides), encoding="utf-8")
    print(f"{options.out.name}: {options.out.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
