"""The command line: generate, chat, serve, info, bench, zoo, lab, completion.

Finds the command, and turns errors meant for people into a sentence and an exit code: 0 done, 1 the
run failed or a file or stream cannot be read or written, 2 wrong usage, 130 interrupted, 141 the
reader of the output has gone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from minserve import __version__
from minserve.cli import streams
from minserve.cli.parser import COMMANDS, Parser, command_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Raises SystemExit as argparse does, after help and
    for arguments that it refuses."""
    words = list(sys.argv[1:] if argv is None else argv)
    if sys.stderr is None:  # print() would write figures and errors to stdout instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    prog = "minserve"
    try:
        try:
            name = _parser().parse_args(words[:1] or ["--help"]).command
            command, module = command_parser(name)
            args = command.parse_args(words[1:])
            prog = args.prog
            return int(module.run(args))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk is detected here, not when the interpreter ends
    except KeyboardInterrupt:
        streams.say("\nminserve: interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; keep the interpreter from complaining at exit.
        streams.silence(sys.stdout, sys.stderr)
        return 141
    except (ValueError, OSError, RuntimeError) as error:
        return streams.explain(error, prog)


def _parser() -> Parser:
    parser = Parser(
        prog="minserve",
        description="A compact but complete LLM serving engine, made to be looked into.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())
        + "\n\n`minserve COMMAND --help` has a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"minserve {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
