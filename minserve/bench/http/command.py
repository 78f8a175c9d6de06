"""`minserve bench serve --url`: its options, and what it prints and writes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minserve.bench.common import emit, versions
from minserve.bench.http.client import PlayError, ServedModel
from minserve.bench.http.player import play, served_model
from minserve.bench.http.plot import check_plot, write_plot
from minserve.bench.http.records import PlayResult
from minserve.bench.http.saved import load_requests, save_requests
from minserve.bench.metrics import Slo
from minserve.bench.workloads.traffic import Traffic
from minserve.config import ConfigError
from minserve.files.output_file import check_writable
from minserve.hardware import describe_machine

DEFAULT_MAX_LEN = 2048
BACKENDS = {"completions": "openai", "chat": "openai-chat"}
"""Endpoint -> its name in the results of `vllm bench serve`."""
NOT_OVER_HTTP: Mapping[str, Any] = {
    "modelled": None, "shape": "trial", "set": [], "device": "cpu", "threads": None,
    "dtype": "float32", "vs": [],
}  # fmt: skip
"""Options about an engine in this process, and their defaults."""
MakeTraffic = Callable[[argparse.Namespace, int], Traffic]


def add_http_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that play against a server over HTTP."""
    group = parser.add_argument_group("over HTTP")
    made: list[argparse.Action] = []

    def add(*names: str, **options: Any) -> None:
        made.append(group.add_argument(*names, **options))

    add("--url", help="play against the OpenAI-compatible server there, such as http://HOST:8000")
    add(
        "--endpoint",
        choices=("completions", "chat"),
        default="completions",
        help="completions (token ids) or chat (text) (default: %(default)s)",
    )
    add("--text", action="store_true", help="send prompts as text, for servers that take no ids")
    add(
        "--standard-fields",
        action="store_true",
        help="send OpenAI's fields only, without ignore_eos and min_tokens",
    )
    add("--extra-body", metavar="JSON", help="an object of more fields for every request")
    add(
        "--max-concurrency",
        type=int,
        metavar="N",
        help="at most so many requests at once; without --request-rate, a closed loop of N clients",
    )
    add("--num-warmups", type=int, default=1, help="requests before the run (default: %(default)s)")
    add(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="of one request (default: %(default)s)",
    )
    add("--max-len", type=int, metavar="TOKENS", help="longest request (default: the server's)")
    add("--api-key", help="sent as a bearer token; --api-key-env keeps it out of sight")
    add("--api-key-env", metavar="NAME", help="the variable of the environment that has the key")
    add("--requests-in", metavar="FILE", help="play the requests that --save-requests wrote")
    add("--save-requests", metavar="FILE", help="write what is played, for another server")
    add("--save-detailed", action="store_true", help="lists by request in the JSON, as in vLLM")
    add(
        "--metric-percentiles",
        default="99",
        metavar="P,P",
        help="percentiles to report, such as 50,90,99.9 (default: %(default)s)",
    )
    add("--plot", metavar="FILE", help="latencies as a figure: .html, or .svg with kaleido")
    parser.set_defaults(http_options=tuple(made))


def refuse_http_options(args: argparse.Namespace) -> None:
    """Raise ConfigError for an option that has no effect without `--url`."""
    for option in args.http_options:
        if getattr(args, option.dest) != option.default:
            raise ConfigError(
                f"{option.option_strings[0]} is for playing over HTTP: add --url http://HOST:PORT, "
                "or leave it out"
            )


def run_http(args: argparse.Namespace, make_traffic: MakeTraffic) -> int:
    """Play and report; 130 if the run was stopped, 1 if no request was completed. Raises PlayError,
    and ConfigError for options that make no sense."""
    percentiles, slo, extra, key = _checked(args)
    served = _served(args, key)
    traffic = _traffic(args, served, make_traffic)
    if args.save_requests:
        save_requests(traffic, Path(args.save_requests))
    rate = args.request_rate
    if rate is None and args.max_concurrency is not None:
        rate = float("inf")
    result = play(
        args.url,
        traffic,
        model=served.name,
        endpoint=args.endpoint,
        as_text=args.text,
        standard_fields=args.standard_fields,
        extra_body=extra,
        rate_per_s=rate,
        max_concurrency=args.max_concurrency,
        num_warmups=args.num_warmups,
        timeout_s=args.timeout,
        api_key=key,
        progress=not args.no_progress,
    )
    report = _frame(args, traffic, result) | result.report(slo, percentiles, args.save_detailed)
    _print(report)
    emit(report, args.json)
    if args.plot:
        write_plot(result, slo, Path(args.plot), f"{result.model}: {traffic.name}")
    if not result.is_complete:
        return 130
    return 0 if result.of("completed") else 1


def _checked(
    args: argparse.Namespace,
) -> tuple[tuple[float, ...], Slo | None, Mapping[str, Any] | None, str | None]:
    """Percentiles, SLO, extra fields and key, checked before anything is sent."""
    try:
        percentiles = tuple(float(part) for part in args.metric_percentiles.split(","))
    except ValueError:
        percentiles = (-1.0,)
    if not all(0 <= percent <= 100 for percent in percentiles):
        raise ConfigError(
            f"--metric-percentiles {args.metric_percentiles}: expected numbers from 0 to 100 with "
            "commas between them, such as 50,90,99"
        )
    extra = None
    if args.extra_body is not None:
        try:
            extra = json.loads(args.extra_body)
        except ValueError:
            extra = None
        if not isinstance(extra, dict):
            raise ConfigError(
                f"--extra-body {args.extra_body}: expected a JSON object, such as "
                '\'{"cache_salt": "a"}\''
            )
    for name, default in NOT_OVER_HTTP.items():
        if getattr(args, name) != default:
            raise ConfigError(
                f"--{name} is about an engine in this process, and --url names a server that has "
                "its own settings: give one of them"
            )
    if not args.timeout > 0:
        raise ConfigError(f"--timeout {args.timeout}: expected a positive number of seconds")
    if args.requests_in and args.trace:
        raise ConfigError("--requests-in and --trace: both say what is played; give one of them")
    key = args.api_key
    if args.api_key_env is not None:
        key = os.environ.get(args.api_key_env)
        if not key:
            raise ConfigError(f"--api-key-env {args.api_key_env}: this variable is not set")
    if args.plot:
        check_plot(Path(args.plot))
    if args.save_requests:
        check_writable(Path(args.save_requests), "--save-requests")
    return percentiles, Slo.parse(args.goodput), extra, key


def _served(args: argparse.Namespace, key: str | None) -> ServedModel:
    """The model to ask for. Servers that list none are played against with `--model`."""
    try:
        found = served_model(args.url, key)
    except PlayError:
        if args.model is None:
            raise
        return ServedModel(args.model, None)
    return ServedModel(args.model or found.name, found.max_model_len)


def _traffic(args: argparse.Namespace, served: ServedModel, make_traffic: MakeTraffic) -> Traffic:
    if args.requests_in:
        return load_requests(args.requests_in)
    longest = args.max_len or served.max_model_len or DEFAULT_MAX_LEN
    return make_traffic(args, longest - 1)


def _frame(args: argparse.Namespace, traffic: Traffic, result: PlayResult) -> dict[str, Any]:
    """What was played, and where from."""
    return {
        "benchmark": "serve",
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": BACKENDS[args.endpoint],
        "backend": BACKENDS[args.endpoint],
        "label": None,
        "model_id": result.model,
        "tokenizer_id": None,
        "base_url": args.url,
        "num_prompts": result.num_requests,
        "request_rate": result.rate_per_s if result.rate_per_s is not None else "inf",
        "burstiness": None if args.requests_in or args.trace else args.burstiness,
        "max_concurrency": result.max_concurrency,
        "workload": traffic.name,
        "seed": traffic.seed,
        "prompts": "text" if args.text or args.endpoint == "chat" else "token ids",
        "client_versions": versions(),
        "client_machine": describe_machine().to_dict(),
    }


def _print(report: Mapping[str, Any]) -> None:
    def line(name: str, key: str, unit: str = "") -> None:
        if report.get(key) is not None:
            print(f"{name:36}{report[key]:12.4g} {unit}".rstrip(), file=sys.stderr)

    line("requests completed", "completed")
    for name, key in (
        ("refused (429)", "refused"),
        ("timed out", "timed_out"),
        ("failed, with the two above", "failed"),
        ("stopped while running", "interrupted"),
        ("not sent", "not_sent"),
    ):
        if report[key]:
            line(name, key)
    line("duration", "duration", "s")
    line("most requests at once", "max_concurrent_requests")
    line("output tokens", "output_throughput", "tokens/s")
    line("goodput", "request_goodput", "requests/s")
    for key in ("ttft", "tpot", "itl", "e2el"):
        for part in sorted(report, key=lambda name: (not name.startswith("median"), name)):
            words = part.split("_")
            if words[1:] == [key, "ms"] and words[0] not in ("mean", "std"):
                line(f"{words[0]} {key.upper()}", part, "ms")
    line("median TTFT from sending", "median_ttft_from_send_ms", "ms")
    line("P99 the client was late", "client_late_p99_ms", "ms")
    line("P99 the client took to react", "client_lag_p99_ms", "ms")
    line("the client's CPU", "client_cpu_share", "of a core")
    for warning in report["warnings"]:
        print(warning, file=sys.stderr)
