"""Text coloured by how each token came to be: prefilled, found in a cache, decoded, drafted.

Kinds are a registry that chapters extend. Made from a run with per-request detail; the prompt's
token ids are not part of a run, so they are given beside it. Knows nothing about time on a screen.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minserve.request import Output
from widgets import theme
from widgets.figures import sides as given
from widgets.figures.render import source_html
from widgets.figures.sides import Run
from widgets.figures.time.lanes import Lane
from widgets.figures.time.triangle import choose
from widgets.pieces import Texts, pieces

if TYPE_CHECKING:
    import ipywidgets

MAX_TOKENS = 800
"""Most tokens of one view; of more, the newest are shown."""


@dataclass(frozen=True)
class TokenKind:
    """One way for a token to come to be, and how it looks: colour and line together."""

    key: str
    label: str
    colour: str
    line: str = "none"
    """CSS text-decoration, such as "underline dotted" or "line-through"."""

    @property
    def css(self) -> str:
        """Style of a token of this kind."""
        background = theme.translucent(self.colour, 0.28)
        return f"background:{background};text-decoration:{self.line} 2px {self.colour}"


KINDS: dict[str, TokenKind] = {}
"""All kinds by key, in the order of legends."""


def register_kind(kind: TokenKind) -> TokenKind:
    """Add a kind, or replace the one of the same key."""
    KINDS[kind.key] = kind
    return kind


for _kind in (
    TokenKind("pending", "not computed yet", "#888888", "none"),
    TokenKind("cached", "found in the cache", "#0072B2", "underline dotted"),
    TokenKind("prefilled", "prefilled", theme.STATES["prefill"].colour, "none"),
    TokenKind("decoded", "decoded", theme.STATES["decode"].colour, "underline"),
    TokenKind("recomputed", "computed again", theme.STATES["recompute"].colour, "underline wavy"),
    TokenKind("accepted", "drafted and accepted", "#2E8B57", "underline double"),
    TokenKind("rejected", "drafted and rejected", "#CC3311", "line-through"),
):
    register_kind(_kind)


@dataclass(frozen=True)
class TokenMark:
    """One token of a text and how it came to be."""

    text: str
    kind: str
    """A key of `KINDS`: how it was first computed."""
    position: int
    step: int | None
    """Index of the kept step that brought it; None: before the kept steps, or never."""
    at_s: float | None = None
    """Seconds since the run began."""
    again: tuple[int, ...] = ()
    """Kept steps that computed it once more."""
    shown_from: int | None = None
    """Index of the kept step from which it stands in the text; None: from the beginning."""


def token_marks(
    run: Run,
    tokenizer: Texts | None,
    prompt: Sequence[int] | Output | None = None,
    *,
    request: str | None = None,
) -> list[TokenMark]:
    """Every token of one request: its id, or the one with the most steps.

    `prompt` is its token ids, or the Output that has them; None shows a dot per prompt token.
    """
    side = given.sides(run)[0]
    given.need_detail([side], "The token view")
    lane = choose(side, request)
    if isinstance(prompt, Output):
        prompt = prompt.prompt_token_ids
    length = lane.num_prompt_tokens or (len(prompt) if prompt is not None else 0)
    if prompt is not None and len(prompt) != length:
        raise ValueError(
            f"request {lane.key[0]} has a prompt of {length} tokens, and the one given has "
            f"{len(prompt)}: is it another request's?"
        )
    steps = side.run.steps
    texts = pieces(tokenizer, prompt) if prompt is not None else ["·"] * length
    first, again = _computed(lane)
    # Skipped at the front and never computed: it was in a cache already.
    begin = lane.parts[0][1].start
    marks = []
    for position, text in enumerate(texts):
        step = first.get(position)
        kind = "prefilled" if step is not None else "cached" if position < begin else "pending"
        at = lane.parts[0][0] if kind == "cached" else step
        marks.append(
            TokenMark(
                text, kind, position, at, _seconds(steps, at, side.origin_s),
                tuple(again.get(position, ())),
            )
        )  # fmt: skip
    new = [(index, token) for index, part in lane.parts for token in part.new_token_ids]
    added = pieces(tokenizer, [token for _, token in new], after=tuple(prompt or ()))
    for place, ((index, _), text) in enumerate(zip(new, added, strict=True)):
        position = length + place
        marks.append(
            TokenMark(
                text, "decoded", position, index, _seconds(steps, index, side.origin_s),
                tuple(again.get(position, ())), shown_from=index,
            )
        )  # fmt: skip
    return marks


def _computed(lane: Lane) -> tuple[dict[int, int], dict[int, list[int]]]:
    """Position -> the step that computed it first, and the steps that did again."""
    first: dict[int, int] = {}
    again: dict[int, list[int]] = {}
    for index, part in lane.parts:
        for position in range(part.start, part.stop):
            if position < part.start + part.num_recomputed:
                again.setdefault(position, []).append(index)
            else:
                first.setdefault(position, index)
    return first, again


def _seconds(steps: Sequence[Any], step: int | None, origin_s: float) -> float | None:
    return None if step is None else steps[step].end_s - origin_s


def kinds_at(marks: Iterable[TokenMark], until: int | None) -> list[tuple[TokenMark, str]]:
    """The tokens that stand in the text when the kept step `until` ends, with their kind then.

    None: at the end of the run. A token computed again is so during that step only.
    """
    if until is None:
        return [(mark, mark.kind) for mark in marks]
    found = []
    for mark in marks:
        if mark.shown_from is not None and mark.shown_from > until:
            continue
        kind = mark.kind
        if until in mark.again:
            kind = "recomputed"
        elif mark.shown_from is None and mark.step is not None and mark.step > until:
            kind = "pending"
        found.append((mark, kind))
    return found


@dataclass(frozen=True)
class TokenView:
    """A text with its tokens coloured. The last value of a cell, or a part of Replay."""

    marks: Sequence[TokenMark]
    title: str = ""
    caption: str = ""
    kinds: Mapping[str, TokenKind] = field(default_factory=lambda: KINDS)

    def html(self, until: int | None = None) -> str:
        """The text as it stands when the kept step `until` ends (None: the end)."""
        shown = kinds_at(self.marks, until)
        legend = self._legend(shown)
        left_out = max(0, len(shown) - MAX_TOKENS)
        body = "".join(self._span(mark, kind, until) for mark, kind in shown[left_out:])
        more = f"<i>… {left_out:,} earlier tokens</i>\n" if left_out else ""
        title = f"<b>{html.escape(self.title)}</b> " if self.title else ""
        caption = source_html(self.caption)
        return (
            f'<div class="lab-figure"><div>{title}{legend}</div>'
            f'<pre style="{_PRE}" role="group" aria-label="{html.escape(self.alt(until))}">'
            f"{more}{body}</pre>{caption}</div>"
        )

    def counts(self, until: int | None = None) -> dict[str, int]:
        """Tokens by kind, in the registry's order; kinds without tokens left out."""
        shown = [kind for _, kind in kinds_at(self.marks, until)]
        order = [*self.kinds, *dict.fromkeys(shown)]
        return {key: shown.count(key) for key in dict.fromkeys(order) if key in shown}

    def alt(self, until: int | None = None) -> str:
        """The view in words."""
        told = [f"{count} {self._kind(key).label}" for key, count in self.counts(until).items()]
        total = sum(self.counts(until).values())
        return f"Text of {theme.format_count(total, 'token')}: {', '.join(told) or 'none yet'}."

    def widget(self) -> ipywidgets.HTML:
        """The text as an ipywidgets.HTML."""
        import ipywidgets

        return ipywidgets.HTML(theme.STYLE + self.html())

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        words = f"{self.alt()}\n{self.caption}".strip()
        if theme.headless():
            return {"text/plain": words}
        return {"text/html": theme.STYLE + self.html(), "text/plain": words}

    def _kind(self, key: str) -> TokenKind:
        return self.kinds.get(key) or TokenKind(key, key, "#888888")

    def _span(self, mark: TokenMark, kind: str, until: int | None) -> str:
        look = self._kind(kind)
        said = f"token {mark.position}, {look.label}"
        if kind != "pending" and mark.step is not None and mark.at_s is not None:
            said += f" in step {mark.step}, {theme.format_seconds(mark.at_s)}"
        style = look.css
        if until is not None and until in (mark.step, *mark.again) and kind != "pending":
            style += ";outline:1.5px solid currentColor"
        text = html.escape(mark.text)
        if not mark.text.strip():
            # A line break alone would show nothing of its colour.
            text = text.replace("\n", "⏎\n")
        return f'<span title="{html.escape(said)}" style="{html.escape(style)}">{text}</span>'

    def _legend(self, shown: Sequence[tuple[TokenMark, str]]) -> str:
        kinds = [kind for _, kind in shown]
        order = dict.fromkeys([*self.kinds, *kinds])
        return " ".join(
            f'<span style="{html.escape(self._kind(key).css)};padding:0 .35em">'
            f"{html.escape(self._kind(key).label)} "
            f"{kinds.count(key):,}</span>"
            for key in order
            if key in kinds
        )


_PRE = (
    "white-space:pre-wrap;overflow-wrap:anywhere;font-family:var(--jp-code-font-family,monospace);"
    "font-size:13px;line-height:1.6;margin:.4rem 0;color:inherit;background:transparent;"
    "max-height:22rem;overflow-y:auto"
)


def token_view(
    run: Run,
    tokenizer: Texts | None,
    prompt: Sequence[int] | Output | None = None,
    *,
    request: str | None = None,
    title: str = "",
) -> TokenView:
    """The text of one request of a run, coloured; see `token_marks`."""
    side = given.sides(run)[0]
    return TokenView(
        token_marks(run, tokenizer, prompt, request=request),
        title=title,
        caption=given.caption([side]),
    )
