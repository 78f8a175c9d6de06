"""After loading, a process holds little more than the weights."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from minserve.bench.workloads.shapes import Shape, write_checkpoint
from minserve.kernels import why_not_native
from minserve.process.heap import return_freed

CHILD = """
import sys, torch
from minserve import EngineConfig
from minserve.kernels import select_ops
from minserve.loading import load_model

def held():
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("RssAnon"))) << 10

values = {"device": "cpu", "dtype": "float32", "kernels.backend": "native"}
select_ops("native", torch.device("cpu"), torch.float32)
load_model(sys.argv[2], EngineConfig().with_values(values), progress=False)
before = held()
model = load_model(sys.argv[1], EngineConfig().with_values(values), progress=False)
print(held() - before, model.weights.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's accounts")
@pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
@pytest.mark.skipif(not return_freed(), reason="this C library cannot be asked to")
def test_packing_leaves_no_holes_in_memory(tmp_path: Path) -> None:
    shape = Shape("made", "llama", 8192, 512, 16, 8, 4, 64, 1536, 256, 1e4, True)
    directory = write_checkpoint(shape, tmp_path / "made")
    command = [sys.executable, "-c", CHILD, str(directory), "zoo/draft"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    held, nbytes = map(int, done.stdout.split())
    assert nbytes > 150e6
    assert held < 1.06 * nbytes


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", without)
    assert not return_freed()
