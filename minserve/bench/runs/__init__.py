"""The benchmarks: each runs engines and reports ratios with their spread."""
