"""`minserve generate`: text on stdout as it is generated, figures on stderr.

Only generated text goes to stdout, so that it can be piped; with `--json`, one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minserve.cli.options import (
    add_model_arguments,
    add_sampling_arguments,
    engine_config,
    sampling_params,
)
from minserve.cli.report import figures
from minserve.cli.streams import UsageError, check_stdout, read_stdin
from minserve.files.output_file import check_writable, writing
from minserve.frontend.outputs import StreamChunk
from minserve.llm import LLM
from minserve.request import InvalidRequestError, Output, RequestMetrics, SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "prompts",
        nargs="+",
        metavar="prompt",
        help="the text to continue; - reads it from stdin; several with --json",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="a line of JSON per prompt on stdout, in their order: text, token ids, finish "
        "reason, times in seconds, counts",
    )
    parser.add_argument("--quiet", action="store_true", help="no figures on stderr")
    parser.add_argument(
        "--trace-file",
        type=Path,
        help="write the run's trace: .json for minserve, .perfetto.json for ui.perfetto.dev",
    )
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Generate; returns 0, or 1 if a request ended with an error."""
    check_stdout()
    if args.trace_file is not None:
        check_writable(args.trace_file, "--trace-file")
    prompts = _prompts(args)
    with LLM(args.model, engine_config(args), progress=not args.quiet) as llm:
        params = sampling_params(args, llm.default_sampling_params)
        if args.json:
            errors = _print_json(llm, prompts, params, progress=not args.quiet)
        else:
            errors = [stream_to_stdout(llm, llm.encode(prompts[0]), params)]
        if not args.quiet:
            print(figures(llm), file=sys.stderr)
        if args.trace_file is not None:
            with writing(args.trace_file, "--trace-file"):
                if args.trace_file.name.endswith(".perfetto.json"):
                    llm.trace.to_chrome_trace(args.trace_file)
                else:
                    llm.trace.to_json(args.trace_file)
    failed = [error for error in errors if error is not None]
    for error in failed:
        print(f"minserve: {error}", file=sys.stderr)
    return 1 if failed else 0


def _prompts(args: argparse.Namespace) -> list[str]:
    """The texts to continue. Raises UsageError, or InvalidRequestError for an empty one."""
    given = args.prompts
    if len(given) > 1 and not args.json:
        raise UsageError(
            f"{len(given)} prompts: expected one, because continuations would run into each other "
            "on stdout; put one prompt in quotes, or add --json for several"
        )
    if given.count("-") > 1:
        raise UsageError("the prompt - is given twice, and stdin can be read once: leave one")
    prompts = [read_stdin() if prompt == "-" else prompt for prompt in given]
    if not all(prompts):
        raise InvalidRequestError("the prompt is empty: give some text to continue")
    return prompts


def stream_to_stdout(llm: LLM, prompt: list[int], params: SamplingParams) -> str | None:
    """Print the continuation as it is generated; returns the request's error, if it had one."""
    return print_chunks(llm.stream(prompt, params))


def print_chunks(chunks: Iterable[StreamChunk], parts: list[str] | None = None) -> str | None:
    """Print the text of chunks as they come, and collect it in `parts`; returns the error of the
    last, if it had one."""
    error = None
    for chunk in chunks:
        if chunk.text:
            print(chunk.text, end="", flush=True)
            if parts is not None:
                parts.append(chunk.text)
        error = chunk.error
    print(flush=True)
    return error


def _print_json(
    llm: LLM, prompts: Sequence[str], params: SamplingParams, progress: bool
) -> list[str | None]:
    """Print an object per prompt; returns the error of each, if it had one."""
    outputs = llm.generate(prompts, params, progress=progress, errors="return")
    for output in outputs:
        # ASCII, because stdout may be unable to take other characters.
        print(json.dumps(to_dict(output), allow_nan=False))
    return [output.samples[0].error for output in outputs]


def to_dict(output: Output) -> dict[str, Any]:
    """What `--json` prints of an output with one sample."""
    sample = output.samples[0]
    return {
        "prompt": output.prompt,
        "text": sample.text,
        "prompt_token_ids": list(output.prompt_token_ids),
        "token_ids": list(sample.token_ids),
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
        "error": sample.error,
        "metrics": _all_of(sample.metrics),
    }


def _all_of(metrics: RequestMetrics) -> dict[str, Any]:
    """The fields and the figures derived from them, by their names in Python."""
    derived = [name for name, kind in vars(type(metrics)).items() if isinstance(kind, property)]
    return asdict(metrics) | {name: getattr(metrics, name) for name in derived}
