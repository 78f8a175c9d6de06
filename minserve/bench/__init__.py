"""Benchmarks: workloads, peers, interleaved races, and their reports.

`offline` measures throughput and `latency` a single stream, each against any number of peers in one
run; `forward` compares one token's forward pass of two models, `verify` the rows of a draft with
one row; `gpu` is the suite for a machine with a GPU. Every result names machine, versions,
workload, seed and both sides' settings. Benchmarks are not tests: no speed passes or fails here.
`commits` compares two checkouts, and fails if they generate different tokens.
"""
