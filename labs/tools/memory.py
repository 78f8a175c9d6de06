"""Peak memory of chapters: each is run headless from a fresh kernel, which is then asked.

`make memory` (or `memory.py labs/45*.ipynb`). Exits with 1 where a chapter takes more than the
1.2 GB that every chapter promises, so that two fit into the 2 GB of a small machine or of Binder,
one after the other.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError
from store import execute

LABS = Path(__file__).resolve().parent.parent
PROMISE_BYTES = 12 * 10**8

# The kernel's own high-water mark. Where /proc is missing, what the system says of the process.
_ASK = """
import pathlib as _p, re as _r, resource as _u, sys as _s
_status = _p.Path("/proc/self/status")
if _status.exists():
    print(int(_r.search(r"VmHWM:\\s+(\\d+) kB", _status.read_text())[1]) * 1024)
else:
    print(_u.getrusage(_u.RUSAGE_SELF).ru_maxrss * (1 if _s.platform == "darwin" else 1024))
"""


def peak_bytes(path: Path) -> int:
    """Run one chapter; the most memory its kernel held. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(_ASK))
    execute(notebook, path.parent)
    return int(notebook.cells[-1].outputs[0]["text"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="memory.py", description="Run chapters headless and say how much memory they took."
    )
    parser.add_argument("chapters", nargs="*", type=Path, metavar="CHAPTER", help="default: all")
    kept = True
    for path in parser.parse_args(argv).chapters or sorted(LABS.glob("[0-9][0-9]*_*.ipynb")):
        try:
            peak = peak_bytes(path)
        except CellExecutionError as error:
            print(f"{path.name}: not measured, a cell failed\n{error}", file=sys.stderr)
            return 1
        within = peak < PROMISE_BYTES
        kept &= within
        promise = f"{'within' if within else 'MORE THAN'} {PROMISE_BYTES / 1e9:.1f} GB"
        print(f"{path.name}: {peak / 1e9:.2f} GB at the peak, {promise}", flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
