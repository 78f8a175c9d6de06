"""`minserve serve MODEL`: an OpenAI-compatible server, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from minserve.cli.options import add_engine_arguments, engine_config
from minserve.cli.streams import UsageError

KEY = "MINSERVE_API_KEY"
KEPT_STEPS = 2_000
"""A server runs for days and its trace is read by `/metrics` as it grows, so only the newest steps
stay, unless `--max-steps` says otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "model", nargs="?", default="zoo/base",
        help="zoo/NAME, a Hugging Face directory, a .gguf file, or a hub name "
        "(default: %(default)s)",
    )  # fmt: skip
    group = parser.add_argument_group("server")
    add = group.add_argument
    add("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    add("--port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    add("--served-model-name", default="", metavar="NAME", help="the model's name for clients")
    add("--api-key", metavar="KEY", help=f"clients have to send it (default: ${KEY})")
    add("--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="web pages from there may call the server; repeatable")  # fmt: skip
    add("--max-body-bytes", type=int, default=4 << 20, metavar="N",
        help="larger requests are refused (default: %(default)s)")  # fmt: skip
    add("--request-timeout-s", type=float, metavar="S", help="deadline of each request")
    add("--drain-s", type=float, default=30.0, metavar="S",
        help="after SIGTERM, accepted requests have so long (default: %(default)s)")  # fmt: skip
    add("--price-per-hour", type=float, metavar="X",
        help="of this machine: /metrics then tells the cost of tokens")  # fmt: skip
    add("--log-requests", action="store_true", help="a line of JSON on stderr for each request")
    add_engine_arguments(parser, {"trace.max_steps": KEPT_STEPS})


def run(args: argparse.Namespace) -> int:
    """Serve; returns 0 after it was stopped."""
    try:
        from minserve.server import ServerError, ServerOptions, serve
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the server needs the package {error.name}: pip install 'minserve[server]'"
        ) from None
    if args.log_requests:
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        logging.getLogger("minserve.server").setLevel(logging.INFO)
    try:
        options = ServerOptions(
            host=args.host,
            port=args.port,
            served_model_name=args.served_model_name,
            api_key=args.api_key if args.api_key is not None else os.environ.get(KEY),
            allow_origins=tuple(args.allow_origin),
            max_body_bytes=args.max_body_bytes,
            request_timeout_s=args.request_timeout_s,
            drain_s=args.drain_s,
            price_per_hour=args.price_per_hour,
        )
        return serve(
            args.model, engine_config(args), options, lambda line: print(line, file=sys.stderr)
        )
    except ServerError as error:
        raise UsageError(str(error)) from None
