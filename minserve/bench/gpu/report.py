"""The tables of recorded parts, and a sentence for each part that is not recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minserve.bench.common import table_lines
from minserve.bench.gpu.parts import PARTS
from minserve.bench.gpu.record import load

NOT_YET = "not yet recorded"
Row = Mapping[str, Any]


def tables(folder: Path, names: Sequence[str] = tuple(PARTS)) -> str:
    """Every part's table, in the order of `names`."""
    return "\n\n".join(table(name, load(folder / f"{name}.json")) for name in names)


def table(name: str, data: Mapping[str, Any] | None) -> str:
    """One part's table: figures, their origin, and what was not run."""
    title = f"{name}: {PARTS[name].title}"
    if data is None:
        return f"{title}\n  {NOT_YET}. `make gpu PARTS={name}` on a machine with a GPU records it."
    lines = [title, f"  {origin(data)}"]
    if data["rows"]:
        header, cells = COLUMNS[name]
        rows = [cells(row) for row in data["rows"]]
        lines += [f"  {line}" for line in table_lines(header, rows)]
        lines += [f"  % of {what}" for what in _denominators(data["rows"])]
    lines += [f"  note: {text}" for text in data["notes"]]
    lines += [f"  not run: {text}" for text in data["not_run"]]
    if data["status"] != "done":
        lines.append(f"  {data['status']}: {data.get('error', 'it was interrupted')}")
    return "\n".join(lines)


def origin(data: Mapping[str, Any]) -> str:
    """Device, driver, versions, commit and day, in one line."""
    device, versions = data["device"], data["versions"]
    driver = f", driver {device['driver']}" if "driver" in device else ""
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    what = "DRY RUN at toy sizes, no figures to quote: " if data["dry_run"] else ""
    return (
        f"{what}{device['name']}{driver}; {software}; commit {data['commit'] or 'unknown'}; "
        f"{data['date'][:10]}; {(data['seconds'] or 0):.0f} s"
    )


def _denominators(rows: Any) -> list[str]:
    """The denominators of the percentages in a table, each once."""
    found: dict[str, None] = {}

    def look(value: Any) -> None:
        if isinstance(value, Mapping):
            if "share" in value:
                text = f"{value['of']}: {value['denominator']:.4g} {value['unit']}"
                # Floors differ from run to run, but their description is the same.
                found[value["of"] if value["unit"] == "s" else text] = None
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)

    look(rows)
    return list(found)


def _percent(part: Row | None) -> str:
    return "" if part is None else f"{part['share']:.1%}"


def _shares(parts: Sequence[Row] | None) -> str:
    return " / ".join(_percent(part) for part in parts or ())


def _spread(part: Row | None, scale: float = 1.0) -> str:
    if part is None:
        return ""
    low, middle, high = (part[name] * scale for name in ("min", "median", "max"))
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def _number(value: float | None, scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:.4g}"


def _ceilings(row: Row) -> list[str]:
    names = ("copy_bytes_per_s", "read_bytes_per_s", "matrix_flops_per_s")
    return [row["name"], *(_number(row[name], 1e-12) for name in names)]


def _kernel(row: Row) -> list[str]:
    if "passed" in row:
        counts = (f"{row[name]} {name.replace('_', ' ')}"
                  for name in ("passed", "failed", "skipped", "not_finished"))  # fmt: skip
        return [row["name"], ", ".join(counts), "", "", "", "", ""]
    ours = row["sides"].get("minserve")
    return [
        row["name"],
        row["shape"],
        _spread(ours, 1e6),
        _shares(row.get("bandwidth")),
        _percent(row.get("matrix")),
        row.get("best_peer", ""),
        _spread(row.get("best_peer_over_minserve")),
    ]


def _stream(row: Row) -> list[str]:
    return [
        row["name"],
        _spread(row["tpot_s"], 1e3),
        _number(row["decode_tokens_per_s"]),
        _shares(row["bandwidth"]),
        _number(row["device_idle_per_step_s"], 1e3),
    ]


def _throughput(row: Row) -> list[str]:
    if "mode" in row:
        rate, times = _number(row["tokens_per_s"]), _number(row["minserve_is_times"])
        attention = str(row["settings"].get("attention"))
        return [row["name"], rate, "", "", "", times, f"{attention}; {row['measured']}"]
    rate, preempted = _spread(row["output_tokens_per_s"]), str(row["preemptions"])
    backend = row["settings"].get("kernels.backend", "auto")
    idle = _number(row["device_idle_per_step_s"], 1e3)
    return [row["name"], rate, _percent(row["roofline"]), preempted, idle, "", backend]


def _prefill(row: Row) -> list[str]:
    rate = _number(row["tokens_per_s"])
    return [row["name"], _spread(row["step_s"], 1e3), rate, _percent(row["matrix"])]


def _ladder(row: Row) -> list[str]:
    return [
        row["workload"],
        row["name"],
        _spread(row["tokens_per_s"]),
        _spread(row["over_the_rung_before"]),
        _number(row["device_idle_per_step_s"], 1e3),
    ]


def _chapter(row: Row) -> list[str]:
    sides = " / ".join(_spread(side["output_tokens_per_s"]) for side in row["sides"].values())
    same = "yes" if row["same_tokens"] else "no"
    return [row["name"], " / ".join(row["sides"]), sides, _spread(row["ratio"]), same]


def _tune(row: Row) -> list[str]:
    tiles = (", ".join(f"{k} {v}" for k, v in row[kind][0].items()) for kind in ("ragged", "split"))
    return [row["name"], _number(row["seconds"]), "yes" if row["from_disk"] else "no", *tiles]


def _clock(row: Row) -> list[str]:
    here, modelled = _number(row["here"]), _number(row["virtual"])
    error = f"{row['error']:+.1%}"
    return [row["name"], row["quantity"], here, modelled, error, "yes" if row["kept"] else "NO"]


COLUMNS: dict[str, tuple[list[str], Callable[[Row], list[str]]]] = {
    "ceilings": (["device", "copy TB/s", "read TB/s", "matrix TFLOP/s"], _ceilings),
    "kernels": (
        ["kernel", "shape", "us", "% of bandwidth", "% of matrix rate", "best peer",
         "its time over ours"],
        _kernel,
    ),
    "stream": (
        ["model", "ms per token", "tokens/s", "% of bandwidth", "device idle, ms a step"], _stream,
    ),
    "throughput": (
        ["side", "output tokens/s", "% of roofline", "preempted", "device idle, ms a step",
         "minserve is x times", "attention; measured over"],
        _throughput,
    ),
    "prefill": (["prompt", "ms", "tokens/s", "% of matrix rate"], _prefill),
    "ladder": (
        ["workload", "rung", "output tokens/s", "x the rung before", "device idle, ms a step"],
        _ladder,
    ),
    "chapters": (["chapter", "sides", "output tokens/s", "ratio", "same tokens"], _chapter),
    "tune": (["model", "seconds", "from disk", "prefill's tile", "decode's tile"], _tune),
    "virtual_clock": (
        ["run it was not taught", "quantity", "here", "virtual", "error of here", "within 15 %"],
        _clock,
    ),
}  # fmt: skip
