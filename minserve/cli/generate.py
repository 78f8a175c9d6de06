"""`minserve generate`: text on stdout as it is generated, figures on stderr.

Only generated text goes to stdout, so that it can be piped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minserve.cli.options import (
    add_model_arguments,
    add_sampling_arguments,
    engine_config,
    sampling_params,
)
from minserve.cli.report import figures
from minserve.cli.streams import check_stdout, check_writable, read_stdin, writing
from minserve.llm import LLM
from minserve.request import InvalidRequestError, SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("prompt", help="the text to continue; - reads it from stdin")
    parser.add_argument("--quiet", action="store_true", help="no figures on stderr")
    parser.add_argument(
        "--trace-file",
        type=Path,
        help="write the run's trace: .json for minserve, .perfetto.json for ui.perfetto.dev",
    )
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Generate; returns 0, or 1 if the request ended with an error."""
    check_stdout()
    if args.trace_file is not None:
        check_writable(args.trace_file, "--trace-file")
    prompt = read_stdin() if args.prompt == "-" else args.prompt
    if not prompt:
        raise InvalidRequestError("the prompt is empty: give some text to continue")
    with LLM(args.model, engine_config(args)) as llm:
        params = sampling_params(args, llm.default_sampling_params)
        error = stream_to_stdout(llm, llm.encode(prompt), params)
        if not args.quiet:
            print(figures(llm), file=sys.stderr)
        if args.trace_file is not None:
            with writing(args.trace_file, "--trace-file"):
                if args.trace_file.name.endswith(".perfetto.json"):
                    llm.trace.to_chrome_trace(args.trace_file)
                else:
                    llm.trace.to_json(args.trace_file)
    if error is not None:
        print(f"minserve: {error}", file=sys.stderr)
    return 0 if error is None else 1


def stream_to_stdout(
    llm: LLM, prompt: list[int], params: SamplingParams, parts: list[str] | None = None
) -> str | None:
    """Print the continuation as it is generated, and collect it in `parts`; returns the request's
    error, if it had one."""
    error = None
    for chunk in llm.stream(prompt, params):
        if chunk.text:
            print(chunk.text, end="", flush=True)
            if parts is not None:
                parts.append(chunk.text)
        error = chunk.error
    print(flush=True)
    return error
