"""`python -m minserve.bench.gpu`: the same as `minserve bench gpu`, from a checkout."""

from __future__ import annotations

import argparse
import sys

from minserve.bench.gpu import command

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m minserve.bench.gpu", description="Measure the engine on a GPU, in parts."
    )
    command.add_arguments(parser)
    try:
        sys.exit(command.run(parser.parse_args()))
    except KeyboardInterrupt:
        # Finished parts are kept; the same command continues from there.
        sys.exit(130)
