"""`minserve zoo`: list the models that ship, or score them on the held-out modules."""

from __future__ import annotations

import argparse

from minserve.loading import ZOO
from minserve.models import load_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("action", choices=("list", "evaluate"), nargs="?", default="list")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, help="evaluate: its own options (try evaluate --help)"
    )


def run(args: argparse.Namespace) -> int:
    """List or score."""
    if args.action == "evaluate":
        from minserve.zoo.evaluation.evaluate import main

        return main(args.rest)
    for config in sorted(ZOO.glob("*/config.json")):
        spec = load_spec(config.parent)
        print(f"zoo/{config.parent.name:10} {spec.family}, {spec.num_parameters() / 1e6:.2f} M")
    return 0
