"""Shared by the benchmarks: arguments, the model, the sides, and the report's frame."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from minserve.bench.fields import parse_field
from minserve.bench.peers.child_side import ChildSide, convert_to_gguf
from minserve.bench.peers.engine_side import EngineSide
from minserve.bench.peers.sides import Side
from minserve.bench.peers.transformers_peer import TransformersSide
from minserve.bench.workloads.shapes import SHAPES, write_checkpoint
from minserve.config import ConfigError, EngineConfig
from minserve.files.output_file import write_text
from minserve.hardware import describe_machine
from minserve.loading import find_model

PEERS = ("transformers", "openvino", "openvino-f32", "llama")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every benchmark."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="zoo/NAME, a Hugging Face directory, or a hub name")
    which.add_argument(
        "--shape",
        choices=SHAPES,
        default="trial",
        help="random weights of a named shape, where no model is given (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="number format of every side (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads of every side (default: torch's)")
    parser.add_argument("--seed", type=int, default=0, help="of the workload (default: 0)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--vs",
        action="append",
        choices=PEERS,
        default=[],
        help="race this peer in the same run; repeatable. openvino uses its own defaults, "
        "openvino-f32 computes in float32 throughout; llama (llama.cpp, in float16) serves one "
        "request at a time: for latency",
    )
    parser.add_argument(
        "--openvino-python", metavar="PATH", help="the Python of an environment with openvino-genai"
    )
    parser.add_argument(
        "--llama-python",
        metavar="PATH",
        help="the Python of an environment with llama-cpp-python, built from source",
    )
    parser.add_argument(
        "--gguf", metavar="FILE", help="the model for these two; made from it where not given"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of EngineConfig, such as memory.block_size=32; repeatable",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result there, not to stdout")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def config_from(args: argparse.Namespace, **limits: int) -> EngineConfig:
    """The engine's configuration; `limits` (dotted names with __) are used for fields that
    `--set` does not set.

    Raises ConfigError for an unknown field or a wrong value.
    """
    values: dict[str, Any] = {"dtype": args.dtype, "device": args.device}
    values |= {name.replace("__", "."): value for name, value in limits.items()}
    values |= dict(map(parse_field, args.set))
    return EngineConfig().with_values(values)


@dataclass
class Race:
    """A model on disk, and the sides that serve it. Closing ends every side that was opened."""

    args: argparse.Namespace
    model: Path
    model_id: str
    random_weights: bool
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    def engine(self, config: EngineConfig) -> EngineSide:
        """Our engine."""
        side = EngineSide(self.model, config)
        self._stack.callback(side.close)
        return side

    def transformers(self, dtype: str | None = None) -> TransformersSide:
        """transformers, in the race's number format or another."""
        side = TransformersSide(self.model, dtype or self.args.dtype, self.args.device)
        self._stack.callback(side.close)
        return side

    def child(self, peer: str, hints: str = "default") -> ChildSide:
        """OpenVINO or llama.cpp, as a child process."""
        python = getattr(self.args, f"{peer}_python")
        if not python:
            package = {"openvino": "openvino-genai", "llama": "llama-cpp-python"}[peer]
            raise ConfigError(
                f"--vs {peer} needs --{peer}-python: the Python of an environment of its own "
                f"(python -m venv DIR && DIR/bin/pip install {package} gguf numpy)"
            )
        if not self.args.gguf:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory())
            self.args.gguf = convert_to_gguf(python, self.model, Path(folder) / "model.gguf")
        threads = torch.get_num_threads()
        side = ChildSide(peer, python, self.args.gguf, hints=hints, threads=threads)
        self._stack.callback(side.close)
        return side


@contextlib.contextmanager
def open_race(args: argparse.Namespace) -> Iterator[Race]:
    """Find or make the model, set the threads for the whole process, and clean up afterwards."""
    before = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        if args.threads:
            torch.set_num_threads(args.threads)
            stack.callback(torch.set_num_threads, before)
        if args.model:
            race = Race(args, find_model(args.model), str(args.model), False)
            if not args.model.startswith("zoo/"):
                race.model_id = race.model.name
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            directory = write_checkpoint(SHAPES[args.shape], Path(folder) / args.shape)
            race = Race(args, directory, f"{args.shape} (random weights)", True)
        with race._stack:
            yield race


def frame(race: Race, name: str, **more: Any) -> dict[str, Any]:
    """The fields that every result has, with the names of `vllm bench serve` if it has them."""
    return {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "backend": "minserve",
        "label": None,
        "model_id": race.model_id,
        "tokenizer_id": None,
        "random_weights": race.random_weights,
        "dtype": race.args.dtype,
        "device": race.args.device,
        "threads": torch.get_num_threads(),
        "seed": race.args.seed,
        "versions": versions(),
        "machine": describe_machine().to_dict(),
        **more,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that affect a result."""
    found = {}
    for package in ("minserve", "torch", "transformers", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def sides_of(race: Race, engine: Side) -> dict[str, Side]:
    """Our engine and every peer that was asked for, by name."""
    sides: dict[str, Side] = {engine.name: engine}
    for peer in race.args.vs:
        name, _, hints = peer.partition("-")
        side = (
            race.transformers() if name == "transformers" else race.child(name, hints or "default")
        )
        sides[side.name] = side
    return sides


def emit(result: Mapping[str, Any], path: str | None) -> None:
    """One JSON object, to a file or to stdout. Raises OutputError if the file cannot be written."""
    text = json.dumps(result, indent=1)
    if path is None:
        print(text)
    else:
        write_text(Path(path), text + "\n", "--json")


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns; the first one is left-aligned."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The table on stderr."""
    for line in table_lines(header, rows):
        print(line, file=sys.stderr)
