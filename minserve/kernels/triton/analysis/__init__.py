"""Triton kernels under study: registers and spills, bytes moved, fastest tiles."""
