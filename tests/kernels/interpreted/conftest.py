"""These tests run in Triton's interpreter, which has to be switched on before Triton is imported:
`tests/kernels/test_triton.py` starts them in a process of their own."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
