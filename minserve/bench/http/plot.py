"""The latencies of a run as a figure: over time, and as distributions.

plotly is imported when a figure is made: a benchmark needs no figure.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minserve.bench.http.records import PlayResult, RequestRecord
from minserve.bench.metrics import Slo
from minserve.config import ConfigError
from minserve.files.output_file import check_writable, write_text

if TYPE_CHECKING:
    import plotly.graph_objects

KINDS = (".html", ".svg")
COLOURS = {"TTFT": "#0072B2", "TPOT": "#D55E00", "end to end": "#009E73", "not served": "#000000"}


def check_plot(path: Path) -> None:
    """Check that a figure can be written here. Raises ConfigError for another kind of file or a
    missing package, and OutputError."""
    if path.suffix.lower() not in KINDS:
        raise ConfigError(f"--plot {path}: expected a name that ends in {' or '.join(KINDS)}")
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise ConfigError("--plot needs plotly: pip install 'minserve[lab]'") from None
    check_writable(path, "--plot")


def figure(result: PlayResult, slo: Slo | None, title: str) -> plotly.graph_objects.Figure:
    """Above, each request's latencies by when it was due; below, the share of requests within a
    latency."""
    from plotly.subplots import make_subplots

    done = result.of("completed")
    made = make_subplots(
        rows=2, cols=1, vertical_spacing=0.16, subplot_titles=("by arrival", "distribution")
    )
    for name, values in _latencies(done).items():
        colour = {"color": COLOURS[name]}
        made.add_scatter(
            x=[record.scheduled_s for record, _ in values], y=[value for _, value in values],
            mode="markers", name=name, legendgroup=name, marker={"size": 5, **colour}, row=1, col=1,
        )  # fmt: skip
        ordered = sorted(value for _, value in values)
        made.add_scatter(
            x=ordered, y=[(n + 1) / len(ordered) for n in range(len(ordered))], mode="lines",
            name=name, legendgroup=name, showlegend=False, line={"shape": "hv", **colour}, row=2,
            col=1,
        )  # fmt: skip
    _add_lost(made, [record for record in result.records if record.status != "completed"])
    for name, limit in _limits(slo):
        line = {"color": COLOURS[name], "dash": "dot"}
        made.add_hline(y=limit, line=line, row=1, col=1)
        made.add_vline(x=limit, line=line, row=2, col=1)
    note = "" if result.is_complete else " (incomplete)"
    made.update_layout(title=title + note, template="plotly_white", height=720)
    made.update_xaxes(title_text="scheduled arrival, seconds since the start", row=1, col=1)
    made.update_yaxes(title_text="latency, s", type="log", row=1, col=1)
    made.update_xaxes(title_text="latency, s", type="log", row=2, col=1)
    made.update_yaxes(title_text="share of requests", range=[0, 1.02], row=2, col=1)
    return made


def write_plot(result: PlayResult, slo: Slo | None, path: Path, title: str) -> None:
    """Write the figure as HTML that needs no network, or as SVG. Raises ConfigError where kaleido
    is missing, and OutputError."""
    made = figure(result, slo, title)
    if path.suffix.lower() == ".html":
        write_text(path, made.to_html(include_plotlyjs=True), "--plot")
        return
    try:
        text = made.to_image("svg").decode()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"--plot {path}: SVG needs kaleido and a browser (pip install 'minserve[figures]'; "
            f"{error}); HTML needs neither"
        ) from None
    write_text(path, text, "--plot")


def _latencies(done: list[RequestRecord]) -> dict[str, list[tuple[RequestRecord, float]]]:
    """Name -> the requests that have this latency, and its value in seconds."""
    found = {
        "TTFT": [(record, record.metrics.ttft_s) for record in done],
        "TPOT": [(record, record.metrics.tpot_s) for record in done],
        "end to end": [(record, record.metrics.e2e_s) for record in done],
    }
    return {
        name: [(record, value) for record, value in pairs if value is not None]
        for name, pairs in found.items()
    }


def _add_lost(made: Any, lost: list[RequestRecord]) -> None:
    """Requests without an answer, at the bottom edge of the upper part."""
    if lost:
        made.add_scatter(
            x=[record.scheduled_s for record in lost], y=[1e-3] * len(lost), mode="markers",
            name="not served", text=[record.status for record in lost],
            marker={"symbol": "x", "size": 6, "color": COLOURS["not served"]}, row=1, col=1,
        )  # fmt: skip


def _limits(slo: Slo | None) -> list[tuple[str, float]]:
    """The limits of an SLO, by the name of their latency."""
    if slo is None:
        return []
    limits = {"TTFT": slo.ttft_s, "TPOT": slo.tpot_s, "end to end": slo.e2el_s}
    return [(name, limit) for name, limit in limits.items() if limit is not None]
