"""Figures of runs: pure functions from traces to `LabFigure`s. No widgets, threads or engines.

Every function takes one run (`RunTrace` or `TraceSnapshot`) or several side by side
(`{"off": trace, "on": trace}`: the first is side A, the second B), and returns a plotly figure
with caption, takeaway, alternative text and data table.
"""

from widgets.figures.lab_figure import LabFigure
from widgets.figures.load.waits import Asked, waits
from widgets.figures.log_axis import log_axis, log_ticks
from widgets.figures.memory.block_tables import block_tables
from widgets.figures.memory.idle_sessions import idle_sessions
from widgets.figures.memory.kv_memory import kv_bytes
from widgets.figures.memory.memory_shares import memory_shares
from widgets.figures.memory.page_grid import page_map
from widgets.figures.memory.parking_lot import parking_lot
from widgets.figures.memory.radix_tree import RadixTree, radix_tree
from widgets.figures.memory.returning_sessions import returning_sessions
from widgets.figures.memory.tier_latency import tier_latency
from widgets.figures.sides import Run, Runs, Side
from widgets.figures.time.completions import completions
from widgets.figures.time.deliveries import Delivery, typed, typewriters
from widgets.figures.time.latencies import latency
from widgets.figures.time.request_lanes import timeline
from widgets.figures.time.slot_grid import slots
from widgets.figures.time.stage_bars import stage_seconds, stage_shares
from widgets.figures.time.token_rate import throughput
from widgets.figures.time.triangle import recompute_triangle
from widgets.figures.work.roofs import RooflinePoint, roofline_chart, roofline_points
from widgets.figures.work.step_rows import step_rows

__all__ = [
    "Asked",
    "Delivery",
    "LabFigure",
    "RadixTree",
    "RooflinePoint",
    "Run",
    "Runs",
    "Side",
    "block_tables",
    "completions",
    "idle_sessions",
    "kv_bytes",
    "latency",
    "log_axis",
    "log_ticks",
    "memory_shares",
    "page_map",
    "parking_lot",
    "radix_tree",
    "recompute_triangle",
    "returning_sessions",
    "roofline_chart",
    "roofline_points",
    "slots",
    "stage_seconds",
    "stage_shares",
    "step_rows",
    "throughput",
    "tier_latency",
    "timeline",
    "typed",
    "typewriters",
    "waits",
]
