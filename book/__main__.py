"""`python -m book`: build the site into `build/book`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from book.build import SITE, BookError, build, bytes_of
from book.records import RecordError


def main(argv: list[str] | None = None) -> int:
    """Build, and say how large the site is; 1 where it could not be built."""
    parser = argparse.ArgumentParser(prog="book", description="Build the book as a static site.")
    parser.add_argument("--out", type=Path, default=SITE, metavar="DIRECTORY")
    parser.add_argument(
        "--without-solutions", action="store_true", help="leave out the exercises' solutions"
    )
    options = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        notes = build(options.out.resolve(), solutions=not options.without_solutions)
    except (BookError, RecordError, OSError) as error:
        print(f"The book was not built: {error}", file=sys.stderr)
        return 1
    for note in notes:
        print(note)
    took, size = time.perf_counter() - start, bytes_of(options.out) / 1e6
    print(f"{size:.1f} MB in {took:.0f} s: open {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
