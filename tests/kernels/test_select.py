"""Choosing operators: what runs where the C++ code cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minserve.kernels import (
    NativeUnavailable,
    TorchOps,
    TritonUnavailable,
    select,
    select_ops,
    why_not_interpreted,
    why_not_native,
)
from minserve.kernels.cpu.build import library_path

CPU = torch.device("cpu")

REPORT = """
import torch
from minserve.kernels import NativeUnavailable, select_ops, why_not_native
print(select_ops("auto", torch.device("cpu"), torch.float32).name)
print(why_not_native())
try:
    select_ops("native", torch.device("cpu"), torch.float32)
except NativeUnavailable as error:
    print(error)
"""


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", REPORT],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return out.splitlines()


def test_a_failing_compiler_falls_back_to_torch_and_says_why(tmp_path: Path) -> None:
    name, reason, error = lines(start(tmp_path, CXX="/bin/false"))
    assert name == "torch"
    assert reason.startswith("`/bin/false` failed with status 1")
    assert error.startswith("kernels.backend='native' cannot run: `/bin/false` failed")


def test_no_compiler_falls_back_to_torch_and_says_why(tmp_path: Path) -> None:
    name, reason, _ = lines(start(tmp_path, CXX="", PATH=str(tmp_path)))
    assert name == "torch" and reason.startswith("there is no C++ compiler: install")


@pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
def test_processes_that_build_at_the_same_time_all_succeed(tmp_path: Path) -> None:
    # A compiler that takes its time, and writes the library in two parts.
    library = library_path()
    compiler = tmp_path / "slow-c++"
    compiler.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo slow; exit; fi\n'
        "for last; do :; done\n"
        f'head -c 1000 {library} > "$last"; sleep 1; tail -c +1001 {library} >> "$last"\n'
    )
    compiler.chmod(0o755)
    processes = [start(tmp_path, CXX=str(compiler)) for _ in range(3)]
    assert [lines(process)[:2] for process in processes] == [["native", "None"]] * 3
    (built,) = (tmp_path / "minserve").glob("*.so")
    assert built.read_bytes() == library.read_bytes()
    assert len(list((tmp_path / "minserve").iterdir())) == 3  # Its digest, and the lock.


@pytest.mark.skipif(
    not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="there is no C++ compiler",
)
def test_native_runs_where_there_is_a_compiler() -> None:
    """All other tests of these operators are skipped where they do not run. So that no fault of
    theirs, found by their own check, hides behind a skip, this one is not."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert why_not_native(CPU, dtype) is None


def test_auto_is_torch_where_native_is_not_for_the_job() -> None:
    assert isinstance(select_ops("auto", torch.device("meta"), torch.float32), TorchOps)
    assert isinstance(select_ops("auto", CPU, torch.float16), TorchOps)
    assert isinstance(select_ops("torch", CPU, torch.float32), TorchOps)
    assert "float16" in (why_not_native(CPU, torch.float16) or "")


def test_native_where_it_cannot_run_is_a_sentence() -> None:
    with pytest.raises(NativeUnavailable, match=r"know float32, .* the model is in torch.float16"):
        select_ops("native", CPU, torch.float16)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 'auto', 'torch', 'native' or 'triton'"):
        select_ops("cutlass", CPU, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "interpreted", "reason"),
    [
        (torch.float32, "0", "for an NVIDIA GPU, and the device is 'cpu'"),
        (torch.float64, "1", "the model is in torch.float64"),
        (torch.bfloat16, "1", "computes bfloat16 wrongly"),
    ],
)
def test_triton_where_it_cannot_run_is_a_sentence(
    dtype: torch.dtype, interpreted: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    with pytest.raises(TritonUnavailable, match=reason):
        select_ops("triton", CPU, dtype)


@pytest.mark.parametrize(
    ("triton", "numpy", "runs"),
    [("3.6.0", "2.3.9", True), ("3.6.0", "2.5.5", False), ("3.7.1", "2.5.5", True)],
)
def test_an_interpreter_that_cannot_loop_says_what_to_install(
    triton: str, numpy: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select.importlib.metadata, "version", lambda name: triton)
    monkeypatch.setattr(select.np, "__version__", numpy)
    assert (why_not_interpreted() is None) == runs
    if not runs:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(TritonUnavailable, match=r"install triton>=3\.7 or numpy<2\.4"):
            select_ops("triton", CPU, torch.float32)
