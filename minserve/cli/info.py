"""`minserve info`: the machine, its measured limits, the model, and the resolved configuration."""

from __future__ import annotations

import argparse
import json
from typing import Any

from minserve import OPENMP, __version__
from minserve.cli.options import add_model_arguments, engine_config
from minserve.config import describe
from minserve.hardware import Ceilings, describe_machine, machine_ceilings
from minserve.kernels import select_ops
from minserve.loading import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--no-ceilings", action="store_true", help="do not measure the machine")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the information."""
    loaded = load_model(args.model, engine_config(args))
    config, spec = loaded.config, loaded.config.model
    machine = describe_machine()
    ops = select_ops(config.config.kernels.backend, config.device, config.dtype)
    parts = spec.weight_parts(config.itemsize, config.storage)
    limits = None
    if not args.no_ceilings:
        limits = machine_ceilings(config.device, dtypes=(config.config.dtype,))
    if args.json:
        result: dict[str, Any] = {
            "minserve": __version__,
            "machine": machine.to_dict(),
            "openmp": OPENMP,
            "ceilings": None if limits is None else limits.to_dict(),
            "model": {
                "name": loaded.name,
                "family": spec.family,
                "parameters": spec.num_parameters(),
                "layers": spec.num_layers,
                "weight_bytes": parts,
                "kv_bytes_per_token": spec.kv_bytes_per_token(config.itemsize),
            },
            "operators": ops.name,
            "config": config.config.to_dict(),
            "notes": list(config.notes),
        }
        print(json.dumps(result, indent=1))
        return 0
    print(f"minserve {__version__}\n\nmachine\n{machine}\n{OPENMP}")
    if limits is not None:
        print(f"\nceilings (measured {limits.date})\n{_ceilings(limits)}")
    heads = spec.layers[0].mixer.heads
    print(
        f"\nmodel {loaded.name}\n"
        f"{spec.family}, {spec.num_parameters() / 1e6:.2f} M parameters, {spec.num_layers} layers "
        f"of width {spec.hidden_size}, {heads.num_heads} heads over {heads.num_kv_heads} KV heads "
        f"of size {heads.head_dim}, vocabulary {spec.vocab_size}, {spec.max_position} positions\n"
        f"{sum(parts.values()) / 1e6:.2f} MB of weights: "
        f"{', '.join(f'{part} {size / 1e6:.2f}' for part, size in parts.items() if size)}\n"
        f"{spec.kv_bytes_per_token(config.itemsize)} bytes of KV cache per token; "
        f"{'a' if loaded.tokenizer else 'no'} tokenizer\n"
        f"\noperators: {ops.name}\n\nconfiguration"
    )
    for knob in describe():
        value = config.config.get(knob.path)
        print(f"{knob.path:40} {value}{' ' + knob.unit if knob.unit else ''}")
    for note in config.notes:
        print(f"note: {note}")
    return 0


def _ceilings(limits: Ceilings) -> str:
    lines = [
        f"read {point.read.per_s / 1e9:6.1f} GB/s at {point.working_set_bytes / 1e6:8.1f} MB"
        for point in limits.bandwidth
    ]
    lines += [
        f"{point.dtype} products of size {point.size}: {point.rate.per_s / 1e9:.0f} GFLOP/s"
        for point in limits.matmul
    ]
    return "\n".join(lines)
